"""The book of deposits and one-time fees: what it costs to contribute, to create a Datanet, to deploy an adapter.

    contribution   a hold for the deposit; returned (void) when it is accepted, forfeited (post) when it is spam
                   with too little in the account nothing is held; forfeited then, it is withheld from later earnings
                   where an appeal shows that it was no spam it comes back, from the treasury (`acquit`)
                   released where the gate never judged it (`dismiss`), and held anew, as the next hold, when it is sent
                   again
    datanet        paid once, to the treasury
    adapter        paid once for each digest that is deployed, to the treasury

Amounts are parameters, 0 at the start: then nothing is held and nothing paid. Ids derive from what is paid for, so that
asking again changes nothing. What is owed stands here, durably, until it is paid.

What the log did with a deposit's holds is read there whenever it is asked for (`_find`): after a crash, or where
economy.db was put back from a backup. Where the log was, what it lacks of what was decided is done again at the start
(`recover`).
"""

import logging
from typing import Literal

import apsw

from openledger.core.database import writing
from openledger.core.errors import Conflict, InsufficientFunds, InvalidInput
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
from openledger.ledger.transfers import CREATED, EXISTS, Entry, Transfer

_log = logging.getLogger(__name__)
DepositState = Literal["none", "held", "owed", "returned", "forfeited"]
SCHEMA = """
CREATE TABLE IF NOT EXISTS deposits(
  contribution_id TEXT PRIMARY KEY, account TEXT NOT NULL, amount_nano INTEGER NOT NULL, state TEXT NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS deposits_owed ON deposits(account) WHERE state = 'due';
CREATE TABLE IF NOT EXISTS acquittals(contribution_id TEXT PRIMARY KEY, row_id TEXT NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS dismissals(contribution_id TEXT PRIMARY KEY, number INTEGER NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS last_decided(
  place INTEGER PRIMARY KEY, transfer_id TEXT NOT NULL, seq INTEGER NOT NULL
) STRICT;
"""
_PLACED = "placed"  # noted, whether or not the ledger holds it
_DUE = "due"  # forfeited, and not paid yet
_DISMISSED = "dismissed"  # released without a verdict
_ENDED_BY = {"forfeited": "kept", "returned": "back"}  # how a hold that was judged ends
_NOTHING = ""  # stands for what was decided last where nothing was
_ENDS = (*_ENDED_BY.values(), "dropped")
_Known = tuple[str, int, str]  # account, amount, state
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
        return "held" if self._take(self._hold(contribution_id, account, known[1])) else "owed"

    def dismiss(self, contribution_id: str) -> DepositState:
        """Release the deposit of a contribution that the gate never judged. When the same is sent again it is placed
        anew; judged without that (two sent it at once), it is owed where it is spam."""
        known = self._find(contribution_id)
        if known is not None and known[2] == _PLACED:
            if self._is_held(contribution_id):
                self._end(self._hold_id(contribution_id), *known[:2], contribution_id, "dropped")
                self._find(contribution_id)
            else:
                self._mark(contribution_id, _DISMISSED)
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
        if state == _PLACED and self._is_held(contribution_id):
            end = "kept" if is_spam else "back"
            self._end(self._hold_id(contribution_id), account, amount_nano, contribution_id, end)
            self._find(contribution_id)
        else:
            self._mark(contribution_id, _DUE if is_spam else "returned")
            if is_spam:
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
        known = self._find(contribution_id)
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
            self._mark(statement["contribution_id"], "returned", self._ledger.find(transfer.transfer_id))
            given_nano += statement["amount_nano"]
        return given_nano

    def withhold(self, account: str) -> int:
        """Take what `account` owes for spam, the oldest first, each whole, as far as it goes; how much."""
        query = "SELECT contribution_id, amount_nano FROM deposits WHERE account = ? AND state = 'due' ORDER BY 1"
        taken_nano = 0
        for contribution_id, amount_nano in self._db.execute(query, (account,)).fetchall():
            transfer = _withheld(str(contribution_id), account, int(str(amount_nano)))
            if not self._take(transfer):
                break
            self._mark(str(contribution_id), "forfeited", self._ledger.find(transfer.transfer_id))
            taken_nano += transfer.amount_nano
        return taken_nano

    def withhold_due(self) -> None:
        """`withhold` from whoever owes. May be repeated."""
        query = "SELECT DISTINCT account FROM deposits WHERE state = 'due' ORDER BY 1"
        for (account,) in self._db.execute(query).fetchall():
            self.withhold(str(account))

    def recover(self) -> None:
        """Do again what the log lacks of what was decided here: it was put back from a backup. What was decided last is
        looked for; where the log has it, or never decided anything, it has the rest. May be repeated."""
        last = self._db.execute("SELECT transfer_id FROM last_decided").get
        if last == _NOTHING or (last is not None and self._ledger.find(str(last)) is not None):
            return
        query = """SELECT contribution_id, account, amount_nano, state FROM deposits
                   LEFT JOIN dismissals USING (contribution_id)
                   WHERE state IN ('forfeited', 'returned') OR number > 0 ORDER BY 1"""
        rows = self._db.execute(query).fetchall()
        done = sum([self._decide_again(str(row[0]), str(row[1]), int(str(row[2])), str(row[3])) for row in rows])
        found = [entry for row in rows for entry in self._decisions(str(row[0]))]
        with writing(self._db):
            self._db.execute("INSERT OR REPLACE INTO last_decided VALUES (0, ?, -1)", (_NOTHING,))
            self._note_last(max(found, key=lambda entry: entry.seq, default=None))
        if done:
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

    def _take(self, transfer: Transfer) -> bool:
        """Whether the account has it; what it took out goes before."""
        try:
            (result,) = self._ledger.commit([transfer])
        except InsufficientFunds:
            return False
        return result in (CREATED, EXISTS)

    def _decide_again(self, contribution_id: str, account: str, amount_nano: int, state: str) -> bool:
        """Whether the log lacked anything of it."""
        number = self._num_dismissed(contribution_id)
        earlier = [self._ledger.find(hold_id(contribution_id, each)) for each in range(number)]
        undropped = [one for one in earlier if one is not None and self._is_open(one.transfer.transfer_id)]
        for one in undropped:
            self._end(one.transfer.transfer_id, account, one.transfer.amount_nano, contribution_id, "dropped")
        held = hold_id(contribution_id, number)
        kept = self._ledger.find(f"{held}.kept") is not None or self._ledger.find(withheld_id(contribution_id))
        if state in _ENDED_BY and self._is_open(held):
            self._end(held, account, amount_nano, contribution_id, _ENDED_BY[state])
        elif state == "forfeited" and not kept:
            self._mark(contribution_id, _DUE)
        elif state == "returned" and kept and self._ledger.find(returned_id(contribution_id)) is None:
            self._mark(contribution_id, "forfeited")  # `give_back` does the rest
        else:
            return bool(undropped)
        return True

    def _decisions(self, contribution_id: str) -> list[Entry]:
        """What the log decided of it."""
        holds = [hold_id(contribution_id, number) for number in range(self._num_dismissed(contribution_id) + 1)]
        names = [f"{held}.{end}" for held in holds for end in _ENDS]
        found = map(self._ledger.find, (*names, withheld_id(contribution_id), returned_id(contribution_id)))
        return [entry for entry in found if entry is not None]

    def _is_open(self, held: str) -> bool:
        ended = any(self._ledger.find(f"{held}.{end}") is not None for end in _ENDS)
        return self._ledger.find(held) is not None and not ended

    def _end(self, held: str, account: str, amount_nano: int, contribution_id: str, end: str) -> None:
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

    def _find(self, contribution_id: str) -> _Known | None:
        """Account, amount and state, once what the ledger did is noted here: a crash may have come between the two."""
        if not isinstance(contribution_id, str) or not 0 < len(contribution_id) <= 300:
            raise InvalidInput("a contribution has an id", code="invalid_id", param="contribution_id")
        known = self._noted(contribution_id)
        if known is None or known[2] in (_PLACED, _DISMISSED):
            return self._read_back(contribution_id, known)
        if known[2] == _DUE and (taken := self._ledger.find(withheld_id(contribution_id))) is not None:
            self._mark(contribution_id, "forfeited", taken)
            return (*known[:2], "forfeited")
        return known

    def _noted(self, contribution_id: str) -> _Known | None:
        query = "SELECT account, amount_nano, state FROM deposits WHERE contribution_id = ?"
        row = self._db.execute(query, (contribution_id,)).fetchone()
        return None if row is None else (str(row[0]), int(str(row[1])), str(row[2]))

    def _read_back(self, contribution_id: str, noted: _Known | None) -> _Known | None:
        """`noted`, once what the log did since is noted too: holds that were dropped, the one after them, its end."""
        first, state = self._num_dismissed(contribution_id), _DISMISSED
        number, held, decided = self._newest_hold(contribution_id, first)
        if held is None and (taken := self._ledger.find(withheld_id(contribution_id))) is not None:
            state, decided = "forfeited", taken
        elif held is not None:
            ends = {means: self._ledger.find(f"{held.transfer.transfer_id}.{end}") for means, end in _ENDED_BY.items()}
            state, decided = next(((means, end) for means, end in ends.items() if end is not None), (_PLACED, decided))
        told = held or decided
        if told is None:
            return noted
        known = told.transfer.debit, told.transfer.amount_nano, state
        if (known, number) != (noted, first) or decided is not None:
            with writing(self._db):
                self._db.execute("INSERT OR REPLACE INTO deposits VALUES (?, ?, ?, ?)", (contribution_id, *known))
                self._db.execute("INSERT OR REPLACE INTO dismissals VALUES (?, ?)", (contribution_id, number))
                self._note_last(decided)
        return known

    def _newest_hold(self, contribution_id: str, number: int) -> tuple[int, Entry | None, Entry | None]:
        """From `number` on: the newest hold's number; it, if it is placed; and what dropped the one before. Earlier
        versions counted a dismissal also where nothing was held, so that one may be missing before it."""
        decided = None
        while True:
            held = self._ledger.find(hold_id(contribution_id, number))
            if held is None and (held := self._ledger.find(hold_id(contribution_id, number + 1))) is not None:
                number += 1
            dropped = held and self._ledger.find(f"{held.transfer.transfer_id}.dropped")
            if dropped is None:
                return number, held, decided
            number, decided = number + 1, dropped

    def _mark(self, contribution_id: str, state: str, decided: Entry | None = None) -> None:
        """`decided` is what did it in the log, if anything did."""
        with writing(self._db):
            self._db.execute("UPDATE deposits SET state = ? WHERE contribution_id = ?", (state, contribution_id))
            self._note_last(decided)

    def _note_last(self, decided: Entry | None) -> None:
        """The newest of what the log decided."""
        query = """INSERT INTO last_decided VALUES (0, ?, ?) ON CONFLICT DO UPDATE
                   SET transfer_id = excluded.transfer_id, seq = excluded.seq WHERE excluded.seq > seq"""
        if decided is not None:
            self._db.execute(query, (decided.transfer.transfer_id, decided.seq))


def _withheld(contribution_id: str, account: str, amount_nano: int) -> Transfer:
    return Transfer(
        transfer_id=withheld_id(contribution_id),
        debit=account,
        credit=TREASURY,
        amount_nano=amount_nano,
        code=WITHHELD,
        reference=contribution_id,
    )
