"""One transfer's derivation in words, from what the log holds: answers -> pool -> scores -> shares -> transfer."""

from collections.abc import Mapping, Sequence
from typing import Any

from openledger.core.money import format_money, format_open, shown_unit
from openledger.core.shares import RULE_3, ceiling_nano
from openledger.ledger import appeals, contributor_keys, deposits, disputes, offers, seals, signers
from openledger.ledger.statements import PARTS, SETTLEMENT_1, SETTLEMENTS, USAGE, format_of
from openledger.ledger.transfers import Batch, Transfer
from openledger.ledger.verdicts import VERDICT

_BASIS = {"use": "influence on the answers sold", "improvement": "influence on the loss of the held-out set"}


def explain(transfer: Transfer, batch: Batch) -> list[str]:
    """Lines that can each be checked against the log."""
    head = (
        f"{transfer.transfer_id}: {format_money(transfer.amount_nano)} from {transfer.debit} to {transfer.credit}"
        f" ({transfer.code}), batch {batch.seq} of the log"
    )
    statement = batch.statement or {}
    for kind in (disputes, appeals, contributor_keys, deposits, offers, seals, signers):
        if format_of(statement) in kind.FORMATS:
            return [head, *kind.lines(statement)]
    if format_of(statement) in SETTLEMENTS:
        return [head, *_payout_lines(transfer, statement)]
    if format_of(statement) == USAGE:
        return [head, *_fee_lines(statement)]
    if format_of(statement) == VERDICT:
        return [head, _verdict_line(statement)]
    return [head]


def _fee_lines(usage: Mapping[str, Any]) -> list[str]:
    prompt = f"{usage['num_prompt_tokens']} x {format_open(usage['prompt_price_nano'])}"
    completion = f"{usage['num_completion_tokens']} x {format_open(usage['completion_price_nano'])}"
    return [
        f"answer {usage['answer_id']} under {usage['adapter']} ({usage['adapter_digest'][:12]}),"
        f" period {usage['period']}",
        f"fee: prompt tokens {prompt} + completion tokens {completion}, at least"
        f" {format_open(usage['minimum_fee_nano'])} = {format_money(usage['fee_nano'])}",
        *(f"{role}: {format_money(part)} to {usage['accounts'][role]}" for role, part in usage["parts_nano"].items()),
    ]


def _verdict_line(verdict: Mapping[str, Any]) -> str:
    return (
        f"{verdict['account']} marked answer {verdict['answer_id']} {verdict['verdict']}: it counts nothing in the use"
        f" part of the pool of {verdict['adapter']} in {verdict['period']}; no money moves"
    )


def _payout_lines(transfer: Transfer, settlement: Mapping[str, Any]) -> list[str]:
    return [
        f"pool of {settlement['adapter']} in {settlement['period']}: {settlement['num_answers']} answers paid"
        f" {format_money(settlement['pool_nano'])} into it (answers root {settlement['answers_root']})",
        *(_lineage_line(line) for line in settlement["lineage"]),
        f"rule {settlement['rule']}, z = {settlement['z_milli']}/1000, parameters version {settlement['parameters']}",
        *_division_lines(transfer.credit, settlement),
    ]


def _lineage_line(line: Mapping[str, Any]) -> str:
    adapter = f"adapter {line['adapter_digest'][:12]}"
    if not line["datanet"]:
        return f"{adapter} is a merge of adapters, trained on no rows of its own"
    return (
        f"{adapter} was trained on {line['datanet']} version {line['datanet_version']}"
        f" (row root {line['row_root'][:12]})"
    )


def _division_lines(account: str, settlement: Mapping[str, Any]) -> list[str]:
    paid = sorted(name for name, target in settlement["accounts"].items() if target == account)
    if format_of(settlement) == SETTLEMENT_1:
        return _part_lines(paid, settlement, "use")
    lines = [line for name in PARTS for line in _named_part_lines(paid, settlement, name)]
    if _unwitnessed(settlement):
        lines.insert(0, "no witness gave a nonce for the run's constant: whoever trained it could try out several")
    if settlement["not_counted"]:
        lines.insert(0, f"{len(settlement['not_counted'])} of these answers were marked wrong and count nothing in use")
    if settlement.get("repeated_rows"):
        whose = " of their contributor's" if settlement["rule"] == RULE_3 else ""
        lines.insert(0, f"{len(settlement['repeated_rows'])} rows repeat earlier ones{whose} and aren't paid")
    return [*lines, *(f"{name}: in all {_result(name, settlement)}" for name in paid)]


def _unwitnessed(settlement: Mapping[str, Any]) -> bool:
    """Whether a part says so of any generation that it pays for."""
    told = [part.get("quality", {}) for part in settlement["parts"].values()]
    return any(
        name.rpartition(".")[2] == "constant" and text == "row_root" for own in told for name, text in own.items()
    )


def _named_part_lines(paid: Sequence[str], settlement: Mapping[str, Any], name: str) -> list[str]:
    part = settlement["parts"][name]
    head = f"{name}, {_BASIS[name]}: {part['ppm']} parts per million of the pool, {format_money(part['pool_nano'])}"
    if not part["measured"]:
        return [f"{head}; not measured, so all of it is unattributed"]
    if part["unreadable_nano"]:
        head = f"{head}; {format_open(part['unreadable_nano'])} of it by answers that can't be read, unattributed"
    return [head, *_part_lines(paid, part, name)]


def _part_lines(paid: Sequence[str], part: Mapping[str, Any], name: str) -> list[str]:
    """How one part, or the whole pool of a settlement that has one, was divided."""
    head = f"scores by {part['method']}; gain {part['gain_nano']} {_unit_of(name)}"
    if part.get("ceilings"):
        head = f"{head}; {_ceiling_clause(part)}"
    return [head, *(_contributor_line(who, part, name) for who in paid if who in part["shares_ppb"])]


def _ceiling_clause(part: Mapping[str, Any]) -> str:
    """What the ceiling did to the shares (`core.shares`)."""
    owed_nano = ceiling_nano(part["ceilings"])
    if not owed_nano:
        return "no ceiling: nothing was gained on held-out answers, so the fees count whole"
    if owed_nano <= max(part["gain_nano"], sum(max(0, score) for score in part["scores_nano"].values())):
        return f"the answers can owe the data {owed_nano}, which is no more than was measured and bounds nothing"
    return f"the answers can owe the data {owed_nano} at most: shares are of that, and what is left of it is nobody's"


def _contributor_line(contributor: str, part: Mapping[str, Any], name: str) -> str:
    if contributor not in part["scores_nano"]:
        return f"{contributor}: what the others' evidence leaves, {_result(contributor, part)}"
    score, error = part["scores_nano"][contributor], part["errors_nano"][contributor]
    unpaid_nano = part.get("unpaid_nano", {}).get(contributor)
    unpaid = f" ({unpaid_nano} of it by rows that repeat earlier ones: unpaid)" if unpaid_nano else ""
    return f"{contributor}: score {score}{unpaid} with error {error} {_unit_of(name)}, {_result(contributor, part)}"


def _unit_of(name: str) -> str:
    """Of a part's scores."""
    return f"{shown_unit().smallest} x nats" if name == "use" else "nano-nats on the held-out set"


def _result(contributor: str, divided: Mapping[str, Any]) -> str:
    return (
        f"share {divided['shares_ppb'][contributor]} parts per billion"
        f" -> {format_money(divided['payouts_nano'][contributor])}"
    )
