"""What other parameters would have done to a settled period: the same answers, scores and verdicts, divided anew.

Nothing is written. Tokens and prices are as they were, and nobody is assumed to act otherwise; what could not be read
is taken as the same part of the pool. Scores, gain and ceilings weigh answers by the fees that were paid, all alike: so
they are taken as they stand where another minimum changes fees. A settlement of one part stays one.

Which rows repeat others, and what these moved, a settlement says by its own rule of shares alone, and nobody can tell
by another without the rows. So where another rule is asked for that leaves repeated rows unpaid, those that the
settlement names are taken, none where its rule pays for every row, and `unpaid_as_settled` says so: what such a change
would do to repeated rows isn't in the figures.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from openledger.core.money import split
from openledger.core.shares import WHOLE_PPM, leaves_unpaid
from openledger.core.values import ContributorScores
from openledger.economy.parameters import Parameters
from openledger.economy.settlement import settlement_statement
from openledger.ledger.accounts import TREASURY
from openledger.ledger.statements import PARTS, fee_nano

Statement = Mapping[str, Any]


def simulate_pool(
    settlement: Statement, usages: Sequence[Statement], verdicts: Sequence[Statement], parameters: Parameters
) -> dict[str, Any]:
    """One pool, as it was paid and as `parameters` would have paid it: nano-OPEN as [was, would be]."""
    again = [_charged(usage, parameters) for usage in usages]
    would = _settled(settlement, again, verdicts, parameters)
    was_paid, would_pay = settlement["payouts_nano"], would["payouts_nano"]
    return {
        "adapter": settlement["adapter"],
        "shares_rule": [settlement["rule"], parameters.shares_rule],
        "unpaid_as_settled": _unpaid_as_settled(settlement["rule"], parameters.shares_rule),
        "fees_nano": [_sum(usages, "fee_nano"), _sum(again, "fee_nano")],
        "pool_nano": [settlement["pool_nano"], would["pool_nano"]],
        "parts_nano": _roles(usages, again),
        "payouts_nano": {
            name: [was_paid.get(name, 0), would_pay.get(name, 0)] for name in sorted({*was_paid, *would_pay})
        },
    }


def _unpaid_as_settled(was: str, would_be: str) -> bool:
    return leaves_unpaid(would_be) and would_be != was


def _charged(usage: Statement, parameters: Parameters) -> dict[str, Any]:
    prices = {**usage, "minimum_fee_nano": parameters.minimum_fee_nano}
    fee = fee_nano(usage["num_prompt_tokens"], usage["num_completion_tokens"], prices)
    return {**usage, "fee_nano": fee, "parts_nano": split(fee, parameters.split)}


def _settled(
    settlement: Statement, usages: Sequence[Statement], verdicts: Sequence[Statement], parameters: Parameters
) -> dict[str, Any]:
    pool_nano = sum(usage["parts_nano"]["contributors"] for usage in usages)
    lost_nano = pool_nano * settlement.get("unreadable_nano", 0) // settlement["pool_nano"]
    scores = {name: _scores(settlement, name) for name in PARTS}
    if "parts" not in settlement:
        parameters = replace(parameters, use_ppm=WHOLE_PPM, improvement_ppm=0)
    use = scores["use"] or _nothing(settlement)
    return settlement_statement(
        use, usages, settlement["accounts"], parameters, scores["improvement"], verdicts, lost_nano
    )


def _scores(settlement: Statement, name: str) -> ContributorScores | None:
    part = settlement.get("parts", {"use": {**settlement, "measured": True}}).get(name)
    if part is None or not part["measured"]:
        return None
    return ContributorScores(
        adapter=settlement["adapter"],
        period=settlement["period"],
        method=part["method"],
        scores_nano=dict(part["scores_nano"]),
        errors_nano=dict(part["errors_nano"]),
        gain_nano=part["gain_nano"],
        quality=dict(part["quality"]),
        ceilings=tuple((gain_nano, fees_nano) for gain_nano, fees_nano in part.get("ceilings", ())),
        unpaid_nano=dict(part.get("unpaid_nano", {})),
        repeats=tuple(tuple(row) for row in settlement.get("repeated_rows", ())),
    )


def _nothing(settlement: Statement) -> ContributorScores:
    return ContributorScores(
        adapter=settlement["adapter"],
        period=settlement["period"],
        method="",
        scores_nano={},
        errors_nano={},
        gain_nano=0,
    )


def _roles(was: Sequence[Statement], would: Sequence[Statement]) -> dict[str, list[int]]:
    """By who got it: a part of stakers where nobody had staked is the treasury's."""
    found: dict[str, list[int]] = {}
    for place, side in enumerate((was, would)):
        for usage in side:
            for role, part_nano in usage["parts_nano"].items():
                nobodys = role == "stakers" and usage["accounts"][role] == TREASURY
                found.setdefault("treasury" if nobodys else role, [0, 0])[place] += part_nano
    return dict(sorted(found.items()))


def _sum(usages: Sequence[Statement], name: str) -> int:
    return sum(usage[name] for usage in usages)
