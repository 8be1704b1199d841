"""Money: integers of the smallest part of one unit of account, how they are written, and the one way to divide them.

1 OPEN = 10^9 nano-OPEN; the whole supply of 10^9 OPEN is 10^18 nano-OPEN and fits a signed 64-bit integer. Who wants no
token reckons in a currency: its smallest part is a millionth. Names that end in `_nano` are integers of the smallest
part, whichever it is; only what people read and write depends on the unit, and `showing` says which that is.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from openledger.core.errors import InvalidInput

NANO_PER_OPEN = 10**9
SUPPLY_NANO = 10**18
_AMOUNT = re.compile(r"(\d{1,13})(?:\.(\d{1,9}))?")
_UNIT = re.compile(r"[A-Z]{3,8}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """A unit of account by its name: OPEN in nano-OPEN, or a currency (`EUR`) in its millionths. Raises InvalidInput
    for a name that can't be."""

    name: str

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _UNIT.fullmatch(self.name):
            raise InvalidInput(
                f"{self.name!r} is no unit of account",
                code="invalid_unit",
                param="unit",
                fix="write OPEN, or a currency's code in capitals, such as EUR",
            )

    @property
    def decimals(self) -> int:
        return 9 if self.name == "OPEN" else 6

    @property
    def smallest(self) -> str:
        """What amounts count: `nano-OPEN`, `micro-EUR`."""
        return f"{'nano' if self.decimals == 9 else 'micro'}-{self.name}"

    def as_many(self, amount_nano: int) -> int:
        """As many of these as `amount_nano` (nano-OPEN) is OPEN, and at least the smallest part where it isn't 0."""
        return max(1, amount_nano * 10**self.decimals // NANO_PER_OPEN) if amount_nano else 0


OPEN = Unit(name="OPEN")
_shown: ContextVar[Callable[[], Unit]] = ContextVar("unit of account", default=lambda: OPEN)


@contextmanager
def showing(unit: Unit | Callable[[], Unit]) -> Iterator[None]:
    """Amounts that are written or read inside are of `unit`, or of the one that it gives when the first is; OPEN where
    nothing else is said."""
    token = _shown.set((lambda: unit) if isinstance(unit, Unit) else unit)
    try:
        yield
    finally:
        _shown.reset(token)


def shown_unit() -> Unit:
    return _shown.get()()


def parse_open(text: str) -> int:
    """`"1.5"` to 1_500_000_000 nano-OPEN, or 1_500_000 micro-EUR. Raises InvalidInput for signs, exponents and more
    decimals than the unit has."""
    unit = shown_unit()
    match = _AMOUNT.fullmatch(text.strip())
    if match is None or len(match[2] or "") > unit.decimals:
        raise InvalidInput(
            f"{text!r} is not an amount of {unit.name}",
            code="invalid_amount",
            param="amount",
            fix=f"write digits with at most {unit.decimals} decimals, for example 12.5",
        )
    amount_nano = int(match[1]) * 10**unit.decimals + int((match[2] or "").ljust(unit.decimals, "0"))
    if amount_nano > SUPPLY_NANO:
        raise InvalidInput(f"{text} {unit.name} is more than there can be", code="invalid_amount", param="amount")
    return amount_nano


def format_open(amount_nano: int) -> str:
    """1_500_000_000 nano-OPEN to `"1.5"`; exact, without an exponent and without the unit's name."""
    decimals = shown_unit().decimals
    sign, amount = ("-", -amount_nano) if amount_nano < 0 else ("", amount_nano)
    whole, fraction = divmod(amount, 10**decimals)
    return f"{sign}{whole}.{fraction:0{decimals}d}".rstrip("0").rstrip(".") if fraction else f"{sign}{whole}"


def format_money(amount_nano: int) -> str:
    """As `format_open`, with the unit: `"1.5 OPEN"`."""
    return f"{format_open(amount_nano)} {shown_unit().name}"


def split(total_nano: int, weights: Mapping[str, int]) -> dict[str, int]:
    """Divide `total_nano` in proportion to integer `weights`, preserving the sum exactly.

    Largest remainder method (Hamilton); equal remainders go to the smaller id. Raises InvalidInput for a negative
    total, a negative weight, or weights that are all zero while there is something to divide.
    """
    if total_nano < 0 or any(weight < 0 for weight in weights.values()):
        raise InvalidInput("a split takes no negative total or weight", code="invalid_split")
    total_weight = sum(weights.values())
    if total_weight == 0:
        if total_nano == 0:
            return dict.fromkeys(weights, 0)
        raise InvalidInput("nothing to split by: every weight is zero", code="invalid_split")
    parts = {key: total_nano * weight // total_weight for key, weight in weights.items()}
    by_remainder = sorted(weights, key=lambda key: (-(total_nano * weights[key] % total_weight), key))
    for key in by_remainder[: total_nano - sum(parts.values())]:
        parts[key] += 1
    return parts
