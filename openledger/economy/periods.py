"""The durable count of periods: p0001, p0002, ... One is open; answers go into it."""

import re

import apsw

from openledger.core.database import writing
from openledger.core.errors import InvalidInput, NotFound

SCHEMA = """
CREATE TABLE IF NOT EXISTS periods(number INTEGER PRIMARY KEY, opened_ms INTEGER NOT NULL) STRICT;
"""
_PERIOD = re.compile(r"p[0-9]{4,9}")


class PeriodStore:
    def __init__(self, connection: apsw.Connection, time_ms: int):
        self._db = connection
        with writing(connection):
            connection.execute("INSERT OR IGNORE INTO periods VALUES (1, ?)", (time_ms,))

    def current(self) -> str:
        return period_name(self._newest())

    def open_next(self, time_ms: int) -> str:
        """Close the current period and open the next one."""
        with writing(self._db):
            number = self._newest() + 1
            self._db.execute("INSERT INTO periods VALUES (?, ?)", (number, time_ms))
        return period_name(number)

    def following(self) -> str:
        """The name of the period that opens next."""
        return period_name(self._newest() + 1)

    def catch_up(self, period: str, time_ms: int) -> None:
        """Open every period up to `period`, which the log has opened."""
        while self._newest() < int(period[1:]):
            self.open_next(time_ms)

    def check(self, period: str) -> str:
        """`period` if it is, or was, open. Raises InvalidInput for no period's name, NotFound for one not yet open."""
        if not isinstance(period, str) or not _PERIOD.fullmatch(period):
            raise InvalidInput(f"{period!r} is no period", code="invalid_period", param="period", fix="like p0001")
        if not 1 <= int(period[1:]) <= self._newest() or period != period_name(int(period[1:])):
            raise NotFound(f"there is no period {period} yet", code="period_not_found", param="period")
        return period

    def _newest(self) -> int:
        row = self._db.execute("SELECT max(number) FROM periods").fetchall()[0]
        return int(str(row[0]))


def period_name(number: int) -> str:
    return f"p{number:04d}"
