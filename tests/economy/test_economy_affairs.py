"""Any order of sales, refunds, settlements, stakes and withdrawals: the books are right, and the audit is clean."""

import shutil
import tempfile
from pathlib import Path

import pytest
from economy_values import Town, scores
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from openledger.core.clock import ManualClock
from openledger.core.errors import Conflict, InsufficientFunds, InvalidInput, NotFound, OpenLedgerError
from openledger.core.money import NANO_PER_OPEN
from openledger.ledger.parameters import DAY_MS

OPEN = NANO_PER_OPEN
START = 10_000_000


class Affairs(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.town = Town(self.folder, ManualClock())
        self.town.economy.grant("user:alice", START, "start")
        self.town.economy.grant("user:bob", 100 * OPEN, "bob")
        self.number, self.spent, self.fees, self.sold_ms, self.settled = 0, 0, {}, {}, set()

    @rule(tokens=st.integers(1, 40))
    def sell(self, tokens: int) -> None:
        self.number += 1
        receipt = self.town.sell(f"k{self.number}", completion=tokens)
        self.fees[receipt.answer_id] = receipt.fee_nano
        self.sold_ms[receipt.answer_id] = self.town.clock.now_ms()
        self.spent += receipt.fee_nano

    @rule(data=st.data())
    def refund(self, data: st.DataObject) -> None:
        answer_id = data.draw(st.sampled_from([*self.fees, "ans_none"]))
        now_ms = self.town.clock.now_ms()
        is_late = now_ms > self.sold_ms.get(answer_id, now_ms) + self.town.economy.parameters().refund_window_ms
        refused = None
        try:
            self.town.economy.refund(answer_id, "why")
        except (InsufficientFunds, NotFound):
            return
        except Conflict as error:
            refused = error.code
        assert refused == ("refund_window_closed" if is_late else None)
        if not is_late:
            self.spent -= self.fees.pop(answer_id)

    @rule(data=st.data())
    def mark(self, data: st.DataObject) -> None:
        answer_id = data.draw(st.sampled_from([*self.fees, "ans_none"]))
        try:
            self.town.economy.mark(answer_id, "wrong", "user:alice")
        except (Conflict, NotFound):
            return

    @rule(to_bob=st.booleans())
    def settle(self, to_bob: bool) -> None:
        period = self.town.economy.current_period()
        left_out = self.town.economy.pool("py", period).left_out
        paid = {"ctr_a": "user:bob"} if to_bob else {}
        settlement = self.town.economy.settle(scores(period), paid, left_out=left_out)
        assert sum(settlement.payouts_nano.values()) == settlement.pool_nano
        self.settled.add(period)

    @rule(days=st.integers(0, 9))
    def wait(self, days: int) -> None:
        self.town.clock.advance(days * DAY_MS)

    @rule(amount=st.integers(1, 40), back=st.booleans())
    def stake(self, amount: int, back: bool) -> None:
        self.number += 1
        move = self.town.economy.unstake if back else self.town.economy.stake
        try:
            move("user:bob", "adapter:py", amount * OPEN, f"s{self.number}")
        except (Conflict, InsufficientFunds):
            return

    @rule(everything=st.booleans())
    def withdraw(self, everything: bool) -> None:
        self.number += 1
        amount = self.town.available("user:bob") if everything else OPEN
        try:
            self.town.economy.withdraw("user:bob", amount, "0x" + "ab" * 20, f"w{self.number}")
        except (InsufficientFunds, InvalidInput):
            return

    @rule()
    def restart(self) -> None:
        self.town.restart()

    @invariant()
    def the_customer_has_what_was_not_sold_or_came_back(self) -> None:
        assert self.town.available() == START - self.spent

    @invariant()
    def pools_of_settled_periods_are_empty(self) -> None:
        for period in self.settled:
            try:
                assert self.town.economy.balance(f"pool:py:{period}").posted_nano == 0
            except OpenLedgerError:
                continue  # nobody paid into it

    def teardown(self) -> None:
        self.town.ledger.audit()
        assert sum(balance.posted_nano for balance in self.town.ledger.balances()) == 0
        self.town.close()
        shutil.rmtree(self.folder)


TestAffairs = Affairs.TestCase
TestAffairs.settings = settings(max_examples=6, stateful_step_count=15, deadline=None)


class LongerAffairs(Affairs):
    pass


TestLongerAffairs = LongerAffairs.TestCase
TestLongerAffairs.settings = settings(max_examples=1000, stateful_step_count=40, deadline=None)
TestLongerAffairs = pytest.mark.slow(TestLongerAffairs)
