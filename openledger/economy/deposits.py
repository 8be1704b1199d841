"""The book of deposits and one-time fees: what it costs to contribute, to create a Datanet, to deploy an adapter.

    contribution   a hold for the deposit; returned (void) when it is accepted, forfeited (post) when it is spam
                   with too little in the account nothing is held; forfeited then, it is withheld from later earnings
                   where an appeal shows that it was no spam it comes back, from the treasury (`acquit`)
    datanet        paid once, to the treasury
    adapter        paid once for each digest that is deployed, to the treasury

Amounts are parameters, 0 at the start: then nothing is held and nothing paid. Ids derive from what is paid for, so that
asking again changes nothing. What is owed stands here, durably, until it is paid.
"""

from typing import Literal

import apsw

from openledger.core.database import writing
from openledger.core.errors import Conflict, InvalidInput
from openledger.core.ids import derived_id
from openledger.economy.accounts import insufficient
from openledger.economy.port import LedgerPort
from openledger.economy.register import RegisterBook
from openledger.economy.terms import check_payee
from openledger.ledger.accounts import TREASURY
from openledger.ledger.deposits import FORFEITED, WITHHELD, returned_statement, returned_transfer
from openledger.ledger.transfers import CREATED, EXISTS, Transfer, TransferKind

DepositState = Literal["none", "held", "owed", "returned", "forfeited"]
SCHEMA = """
CREATE TABLE IF NOT EXISTS deposits(
  contribution_id TEXT PRIMARY KEY, account TEXT NOT NULL, amount_nano INTEGER NOT NULL, state TEXT NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS deposits_owed ON deposits(account) WHERE state = 'due';
CREATE TABLE IF NOT EXISTS acquittals(contribution_id TEXT PRIMARY KEY, row_id TEXT NOT NULL) STRICT, WITHOUT ROWID;
"""
_PLACED = "placed"  # noted, whether or not the ledger holds it
_DUE = "due"  # forfeited, and not paid yet
_CODES = {"datanet": "datanet_fee", "adapter": "adapter_fee"}


