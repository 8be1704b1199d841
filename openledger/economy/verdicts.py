"""A customer's verdict on an answer: the one who paid says that it was wrong, and it counts nothing in `use`.

The log holds the verdict and is the only place that does, so a crash can't make two stores differ. The fee stays where
it went: the contributors' part is still in the pool and still divided, by what the other answers show. A verdict gives
nobody money back; a refund would be another transfer.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from openledger.core.errors import Conflict, Forbidden, NotFound
from openledger.core.values import Answer
from openledger.economy.answers import StoredAnswer
from openledger.economy.port import LedgerPort
from openledger.ledger.accounts import pool_account
from openledger.ledger.transfers import CREATED, EXISTS
from openledger.ledger.verdicts import verdict_id, verdict_statement, verdict_transfers


def bought_by(stored: StoredAnswer | None, answer_id: str, account: str) -> StoredAnswer:
    """`stored` if `account` paid for it. Raises NotFound, Forbidden."""
    if stored is None:
        raise NotFound(f"no answer {answer_id} was sold", code="answer_not_sold", param="answer_id")
    if stored.usage["account"] != account:
        raise Forbidden(
            f"{answer_id} was paid for by another account",
            code="not_the_customer",
            param="answer_id",
            fix="send the API key of the account that paid for it",
        )
    return stored


def recorded(ledger: LedgerPort, answer_id: str) -> str:
    """The id of the transfer whose proof shows the answer's verdict, if the log has one; else empty."""
    name = verdict_id(answer_id)
    return "" if ledger.find(name) is None else name


def check_open(usage: Mapping[str, Any], current: str) -> None:
    """Raises Conflict once the answer's period is closed: scores are made of a closed pool, and have to stay true."""
    if usage["period"] != current:
        raise Conflict(
            f"{usage['answer_id']} was sold in {usage['period']}, which is closed",
            code="period_closed",
            param="answer_id",
            fix="mark an answer while its period is open",
        )


def check_not_refunded(stored: StoredAnswer) -> None:
    """Raises Conflict for an answer whose fee went back: it left its pool, and weighs nothing there."""
    if stored.state == "refunded":
        raise Conflict(f"the fee of {stored.answer_id} went back", code="answer_refunded", param="answer_id")


def record_verdict(ledger: LedgerPort, usage: Mapping[str, Any], verdict: str) -> str:
    """Put the verdict on a paid answer in the log, once; its transfer's id. Raises Conflict where it's too late."""
    answer_id = usage["answer_id"]
    if not usage["parts_nano"]["contributors"]:
        raise Conflict(f"{answer_id} paid nothing into a pool", code="answer_in_no_pool", param="answer_id")
    statement = verdict_statement(usage, verdict)
    hold, *rest = verdict_transfers(statement)
    result = ledger.commit([hold, *rest], statement)[0]
    if result == "exceeds_credits":  # the pool is empty: it was paid out
        raise Conflict(
            f"the pool that {answer_id} paid into is settled",
            code="pool_settled",
            param="answer_id",
            fix="mark an answer before its period is settled",
        )
    if result not in (CREATED, EXISTS):
        raise Conflict(f"the ledger refused {hold.transfer_id}: {result}", code=result, param="answer_id")
    return hold.transfer_id


def marked_in(ledger: LedgerPort, adapter: str, period: str) -> tuple[str, ...]:
    """Ids of a pool's answers that were marked wrong, whether their content is kept or not."""
    return tuple(sorted(verdict["answer_id"] for verdict in ledger.verdicts(pool_account(adapter, period))))


def counted(answers: Sequence[Answer], marked: Collection[str]) -> tuple[Answer, ...]:
    """A pool's answers, those `marked` wrong no longer `counted`."""
    return tuple(replace(answer, counted=answer.answer_id not in marked) for answer in answers)


def check_left_out(
    left_out: Collection[str] | None, verdicts: Sequence[Mapping[str, Any]], refunds: Collection[str]
) -> None:
    """Raises Conflict unless scores that leave out `left_out` are scores under these verdicts and refunds.

    None, for not known, will do only where nothing was marked or refunded.
    """
    by_now, told = {*(verdict["answer_id"] for verdict in verdicts), *refunds}, set(left_out or ())
    if told != by_now:
        raise Conflict(
            f"the scores leave out {len(told)} answers, {len(by_now)} are marked wrong or refunded by now",
            code="verdicts_changed",
            param="left_out",
            fix="read the pool again, and attribute it again",
        )
