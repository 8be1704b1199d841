"""Emission: what vesting released to the community, paid beside a settled pool by one named rule.

    rule match/1    emission_c = split(E, fee-funded payouts of the pool's contributors)_c
                    E = min(sum of payouts x emission_match_ppm / 10^6, what is left of the period's cap)

Only contributors get any, in proportion to what fees paid them in that settlement; `unattributed` gets none. The cap
is for one period over all its pools. `emission_match_ppm` is 0 unless governance says otherwise, and bounded so that
whoever buys from himself in all roles gets back at most what he paid (`parameters`). Nothing here is yield: without
fees there is no emission. The transfers' code is `emission`, so that no report takes them for what customers paid.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from openledger.core.errors import Conflict, InvalidInput
from openledger.core.money import split
from openledger.core.values import UNATTRIBUTED as NOBODY
from openledger.ledger.parameters import ParameterBook, Values
from openledger.ledger.statements import Statement, parts_by_account
from openledger.ledger.vesting import COMMUNITY, Move

EMISSION = "openledger.emission/1"
RULE = "match/1"
FIELDS = {EMISSION: {"rule", "adapter", "period", "paid_nano", "accounts", "emission_nano"}}
_WHOLE_PPM = 10**6


@dataclass(slots=True)
class Emissions:
    """What each settled pool got, in all and by account, and each period in all."""

    pools: dict[tuple[str, str], int] = field(default_factory=dict)
    accounts_nano: dict[tuple[str, str], dict[str, int]] = field(default_factory=dict)
    periods_nano: dict[str, int] = field(default_factory=dict)

    def left_nano(self, period: str, values: Values) -> int:
        return max(0, int(values["emission_cap_nano"]) - self.periods_nano.get(period, 0))

    def plan(self, statement: Statement, parameters: ParameterBook) -> list[Move]:
        """Raises Conflict where the pool got its emission, InvalidInput for amounts that don't follow from the rule."""
        adapter, period = statement["adapter"], statement["period"]
        if (adapter, period) in self.pools:
            raise Conflict(f"{adapter} got its emission for {period}", code="already_emitted", param="period")
        values = parameters.of_period(period)[1]
        due = emission(statement["paid_nano"], self.left_nano(period, values), values)
        if statement["rule"] != RULE or not due or statement["emission_nano"] != due:
            raise InvalidInput(
                "the emission doesn't follow from its rule", code="wrong_emission", param="emission_nano"
            )
        return [(COMMUNITY, statement["accounts"][name], amount_nano, "emission") for name, amount_nano in due.items()]

    def apply(self, statement: Statement) -> None:
        total_nano = sum(statement["emission_nano"].values())
        key = (statement["adapter"], statement["period"])
        self.pools[key] = total_nano
        self.accounts_nano[key] = parts_by_account(statement["emission_nano"], statement["accounts"])
        self.periods_nano[statement["period"]] = self.periods_nano.get(statement["period"], 0) + total_nano


def emission(paid_nano: Mapping[str, int], left_nano: int, values: Values) -> dict[str, int]:
    """Nano-OPEN by contributor, those that get any, by name; empty where there is none."""
    paid = {name: amount for name, amount in sorted(paid_nano.items()) if amount > 0 and name != NOBODY}
    total_nano = min(sum(paid.values()) * values["emission_match_ppm"] // _WHOLE_PPM, left_nano)
    if total_nano < 1:
        return {}
    return {name: amount for name, amount in split(total_nano, paid).items() if amount}
