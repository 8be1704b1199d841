"""The book of deposits and one-time fees: what it costs to contribute, to create a Datanet, to deploy an adapter.

    contribution   a hold for the deposit; returned (void) when it is accepted, forfeited (post) when it is spam
                   with too little in the account nothing is held; forfeited then, it is withheld from later earnings
                   where an appeal shows that it was no spam it comes back, from the treasury (`acquit`)
                   released where the gate never judged it (`dismiss`), and held anew when it is sent again
    datanet        paid once, to the treasury
    adapter        paid once for each digest that is deployed, to the treasury

Amounts are parameters, 0 at the start: then nothing is held and nothing paid. Ids derive from what is paid for, so that
asking again changes nothing. What is owed stands here, durably, until it is paid.

Where economy.db was put back from a backup, a deposit that only the log has is read back when it is asked for; where
the log was, what it lacks of what was decided is done again at the start (`recover`).
"""

import logging
from typing import Literal

import apsw

from openledger.core.database import writing
from openledger.core.errors import Conflict, InvalidInput
from openledger.core.ids import derived_id
from openledger.economy.accounts import insufficient
from openledger.economy.appeals import find_appeal
from openledger.economy.port import LedgerPort
from openledger.economy.register import RegisterBook
from openledger.economy.terms import check_payee
from openledger.ledger.accounts import TREASURY
from openledger.ledger.deposits import (
    FORFEITED,
    WITHHELD,
    hold_id,
    returned_id,
    returned_statement,
    returned_transfer,
    withheld_id,
)
from openledger.ledger.transfers import CREATED, EXISTS, Transfer

