"""The book of withdrawals: what contributors take out, and the rounds in which it is handed over to be claimed.

What is handed over is claimed elsewhere, and a log that is put back from a backup doesn't bring it back. So the book
keeps beside the log what the log said of it, always read from there and in its order, and writes again what an older
log lacks: the same withdrawals, rounds and payments under the same ids. Where somebody has no longer what he took out
nothing is taken out and no round is closed until he has (`withdrawals_lost`): a round that was handed over twice would
be paid twice. What he has and what comes to him goes there first: nobody spends it meanwhile (`check`), and as soon as
it is enough it is taken (`arrived`). So it is where what he took out waits for a round that waits for another.
"""

import csv
import io
import json
import logging
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

import apsw

from openledger.core.database import writing
from openledger.core.errors import Conflict, InsufficientFunds, InvalidInput, NotFound, idempotency_conflict
from openledger.core.hashing import canonical_json
from openledger.core.money import OPEN, Unit, format_money
from openledger.economy.accounts import AccountBook
from openledger.economy.port import LedgerPort, after_known, newest_first
from openledger.economy.terms import check_payee
from openledger.ledger import withdrawals
from openledger.ledger.stakes import check_key
from openledger.ledger.statements import Statement, format_of
from openledger.ledger.transfers import CREATED, EXISTS, Entry, Transfer

_log = logging.getLogger(__name__)
SCHEMA = """
CREATE TABLE IF NOT EXISTS taken_out(
  number INTEGER PRIMARY KEY, transfer_id TEXT NOT NULL UNIQUE, statement BLOB NOT NULL, seq INTEGER NOT NULL,
  lost INTEGER NOT NULL DEFAULT 0
) STRICT;
"""  # `number` is the order of the log that first had it, `seq` its place in the log that has it; `lost` where none has


