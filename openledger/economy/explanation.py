"""One transfer's derivation in words, from what the log holds: answers -> pool -> scores -> shares -> transfer."""

from collections.abc import Mapping
from typing import Any

from openledger.core.money import format_open
from openledger.ledger import disputes
from openledger.ledger.statements import SETTLEMENT, USAGE, format_of
from openledger.ledger.transfers import Batch, Transfer


def explain(transfer: Transfer, batch: Batch) -> list[str]:
    """Lines that can each be checked against the log."""
    head = (
        f"{transfer.transfer_id}: {format_open(transfer.amount_nano)} OPEN from {transfer.debit} to {transfer.credit}"
        f" ({transfer.code}), batch {batch.seq} of the log"
    )
    statement = batch.statement or {}
    if format_of(statement) in disputes.FORMATS:
        return [head, *disputes.lines(statement)]
    if format_of(statement) == SETTLEMENT:
        return [head, *_payout_lines(transfer, statement)]
    if format_of(statement) == USAGE:
        return [head, *_fee_lines(statement)]
    return [head]


def _fee_lines(usage: Mapping[str, Any]) -> list[str]:
    prompt = f"{usage['num_prompt_tokens']} x {format_open(usage['prompt_price_nano'])}"
    completion = f"{usage['num_completion_tokens']} x {format_open(usage['completion_price_nano'])}"
    return [
        f"answer {usage['answer_id']} under {usage['adapter']} ({usage['adapter_digest'][:12]}),"
        f" period {usage['period']}",
        f"fee: prompt tokens {prompt} + completion tokens {completion}, at least"
        f" {format_open(usage['minimum_fee_nano'])} = {format_open(usage['fee_nano'])} OPEN",
        *(
            f"{role}: {format_open(part)} OPEN to {usage['accounts'][role]}"
            for role, part in usage["parts_nano"].items()
        ),
    ]


def _payout_lines(transfer: Transfer, settlement: Mapping[str, Any]) -> list[str]:
    return [
        f"pool of {settlement['adapter']} in {settlement['period']}: {settlement['num_answers']} answers paid"
        f" {format_open(settlement['pool_nano'])} OPEN into it (answers root {settlement['answers_root']})",
        *(
            f"adapter {line['adapter_digest'][:12]} was trained on {line['datanet']} version {line['datanet_version']}"
            f" (row root {line['row_root'][:12]})"
            for line in settlement["lineage"]
        ),
        f"scores by {settlement['method']}; gain {settlement['gain_nano']} nano-OPEN x nats;"
        f" rule {settlement['rule']}, z = {settlement['z_milli']}/1000, parameters version {settlement['parameters']}",
        *_contributor_lines(transfer.credit, settlement),
    ]


def _contributor_lines(account: str, settlement: Mapping[str, Any]) -> list[str]:
    paid = [name for name, target in settlement["accounts"].items() if target == account]
    return [_contributor_line(name, settlement) for name in sorted(paid)]


def _contributor_line(contributor: str, settlement: Mapping[str, Any]) -> str:
    result = (
        f"share {settlement['shares_ppb'][contributor]} parts per billion"
        f" -> {format_open(settlement['payouts_nano'][contributor])} OPEN"
    )
    if contributor not in settlement["scores_nano"]:
        return f"{contributor}: what the others' evidence leaves, {result}"
    score, error = settlement["scores_nano"][contributor], settlement["errors_nano"][contributor]
    return f"{contributor}: score {score} with error {error} nano-OPEN x nats, {result}"