_log = logging.getLogger(__name__)
DepositState = Literal["none", "held", "owed", "returned", "forfeited"]
SCHEMA = """
CREATE TABLE IF NOT EXISTS deposits(
  contribution_id TEXT PRIMARY KEY, account TEXT NOT NULL, amount_nano INTEGER NOT NULL, state TEXT NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS deposits_owed ON deposits(account) WHERE state = 'due';
CREATE TABLE IF NOT EXISTS acquittals(contribution_id TEXT PRIMARY KEY, row_id TEXT NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS dismissals(contribution_id TEXT PRIMARY KEY, number INTEGER NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS last_decided(place INTEGER PRIMARY KEY, transfer_id TEXT NOT NULL) STRICT;
"""
_PLACED = "placed"  # noted, whether or not the ledger holds it
_DUE = "due"  # forfeited, and not paid yet
_DISMISSED = "dismissed"  # released without a verdict
_ENDS = {"kept": "forfeited", "back": "returned", "dropped": _DISMISSED}  # of a hold, and what the book calls them
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
        if known is None or known[2] == _DISMISSED:
            if not amount_nano:
                return "none"
            with writing(self._db):
                values = (contribution_id, account, amount_nano, _PLACED)
                self._db.execute("INSERT OR REPLACE INTO deposits VALUES (?, ?, ?, ?)", values)
            known = (account, amount_nano, _PLACED)
        if known[2] != _PLACED:
            return self.state(contribution_id)
        self._register.open_accounts(account)
        (result,) = self._ledger.commit([self._hold(contribution_id, account, known[1])])
        return "held" if result in (CREATED, EXISTS) else "owed"

    def dismiss(self, contribution_id: str) -> DepositState:
        """Release the deposit of a contribution that the gate never judged. When the same is sent again it is placed
        anew; judged without that (two sent it at once), it is owed where it is spam."""
        known = self._find(contribution_id)
        if known is not None and known[2] == _PLACED:
            held = self._hold_id(contribution_id)
            done = self._end(held, contribution_id, *known[:2], "dropped") if self._is_held(contribution_id) else ""
            self._mark_dismissed(contribution_id, done)
        return self.state(contribution_id)

    def judge(self, contribution_id: str, *, is_spam: bool) -> DepositState:
        """Give a deposit back, or keep it; what became of it. Decided once: again, it tells the first decision."""
        known = self._find(contribution_id)
        if known is None:
            return "none"
        account, amount_nano, state = known
        if state == _DUE:
            self.withhold(account)
        if state not in (_PLACED, _DISMISSED):
            return self.state(contribution_id)
        held, done = state == _PLACED and self._is_held(contribution_id), ""
        if held:
            name = self._hold_id(contribution_id)
            done = self._end(name, contribution_id, account, amount_nano, "kept" if is_spam else "back")
        self._mark(contribution_id, ("forfeited" if held else _DUE) if is_spam else "returned", done)
        if is_spam and not held:
            self.withhold(account)
        return self.state(contribution_id)

    def undecided(self) -> list[str]:
        """Contributions whose deposit was placed and neither given back nor kept."""
        query = "SELECT contribution_id FROM deposits WHERE state = ? ORDER BY 1"
        return [str(name) for (name,) in self._db.execute(query, (_PLACED,)).fetchall()]

    def acquit(self, contribution_id: str, row_id: str) -> DepositState:
        """Give a forfeited deposit back, from where it went, once; what isn't paid yet is owed no more. `row_id` is the
        row whose overturned verdict says that the contribution was no spam. It stays `forfeited` until the treasury has
        it; see `give_back`."""
        known = self._find(contribution_id) or self._adopt_withheld(contribution_id)
        if known is not None and known[2] == _DUE:
            self._mark(contribution_id, "returned")
        if known is not None and known[2] == "forfeited":
            with writing(self._db):
                self._db.execute("INSERT OR IGNORE INTO acquittals VALUES (?, ?)", (contribution_id, row_id))
            self.give_back()
        return self.state(contribution_id)

    def give_back(self) -> int:
        """Return what `acquit` promised, as far as the treasury has it; how much. A log that was put back may not have
        the appeal any more on whose strength it was."""
        query = (
            "SELECT contribution_id, account, amount_nano, row_id FROM acquittals JOIN deposits USING (contribution_id)"
            " WHERE state = 'forfeited' ORDER BY 1"
        )
        given_nano = 0
        for row in self._db.execute(query).fetchall():
            appeal = find_appeal(self._ledger, str(row[3]))
            if appeal is None or appeal.state != "overturned":
                continue
            statement = returned_statement(str(row[0]), str(row[1]), int(str(row[2])), str(row[3]))
            transfer = returned_transfer(statement)
            (result,) = self._ledger.commit([transfer], statement)
            if result not in (CREATED, EXISTS):
                break
            self._mark(statement["contribution_id"], "returned", transfer.transfer_id)
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
            self._mark(str(contribution_id), "forfeited", transfer.transfer_id)
            taken_nano += transfer.amount_nano
        return taken_nano

    def withhold_due(self) -> None:
        """`withhold` from whoever owes. May be repeated."""
        query = "SELECT DISTINCT account FROM deposits WHERE state = 'due' ORDER BY 1"
        for (account,) in self._db.execute(query).fetchall():
            self.withhold(str(account))

    def recover(self) -> None:
        """Do again what the log lacks of what was decided here: it was put back from a backup. What was decided last is
        looked for; where the log has it, it has the rest. May be repeated."""
        last = self._db.execute("SELECT transfer_id FROM last_decided").get
        if last is None or self._ledger.find(str(last)) is not None:
            return
        query = "SELECT contribution_id, account, amount_nano, state FROM deposits WHERE state IN (?, ?, ?) ORDER BY 1"
        rows = self._db.execute(query, ("forfeited", "returned", _DISMISSED)).fetchall()
        done = sum(self._decide_again(str(row[0]), str(row[1]), int(str(row[2])), str(row[3])) for row in rows)
        with writing(self._db):
            self._db.execute("DELETE FROM last_decided")
        _log.warning("the log is older than economy.db: %d deposits are decided again", done)

    def state(self, contribution_id: str) -> DepositState:
        known = self._find(contribution_id)
        if known is None:
            return "none"
        if known[2] == _PLACED:
            return "held" if self._is_held(contribution_id) else "owed"
        return "owed" if known[2] == _DUE else "forfeited" if known[2] == "forfeited" else "returned"

    def owed_nano(self, account: str) -> int:
        """What `account` has forfeited and not paid."""
        query = "SELECT coalesce(sum(amount_nano), 0) FROM deposits WHERE account = ? AND state = 'due'"
        return int(str(self._db.execute(query, (account,)).fetchall()[0][0]))

    def _hold_id(self, contribution_id: str) -> str:
        """Of the hold that is placed, or would be next."""
        return hold_id(contribution_id, self._num_dismissed(contribution_id))

    def _num_dismissed(self, contribution_id: str) -> int:
        """How often its deposit was released without a verdict."""
        query = "SELECT number FROM dismissals WHERE contribution_id = ?"
        row = self._db.execute(query, (contribution_id,)).fetchone()
        return 0 if row is None else int(str(row[0]))

    def _is_held(self, contribution_id: str) -> bool:
        return self._ledger.find(self._hold_id(contribution_id)) is not None

    def _hold(self, contribution_id: str, account: str, amount_nano: int) -> Transfer:
        return Transfer(
            transfer_id=self._hold_id(contribution_id),
            debit=account,
            credit=TREASURY,
            amount_nano=amount_nano,
            code="deposit",
            reference=contribution_id,
            kind="pending",
        )

    def _decide_again(self, contribution_id: str, account: str, amount_nano: int, state: str) -> bool:
        """Whether the log lacked anything of it."""
        held = hold_id(contribution_id, self._num_dismissed(contribution_id) - (state == _DISMISSED))
        kept = self._ledger.find(f"{held}.kept") is not None or self._ledger.find(withheld_id(contribution_id))
        if self._is_open(held):
            end = next(end for end, means in _ENDS.items() if means == state)
            self._end(held, contribution_id, account, amount_nano, end)
        elif state == "forfeited" and not kept:
            self._mark(contribution_id, _DUE)
        elif state == "returned" and kept and self._ledger.find(returned_id(contribution_id)) is None:
            self._mark(contribution_id, "forfeited")  # `give_back` does the rest
        else:
            return False
        return True

    def _is_open(self, held: str) -> bool:
        ended = any(self._ledger.find(f"{held}.{end}") is not None for end in _ENDS)
        return self._ledger.find(held) is not None and not ended

    def _end(self, held: str, contribution_id: str, account: str, amount_nano: int, end: str) -> str:
        """End a hold; the id of the transfer that does."""
        transfer = Transfer(
            transfer_id=f"{held}.{end}",
            debit=account,
            credit=TREASURY,
            amount_nano=amount_nano,
            code=FORFEITED if end == "kept" else "deposit_returned",
            reference=contribution_id,
            kind="post" if end == "kept" else "void",
            pending_id=held,
        )
        (result,) = self._ledger.commit([transfer])
        if result not in (CREATED, EXISTS):
            raise Conflict(f"the deposit of {contribution_id} was decided otherwise: {result}", code="deposit_decided",
                           param="contribution_id")  # fmt: skip
        return transfer.transfer_id

    def _find(self, contribution_id: str) -> tuple[str, int, str] | None:
        """Account, amount and state, once what the ledger did is noted here: a crash may have come between the two."""
        if not isinstance(contribution_id, str) or not 0 < len(contribution_id) <= 300:
            raise InvalidInput("a contribution has an id", code="invalid_id", param="contribution_id")
        known = self._noted(contribution_id) or self._adopt(contribution_id)
        if known is None or (done := self._done(contribution_id, known[2])) is None:
            return known
        if done == _DISMISSED:
            self._mark_dismissed(contribution_id)
        else:
            self._mark(contribution_id, done)
        return (*known[:2], done)

    def _noted(self, contribution_id: str) -> tuple[str, int, str] | None:
        query = "SELECT account, amount_nano, state FROM deposits WHERE contribution_id = ?"
        row = self._db.execute(query, (contribution_id,)).fetchone()
        return None if row is None else (str(row[0]), int(str(row[1])), str(row[2]))

    def _adopt(self, contribution_id: str) -> tuple[str, int, str] | None:
        """A deposit that only the log knows."""
        first = self._ledger.find(hold_id(contribution_id))
        if first is None:
            return None
        number = 0
        while self._ledger.find(f"{hold_id(contribution_id, number)}.dropped") is not None:
            number += 1
        state = _DISMISSED if self._ledger.find(hold_id(contribution_id, number)) is None else _PLACED
        known = first.transfer.debit, first.transfer.amount_nano, state
        with writing(self._db):
            self._db.execute("INSERT INTO deposits VALUES (?, ?, ?, ?)", (contribution_id, *known))
            if number:
                self._db.execute("INSERT OR REPLACE INTO dismissals VALUES (?, ?)", (contribution_id, number))
        return known

    def _adopt_withheld(self, contribution_id: str) -> tuple[str, int, str] | None:
        """One that was never held, and was taken from earnings."""
        entry = self._ledger.find(withheld_id(contribution_id))
        if entry is None:
            return None
        known = entry.transfer.debit, entry.transfer.amount_nano, "forfeited"
        with writing(self._db):
            self._db.execute("INSERT INTO deposits VALUES (?, ?, ?, ?)", (contribution_id, *known))
        return known

    def _done(self, contribution_id: str, state: str) -> str | None:
        """What the ledger did with a deposit that waits; None where it still waits."""
        if state == _DUE:
            return None if self._ledger.find(withheld_id(contribution_id)) is None else "forfeited"
        if state != _PLACED or not self._is_held(contribution_id):
            return None
        held = self._hold_id(contribution_id)
        return next((means for end, means in _ENDS.items() if self._ledger.find(f"{held}.{end}") is not None), None)

    def _mark(self, contribution_id: str, state: str, transfer_id: str = "") -> None:
        """`transfer_id` is what did it in the log, if anything did."""
        with writing(self._db):
            self._db.execute("UPDATE deposits SET state = ? WHERE contribution_id = ?", (state, contribution_id))
            self._note_last(transfer_id)

    def _note_last(self, transfer_id: str) -> None:
        if transfer_id:
            self._db.execute("INSERT OR REPLACE INTO last_decided VALUES (0, ?)", (transfer_id,))

    def _mark_dismissed(self, contribution_id: str, transfer_id: str = "") -> None:
        """With it the next hold has another id: the ledger ends each once."""
        count = "INSERT INTO dismissals VALUES (?, 1) ON CONFLICT DO UPDATE SET number = number + 1"
        with writing(self._db):
            values = (_DISMISSED, contribution_id)
            self._db.execute("UPDATE deposits SET state = ? WHERE contribution_id = ?", values)
            self._db.execute(count, (contribution_id,))
            self._note_last(transfer_id)


def _withheld(contribution_id: str, account: str, amount_nano: int) -> Transfer:
    return Transfer(
        transfer_id=withheld_id(contribution_id),
        debit=account,
        credit=TREASURY,
        amount_nano=amount_nano,
        code=WITHHELD,
        reference=contribution_id,
    )