class DepositBook:
    def __init__(self, ledger: LedgerPort, register: RegisterBook, connection: apsw.Connection):
        self._ledger = ledger
        self._register = register
        self._db = connection

    def charge(self, kind: Literal["datanet", "adapter"], account: str, name: str, amount_nano: int) -> str:
        """Take the one-time fee for `name` from `account`, once; the transfer's id, empty where there is no fee.

        Raises InsufficientFunds with what is missing, Conflict where somebody else paid for that name.
        """
        if not amount_nano:
            return ""
        transfer = Transfer(
            transfer_id=derived_id("fee", kind, name),
            debit=check_payee(account, "account"),
            credit=TREASURY,
            amount_nano=amount_nano,
            code=_CODES[kind],
            reference=name,
        )
        known = self._ledger.find(transfer.transfer_id)
        if known is not None and known.transfer.debit == account:
            return transfer.transfer_id  # also where the fee has changed since
        missing_nano = amount_nano - self._register.available_nano(account)
        if known is None and missing_nano > 0:
            raise insufficient(account, amount_nano, missing_nano)
        (result,) = self._ledger.commit([transfer])
        if result not in (CREATED, EXISTS):
            raise Conflict(f"{name} was paid for by another account", code="idempotency_conflict", param="account")
        return transfer.transfer_id

    def place(self, account: str, contribution_id: str, amount_nano: int) -> DepositState:
        """Hold a contribution's deposit, before the gate judges it; once. `owed` where the account has too little."""
        check_payee(account, "account")
        known = self._find(contribution_id)
        if known is not None and known[0] != account:
            raise Conflict("another account deposited for this contribution", code="deposit_differs", param="account")
        if known is None:
            if not amount_nano:
                return "none"
            with writing(self._db):
                values = (contribution_id, account, amount_nano, _PLACED)
                self._db.execute("INSERT INTO deposits VALUES (?, ?, ?, ?)", values)
            known = (account, amount_nano, _PLACED)
        if known[2] != _PLACED:
            return self.state(contribution_id)
        self._register.open_accounts(account)
        (result,) = self._ledger.commit([_hold(contribution_id, account, known[1])])
        return "held" if result in (CREATED, EXISTS) else "owed"

    def judge(self, contribution_id: str, *, is_spam: bool) -> DepositState:
        """Give a deposit back, or keep it; what became of it. Decided once: again, it tells the first decision."""
        known = self._find(contribution_id)
        if known is None:
            return "none"
        account, amount_nano, state = known
        if state == _DUE:
            self.withhold(account)
        if state != _PLACED:
            return self.state(contribution_id)
        held = self._ledger.find(_hold_id(contribution_id)) is not None
        if held:
            self._end(contribution_id, account, amount_nano, "post" if is_spam else "void")
        self._mark(contribution_id, ("forfeited" if held else _DUE) if is_spam else "returned")
        if is_spam and not held:
            self.withhold(account)
        return self.state(contribution_id)

    def acquit(self, contribution_id: str, row_id: str) -> DepositState:
        """Give a forfeited deposit back, from where it went, once; what isn't paid yet is owed no more. `row_id` is the
        row whose overturned verdict says that the contribution was no spam. It stays `forfeited` until the treasury has
        it; see `give_back`."""
        known = self._caught_up(contribution_id)
        if known is not None and known[2] == _DUE:
            self._mark(contribution_id, "returned")
        if known is not None and known[2] == "forfeited":
            with writing(self._db):
                self._db.execute("INSERT OR IGNORE INTO acquittals VALUES (?, ?)", (contribution_id, row_id))
            self.give_back()
        return self.state(contribution_id)

    def give_back(self) -> int:
        """Return what `acquit` promised, as far as the treasury has it; how much."""
        query = (
            "SELECT contribution_id, account, amount_nano, row_id FROM acquittals JOIN deposits USING (contribution_id)"
            " WHERE state = 'forfeited' ORDER BY 1"
        )
        given_nano = 0
        for row in self._db.execute(query).fetchall():
            statement = returned_statement(str(row[0]), str(row[1]), int(str(row[2])), str(row[3]))
            (result,) = self._ledger.commit([returned_transfer(statement)], statement)
            if result not in (CREATED, EXISTS):
                break
            self._mark(statement["contribution_id"], "returned")
            given_nano += statement["amount_nano"]
        return given_nano

    def withhold(self, account: str) -> int:
        """Take what `account` owes for spam, the oldest first, each whole, as far as it goes; how much."""
        query = "SELECT contribution_id, amount_nano FROM deposits WHERE account = ? AND state = 'due' ORDER BY 1"
        taken_nano = 0
        for contribution_id, amount_nano in self._db.execute(query, (account,)).fetchall():
            transfer = _withheld(str(contribution_id), account, int(str(amount_nano)))
            (result,) = self._ledger.commit([transfer])
            if result not in (CREATED, EXISTS):
                break
            self._mark(str(contribution_id), "forfeited")
            taken_nano += transfer.amount_nano
        return taken_nano

    def withhold_due(self) -> None:
        """`withhold` from whoever owes. May be repeated."""
        query = "SELECT DISTINCT account FROM deposits WHERE state = 'due' ORDER BY 1"
        for (account,) in self._db.execute(query).fetchall():
            self.withhold(str(account))

    def state(self, contribution_id: str) -> DepositState:
        known = self._find(contribution_id)
        if known is None:
            return "none"
        if known[2] == _PLACED:
            return "held" if self._ledger.find(_hold_id(contribution_id)) is not None else "owed"
        return "owed" if known[2] == _DUE else "returned" if known[2] == "returned" else "forfeited"

    def owed_nano(self, account: str) -> int:
        """What `account` has forfeited and not paid."""
        query = "SELECT coalesce(sum(amount_nano), 0) FROM deposits WHERE account = ? AND state = 'due'"
        return int(str(self._db.execute(query, (account,)).fetchall()[0][0]))

    def _end(self, contribution_id: str, account: str, amount_nano: int, kind: TransferKind) -> None:
        transfer = Transfer(
            transfer_id=_kept_id(contribution_id) if kind == "post" else f"{_hold_id(contribution_id)}.back",
            debit=account,
            credit=TREASURY,
            amount_nano=amount_nano,
            code=FORFEITED if kind == "post" else "deposit_returned",
            reference=contribution_id,
            kind=kind,
            pending_id=_hold_id(contribution_id),
        )
        (result,) = self._ledger.commit([transfer])
        if result not in (CREATED, EXISTS):
            raise Conflict(f"the deposit of {contribution_id} was decided otherwise: {result}", code="deposit_decided",
                           param="contribution_id")  # fmt: skip

    def _caught_up(self, contribution_id: str) -> tuple[str, int, str] | None:
        """As `_find`, once what the ledger took is marked so: a crash may have come between the two."""
        known = self._find(contribution_id)
        taken = {_PLACED: _kept_id, _DUE: _withheld_id}
        if known is None or known[2] not in taken or self._ledger.find(taken[known[2]](contribution_id)) is None:
            return known
        self._mark(contribution_id, "forfeited")
        return (*known[:2], "forfeited")

    def _find(self, contribution_id: str) -> tuple[str, int, str] | None:
        if not isinstance(contribution_id, str) or not 0 < len(contribution_id) <= 300:
            raise InvalidInput("a contribution has an id", code="invalid_id", param="contribution_id")
        query = "SELECT account, amount_nano, state FROM deposits WHERE contribution_id = ?"
        row = self._db.execute(query, (contribution_id,)).fetchone()
        return None if row is None else (str(row[0]), int(str(row[1])), str(row[2]))

    def _mark(self, contribution_id: str, state: str) -> None:
        with writing(self._db):
            self._db.execute("UPDATE deposits SET state = ? WHERE contribution_id = ?", (state, contribution_id))


def _hold_id(contribution_id: str) -> str:
    return derived_id("dep", contribution_id)


def _kept_id(contribution_id: str) -> str:
    return f"{_hold_id(contribution_id)}.kept"


def _withheld_id(contribution_id: str) -> str:
    return derived_id("dew", contribution_id)


def _hold(contribution_id: str, account: str, amount_nano: int) -> Transfer:
    return Transfer(
        transfer_id=_hold_id(contribution_id),
        debit=account,
        credit=TREASURY,
        amount_nano=amount_nano,
        code="deposit",
        reference=contribution_id,
        kind="pending",
    )


def _withheld(contribution_id: str, account: str, amount_nano: int) -> Transfer:
    return Transfer(
        transfer_id=_withheld_id(contribution_id),
        debit=account,
        credit=TREASURY,
        amount_nano=amount_nano,
        code=WITHHELD,
        reference=contribution_id,
    )
