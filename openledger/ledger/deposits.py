"""Deposits of contributions in the log: those that were forfeited, and those that come back after a wrong verdict.

    forfeited   `deposit_forfeited` takes the contribution's own hold (`post`, or nothing was lost), `deposit_withheld`
                earnings, once for each contribution; both go to the treasury
    returned    from the treasury, once, on the strength of an appeal that overturned a verdict on one of its rows

How many rows make a contribution spam is the operator's to say, as the verdicts are: the log has the appeal.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from openledger.core.errors import Corrupt, OpenLedgerError
from openledger.core.ids import derived_id
from openledger.core.money import format_money
from openledger.ledger.accounts import TREASURY
from openledger.ledger.appeals import LoggedAppeal
from openledger.ledger.statements import Statement, format_of
from openledger.ledger.transfers import Batch, Transfer

RETURNED = "openledger.deposit-returned/1"
FORMATS = frozenset({RETURNED})
FORFEITED, WITHHELD = "deposit_forfeited", "deposit_withheld"
_PREFIX = "der"
_FIELDS = {"format", "contribution_id", "account", "amount_nano", "row_id"}


@dataclass(slots=True)
class Deposits:
    """Every forfeited deposit of a log, by contribution, and those that came back."""

    lost: dict[str, Transfer] = field(default_factory=dict)
    returned: set[str] = field(default_factory=set)

    def take(self, batch: Batch, appeals: Mapping[str, LoggedAppeal]) -> None:
        """Raises Corrupt for a deposit that comes back without having been lost, without an appeal, or twice."""
        for transfer in batch.transfers:
            if _is_lost(transfer):
                self.lost[transfer.reference] = transfer
        statement = batch.statement or {}
        if format_of(statement) != RETURNED:
            if any(transfer.transfer_id.startswith(f"{_PREFIX}_") for transfer in batch.transfers):
                raise _corrupt("a deposit comes back without saying why", "unexplained_deposit")
            return
        checked_lines(statement, *batch.transfers)
        name, lost = statement["contribution_id"], self.lost.get(statement["contribution_id"])
        if lost is None or (lost.debit, lost.amount_nano) != (statement["account"], statement["amount_nano"]):
            raise _corrupt("no such deposit was forfeited", "deposit_not_lost")
        if not overturns(appeals.get(statement["row_id"]), name):
            raise _corrupt("no verdict on a row of that contribution was overturned", "deposit_without_appeal")
        self.returned.add(name)


def hold_id(contribution_id: str, number: int = 0) -> str:
    """Of the hold for a contribution's deposit, `number` earlier ones having been released without a verdict."""
    return derived_id("dep", contribution_id) + (f".{number}" if number else "")


def withheld_id(contribution_id: str) -> str:
    """Of the transfer that takes a forfeited deposit from later earnings."""
    return derived_id("dew", contribution_id)


def _is_lost(transfer: Transfer) -> bool:
    """Whether it takes the deposit of the contribution that is its reference, whatever its code claims."""
    if transfer.credit != TREASURY:
        return False
    if transfer.kind == "post" and transfer.code == FORFEITED:
        first = hold_id(transfer.reference)
        return transfer.pending_id == first or transfer.pending_id.startswith(f"{first}.")
    return (
        transfer.kind == "single"
        and transfer.code == WITHHELD
        and transfer.transfer_id == withheld_id(transfer.reference)
    )


def overturns(appeal: LoggedAppeal | None, contribution_id: str) -> bool:
    """Whether an appeal says that the verdict on a row of the contribution was wrong."""
    return appeal is not None and appeal.state == "overturned" and appeal.claim["contribution_id"] == contribution_id


def returned_statement(contribution_id: str, account: str, amount_nano: int, row_id: str) -> dict[str, Any]:
    return {
        "format": RETURNED,
        "contribution_id": contribution_id,
        "account": account,
        "amount_nano": amount_nano,
        "row_id": row_id,
    }


def returned_id(contribution_id: str) -> str:
    """Of the transfer that gives a forfeited deposit back."""
    return derived_id(_PREFIX, contribution_id)


def returned_transfer(statement: Statement) -> Transfer:
    """The transfer that carries `statement`; its id is the contribution's, so it can be there once."""
    return Transfer(
        transfer_id=returned_id(statement["contribution_id"]),
        debit=TREASURY,
        credit=statement["account"],
        amount_nano=statement["amount_nano"],
        code="deposit_refunded",
        reference=statement["contribution_id"],
    )


def checked_lines(statement: Statement, *transfers: Transfer) -> list[str]:
    """What the statement says, in words. Raises Corrupt where it doesn't go with `transfers`."""
    try:
        holds = set(statement) == _FIELDS and list(transfers) == [returned_transfer(statement)]
    except (OpenLedgerError, KeyError, TypeError, AttributeError) as error:
        raise _corrupt(f"not the return of a deposit: {error}", "malformed_statement") from error
    if not holds:
        raise _corrupt("the transfers aren't those of the deposit's return", "deposit_differs")
    return lines(statement)


def lines(statement: Statement) -> list[str]:
    return [
        f"the deposit of {statement['contribution_id']}, {format_money(statement['amount_nano'])}, went back to"
        f" {statement['account']}: the verdict on {statement['row_id']} was overturned"
    ]


def _corrupt(reason: str, code: str) -> Corrupt:
    return Corrupt(reason, code=code, param="statement")
