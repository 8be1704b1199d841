"""Money: integers of nano-OPEN, and the one way to divide them.

1 OPEN = 10^9 nano-OPEN; the whole supply of 10^9 OPEN is 10^18 nano-OPEN and fits a signed 64-bit integer.
"""

import re
from collections.abc import Mapping

from openledger.core.errors import InvalidInput

NANO_PER_OPEN = 10**9
SUPPLY_NANO = 10**18
_AMOUNT = re.compile(r"(\d{1,10})(?:\.(\d{1,9}))?")


def parse_open(text: str) -> int:
    """`"1.5"` to 1_500_000_000 nano-OPEN. Raises InvalidInput for signs, exponents and more than nine decimals."""
    match = _AMOUNT.fullmatch(text.strip())
    if match is None:
        raise InvalidInput(
            f"{text!r} is not an amount of OPEN",
            code="invalid_amount",
            param="amount",
            fix="write digits with at most nine decimals, for example 12.5",
        )
    amount_nano = int(match[1]) * NANO_PER_OPEN + int((match[2] or "").ljust(9, "0"))
    if amount_nano > SUPPLY_NANO:
        raise InvalidInput(f"{text} OPEN is more than the whole supply", code="invalid_amount", param="amount")
    return amount_nano


def format_open(amount_nano: int) -> str:
    """1_500_000_000 to `"1.5"`; exact, without an exponent."""
    sign, amount = ("-", -amount_nano) if amount_nano < 0 else ("", amount_nano)
    whole, fraction = divmod(amount, NANO_PER_OPEN)
    return f"{sign}{whole}.{fraction:09d}".rstrip("0").rstrip(".") if fraction else f"{sign}{whole}"


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
