"""From a pool and its scores to payouts: the statement that the log holds, and the transfers that follow from it.

The pool has two parts, `use` and `improvement`, each divided by the shares of its own scores; what was not measured is
`unattributed`, and so is what answers paid into `use` whose content can't be read. The arithmetic stands in
`ledger.statements`, which checks it.
Pure: reads and stores nothing. The ids derive from adapter and period alone, so a pool can be paid once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from openledger.core.errors import InvalidInput
from openledger.core.ids import check_name, derived_id
from openledger.core.money import shown_unit, split
from openledger.core.shares import RULE, WHOLE_PPB, WHOLE_PPM, leaves_unpaid, shares_ppb, terms_of
from openledger.core.values import UNATTRIBUTED, ContributorScores, PoolPart, Settlement
from openledger.economy.parameters import Parameters
from openledger.ledger import accounts as names
from openledger.ledger.statements import (
    PARTS,
    SETTLEMENT,
    SETTLEMENT_1,
    answers_root,
    bounded_fee,
    check_repeats,
    divided,
    evidence_of,
    format_of,
    parts_by_account,
    pool_payouts,
    pool_shares,
    repeated_rows,
    unreadable_part,
)
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
    shares_ppb(
        scores.scores_nano,
        scores.errors_nano,
        scores.gain_nano,
        0,
        ceilings=scores.ceilings,
        unpaid_nano=scores.unpaid_nano,
    )
    check_repeats(scores.repeats, scores.unpaid_nano, RULE)


def check_improvement(improvement: ContributorScores | None, scores: ContributorScores) -> None:
    """Raises InvalidInput for scores that can't be settled, or are of another pool than `scores`."""
    if improvement is None:
        return
    check_scores(improvement)
    if (improvement.adapter, improvement.period) != (scores.adapter, scores.period):
        raise InvalidInput(
            "the scores of use and of improvement are of two pools", code="invalid_scores", param="improvement"
        )
    if improvement.ceilings:
        raise InvalidInput("held-out rows have no ceiling", code="invalid_scores", param="improvement")


def settlement_statement(
    scores: ContributorScores,
    usages: Sequence[Mapping[str, Any]],
    accounts: Mapping[str, str],
    parameters: Parameters,
    improvement: ContributorScores | None = None,
    verdicts: Sequence[Mapping[str, Any]] = (),
    unreadable_nano: int = 0,
) -> dict[str, Any]:
    """What the log says of one settlement; everything from answers to payouts can be recomputed from it.

    `scores` are those of use. `usages` are the pool's answers in the order of the log, `verdicts` say which of them
    were marked wrong; `accounts` says where a contributor wants to be paid, by default `contributor:<id>`.
    `unreadable_nano` of the pool was paid by answers whose content isn't there.
    """
    evidence = evidence_of(usages)
    pool_nano = sum(item[1] for item in evidence)
    parts = _parts(pool_nano, unreadable_nano, scores, improvement, parameters)
    payouts, rule = pool_payouts(parts), parameters.shares_rule
    return {
        "format": SETTLEMENT,
        "adapter": scores.adapter,
        "period": scores.period,
        "lineage": _lineages(usages),
        "pool_nano": pool_nano,
        "unreadable_nano": unreadable_nano,
        "answers_root": answers_root(evidence),
        "num_answers": len(evidence),
        "not_counted": sorted(verdict["commitment"] for verdict in verdicts),
        "rule": rule,
        **({"repeated_rows": repeated_rows(scores.repeats, rule)} if leaves_unpaid(rule) else {}),
        "z_milli": parameters.z_milli,
        "channels_ppm": parameters.channels,
        "parameters": parameters.version,
        "parts": parts,
        "shares_ppb": pool_shares(parts),
        "payouts_nano": payouts,
        "accounts": {contributor: _account(contributor, accounts) for contributor in payouts},
    }


