"""Genesis and vesting: how the whole supply comes into being, and when each bucket lets go of what.

    openledger.genesis/1   the whole supply into buckets, and what of each circulates at once
    openledger.release/1   one bucket's amount of one month, to the bucket's recipient

    released up to month m = rest x min(max(m - first + 1, 0), months) / months, rounded down
    amount of month m      = released up to m - released up to m - 1

`rest` is what doesn't circulate at once. So a bucket's months differ by at most one nano-OPEN and sum to it exactly,
and anybody can compute each of them. Month m has come at the start's day and time of day (UTC) m calendar months later;
where a month has no such day, on its last one. Months are counted from the start and never from each other.
"""

import calendar
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

from openledger.core.errors import Conflict, InvalidInput, NotFound
from openledger.core.ids import check_name
from openledger.core.money import NANO_PER_OPEN, SUPPLY_NANO
from openledger.ledger.accounts import GENESIS, check_account_id
from openledger.ledger.statements import Statement

GENESIS_FORMAT = "openledger.genesis/1"
RELEASE = "openledger.release/1"
FIELDS = {GENESIS_FORMAT: {"start_ms", "buckets", "issued_nano"}, RELEASE: {"bucket", "month", "amount_nano"}}
COMMUNITY = "treasury:community"
ECOSYSTEM = "treasury:ecosystem"
Move = tuple[str, str, int, str]  # debit, credit, nano-OPEN, code
_MAX_MONTHS = 1200
_SEATS_NANO = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """`total_nano` of the supply; `initial_nano` circulates at once, the rest in `months` equal months from month
    `first_month` on. Raises InvalidInput for a plan that can't be."""

    name: str
    total_nano: int
    initial_nano: int
    first_month: int
    months: int
    recipient: str

    def __post_init__(self) -> None:
        check_name(self.name, "bucket")
        check_account_id(self.recipient, "recipient")
        numbers = (self.total_nano, self.initial_nano, self.first_month, self.months)
        if any(type(number) is not int or number < 0 for number in numbers) or self.recipient.startswith(GENESIS):
            raise _invalid(f"{self.name}: amounts and months are whole numbers from 0, and somebody receives them")
        if not 0 < self.total_nano <= SUPPLY_NANO or self.initial_nano > self.total_nano:
            raise _invalid(f"{self.name}: what circulates at once is a part of the bucket, and that of the supply")
        if bool(self.rest_nano) != bool(self.months) or self.rest_nano < self.months:
            raise _invalid(f"{self.name}: what doesn't circulate at once has months, each with something to release")
        if self.months and not 0 < self.first_month <= self.last_month <= _MAX_MONTHS:
            raise _invalid(f"{self.name}: months are counted from 1 to {_MAX_MONTHS}")

    @property
    def rest_nano(self) -> int:
        return self.total_nano - self.initial_nano

    @property
    def last_month(self) -> int:
        return self.first_month + self.months - 1 if self.months else 0

    @property
    def account(self) -> str:
        return f"{GENESIS}:{self.name}"

    def released_nano(self, month: int) -> int:
        """What months up to `month` release together; what circulates at once isn't in it."""
        gone = min(max(month - self.first_month + 1, 0), self.months)
        return self.rest_nano * gone // self.months if self.months else 0

    def amount_nano(self, month: int) -> int:
        """What `month` alone releases."""
        return self.released_nano(month) - self.released_nano(month - 1)


def standard_plan(investors: str = "user:investors", team: str = "user:team", liquidity: str = "user:liquidity") -> \
        tuple[Bucket, ...]:  # fmt: skip
    """1,000,000,000 OPEN: community 51.71 %, investors 18.29, team 15, ecosystem 10, liquidity 5; 21.55 % at once."""
    return (
        _bucket("community", 517_100_000, 165_500_000, 1, 48, COMMUNITY),
        _bucket("ecosystem", 100_000_000, 0, 1, 48, ECOSYSTEM),
        _bucket("investors", 182_900_000, 0, 13, 36, investors),
        _bucket("team", 150_000_000, 0, 13, 36, team),
        _bucket("liquidity", 50_000_000, 50_000_000, 0, 0, liquidity),
    )


