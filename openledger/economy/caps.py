"""Spending caps: how much one API key may spend in a day. Counted before the hold, with the most an answer can cost.

A day is one of UTC. What a hold reserves counts until its answer is paid for, and then the fee; a released hold counts
nothing. So a key can't spend more than its cap, however many answers are being generated at once.
"""

from datetime import UTC, datetime

import apsw

from openledger.core.database import writing
from openledger.core.errors import InsufficientFunds, InvalidInput
from openledger.core.money import SUPPLY_NANO, format_money, format_open, shown_unit

DAY_MS = 24 * 60 * 60_000
SCHEMA = """
CREATE TABLE IF NOT EXISTS key_caps(key_digest TEXT PRIMARY KEY, cap_nano INTEGER NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS spending(
  answer_id TEXT PRIMARY KEY, key_digest TEXT NOT NULL, day INTEGER NOT NULL, amount_nano INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS spending_by_key ON spending(key_digest, day);
"""


class CapStore:
    def __init__(self, connection: apsw.Connection):
        self._db = connection

    def set(self, key_digest: str, cap_nano: int) -> None:
        """From now on; raises InvalidInput for no amount."""
        if type(cap_nano) is not int or not 0 < cap_nano <= SUPPLY_NANO:
            raise InvalidInput(
                f"{cap_nano!r} is no daily cap: a whole number of {shown_unit().smallest} from 1",
                code="invalid_amount",
                param="daily_cap_nano",
            )
        query = "INSERT INTO key_caps VALUES (?, ?) ON CONFLICT DO UPDATE SET cap_nano = excluded.cap_nano"
        with writing(self._db):
            self._db.execute(query, (key_digest, cap_nano))

    def of(self, key_digest: str) -> int | None:
        row = self._db.execute("SELECT cap_nano FROM key_caps WHERE key_digest = ?", (key_digest,)).fetchone()
        return None if row is None else int(str(row[0]))

    def spent_nano(self, key_digest: str, time_ms: int) -> int:
        """What the key has spent and reserved on the day of `time_ms`."""
        query = "SELECT coalesce(sum(amount_nano), 0) FROM spending WHERE key_digest = ? AND day = ?"
        row = self._db.execute(query, (key_digest, time_ms // DAY_MS)).fetchall()[0]
        return int(str(row[0]))

    def reserve(self, key_digest: str, answer_id: str, amount_nano: int, time_ms: int) -> None:
        """Count the most that an answer can cost, once. Raises InsufficientFunds (`spending_cap_reached`)."""
        if self._db.execute("SELECT 1 FROM spending WHERE answer_id = ?", (answer_id,)).fetchone():
            return
        cap_nano = self.of(key_digest)
        left_nano = None if cap_nano is None else max(0, cap_nano - self.spent_nano(key_digest, time_ms))
        if left_nano is not None and amount_nano > left_nano:
            raise InsufficientFunds(
                f"this key can spend {format_money(left_nano)} more today, this needs up to"
                f" {format_open(amount_nano)}: {format_open(amount_nano - left_nano)} are missing",
                code="spending_cap_reached",
                param="api_key",
                fix=f"raise the key's daily cap, ask for fewer tokens, or wait until {_next_day(time_ms)} UTC",
            )
        with writing(self._db):
            values = (answer_id, key_digest, time_ms // DAY_MS, amount_nano)
            self._db.execute("INSERT INTO spending VALUES (?, ?, ?, ?)", values)

    def spend(self, answer_id: str, fee_nano: int) -> None:
        """The answer cost `fee_nano` of what was reserved; 0 frees all of it."""
        with writing(self._db):
            self._db.execute("UPDATE spending SET amount_nano = ? WHERE answer_id = ?", (fee_nano, answer_id))


def _next_day(time_ms: int) -> str:
    return datetime.fromtimestamp((time_ms // DAY_MS + 1) * DAY_MS // 1000, UTC).strftime("%Y-%m-%d %H:%M")
