"""From a pool and its scores to payouts: the statement that the log holds, and the transfers that follow from it.

Pure: reads and stores nothing. The ids derive from adapter and period alone, so a pool can be paid once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from openledger.core.errors import InvalidInput
from openledger.core.ids import check_name, derived_id
from openledger.core.money import split
from openledger.core.shares import RULE, shares_ppb
from openledger.core.values import UNATTRIBUTED, ContributorScores, Settlement
from openledger.economy.parameters import Parameters
from openledger.ledger import accounts as names
from openledger.ledger.statements import SETTLEMENT, answers_root, evidence_of, parts_by_account
from openledger.ledger.transfers import Batch, Transfer

_LINEAGE = ("adapter_digest", "datanet", "datanet_version", "row_root")


def payout_id(adapter: str, period: str, place: int = 0) -> str:
    """The id of a settlement's transfer number `place`; number 0 exists once the pool is settled."""
    return derived_id("pay", adapter, period, str(place))


def check_scores(scores: ContributorScores) -> None:
    """Raises InvalidInput for scores that can't be settled: floats, odd names, errors that are missing or negative."""
    check_name(scores.adapter, "adapter")
    numbers = [*scores.scores_nano.values(), *scores.errors_nano.values(), scores.gain_nano]
    if any(type(number) is not int for number in numbers):
        raise InvalidInput("scores, errors and gain are whole numbers", code="invalid_scores", param="scores")
    for contributor in scores.scores_nano:
        names.check_account_id(contributor, "contributor_id")
    if any(not isinstance(text, str) for text in (scores.method, *scores.quality, *scores.quality.values())):
        raise InvalidInput("method and quality are text", code="invalid_scores", param="quality")
    shares_ppb(scores.scores_nano, scores.errors_nano, scores.gain_nano, 0)


def settlement_statement(
    scores: ContributorScores,
    usages: Sequence[Mapping[str, Any]],
    accounts: Mapping[str, str],
    parameters: Parameters,
) -> dict[str, Any]:
    """What the log says of one settlement; everything from answers to payouts can be recomputed from it.

    `usages` are the pool's answers in the order of the log; `accounts` says where a contributor wants to be paid,
    by default `contributor:<id>`.
    """
    evidence = evidence_of(usages)
    pool_nano = sum(item[1] for item in evidence)
    shares = shares_ppb(scores.scores_nano, scores.errors_nano, scores.gain_nano, parameters.z_milli)
    return {
        "format": SETTLEMENT,
        "adapter": scores.adapter,
        "period": scores.period,
        "lineage": _lineages(usages),
        "pool_nano": pool_nano,
        "answers_root": answers_root(evidence),
        "num_answers": len(evidence),
        "method": scores.method,
        "quality": dict(scores.quality),
        "rule": RULE,
        "z_milli": parameters.z_milli,
        "parameters": parameters.version,
        "scores_nano": dict(scores.scores_nano),
        "errors_nano": dict(scores.errors_nano),
        "gain_nano": scores.gain_nano,
        "shares_ppb": shares,
        "payouts_nano": split(pool_nano, shares),
        "accounts": {contributor: _account(contributor, accounts) for contributor in shares},
    }


def payout_transfers(statement: Mapping[str, Any]) -> list[Transfer]:
    """One transfer for each paid account, by account id."""
    adapter, period = statement["adapter"], statement["period"]
    due = parts_by_account(statement["payouts_nano"], statement["accounts"])
    return [
        Transfer(
            transfer_id=payout_id(adapter, period, place),
            debit=names.pool_account(adapter, period),
            credit=account,
            amount_nano=amount_nano,
            code="payout",
            reference=f"{adapter}:{period}",
        )
        for place, (account, amount_nano) in enumerate(sorted(due.items()))
    ]


def settlement_from(batch: Batch) -> Settlement:
    """The result that a settlement's batch recorded."""
    statement = batch.statement or {}
    return Settlement(
        adapter=statement["adapter"],
        period=statement["period"],
        pool_nano=statement["pool_nano"],
        shares_ppb=dict(statement["shares_ppb"]),
        payouts_nano=dict(statement["payouts_nano"]),
        transfer_ids={transfer.credit: transfer.transfer_id for transfer in batch.transfers},
    )


def empty_settlement(scores: ContributorScores, parameters: Parameters) -> Settlement:
    """A pool into which nobody paid pays nobody."""
    shares = shares_ppb(scores.scores_nano, scores.errors_nano, scores.gain_nano, parameters.z_milli)
    return Settlement(
        adapter=scores.adapter,
        period=scores.period,
        pool_nano=0,
        shares_ppb=shares,
        payouts_nano=dict.fromkeys(shares, 0),
        transfer_ids={},
    )


def as_replay(settlement: Settlement) -> Settlement:
    return replace(settlement, replayed=True)


def _account(contributor: str, accounts: Mapping[str, str]) -> str:
    if contributor == UNATTRIBUTED:
        return names.UNATTRIBUTED
    return accounts.get(contributor, f"contributor:{contributor}")


def _lineages(usages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The adapters behind the answers: one, unless it was trained again within the period."""
    found = {usage["adapter_digest"]: {name: usage[name] for name in _LINEAGE} for usage in usages}
    return [found[digest] for digest in sorted(found)]
