"""Verdicts: what a customer says of an answer that was paid for, in the log where an auditor sees it.

`openledger.verdict/1` names the answer as its usage statement does. No money moves: the batch holds the answer's part
of its pool and releases it at once. So the ledger itself refuses a verdict on a pool that is paid out, also where
several processes write, and the ids allow one verdict for each answer.
"""

from dataclasses import dataclass, field
from typing import Any

from openledger.core.errors import Corrupt, InvalidInput
from openledger.ledger.accounts import UNATTRIBUTED, pool_account
from openledger.ledger.statements import Statement, format_of
from openledger.ledger.transfers import Transfer

VERDICT = "openledger.verdict/1"
VERDICTS = frozenset({"wrong"})
_OF_USAGE = ("answer_id", "account", "adapter", "period", "commitment")
_FIELDS = {"format", "verdict", "pool_nano", *_OF_USAGE}


def check_verdict(verdict: str) -> str:
    """`verdict` if there is one of that name. Raises InvalidInput."""
    if verdict not in VERDICTS:
        raise InvalidInput(
            f"{verdict!r} is no verdict on an answer", code="invalid_verdict", param="verdict", fix="send 'wrong'"
        )
    return verdict


def verdict_id(answer_id: str) -> str:
    return f"{answer_id}.verdict"


def verdict_statement(usage: Statement, verdict: str) -> dict[str, Any]:
    return {
        "format": VERDICT,
        "verdict": verdict,
        "pool_nano": usage["parts_nano"]["contributors"],
        **{name: usage[name] for name in _OF_USAGE},
    }


def verdict_transfers(statement: Statement) -> list[Transfer]:
    """The answer's part of the pool, held and released. Raises InvalidInput where the statement can't have any."""
    if set(statement) != _FIELDS or statement["verdict"] not in VERDICTS:
        raise InvalidInput("not the fields of a verdict", code="malformed_statement", param="statement")
    answer_id = statement["answer_id"]
    pool = pool_account(statement["adapter"], statement["period"])
    hold = Transfer(
        transfer_id=verdict_id(answer_id),
        debit=pool,
        credit=UNATTRIBUTED,
        amount_nano=statement["pool_nano"],
        code="verdict",
        reference=answer_id,
        kind="pending",
    )
    release = Transfer(
        transfer_id=f"{answer_id}.verdict.end",
        debit=pool,
        credit=UNATTRIBUTED,
        amount_nano=statement["pool_nano"],
        code="verdict_end",
        reference=answer_id,
        kind="void",
        pending_id=hold.transfer_id,
    )
    return [hold, release]


@dataclass(slots=True)
class Verdicts:
    """Every answer sold and every verdict of a log, as its statements tell them."""

    sold: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    wrong: dict[str, set[str]] = field(default_factory=dict)

    def sell(self, usage: Statement) -> None:
        """Raises Corrupt for a usage that doesn't name its answer and customer."""
        try:
            self.sold[usage["answer_id"]] = _facts(verdict_statement(usage, "wrong"))
        except (KeyError, TypeError) as error:
            raise Corrupt(f"a usage lacks {error}", code="malformed_statement", param="statement") from error

    def take(self, statement: Statement, transfers: tuple[Transfer, ...]) -> None:
        """Raises Corrupt for a verdict on an answer that wasn't sold as it says, by another than its customer, or
        whose transfers aren't its own."""
        try:
            expected = verdict_transfers(statement)
        except (InvalidInput, TypeError) as error:
            raise Corrupt(f"not a verdict: {error}", code="malformed_statement", param="statement") from error
        if list(transfers) != expected:
            raise Corrupt("the transfers aren't those of the verdict", code="verdict_differs", param="statement")
        if self.sold.get(statement["answer_id"]) != _facts(statement):
            raise Corrupt(
                f"{statement['answer_id']} wasn't sold as its verdict says",
                code="verdict_without_answer",
                param="statement",
            )
        pool = pool_account(statement["adapter"], statement["period"])
        self.wrong.setdefault(pool, set()).add(statement["commitment"])

    def not_counted(self, pool: str) -> list[str]:
        """Commitments of the pool's answers that were marked wrong, in order."""
        return sorted(self.wrong.get(pool, ()))


def is_verdict(statement: Statement | None) -> bool:
    return format_of(statement) == VERDICT


def _facts(statement: Statement) -> tuple[Any, ...]:
    return tuple(statement[name] for name in (*_OF_USAGE, "pool_nano"))
