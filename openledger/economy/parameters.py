"""The economy's parameters: one frozen, versioned set. Every fee and every payout names the version it used."""

from dataclasses import dataclass

from openledger.core.errors import InvalidInput
from openledger.core.money import NANO_PER_OPEN
from openledger.core.shares import RULE, RULES, WHOLE_PPM

_MINUTE_MS = 60_000
_DAY_MS = 24 * 60 * _MINUTE_MS


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameters:
    """Parts of a fee in parts per million, and the rules' other numbers. Raises InvalidInput for a set that can't be.

    A settled share can be disputed for `dispute_window_ms`, against a deposit; a dispute that isn't decided within
    `dispute_resolve_ms` expires. A recomputed payout that differs by at most `dispute_tolerance_ppm` of the pool is the
    same. What was asked and answered is deleted `retention_ms` after it was authorized, but not before its pool is
    settled. It has to be a day longer than a dispute can last, or the content is gone before the dispute is decided.
    A second scorer works on no less than `dispute_readable_ppm` of what the first one could read, by what was paid.

    A hold is released `hold_timeout_ms` after it was placed, unless its answer was stored by then; a stored answer may
    be posted for another `posting_grace_ms`, so that an outage costs nobody. `shares_rule` names the rule of shares
    (`core.shares`), `z_milli` is its z.

    `use_ppm` and `improvement_ppm` divide the contributors' pool: by influence on the answers sold, and by influence on
    the loss of the held-out set. `verbatim_ppm` and `citation_ppm` are what the channels of that name weigh in the
    shares. They stand in every settlement, and are 0: any other weight is refused, because a span or a citation says
    what looks alike and not what made the answer, has no standard error, and has no gain in a unit to which its scores
    could be added. A weight can be allowed once a channel's scores have all three.
    """

    version: int = 3
    contributors_ppm: int = 500_000
    owner_ppm: int = 200_000
    stakers_ppm: int = 200_000
    treasury_ppm: int = 100_000
    use_ppm: int = 700_000
    improvement_ppm: int = 300_000
    verbatim_ppm: int = 0
    citation_ppm: int = 0
    minimum_fee_nano: int = 1
    shares_rule: str = RULE
    z_milli: int = 500
    hold_timeout_ms: int = 15 * _MINUTE_MS
    posting_grace_ms: int = 7 * _DAY_MS
    dispute_deposit_nano: int = NANO_PER_OPEN // 10
    dispute_window_ms: int = 14 * _DAY_MS
    dispute_resolve_ms: int = 14 * _DAY_MS
    dispute_tolerance_ppm: int = 10_000
    dispute_readable_ppm: int = 900_000
    retention_ms: int = 45 * _DAY_MS

    def __post_init__(self) -> None:
        _check_whole(self.split, "a fee", "split")
        _check_whole(self.pool_split, "a pool", "pool_split")
        for channel, weight in self.channels.items():
            if type(weight) is not int or weight != 0:
                raise InvalidInput(
                    f"{channel} can't weigh {weight!r} in the shares: its scores have no error and no gain",
                    code="unsupported_channel_weight",
                    param=f"{channel}_ppm",
                    fix="leave it at 0",
                )
        if self.shares_rule not in RULES:
            raise InvalidInput(
                f"there is no rule of shares {self.shares_rule!r}",
                code="unknown_rule",
                param="shares_rule",
                fix=f"one of {', '.join(RULES)}",
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

    @property
    def pool_split(self) -> dict[str, int]:
        """Part of the contributors' pool to parts per million."""
        return {"use": self.use_ppm, "improvement": self.improvement_ppm}

    @property
    def channels(self) -> dict[str, int]:
        """Channel that is no influence to its weight in the shares, in parts per million."""
        return {"verbatim": self.verbatim_ppm, "citation": self.citation_ppm}


def _check_whole(parts: dict[str, int], whole: str, param: str) -> None:
    if any(type(part) is not int or part < 0 for part in parts.values()) or sum(parts.values()) != WHOLE_PPM:
        raise InvalidInput(
            f"the parts of {whole} sum to {sum(parts.values())} parts per million",
            code="invalid_split",
            param=param,
            fix=f"give non-negative whole numbers that sum to {WHOLE_PPM}",
        )


def _check_disputes(given: Parameters) -> None:
    least = {
        "dispute_deposit_nano": 1,
        "dispute_window_ms": 0,
        "dispute_resolve_ms": 1,
        "dispute_tolerance_ppm": 0,
        "dispute_readable_ppm": 0,
        "retention_ms": 1,
    }
    for name, value in least.items():
        if type(getattr(given, name)) is not int or getattr(given, name) < value:
            raise InvalidInput(f"{name} is a whole number from {value}", code="invalid_parameters", param=name)
    if given.retention_ms < given.dispute_window_ms + given.dispute_resolve_ms + _DAY_MS:
        raise InvalidInput(
            "content is kept for less time than a dispute of it can last",
            code="invalid_parameters",
            param="retention_ms",
            fix="keep it for dispute_window_ms + dispute_resolve_ms and at least one day",
        )