def check_ceilings(scores: ContributorScores, usages: Sequence[Mapping[str, Any]], unreadable_nano: int) -> None:
    """As `ledger.statements.check_ceiling_fees`, before anything is written. Raises InvalidInput."""
    if not scores.ceilings:
        return
    stated, fees_nano = sum(fees for _, fees in scores.ceilings), sum(map(bounded_fee, usages))
    if stated > fees_nano or (stated < fees_nano and not unreadable_nano):
        raise InvalidInput(
            f"the ceilings are of answers that cost {stated} {shown_unit().smallest}, the pool's cost {fees_nano}",
            code="invalid_scores",
            param="ceilings",
            fix="attribute the pool again: all of its answers, and no others",
        )


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
    parts = {"use": {**statement, "ppm": WHOLE_PPM}} if format_of(statement) == SETTLEMENT_1 else statement["parts"]
    return Settlement(
        adapter=statement["adapter"],
        period=statement["period"],
        pool_nano=statement["pool_nano"],
        unreadable_nano=statement.get("unreadable_nano", 0),
        shares_ppb=dict(statement["shares_ppb"]),
        payouts_nano=dict(statement["payouts_nano"]),
        transfer_ids={transfer.credit: transfer.transfer_id for transfer in batch.transfers},
        parts=_read_parts(parts),
    )


def empty_settlement(
    scores: ContributorScores, improvement: ContributorScores | None, parameters: Parameters
) -> Settlement:
    """A pool into which nobody paid pays nobody."""
    parts = _parts(0, 0, scores, improvement, parameters)
    return Settlement(
        adapter=scores.adapter,
        period=scores.period,
        pool_nano=0,
        shares_ppb=pool_shares(parts),
        payouts_nano=pool_payouts(parts),
        transfer_ids={},
        parts=_read_parts(parts),
    )


def as_replay(settlement: Settlement) -> Settlement:
    return replace(settlement, replayed=True)


def _parts(
    pool_nano: int,
    unreadable_nano: int,
    scores: ContributorScores,
    improvement: ContributorScores | None,
    parameters: Parameters,
) -> dict[str, dict[str, Any]]:
    ppm, measured = parameters.pool_split, {"use": scores, "improvement": improvement}
    due = split(pool_nano, ppm)
    lost = {"use": unreadable_part(due["use"], pool_nano, unreadable_nano), "improvement": 0}
    return {
        name: {
            "ppm": ppm[name],
            "pool_nano": due[name],
            "unreadable_nano": lost[name],
            **_division(due[name], lost[name], measured[name], parameters),
        }
        for name in PARTS
    }


def _division(
    part_nano: int, unreadable_nano: int, scores: ContributorScores | None, parameters: Parameters
) -> dict[str, Any]:
    if scores is None:
        return {
            "measured": False,
            "shares_ppb": {UNATTRIBUTED: WHOLE_PPB},
            "payouts_nano": {UNATTRIBUTED: part_nano},
        }
    rule, terms = parameters.shares_rule, terms_of(parameters.shares_rule, scores.ceilings, scores.unpaid_nano)
    shares = shares_ppb(
        scores.scores_nano, scores.errors_nano, scores.gain_nano, parameters.z_milli, rule=rule, **terms
    )
    return {
        "measured": True,
        "method": scores.method,
        "quality": dict(scores.quality),
        "scores_nano": dict(scores.scores_nano),
        "errors_nano": dict(scores.errors_nano),
        "gain_nano": scores.gain_nano,
        **terms,
        "shares_ppb": shares,
        "payouts_nano": divided(part_nano, unreadable_nano, shares),
    }


def _read_parts(parts: Mapping[str, Mapping[str, Any]]) -> dict[str, PoolPart]:
    return {
        name: PoolPart(
            ppm=part["ppm"],
            pool_nano=part["pool_nano"],
            unreadable_nano=part.get("unreadable_nano", 0),
            measured=part.get("measured", True),
            method=part.get("method", ""),
            shares_ppb=dict(part["shares_ppb"]),
            payouts_nano=dict(part["payouts_nano"]),
        )
        for name, part in parts.items()
    }


def _account(contributor: str, accounts: Mapping[str, str]) -> str:
    if contributor == UNATTRIBUTED:
        return names.UNATTRIBUTED
    return accounts.get(contributor, f"contributor:{contributor}")


def _lineages(usages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The adapters behind the answers: one, unless it was trained again within the period."""
    found = {usage["adapter_digest"]: {name: usage[name] for name in _LINEAGE} for usage in usages}
    return [found[digest] for digest in sorted(found)]
