"""Idempotency keys of calls that are idempotent by what they do: a key stands for one request, and no other.

Such a call answers a retry with the same dispute, appeal or setting anyway. What a key adds is that a caller who sends
it with another body by mistake is told so. Kept durably before the call is made, and for `KEPT_MS` after it.
"""

import apsw

from openledger.core.database import writing
from openledger.core.errors import idempotency_conflict

KEPT_MS = 30 * 24 * 60 * 60 * 1000
SCHEMA = """
CREATE TABLE IF NOT EXISTS requests(
  caller TEXT NOT NULL, key TEXT NOT NULL, digest TEXT NOT NULL, time_ms INTEGER NOT NULL, PRIMARY KEY (caller, key)
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS requests_by_time ON requests(time_ms);
"""


class RequestStore:
    def __init__(self, connection: apsw.Connection):
        self._db = connection

    def check(self, caller: str, key: str, digest: str, now_ms: int) -> None:
        """Raises Conflict (`idempotency_conflict`) where `caller` sent this key with another request."""
        with writing(self._db):
            self._db.execute("DELETE FROM requests WHERE time_ms < ?", (now_ms - KEPT_MS,))
            self._db.execute("INSERT OR IGNORE INTO requests VALUES (?, ?, ?, ?)", (caller, key, digest, now_ms))
            query = "SELECT digest FROM requests WHERE caller = ? AND key = ?"
            known = self._db.execute(query, (caller, key)).get
        if known != digest:
            raise idempotency_conflict()
