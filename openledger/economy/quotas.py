"""Quotas: how many rows a contributor may send to a Datanet in 24 hours, by reputation (`reputation.quota_rows`).

Counted when a contribution comes, before the gate; what the gate never judged is taken back. A contribution counts
once in 24 hours, however often it is sent; older counts are forgotten. A Datanet's own limit (`datanets.terms`)
stands beside this one.
"""

import apsw

from openledger.core.database import writing
from openledger.core.errors import InvalidInput, TooLarge
from openledger.core.ids import check_name
from openledger.ledger.accounts import check_account_id

SCHEMA = """
CREATE TABLE IF NOT EXISTS sent_rows(
  contribution_id TEXT PRIMARY KEY, contributor TEXT NOT NULL, datanet TEXT NOT NULL, num_rows INTEGER NOT NULL,
  sent_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS sent_rows_of ON sent_rows(contributor, datanet, sent_ms);
CREATE INDEX IF NOT EXISTS sent_rows_by_time ON sent_rows(sent_ms);
"""
_DAY_MS = 24 * 60 * 60_000
_MAX_ROWS = 10**6


class QuotaBook:
    def __init__(self, connection: apsw.Connection):
        self._db = connection

    def take(
        self, contributor: str, datanet: str, contribution_id: str, num_rows: int, quota_rows: int, now_ms: int
    ) -> None:
        """Count a contribution's rows. Raises TooLarge (`quota_exceeded`) where they are more than is left of
        `quota_rows`, InvalidInput for names or numbers that can't be."""
        check_account_id(contributor, "contributor")
        check_name(datanet, "datanet")
        check_name(contribution_id, "contribution_id")
        if type(num_rows) is not int or not 0 < num_rows <= _MAX_ROWS:
            raise InvalidInput("a contribution has rows", code="invalid_outcomes", param="num_rows")
        with writing(self._db):
            query = "SELECT 1 FROM sent_rows WHERE contribution_id = ?"
            if self._db.execute(query, (contribution_id,)).fetchone():
                return
            sent = self.sent(contributor, datanet, now_ms)
            if sent + num_rows > quota_rows:
                raise _exceeded(datanet, quota_rows, sent)
            self._db.execute("DELETE FROM sent_rows WHERE sent_ms <= ?", (now_ms - _DAY_MS,))
            values = (contribution_id, contributor, datanet, num_rows, now_ms)
            self._db.execute("INSERT INTO sent_rows VALUES (?, ?, ?, ?, ?)", values)

    def give_back(self, contribution_id: str) -> None:
        """What came to nothing counts nothing. May be repeated."""
        with writing(self._db):
            self._db.execute("DELETE FROM sent_rows WHERE contribution_id = ?", (contribution_id,))

    def sent(self, contributor: str, datanet: str, now_ms: int) -> int:
        """Rows of the last 24 hours."""
        query = "SELECT coalesce(sum(num_rows), 0) FROM sent_rows WHERE contributor = ? AND datanet = ? AND sent_ms > ?"
        return int(str(self._db.execute(query, (contributor, datanet, now_ms - _DAY_MS)).fetchall()[0][0]))


def _exceeded(datanet: str, quota_rows: int, sent: int) -> TooLarge:
    return TooLarge(
        f"{datanet!r} takes {quota_rows} rows in 24 hours from a contributor of this reputation; {sent} were sent",
        code="quota_exceeded",
        param="drafts",
        fix=f"send {max(0, quota_rows - sent)} rows now: the quota grows with rows that are accepted",
    )
