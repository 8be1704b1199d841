"""The economy's parameters: one frozen, versioned set. Every fee and every payout names the version it used."""

from dataclasses import dataclass

from openledger.core.errors import InvalidInput
from openledger.core.money import NANO_PER_OPEN

WHOLE_PPM = 1_000_000
_MINUTE_MS = 60_000
_DAY_MS = 24 * 60 * _MINUTE_MS


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameters:
    """Parts of a fee in parts per million, and the rules' other numbers. Raises InvalidInput for a set that can't be.

    A settled share can be disputed for `dispute_window_ms`, against a deposit; a dispute that isn't decided within
    `dispute_resolve_ms` expires. A recomputed payout that differs by at most `dispute_tolerance_ppm` of the pool is the
    same. What was asked and answered is deleted `retention_ms` after it was authorized, at the latest.

    A hold is released `hold_timeout_ms` after it was placed, unless its answer was stored by then; a stored answer may
    be posted for another `posting_grace_ms`, so that an outage costs nobody. `z_milli` is the rule of shares' z.
    """

    version: int = 1
    contributors_ppm: int = 500_000
    owner_ppm: int = 200_000
    stakers_ppm: int = 200_000
    treasury_ppm: int = 100_000
    minimum_fee_nano: int = 1
    z_milli: int = 1000
    hold_timeout_ms: int = 15 * _MINUTE_MS
    posting_grace_ms: int = 7 * _DAY_MS
    dispute_deposit_nano: int = NANO_PER_OPEN // 10
    dispute_window_ms: int = 14 * _DAY_MS
    dispute_resolve_ms: int = 14 * _DAY_MS
    dispute_tolerance_ppm: int = 10_000
    retention_ms: int = 30 * _DAY_MS

    def __post_init__(self) -> None:
        parts = self.split
        if any(type(part) is not int or part < 0 for part in parts.values()) or sum(parts.values()) != WHOLE_PPM:
            raise InvalidInput(
                f"the parts of a fee sum to {sum(parts.values())} parts per million",
                code="invalid_split",
                param="split",
                fix=f"give non-negative whole numbers that sum to {WHOLE_PPM}",
            )
        if self.minimum_fee_nano < 1 or self.z_milli < 0 or self.hold_timeout_ms < 1 or self.posting_grace_ms < 0:
            raise InvalidInput("a parameter is below its least value", code="invalid_parameters", param="parameters")
        _check_disputes(self)

    @property
    def split(self) -> dict[str, int]:
        """Role to parts per million."""
        return {
            "contributors": self.contributors_ppm,
            "owner": self.owner_ppm,
            "stakers": self.stakers_ppm,
            "treasury": self.treasury_ppm,
        }


def _check_disputes(given: Parameters) -> None:
    least = {
        "dispute_deposit_nano": 1,
        "dispute_window_ms": 0,
        "dispute_resolve_ms": 1,
        "dispute_tolerance_ppm": 0,
        "retention_ms": 1,
    }
    for name, value in least.items():
        if type(getattr(given, name)) is not int or getattr(given, name) < value:
            raise InvalidInput(f"{name} is a whole number from {value}", code="invalid_parameters", param=name)