class WithdrawalBook:
    """`unit` tells the ledger's; withdrawals have no place in the register."""

    def __init__(self, ledger: LedgerPort, unit: Callable[[], Unit], connection: apsw.Connection):
        self._ledger = ledger
        self._accounts = AccountBook(ledger)
        self._unit = unit
        self._db = connection
        self._complete = False  # whether the log has all that is noted here
        self._owing: frozenset[str] = frozenset()  # accounts of whose withdrawals it lacks one

    def recover(self) -> None:
        """Note what only the log has, and write what only is noted here; what can't be written is told. May be
        repeated."""
        self._read_back()
        self._find_lost()
        try:
            self._write_again()
        except Conflict as error:
            _log.error("%s (%s)", error.message, error.code)

    def check(self, transfers: Iterable[Transfer]) -> None:
        """To be called before each batch. Raises InsufficientFunds (`withdrawal_owed`) where it takes anew of what an
        account has of whose withdrawals the log lacks one; what was held before may be paid."""
        if self._owing:
            for transfer in transfers:
                if transfer.kind in ("single", "pending") and transfer.debit in self._owing:
                    self._check_known(transfer)

    def arrived(self, transfers: Iterable[Transfer]) -> None:
        """Take what came to whom the log lacks a withdrawal of; to be called after each batch."""
        if self._owing and self._owing.intersection(_receivers(transfers)):
            with suppress(Conflict):
                self._write_again()

    def withdraw(
        self,
        account: str,
        amount_nano: int,
        address: str,
        minimum_nano: int,
        key: str,
        check: Callable[[], None] = lambda: None,
    ) -> Statement:
        """Take OPEN out, to `address`; the same key again gives the first withdrawal, also where the minimum changed.

        Raises InvalidInput (`below_minimum`, `invalid_address`), InsufficientFunds, Conflict (`idempotency_conflict`,
        `withdrawals_lost`), and what `check` raises of one that isn't there yet.
        """
        self._catch_up()
        check_key(key)
        check_payee(account, "account")
        given = {"account": account, "address": address, "amount_nano": amount_nano, "key": key}
        known = self._known(withdrawals.withdrawal_id(account, key), given)
        if known is not None:
            return known
        statement = {"format": withdrawals.WITHDRAWAL, **given, "minimum_nano": minimum_nano}
        withdrawals.check_withdrawal(statement, self._unit())
        self._check_balance(account, amount_nano)
        check()
        self._accounts.open(withdrawals.WAITING)
        result = self._commit(statement)
        if result not in (CREATED, EXISTS):
            raise Conflict(f"the ledger refused it: {result}", code=result, param="account")
        return statement

    def has_taken_out(self, account: str) -> bool:
        """Asks every withdrawal there was."""
        query = """SELECT 1 FROM taken_out
                   WHERE transfer_id GLOB 'wdr_*' AND json_extract(CAST(statement AS TEXT), '$.account') = ? LIMIT 1"""
        return self._db.execute(query, (account,)).get is not None

    def waiting(self) -> list[list[Any]]:
        """[transfer id, address, nano-OPEN] of each withdrawal that no round has handed over, in the log's order."""
        found: list[list[Any]] = []
        for entry in newest_first(self._ledger, withdrawals.WAITING):
            if entry.transfer.debit == withdrawals.WAITING:
                break
            statement = self._ledger.batch(entry.seq).statement or {}
            found.append([entry.transfer.transfer_id, statement["address"], entry.transfer.amount_nano])
        return found[::-1]

    def close_round(self) -> int:
        """Hand over what waits, as the next round; its number. Raises Conflict (`no_withdrawals`) where none does,
        (`withdrawals_lost`) where a restored log lacks what was handed over before."""
        self._catch_up()
        number, told = self._rounds() + 1, self.waiting()
        if not told:
            raise Conflict("no withdrawal waits", code="no_withdrawals", param="round")
        statement = {"format": withdrawals.CLAIMS, "round": number, "withdrawals": told}
        self._accounts.open(withdrawals.claims_account(number))
        result = self._commit(statement)
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
        self._catch_up()
        total_nano = sum(amount_nano for _, amount_nano in self.claims(number))
        if self._unit() == OPEN:
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
        result = self._commit(statement)
        if result not in (CREATED, EXISTS):
            raise Conflict(f"round {number} was paid out by another payment", code="round_paid", param="reference",
                           fix="look its transfer up: paid_out.NUMBER")  # fmt: skip
        return total_nano

    def _catch_up(self) -> None:
        """Raises Conflict (`withdrawals_lost`) naming whose withdrawal can't be written again."""
        self._read_back()
        self._write_again()

    def _commit(self, statement: Statement) -> str:
        """The ledger's result. What it took is noted after it: what a crash leaves out is read back."""
        (result,) = self._ledger.commit([withdrawals.transfer_of(statement)], dict(statement))
        if result in (CREATED, EXISTS):
            self._read_back()
        return result

    def _read_back(self) -> None:
        """Note what only the log has, oldest first."""
        found = after_known(self._ledger, withdrawals.WAITING, self._is_noted)
        rounds = {int(entry.transfer.reference) for entry in found if entry.transfer.code == "claims"}
        paid = [self._ledger.find(withdrawals.paid_out_id(number)) for number in rounds | self._unpaid_rounds()]
        found += [entry for entry in paid if entry is not None]
        rows = [
            (entry.transfer.transfer_id, canonical_json(self._ledger.batch(entry.seq).statement or {}), entry.seq)
            for entry in sorted(found, key=lambda entry: entry.seq)
        ]
        note = """INSERT INTO taken_out(transfer_id, statement, seq) VALUES (?, ?, ?)
                  ON CONFLICT(transfer_id) DO UPDATE SET statement = excluded.statement, seq = excluded.seq, lost = 0"""
        if rows:
            with writing(self._db):
                self._db.executemany(note, rows)

    def _is_noted(self, entry: Entry) -> bool:
        query = "SELECT 1 FROM taken_out WHERE transfer_id = ? AND NOT lost"
        return self._db.execute(query, (entry.transfer.transfer_id,)).get is not None

    def _unpaid_rounds(self) -> set[int]:
        """Rounds of which no payment is noted; none in OPEN, which others pay."""
        if self._unit() == OPEN:
            return set()
        query = """SELECT transfer_id FROM taken_out
                   WHERE NOT lost AND (transfer_id GLOB 'claims.*' OR transfer_id GLOB 'paid_out.*')"""
        told = {str(row[0]) for row in self._db.execute(query)}
        rounds = {int(name.partition(".")[2]) for name in told if name.startswith("claims.")}
        return {number for number in rounds if withdrawals.paid_out_id(number) not in told}

    def _find_lost(self) -> None:
        """A log that was put back lacks the end alone: what is noted newer than the newest that it has."""
        lost = []
        for (name,) in self._db.execute("SELECT transfer_id FROM taken_out WHERE NOT lost ORDER BY seq DESC"):
            if self._ledger.find(str(name)) is not None:
                break
            lost.append((str(name),))
        if lost:
            self._complete = False
            with writing(self._db):
                self._db.executemany("UPDATE taken_out SET lost = 1 WHERE transfer_id = ?", lost)

    def _write_again(self) -> None:
        """Raises Conflict (`withdrawals_lost`) naming the first whose withdrawal can't be. Those of others are written
        nevertheless; a round waits for all of it, and what came after it for the round."""
        if self._complete:
            return
        refused: Conflict | None = None
        for statement in self._lost():
            if refused is not None and format_of(statement) != withdrawals.WITHDRAWAL:
                break
            refusal = self._write(statement)
            refused = refused or refusal
        self._owing = frozenset(told["account"] for told in self._lost() if format_of(told) == withdrawals.WITHDRAWAL)
        if refused is not None:
            raise refused
        self._complete = True

    def _write(self, statement: dict[str, Any]) -> Conflict | None:
        if format_of(statement) == withdrawals.CLAIMS:
            statement = {**statement, "withdrawals": self._in_order(statement["withdrawals"])}
        transfer = withdrawals.transfer_of(statement)
        self._accounts.open(transfer.credit)
        (result,) = self._ledger.commit([transfer], statement)
        if result not in (CREATED, EXISTS):
            return _lost(transfer, result)
        self._read_back()
        _log.warning("the log is older than what was taken out: %s is written again", transfer.transfer_id)
        return None

    def _lost(self) -> list[dict[str, Any]]:
        query = "SELECT statement FROM taken_out WHERE lost ORDER BY number"
        return [json.loads(statement) for (statement,) in self._db.execute(query)]

    def _in_order(self, told: list[list[Any]]) -> list[list[Any]]:
        """A round's withdrawals as they wait, in the order in which they were written again."""
        waiting = self.waiting()
        return waiting if sorted(waiting) == sorted(told) else told

    def _check_known(self, transfer: Transfer) -> None:
        if self._ledger.find(transfer.transfer_id) is None:
            raise InsufficientFunds(
                f"{transfer.debit} took out what the log lacks, put back from before that; what it has goes there",
                code="withdrawal_owed",
                param="account",
                fix="settle again what was settled then, or give what is missing (jobs/operate.py account) to the"
                " account that withdrawals_lost names",
            )

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


def _receivers(transfers: Iterable[Transfer]) -> set[str]:
    """Who has more to spend by them: who is credited, and whose hold ends."""
    ended = {transfer.debit for transfer in transfers if transfer.kind in ("void", "post")}
    return ended | {transfer.credit for transfer in transfers}


def _lost(transfer: Transfer, result: str) -> Conflict:
    return Conflict(
        f"{transfer.debit} took out {format_money(transfer.amount_nano)}, the log was put back from before that, and it"
        f" can't be written again: {result}",
        code="withdrawals_lost",
        param=transfer.debit,
        fix="settle again what was settled then, or give the account what it lacks (jobs/operate.py account); nothing"
        " else is taken out until it is written",
    )


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
