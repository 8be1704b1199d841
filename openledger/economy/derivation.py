"""Where a transfer comes from, in words: the answers behind a payout, and what the register's statements say.

Each line says what stands in the log, so that it can be checked there.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from openledger.core.money import format_money, format_open, shown_unit
from openledger.ledger import emissions, governance, refunds, stakes, vesting, withdrawals
from openledger.ledger.statements import format_of
from openledger.ledger.transfers import Transfer

MAX_ANSWERS = 50
Statement = Mapping[str, Any]


def answer_lines(usages: Sequence[Statement]) -> list[str]:
    """Answers and fees behind a pool, one a line; of more than `MAX_ANSWERS` the rest in one."""
    told = [_answer_line(usage) for usage in usages[:MAX_ANSWERS]]
    rest = usages[MAX_ANSWERS:]
    if not rest:
        return told
    part_nano = sum(usage["parts_nano"]["contributors"] for usage in rest)
    return [*told, f"and {len(rest)} more answers, which paid {format_money(part_nano)} into the pool"]


def statement_lines(statement: Statement, transfer: Transfer) -> list[str]:
    """What a statement of the register, a refund or a withdrawal says of a transfer of its batch."""
    lines = _LINES.get(format_of(statement))
    return [] if lines is None else lines(statement, transfer)


def _answer_line(usage: Statement) -> str:
    tokens = f"{usage['num_prompt_tokens']} + {usage['num_completion_tokens']} tokens"
    return (
        f"answer {usage['answer_id']}: {tokens} cost {format_money(usage['fee_nano'])}, of which"
        f" {format_open(usage['parts_nano']['contributors'])} went into the pool"
        f" (commitment {usage['commitment'][:12]}, parameters version {usage['parameters']})"
    )


def _stake(statement: Statement, _: Transfer) -> list[str]:
    return [f"{statement['account']} staked {format_money(statement['amount_nano'])} on {statement['object']}"]


def _reward(statement: Statement, transfer: Transfer) -> list[str]:
    total, weight = sum(statement["weights"].values()), statement["weights"].get(transfer.credit, 0)
    head = (
        f"the stakers' part of {statement['adapter']} in {statement['period']}:"
        f" {format_money(statement['pool_nano'])}, divided by amount and time"
    )
    if not total:
        return [f"{head}; nobody had anything staked for any time, so the treasury gets it"]
    return [
        head,
        f"{transfer.credit} had {weight} of {total} ppm x {shown_unit().smallest} x ms"
        f" -> {format_money(transfer.amount_nano)}",
    ]


def _slash(statement: Statement, _: Transfer) -> list[str]:
    return [
        f"{statement['object']} was slashed for {statement['cause']} (evidence {statement['evidence'][:12]});"
        f" until {statement['ends_ms']} it can be appealed",
        *(f"{account} lost {format_money(amount)}" for account, amount in statement["taken_nano"].items()),
    ]


def _release(statement: Statement, _: Transfer) -> list[str]:
    return [f"month {statement['month']} of the bucket {statement['bucket']}, as genesis planned it"]


def _execution(statement: Statement, _: Transfer) -> list[str]:
    return [f"proposal {statement['proposal']} passed, its timelock was over, and it was executed"]


def _emission(statement: Statement, transfer: Transfer) -> list[str]:
    names = [name for name, account in statement["accounts"].items() if account == transfer.credit]
    return [
        f"emission by {statement['rule']} beside the settlement of {statement['adapter']} in {statement['period']};"
        " from vesting, not from fees",
        *(
            f"{name}: fees paid {format_money(statement['paid_nano'][name])}"
            f" -> emission {format_open(statement['emission_nano'][name])}"
            for name in names
        ),
    ]


_LINES: dict[str, Callable[[Statement, Transfer], list[str]]] = {
    stakes.STAKE: _stake,
    stakes.REWARD: _reward,
    stakes.SLASH: _slash,
    vesting.RELEASE: _release,
    governance.EXECUTE: _execution,
    emissions.EMISSION: _emission,
    refunds.REFUND: lambda statement, _: refunds.lines(statement),
    withdrawals.WITHDRAWAL: lambda statement, _: withdrawals.withdrawal_lines(statement),
}
