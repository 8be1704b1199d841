"""Idempotency keys of calls that are idempotent by what they do: a key stands for one request, and no other.

Such a call answers a retry with the same dispute, appeal or setting anyway. What a key adds is that a caller who sends
it with another body by mistake is told so. Kept durably before the call is made.
"""

import apsw

from openledger.core.errors import Conflict
from openledger.ledger.database import writing

SCHEMA = """
CREATE TABLE IF NOT EXISTS requests(
  caller TEXT NOT NULL, key TEXT NOT NULL, digest TEXT NOT NULL, PRIMARY KEY (caller, key)
) STRICT, WITHOUT ROWID;
"""


class RequestStore:
    def __init__(self, connection: apsw.Connection):
        self._db = connection

    def check(self, caller: str, key: str, digest: str) -> None:
        """Raises Conflict (`idempotency_conflict`) where `caller` sent this key with another request."""
        with writing(self._db):
            self._db.execute("INSERT OR IGNORE INTO requests VALUES (?, ?, ?)", (caller, key, digest))
            query = "SELECT digest FROM requests WHERE caller = ? AND key = ?"
            known = self._db.execute(query, (caller, key)).get
        if known != digest:
            raise Conflict(
                "this idempotency key was used for another request",
                code="idempotency_conflict",
                param="idempotency_key",
                fix="send a new key for a new request",
            )
