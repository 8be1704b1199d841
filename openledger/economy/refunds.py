"""The book of refunds: an answer's fee back to its customer, once, each part from where it went.

    noted (here, durably) -> written (the log) -> the answer is marked refunded

A refund that was noted is finished or forgotten at the next start: what the log has is done, the rest never happened.
"""

from collections.abc import Mapping
from typing import Any

import apsw

from openledger.core.database import writing
from openledger.core.errors import Conflict, InsufficientFunds, InvalidInput, NotFound
from openledger.core.money import format_money, format_open
from openledger.economy.answers import AnswerStore, StoredAnswer
from openledger.economy.port import LedgerPort
from openledger.economy.settlement import payout_id
from openledger.ledger import refunds, stakes
from openledger.ledger.accounts import TREASURY, UNATTRIBUTED
from openledger.ledger.register import Register
from openledger.ledger.statements import Statement, parts_by_account
from openledger.ledger.transfers import CREATED, Entry

SCHEMA = "CREATE TABLE IF NOT EXISTS refunding(answer_id TEXT PRIMARY KEY) STRICT, WITHOUT ROWID;"


class RefundBook:
    def __init__(self, ledger: LedgerPort, answers: AnswerStore, connection: apsw.Connection):
        self._ledger = ledger
        self._answers = answers
        self._db = connection

    def refund(
        self,
        stored: StoredAnswer,
        reason: str,
        state: Register,
        window_ms: int,
        now_ms: int,
        unattributed_nano: int,
    ) -> Statement:
        """Give an answer's fee back; again, it gives the first refund. Its pool left `unattributed_nano` to take.

        Raises InvalidInput without a reason, Conflict once `window_ms` are over (`refund_window_closed`),
        InsufficientFunds where the treasury can't bear what others don't give; nothing is changed then.
        """
        known = self._ledger.find(refunds.refund_id(stored.answer_id))
        if known is not None:
            self._finish(stored.answer_id)
            return self._ledger.batch(known.seq).statement or {}
        usage = stored.usage
        self._check_window(usage["answer_id"], window_ms, now_ms)
        statement = self._statement(usage, reason, state, unattributed_nano)
        with writing(self._db):
            self._db.execute("INSERT OR IGNORE INTO refunding VALUES (?)", (stored.answer_id,))
        self._write(statement)
        self._finish(stored.answer_id)
        return statement

    def recover(self) -> None:
        """Finish what a crash left between the log and the answers."""
        for (answer_id,) in self._db.execute("SELECT answer_id FROM refunding").fetchall():
            if self._ledger.find(refunds.refund_id(str(answer_id))) is not None:
                self._finish(str(answer_id))
            else:
                self._forget(str(answer_id))

    def of_pool(self, adapter: str, period: str) -> list[Entry]:
        """See `refunds_of_pool`."""
        return refunds_of_pool(self._ledger, self._db, adapter, period)

    def _statement(self, usage: Statement, reason: str, state: Register, unattributed_nano: int) -> Statement:
        due = refunds.owed(usage, self._payouts(usage), self._rewards(usage, state))
        available = {name: self._available(name) for name in due}
        if UNATTRIBUTED in available:
            available[UNATTRIBUTED] = min(available[UNATTRIBUTED], unattributed_nano)
        available[usage["account"]] = due.get(usage["account"], 0)  # what one owes oneself needn't move
        given = refunds.taken(due, available)
        missing_nano = given.get(TREASURY, 0) - self._available(TREASURY)
        if missing_nano > 0:
            raise InsufficientFunds(
                f"the treasury would bear {format_money(given[TREASURY])} of it and has"
                f" {format_open(missing_nano)} less",
                code="refund_not_covered",
                param="answer_id",
                fix=f"add {format_money(missing_nano)} to the treasury",
            )
        return refunds.refund_statement(usage, due, given, reason, self._emission_back(usage, given, state))

    def _emission_back(self, usage: Statement, given_nano: Mapping[str, int], state: Register) -> dict[str, int]:
        """Of what was emitted for the answer, what its accounts still have once the fee is back."""
        emitted = state.emissions.accounts_nano.get((usage["adapter"], usage["period"]), {})
        settlement = self._settlement(usage)
        if settlement is None or not emitted:
            return {}
        due = refunds.emission_owed(usage, settlement["pool_nano"], emitted)
        left = {name: self._available(name) - given_nano.get(name, 0) for name in due}
        if usage["account"] in left:
            left[usage["account"]] += usage["fee_nano"]
        back = {name: min(due[name], left[name]) for name in due}
        return {name: amount_nano for name, amount_nano in back.items() if amount_nano > 0}

    def _payouts(self, usage: Statement) -> dict[str, int] | None:
        settlement = self._settlement(usage)
        return settlement and parts_by_account(settlement["payouts_nano"], settlement["accounts"])

    def _settlement(self, usage: Statement) -> dict[str, Any] | None:
        entry = self._ledger.find(payout_id(usage["adapter"], usage["period"]))
        return None if entry is None else self._ledger.batch(entry.seq).statement

    def _rewards(self, usage: Statement, state: Register) -> dict[str, int] | None:
        key = (usage["adapter"], usage["period"])
        if key not in state.stakes.rewarded:
            return None
        entries = self._ledger.transfers(stakes.reward_account(*key), stakes.MAX_STAKERS)
        return {entry.transfer.credit: entry.transfer.amount_nano for entry in entries
                if entry.transfer.code == "stake_reward"}  # fmt: skip

    def _available(self, account: str) -> int:
        try:
            return self._ledger.balance(account).available_nano
        except NotFound:
            return 0

    def _write(self, statement: Statement) -> None:
        transfers = refunds.refund_transfers(statement)
        if not transfers:
            raise Conflict("all of the fee went to its customer", code="nothing_to_refund", param="answer_id")
        results = self._ledger.commit(transfers, dict(statement))
        for result in results:
            if result not in (CREATED, "linked_transfer_failed"):
                self._forget(statement["answer_id"])
                raise Conflict(f"the ledger refused the refund: {result}", code=result, param="answer_id")

    def _check_window(self, answer_id: str, window_ms: int, now_ms: int) -> None:
        sold = self._ledger.find(f"{answer_id}.fee")
        if sold is None:
            raise InvalidInput(f"{answer_id} wasn't paid for", code="answer_not_paid", param="answer_id")
        if now_ms > sold.time_ms + window_ms:
            raise Conflict(
                f"{answer_id} was sold too long ago to be refunded", code="refund_window_closed", param="answer_id"
            )

    def _finish(self, answer_id: str) -> None:
        self._answers.mark(answer_id, "refunded")
        self._forget(answer_id)

    def _forget(self, answer_id: str) -> None:
        with writing(self._db):
            self._db.execute("DELETE FROM refunding WHERE answer_id = ?", (answer_id,))


def refunds_of_pool(ledger: LedgerPort, connection: apsw.Connection, adapter: str, period: str) -> list[Entry]:
    """The first transfer of each refund that the log has of a pool's answers."""
    query = """SELECT answer_id FROM answers WHERE adapter = ? AND period = ? AND pool_nano > 0
               AND (state = 'refunded' OR answer_id IN (SELECT answer_id FROM refunding))"""
    names = [refunds.refund_id(str(row[0])) for row in connection.execute(query, (adapter, period))]
    return [entry for entry in map(ledger.find, names) if entry is not None]
