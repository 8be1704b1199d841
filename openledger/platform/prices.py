"""What is sold where nobody names prices costs, for each prompt and each completion token, in the ledger's unit."""

from collections.abc import Sequence

from openledger.core.money import Unit

ADAPTER_PRICES = (200_000, 1_000_000)  # nano-OPEN: 0.0002 and 0.001 of the unit
BASE_PRICES = (100_000, 500_000)


def prices_in(
    unit: Unit, given: Sequence[int | None] | None = None, usual: tuple[int, int] = ADAPTER_PRICES
) -> tuple[int, int]:
    """`given`, in the smallest part of `unit`; what isn't given is as many of the unit as `usual` is OPEN."""
    prompt_nano, completion_nano = given or (None, None)
    return (
        unit.as_many(usual[0]) if prompt_nano is None else prompt_nano,
        unit.as_many(usual[1]) if completion_nano is None else completion_nano,
    )
