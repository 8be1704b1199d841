"""The ledger's accounts as the economy uses them: opened once, and what the ledger refuses told as an error of ours."""

from collections.abc import Sequence

from openledger.core.errors import Conflict, InsufficientFunds, NotFound, OpenLedgerError
from openledger.core.money import format_money, format_open
from openledger.economy.port import LedgerPort
from openledger.ledger.accounts import account_of
from openledger.ledger.transfers import CREATED, EXISTS, Transfer


class AccountBook:
    def __init__(self, ledger: LedgerPort):
        self._ledger = ledger
        self._opened: set[str] = set()

    def open(self, *account_ids: str) -> None:
        """Raises Conflict where one of them is there as something else."""
        fresh = [account_of(name) for name in dict.fromkeys(account_ids) if name not in self._opened]
        if not fresh:
            return
        for account, result in zip(fresh, self._ledger.create_accounts(fresh), strict=True):
            if result not in (CREATED, EXISTS):
                raise Conflict(f"{account.account_id}: {result}", code=result, param="account")
        self._opened.update(account.account_id for account in fresh)

    def check(self, results: Sequence[str], transfers: Sequence[Transfer]) -> None:
        """Raises for what the ledger refused of `transfers`: InsufficientFunds with what is missing, NotFound,
        Conflict."""
        for result, transfer in zip(results, transfers, strict=True):
            if result not in (CREATED, EXISTS, "linked_transfer_failed"):
                raise self._refusal(result, transfer)
        if any(result not in (CREATED, EXISTS) for result in results):
            raise Conflict("a part of this exists already, with something else", code="linked_transfer_failed")

    def _refusal(self, result: str, transfer: Transfer) -> OpenLedgerError:
        if result == "exceeds_credits":
            return self._missing(transfer)
        if result.endswith("_not_found"):
            return NotFound(f"{result}: {transfer.debit} to {transfer.credit}", code=result, param="account")
        if result.startswith("exists_with_different"):
            return Conflict(
                f"{transfer.reference or transfer.transfer_id} was used before for something else",
                code="idempotency_conflict",
                param="idempotency_key",
                fix="send a new key for a new request",
            )
        return Conflict(f"the ledger refused {transfer.transfer_id}: {result}", code=result)

    def _missing(self, transfer: Transfer) -> InsufficientFunds:
        available = max(0, self._ledger.balance(transfer.debit).available_nano)
        needed = transfer.amount_nano
        return InsufficientFunds(
            f"{transfer.debit} has {format_money(available)} available, this needs up to {format_open(needed)}",
            param="account",
            fix=f"add {format_money(needed - available)}, or ask for fewer tokens",
        )


def insufficient(account: str, needed_nano: int, missing_nano: int) -> InsufficientFunds:
    return InsufficientFunds(
        f"{account} has {format_money(needed_nano - missing_nano)} available, this needs {format_open(needed_nano)}",
        param="account",
        fix=f"add {format_money(missing_nano)}",
    )
