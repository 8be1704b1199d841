"""First payouts: held while rows of their contributors, drawn to be looked at again, wait for somebody to look.

    held       a hold over what the first settlement that paid an account paid it, once for each account
    released   its `void`: every spot check that was drawn by then is closed, or the hold's own time is up

So people can look before a newcomer's money moves. Nothing is taken by it: no finding ends a payout that was measured,
and what the account owes for spam is withheld before. The log has the hold with its end, so an owner who never looks
keeps nobody from his money. The id is the account's, so a settlement that is repeated holds nothing anew.

What the log did is read there: economy.db notes whose hold it is, and may be put back from a backup, as the log may.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import apsw

from openledger.core.database import writing
from openledger.core.ids import derived_id
from openledger.economy.port import LedgerPort, newest_first
from openledger.economy.register import RegisterBook
from openledger.economy.spot_checks import SpotCheckBook
from openledger.ledger.accounts import TREASURY
from openledger.ledger.transfers import Entry, Transfer

CODE, RELEASED = "first_payout_held", "first_payout_released"
SCHEMA = """
CREATE TABLE IF NOT EXISTS first_payouts(
  account TEXT PRIMARY KEY, contributors TEXT NOT NULL, payout_id TEXT NOT NULL, amount_nano INTEGER NOT NULL,
  timeout_ms INTEGER NOT NULL, released INTEGER NOT NULL DEFAULT 0
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS first_payouts_held ON first_payouts(account) WHERE NOT released;
"""


class FirstPayoutBook:
    def __init__(self, ledger: LedgerPort, register: RegisterBook, checks: SpotCheckBook, connection: apsw.Connection):
        self._ledger = ledger
        self._register = register
        self._checks = checks
        self._db = connection

    def hold(self, settlement: Mapping[str, Any], payouts: Sequence[Transfer], timeout_ms: int) -> None:
        """Hold what a settlement paid to accounts that no settlement paid before, where a check of theirs is open. May
        be repeated."""
        whose: dict[str, list[str]] = {}
        for contributor, account in settlement["accounts"].items():
            whose.setdefault(account, []).append(contributor)
        for payout in payouts:
            contributors = whose[payout.credit]
            if self._is_held(payout) or (timeout_ms and self._checks.num_open(contributors) and self._is_first(payout)):
                self._note(payout, contributors, timeout_ms)
                self._place(payout.credit, payout.transfer_id, payout.amount_nano, timeout_ms)

    def release_due(self) -> int:
        """Release what nothing holds any more; how many. May be repeated."""
        rows = self._db.execute("SELECT account, contributors FROM first_payouts WHERE NOT released").fetchall()
        return sum([self._release(str(account), json.loads(str(contributors))) for account, contributors in rows])

    def recover(self) -> None:
        """A log that was put back may lack a hold, or its release; the payout it has. May be repeated."""
        query = "SELECT account, payout_id, amount_nano, timeout_ms FROM first_payouts"
        for account, payout_id, amount_nano, timeout_ms in self._db.execute(query).fetchall():
            held, name = self._ledger.find(hold_id(str(account))), str(account)
            if held is None and self._ledger.find(str(payout_id)) is not None:
                self._place(name, str(payout_id), int(str(amount_nano)), int(str(timeout_ms)))
            if self._is_open(name):
                self._mark(name, is_released=False)

    def _is_held(self, payout: Transfer) -> bool:
        held = self._ledger.find(hold_id(payout.credit))
        return held is not None and held.transfer.reference == payout.transfer_id

    def _is_first(self, payout: Transfer) -> bool:
        paid = (entry.transfer for entry in newest_first(self._ledger, payout.credit))
        return not any(one.code == payout.code and one.reference != payout.reference for one in paid)

    def _note(self, payout: Transfer, contributors: list[str], timeout_ms: int) -> None:
        values = payout.credit, json.dumps(sorted(contributors)), payout.transfer_id, payout.amount_nano, timeout_ms
        with writing(self._db):
            self._db.execute("INSERT OR IGNORE INTO first_payouts VALUES (?, ?, ?, ?, ?, 0)", values)

    def _place(self, account: str, payout_id: str, amount_nano: int, timeout_ms: int) -> None:
        """As much of the payout as is there: what was owed for spam is gone already."""
        amount_nano = min(amount_nano, self._register.available_nano(account))
        if amount_nano > 0 and self._ledger.find(hold_id(account)) is None:
            self._ledger.commit([_transfer(account, payout_id, amount_nano, timeout_ms)])

    def _release(self, account: str, contributors: list[str]) -> bool:
        held = self._ledger.find(hold_id(account))
        if held is not None and self._is_kept(held, contributors):
            return False
        if held is not None and self._is_open(account):
            self._ledger.commit([_release_of(held.transfer)])
        self._mark(account, is_released=True)
        return held is not None

    def _is_kept(self, held: Entry, contributors: list[str]) -> bool:
        is_over = self._register.now_ms() >= held.time_ms + held.transfer.timeout_ms
        return not is_over and self._checks.num_open(contributors, until_ms=held.time_ms) > 0

    def _is_open(self, account: str) -> bool:
        held = hold_id(account)
        return self._ledger.find(held) is not None and self._ledger.find(f"{held}.released") is None

    def _mark(self, account: str, *, is_released: bool) -> None:
        with writing(self._db):
            self._db.execute("UPDATE first_payouts SET released = ? WHERE account = ?", (int(is_released), account))


def hold_id(account: str) -> str:
    return derived_id("fph", account)


def _transfer(account: str, payout_id: str, amount_nano: int, timeout_ms: int) -> Transfer:
    return Transfer(
        transfer_id=hold_id(account),
        debit=account,
        credit=TREASURY,
        amount_nano=amount_nano,
        code=CODE,
        reference=payout_id,
        kind="pending",
        timeout_ms=timeout_ms,
    )


def _release_of(held: Transfer) -> Transfer:
    return Transfer(
        transfer_id=f"{held.transfer_id}.released",
        debit=held.debit,
        credit=held.credit,
        amount_nano=held.amount_nano,
        code=RELEASED,
        reference=held.reference,
        kind="void",
        pending_id=held.transfer_id,
    )