def month_start_ms(start_ms: int, month: int) -> int:
    """When `month` (0 is the start) has come, in milliseconds since the epoch."""
    start = datetime.fromtimestamp(start_ms // 1000, UTC)
    year, place = divmod(start.year * 12 + start.month - 1 + month, 12)
    day = min(start.day, calendar.monthrange(year, place + 1)[1])
    moment = start.replace(year=year, month=place + 1, day=day)
    return int(moment.timestamp()) * 1000 + start_ms % 1000


@dataclass(slots=True)
class Vesting:
    """Genesis, once there was one, and the last month that each bucket released."""

    start_ms: int = 0
    buckets: dict[str, Bucket] = field(default_factory=dict)
    last: dict[str, int] = field(default_factory=dict)

    def plan_genesis(self, statement: Statement) -> list[Move]:
        """Raises Conflict for a second genesis, InvalidInput for buckets that aren't the supply."""
        if self.buckets:
            raise Conflict("the supply is distributed already", code="genesis_done", param="buckets")
        buckets = [Bucket(**values) for values in statement["buckets"]]
        if len({bucket.name for bucket in buckets}) != len(buckets):
            raise _invalid("a bucket stands there twice")
        if sum(bucket.total_nano for bucket in buckets) != SUPPLY_NANO:
            raise _invalid("the buckets don't sum to the supply")
        start_ms, issued_nano = statement["start_ms"], statement["issued_nano"]
        if type(start_ms) is not int or not 0 <= start_ms < 2**45 or type(issued_nano) is not int:
            raise _invalid("the start is a time in milliseconds, and what was issued before a whole number")
        if not 0 <= issued_nano <= _payer(buckets).initial_nano:
            raise _invalid("more was issued before genesis than circulates from one bucket")
        return [move for bucket in buckets for move in _genesis_moves(bucket, buckets, issued_nano)]

    def apply_genesis(self, statement: Statement) -> None:
        self.start_ms = statement["start_ms"]
        self.buckets = {values["name"]: Bucket(**values) for values in statement["buckets"]}
        self.last = {name: max(bucket.first_month - 1, 0) for name, bucket in self.buckets.items()}

    def plan_release(self, statement: Statement, time_ms: int) -> list[Move]:
        """Raises NotFound for a bucket that isn't there, Conflict for a month before its time or out of order."""
        bucket, month = self.buckets.get(statement["bucket"]), statement["month"]
        if bucket is None:
            raise NotFound(f"there is no bucket {statement['bucket']!r}", code="bucket_not_found", param="bucket")
        if type(month) is not int or month != self.last[bucket.name] + 1 or month > bucket.last_month:
            raise Conflict(f"{bucket.name} doesn't release month {month} next", code="wrong_month", param="month")
        if time_ms < month_start_ms(self.start_ms, month):
            raise Conflict(f"month {month} hasn't come yet", code="not_vested", param="month")
        if statement["amount_nano"] != bucket.amount_nano(month) or bucket.amount_nano(month) < 1:
            raise InvalidInput(
                f"{bucket.name} releases {bucket.amount_nano(month)} nano-OPEN in month {month}",
                code="wrong_amount",
                param="amount_nano",
            )
        return [(bucket.account, bucket.recipient, statement["amount_nano"], "release")]

    def apply_release(self, statement: Statement) -> None:
        self.last[statement["bucket"]] = statement["month"]

    def due(self, time_ms: int) -> list[tuple[str, int, int]]:
        """(bucket, month, nano-OPEN) of every month that has come and wasn't released, in their order."""
        found = []
        for name, bucket in self.buckets.items():
            month = self.last[name] + 1
            while month <= bucket.last_month and month_start_ms(self.start_ms, month) <= time_ms:
                found.append((month, name, bucket.amount_nano(month)))
                month += 1
        return [(name, month, amount_nano) for month, name, amount_nano in sorted(found)]

    def next_ms(self) -> int | None:
        """When the next month is released; None where nothing is left."""
        waiting = [self.last[name] + 1 for name, bucket in self.buckets.items() if self.last[name] < bucket.last_month]
        return month_start_ms(self.start_ms, min(waiting)) if waiting else None

    def circulating_nano(self) -> int:
        """What has left the buckets."""
        return sum(bucket.initial_nano + bucket.released_nano(self.last[name]) for name, bucket in self.buckets.items())


def genesis_statement(start_ms: int, buckets: Sequence[Bucket], issued_nano: int) -> dict[str, Any]:
    """`issued_nano` was issued before there were buckets, or is kept back (`kept_nano`); the bucket of which most
    circulates at once bears it."""
    told = [asdict(bucket) for bucket in buckets]
    return {"format": GENESIS_FORMAT, "start_ms": start_ms, "buckets": told, "issued_nano": issued_nano}


def kept_nano(buckets: Sequence[Bucket], issued_nano: int) -> int:
    """What stays in genesis, so that rounds of nonces (`nonces`) can still borrow their nano-OPEN each."""
    return min(_SEATS_NANO, max(0, _payer(buckets).initial_nano - issued_nano)) if buckets else 0


def _genesis_moves(bucket: Bucket, buckets: Sequence[Bucket], issued_nano: int) -> list[Move]:
    before_nano = issued_nano if bucket is _payer(buckets) else 0
    moves = [(GENESIS, bucket.account, bucket.total_nano - before_nano, "genesis")]
    if bucket.initial_nano - before_nano:
        moves.append((bucket.account, bucket.recipient, bucket.initial_nano - before_nano, "circulating"))
    return moves


def _payer(buckets: Sequence[Bucket]) -> Bucket:
    return max(buckets, key=lambda bucket: (bucket.initial_nano, bucket.name))


def _bucket(name: str, total: int, initial: int, first_month: int, months: int, recipient: str) -> Bucket:
    return Bucket(
        name=name,
        total_nano=total * NANO_PER_OPEN,
        initial_nano=initial * NANO_PER_OPEN,
        first_month=first_month,
        months=months,
        recipient=recipient,
    )


def _invalid(reason: str) -> InvalidInput:
    return InvalidInput(reason, code="invalid_genesis", param="buckets")
