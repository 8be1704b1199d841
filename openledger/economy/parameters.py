"""The economy's parameters: one frozen, versioned set. Every fee and every payout names the version it used.

What bounds them and how they change stands in `ledger.parameters`; here are their meaning and the values of the start.
"""

from dataclasses import dataclass, fields
from typing import Any

from openledger.core.errors import InvalidInput
from openledger.core.money import NANO_PER_OPEN
from openledger.core.shares import RULE
from openledger.ledger.parameters import check_values, fee_split

_MINUTE_MS = 60_000
_DAY_MS = 24 * 60 * _MINUTE_MS
PRESETS: dict[str, dict[str, int]] = {
    "code": {
        "vote_delay_ms": _DAY_MS,
        "vote_period_ms": 14 * _DAY_MS,
        "vote_threshold_nano": 100 * NANO_PER_OPEN,
        "vote_quorum_ppm": 250_000,
        "vote_timelock_ms": _DAY_MS,
    },
    "docs": {
        "vote_delay_ms": _DAY_MS,
        "vote_period_ms": 7 * _DAY_MS,
        "vote_threshold_nano": 10_000 * NANO_PER_OPEN,
        "vote_quorum_ppm": 50_000,
        "vote_timelock_ms": 7 * _DAY_MS,
    },
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameters:
    """Parts of a fee in parts per million, and the rules' other numbers. Raises InvalidInput for a set that can't be.

    A fee is divided by `contributors_ppm` to `treasury_ppm`, and by the lines of those who run it: `compute_ppm` (who
    gives the machines), `reviewers_ppm`, `licensor_ppm` (of the base model), each to the account of that name, or to
    the treasury where it is empty. An owner's price is at most `max_price_nano` for one token.

    A settled share can be disputed for `dispute_window_ms`, against a deposit; a dispute that isn't decided within
    `dispute_resolve_ms` expires. A recomputed payout that differs by at most `dispute_tolerance_ppm` of the pool is the
    same. What was asked and answered is deleted `retention_ms` after it was authorized, but not before its pool is
    settled. It has to be a day longer than a dispute can last, or the content is gone before the dispute is decided.
    A second scorer works on no less than `dispute_readable_ppm` of what the first one could read, by what was paid.

    A hold is released `hold_timeout_ms` after it was placed, unless its answer was stored by then; a stored answer may
    be posted for another `posting_grace_ms`, so that an outage costs nobody. `shares_rule` names the rule of shares
    (`core.shares`), `z_milli` is its z. Ledgers that began before version 8 pay by the rule and the z of theirs until a
    vote; a vote can go back to them.

    `use_ppm` and `improvement_ppm` divide the contributors' pool: by influence on the answers sold, and by influence on
    the loss of the held-out set. `verbatim_ppm` and `citation_ppm` are what the channels of that name weigh in the
    shares. They stand in every settlement, and are 0: any other weight is refused, because a span or a citation says
    what looks alike and not what made the answer, has no standard error, and has no gain in a unit to which its scores
    could be added. A weight can be allowed once a channel's scores have all three.

    An answer can be refunded for `refund_window_ms`. A withdrawal is at least `payout_minimum_nano`. A contribution
    deposits `contribution_deposit_nano`; `datanet_fee_nano` and `adapter_fee_nano` are the price of creating a Datanet
    and of deploying an adapter. `emission_match_ppm` and `emission_cap_nano` (a period) rule what the community's
    vesting adds to fee-funded payouts (`ledger.emissions`).

    Stake comes back after `stake_cooldown_ms`; a nano-OPEN on a Datanet earns like `datanet_stake_ppm` of one on the
    adapter. A slash takes `slash_ppm` of it, and can be appealed for `slash_appeal_ms`. The `vote_` values are those of
    `ledger.governance`; `PRESETS` has two sets of them. Whatever spends money needs `spend_quorum_ppm` besides.
    `bounty_cap_nano` of what is unattributed can be spent in a period.

    A reputation starts at `reputation_start_ppm` and moves by `reputation_step_ppm` of the way with each outcome; from
    none to full it brings quotas from `quota_low_rows` to `quota_high_rows` a day, and reviews from `review_high_ppm`
    of the rows to `review_low_ppm`.

    An adapter is offered for sale where `witnesses_required` others than its owner gave nonces for the constant of its
    training (`economy.witnesses`); 0 asks for none. Ledgers that began before version 5 ask for none until a vote.

    For each `vote_threshold_nano` of a stake it is behind at most `open_proposals` that are Pending or Active, whoever
    proposes with it; 0 sets no limit, as in ledgers that began before version 6.
    """

    version: int = 8
    contributors_ppm: int = 500_000
    owner_ppm: int = 200_000
    stakers_ppm: int = 200_000
    treasury_ppm: int = 100_000
    compute_ppm: int = 0
    reviewers_ppm: int = 0
    licensor_ppm: int = 0
    compute_account: str = ""
    reviewers_account: str = ""
    licensor_account: str = ""
    use_ppm: int = 700_000
    improvement_ppm: int = 300_000
    verbatim_ppm: int = 0
    citation_ppm: int = 0
    minimum_fee_nano: int = 1
    max_price_nano: int = NANO_PER_OPEN
    shares_rule: str = RULE
    z_milli: int = 400
    hold_timeout_ms: int = 15 * _MINUTE_MS
    posting_grace_ms: int = 7 * _DAY_MS
    dispute_deposit_nano: int = NANO_PER_OPEN // 10
    dispute_window_ms: int = 14 * _DAY_MS
    dispute_resolve_ms: int = 14 * _DAY_MS
    dispute_tolerance_ppm: int = 10_000
    dispute_readable_ppm: int = 900_000
    retention_ms: int = 45 * _DAY_MS
    refund_window_ms: int = 30 * _DAY_MS
    payout_minimum_nano: int = NANO_PER_OPEN
    contribution_deposit_nano: int = 0
    datanet_fee_nano: int = 0
    adapter_fee_nano: int = 0
    emission_match_ppm: int = 0
    emission_cap_nano: int = 0
    stake_minimum_nano: int = NANO_PER_OPEN
    stake_cooldown_ms: int = 21 * _DAY_MS
    datanet_stake_ppm: int = 500_000
    slash_ppm: int = 100_000
    slash_appeal_ms: int = 21 * _DAY_MS
    bounty_cap_nano: int = 10_000 * NANO_PER_OPEN
    vote_delay_ms: int = PRESETS["code"]["vote_delay_ms"]
    vote_period_ms: int = PRESETS["code"]["vote_period_ms"]
    vote_timelock_ms: int = PRESETS["code"]["vote_timelock_ms"]
    vote_grace_ms: int = 14 * _DAY_MS
    vote_threshold_nano: int = PRESETS["code"]["vote_threshold_nano"]
    vote_quorum_ppm: int = PRESETS["code"]["vote_quorum_ppm"]
    spend_quorum_ppm: int = 500_000
    reputation_start_ppm: int = 100_000
    reputation_step_ppm: int = 50_000
    quota_low_rows: int = 500
    quota_high_rows: int = 20_000
    review_low_ppm: int = 20_000
    review_high_ppm: int = 500_000
    witnesses_required: int = 1
    open_proposals: int = 1

    def __post_init__(self) -> None:
        if type(self.version) is not int or self.version < 1:
            raise InvalidInput("versions are counted from 1", code="invalid_parameters", param="version")
        check_values(self.values)

    @property
    def values(self) -> dict[str, Any]:
        """Everything but the version, as the log holds it."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "version"}

    @property
    def split(self) -> dict[str, int]:
        """Role to parts per million of a fee."""
        return fee_split(self.values)

    @property
    def pool_split(self) -> dict[str, int]:
        """Part of the contributors' pool to parts per million."""
        return {"use": self.use_ppm, "improvement": self.improvement_ppm}

    @property
    def channels(self) -> dict[str, int]:
        """Channel that is no influence to its weight in the shares, in parts per million."""
        return {"verbatim": self.verbatim_ppm, "citation": self.citation_ppm}
