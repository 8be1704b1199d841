"""API keys: who calls. Only a SHA-256 of each key is kept; the key itself is shown once."""

import secrets

import apsw

from openledger.core.database import writing
from openledger.core.errors import Unauthenticated
from openledger.core.hashing import digest_bytes

PREFIX = "olk_"
SCHEMA = """
CREATE TABLE IF NOT EXISTS api_keys(
  key_digest TEXT PRIMARY KEY, account TEXT NOT NULL, created_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
"""


class KeyStore:
    def __init__(self, connection: apsw.Connection):
        self._db = connection

    def create(self, account: str, time_ms: int) -> str:
        """A new key for `account`: `olk_` and 32 random bytes. It can't be shown again."""
        key = PREFIX + secrets.token_urlsafe(32)
        with writing(self._db):
            self._db.execute("INSERT INTO api_keys VALUES (?, ?, ?)", (_digest(key), account, time_ms))
        return key

    def digest_of(self, key: str) -> str:
        """What stands for a key where it may be stored. Raises Unauthenticated."""
        self.account_of(key)
        return _digest(key)

    def account_of(self, key: str) -> str:
        """Raises Unauthenticated."""
        row = self._db.execute("SELECT account FROM api_keys WHERE key_digest = ?", (_digest(key),)).fetchone()
        if row is None:
            raise Unauthenticated(
                "the API key is missing or not known",
                code="invalid_api_key",
                param="api_key",
                fix=f"send a key that starts with {PREFIX}; make one with create_key",
            )
        return str(row[0])


def _digest(key: str) -> str:
    return digest_bytes(key.encode("utf-8", "surrogatepass"))
