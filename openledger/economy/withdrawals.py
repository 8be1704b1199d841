"""The book of withdrawals: what contributors take out, and the rounds in which it is handed over to be claimed."""

import csv
import io
from collections.abc import Iterable
from typing import Any

from openledger.core.errors import Conflict, InsufficientFunds, InvalidInput, NotFound, idempotency_conflict
from openledger.core.money import OPEN, format_money
from openledger.economy.port import LedgerPort
from openledger.economy.register import RegisterBook
from openledger.economy.terms import check_payee
from openledger.ledger import withdrawals
from openledger.ledger.stakes import check_key
from openledger.ledger.statements import Statement
from openledger.ledger.transfers import CREATED, EXISTS

_ENTRIES = 10**6


class WithdrawalBook:
    """`register` lends its way to open accounts; withdrawals have no place in it."""

    def __init__(self, ledger: LedgerPort, register: RegisterBook):
        self._ledger = ledger
        self._register = register

    def withdraw(self, account: str, amount_nano: int, address: str, minimum_nano: int, key: str) -> Statement:
        """Take OPEN out, to `address`; the same key again gives the first withdrawal, also where the minimum changed.

        Raises InvalidInput (`below_minimum`, `invalid_address`), InsufficientFunds, Conflict (`idempotency_conflict`).
        """
        check_key(key)
        check_payee(account, "account")
        given = {"account": account, "address": address, "amount_nano": amount_nano, "key": key}
        known = self._known(withdrawals.withdrawal_id(account, key), given)
        if known is not None:
            return known
        statement = {"format": withdrawals.WITHDRAWAL, **given, "minimum_nano": minimum_nano}
        withdrawals.check_withdrawal(statement, self._register.state.unit)
        self._check_balance(account, amount_nano)
        self._register.open_accounts(withdrawals.WAITING)
        transfer = withdrawals.withdrawal_transfer(statement)
        (result,) = self._ledger.commit([transfer], statement)
        if result not in (CREATED, EXISTS):
            raise Conflict(f"the ledger refused it: {result}", code=result, param="account")
        return statement

    def waiting(self) -> list[list[Any]]:
        """[transfer id, address, nano-OPEN] of each withdrawal that no round has handed over, in the log's order."""
        found: list[list[Any]] = []
        for entry in self._ledger.transfers(withdrawals.WAITING, _ENTRIES):
            if entry.transfer.debit == withdrawals.WAITING:
                break
            statement = self._ledger.batch(entry.seq).statement or {}
            found.append([entry.transfer.transfer_id, statement["address"], entry.transfer.amount_nano])
        return found[::-1]

    def close_round(self) -> int:
        """Hand over what waits, as the next round; its number. Raises Conflict (`no_withdrawals`) where none does."""
        number, told = self._rounds() + 1, self.waiting()
        if not told:
            raise Conflict("no withdrawal waits", code="no_withdrawals", param="round")
        statement = {"format": withdrawals.CLAIMS, "round": number, "withdrawals": told}
        self._register.open_accounts(withdrawals.claims_account(number))
        (result,) = self._ledger.commit([withdrawals.claims_transfer(statement)], statement)
        if result not in (CREATED, EXISTS):
            raise Conflict(f"round {number} was handed over by somebody else: {result}", code="round_taken",
                           param="round", fix="read the rounds again")  # fmt: skip
        return number

    def claims(self, number: int) -> list[tuple[str, int]]:
        """(address, nano-OPEN) of a round, by address: what a tree of claims is made of. Raises NotFound."""
        entry = self._ledger.find(withdrawals.claims_id(number)) if type(number) is int and number > 0 else None
        if entry is None:
            raise NotFound(f"there is no round {number}", code="round_not_found", param="round")
        return withdrawals.pairs((self._ledger.batch(entry.seq).statement or {})["withdrawals"])

    def pay_out(self, number: int, reference: str) -> int:
        """Record that the operator paid a round in the ledger's currency, by the payment that `reference` names; how
        much. The same again gives it again. Raises NotFound, Conflict (`round_paid`) for another payment of it,
        (`claimed_elsewhere`) in a ledger in OPEN, InvalidInput without a reference."""
        total_nano = sum(amount_nano for _, amount_nano in self.claims(number))
        if self._register.state.unit == OPEN:
            raise Conflict("what is withdrawn in OPEN is claimed on a chain", code="claimed_elsewhere", param="round",
                           fix="hand its claims over")  # fmt: skip
        if not isinstance(reference, str) or not 0 < len(reference) <= 255:
            raise InvalidInput("a payment has a reference", code="invalid_reference", param="reference")
        statement = {
            "format": withdrawals.PAID_OUT,
            "round": number,
            "amount_nano": total_nano,
            "reference": reference,
        }
        (result,) = self._ledger.commit([withdrawals.paid_out_transfer(statement)], statement)
        if result not in (CREATED, EXISTS):
            raise Conflict(f"round {number} was paid out by another payment", code="round_paid", param="reference",
                           fix="look its transfer up: paid_out.NUMBER")  # fmt: skip
        return total_nano

    def _rounds(self) -> int:
        number = 0
        while self._ledger.find(withdrawals.claims_id(number + 1)) is not None:
            number += 1
        return number

    def _check_balance(self, account: str, amount_nano: int) -> None:
        missing_nano = amount_nano - max(0, self._ledger.balance(account).available_nano)
        if missing_nano > 0:
            raise InsufficientFunds(
                f"{account} has {format_money(missing_nano)} less than that",
                param="amount_nano",
                fix="withdraw what is available; what a period earned is there once it is settled",
            )

    def _known(self, transfer_id: str, given: dict[str, Any]) -> Statement | None:
        entry = self._ledger.find(transfer_id)
        if entry is None:
            return None
        statement = self._ledger.batch(entry.seq).statement or {}
        if any(statement[name] != value for name, value in given.items()):
            raise idempotency_conflict("withdrawal")
        return statement


def as_csv(header: tuple[str, ...], rows: Iterable[tuple[Any, ...]]) -> str:
    """RFC 4180, with lines that end in CRLF; amounts are whole numbers of nano-OPEN."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(header)
    writer.writerows([[_unformula(value) for value in row] for row in rows])
    return out.getvalue()


def _unformula(value: Any) -> Any:
    """A spreadsheet takes text that begins like this for a formula."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value
