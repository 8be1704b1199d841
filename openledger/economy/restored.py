"""Log and journal made one again where a backup put back only one of them, or an older copy of one.

    the log is older        a sale that it lacks waits to be posted again; a settlement or refund that it lacks wasn't
    the journal is older    a sale that only the log has is paid for, its content gone; a refund of it is noted

What one process writes in order is lost from the end only. So it is enough to look at the newest that one of them has:
where the other knows it, nothing is missing. The log has what stands for each sale's idempotency key, but for those of
before it did: so what only the log has is not sold again where its key is sent again. What other books keep beside the
log they read back themselves (`deposits`, `withdrawals`); here are the pools that their notes are of.
"""

import logging
from typing import Any

import apsw

from openledger.core.database import writing
from openledger.economy import disputes
from openledger.economy.answers import AnswerStore
from openledger.economy.holds import HoldStore
from openledger.economy.port import LedgerPort, after_known
from openledger.economy.pricing import fee_id
from openledger.economy.settlement import payout_id
from openledger.economy.staking import StakeBook
from openledger.ledger import refunds
from openledger.ledger.accounts import HOLDS, UNATTRIBUTED
from openledger.ledger.disputes import disputed_pool
from openledger.ledger.transfers import Entry

SCHEMA = "CREATE TABLE IF NOT EXISTS read_back(account TEXT PRIMARY KEY, seq INTEGER NOT NULL) STRICT, WITHOUT ROWID;"
_log = logging.getLogger(__name__)


class Reconciliation:
    """Run before anything else is recovered; may be repeated."""

    def __init__(self, ledger: LedgerPort, answers: AnswerStore, connection: apsw.Connection, stakes: StakeBook):
        self._ledger = ledger
        self._answers = answers
        self._db = connection
        self._stakes = stakes
        self._holds = HoldStore(connection)

    def run(self) -> None:
        lost, adopted = self._unsell(), self._adopt()
        lost += self._unsettle() + self._unrefund()
        adopted += self.read_refunds(UNATTRIBUTED)
        if lost:
            _log.warning("the log is older than economy.db: %d answers and pools go back to what it says of them", lost)
        if adopted:
            _log.warning("economy.db is older than the log: %d sales and refunds were read back from it", adopted)

    def _unsell(self) -> int:
        """Answers that count as paid for and whose fee the log lacks are posted again, or unpaid."""
        last = self._answers.last_posted()
        if not last or self._has(fee_id(last)):
            return 0
        missing = [name for name in self._answers.in_log() if not self._has(fee_id(name))]
        for name in missing:
            self._answers.mark(name, "stored")
        self._answers.forget_posted()
        return len(missing)

    def _unsettle(self) -> int:
        """Pools that count as settled and whose settlement the log lacks; periods are settled one after another."""
        missing = 0
        for period in self._answers.periods_settled():
            lacking = [adapter for adapter in self._answers.adapters_settled(period)
                       if not self._has(payout_id(adapter, period))]  # fmt: skip
            if not lacking:
                break
            for adapter in lacking:
                self._answers.unsettle(adapter, period)
            missing += len(lacking)
        return missing

    def _unrefund(self) -> int:
        missing = [name for name in self._answers.refunded() if not self._has(refunds.refund_id(name))]
        for name in missing:
            self._answers.unrefund(name)
        return len(missing)

    def _adopt(self) -> int:
        """Sales that only the log has, after the newest that was posted here."""
        adopted = 0
        for entry in after_known(self._ledger, HOLDS, self._is_posted):
            name = entry.transfer.reference
            usage = self._ledger.batch(entry.seq).statement if entry.transfer.code == "fee" else None
            if usage is not None and self._answers.find(name) is None:
                self._adopt_sale(usage)
                adopted += 1
        return adopted

    def _is_posted(self, entry: Entry) -> bool:
        known = self._answers.find(entry.transfer.reference) if entry.transfer.code == "fee" else None
        return known is not None and known.state != "stored"

    def _adopt_sale(self, usage: dict[str, Any]) -> None:
        """The answer last: what was read back of it is known by that."""
        if usage["accounts"]["stakers"].startswith("stakers:"):
            self._stakes.remember((usage["adapter"], usage["period"]))
        if "request" in usage and self._holds.find(usage["answer_id"]) is None:
            self._holds.adopt(usage)
        self._answers.adopt(usage, self._has(refunds.refund_id(usage["answer_id"])))

    def read_refunds(self, account: str) -> int:
        """Refunds that took of `account` and weren't known here, since it was last looked at; how many."""
        read_seq = self._read_seq(account)
        entries = after_known(self._ledger, account, lambda entry: entry.seq == read_seq)
        found = sum([self._note(entry) for entry in entries])
        if entries:
            with writing(self._db):
                self._db.execute("INSERT OR REPLACE INTO read_back VALUES (?, ?)", (account, entries[-1].seq))
        return found

    def _note(self, entry: Entry) -> bool:
        """Whether the entry is of a refund that wasn't known; now it is. So is a pool that went into escrow."""
        if pool := disputed_pool(entry.transfer.credit):
            disputes.remember(self._db, *pool)
        known = self._answers.find(entry.transfer.reference) if entry.transfer.code == refunds.CODE else None
        if known is None or known.state == "refunded":
            return False
        self._answers.mark(known.answer_id, "refunded")
        return True

    def _read_seq(self, account: str) -> int:
        row = self._db.execute("SELECT seq FROM read_back WHERE account = ?", (account,)).fetchone()
        return -1 if row is None else int(str(row[0]))

    def _has(self, transfer_id: str) -> bool:
        return self._ledger.find(transfer_id) is not None
