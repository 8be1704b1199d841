"""Whatever is done, in whatever order, and whichever of the two files is put back: it starts, the audit is clean, and
once time has passed nothing is left in a hold, an escrow, or a pool of stakers."""

import shutil
import tempfile
from pathlib import Path

import pytest
from economy_values import Town, scores
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from openledger.core.clock import ManualClock
from openledger.core.errors import Conflict, InsufficientFunds, InvalidInput, NotFound
from openledger.core.money import NANO_PER_OPEN
from openledger.economy import Parameters
from openledger.ledger.parameters import DAY_MS

OPEN = NANO_PER_OPEN
PRICED = Parameters(contribution_deposit_nano=50)
REFUSED = (Conflict, InsufficientFunds, InvalidInput, NotFound)
FILES = ("ledger.db", "economy.db")


class Restores(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.town = Town(self.folder, ManualClock(), PRICED)
        self.number, self.sold, self.contributions, self.saved = 0, [], [], 0
        for name, amount in (("alice", OPEN), ("bob", 100 * OPEN)):
            self.town.economy.grant(f"user:{name}", amount, name)
        self.town.economy.grant("contributor:ctr_a", OPEN, "ctr_a")
        self.save()

    def tried(self, act, *given):
        try:
            return act(*given)
        except REFUSED:
            return None

    @rule()
    def save(self) -> None:
        """The files as a backup has them, both of one moment."""
        self.town.close()
        self.saved += 1
        kept = self.folder / f"backup{self.saved}"
        kept.mkdir()
        for file in FILES:
            for path in self.folder.glob(f"{file}*"):
                shutil.copy(path, kept)
        self.town.reopen()

    @rule(file=st.sampled_from(FILES), data=st.data())
    def put_back(self, file, data) -> None:
        kept = self.folder / f"backup{data.draw(st.integers(1, self.saved))}"
        self.town.close()
        for path in self.folder.glob(f"{file}*"):
            path.unlink()
        for path in kept.glob(f"{file}*"):
            shutil.copy(path, self.folder)
        self.town.reopen()
        self.town.ledger.audit()

    @rule(again=st.booleans())
    def sell(self, again) -> None:
        self.number += not again
        if sold := self.tried(self.town.sell, f"k{self.number}"):
            self.sold.append(sold.answer_id)

    @rule(data=st.data())
    def refund(self, data) -> None:
        self.tried(self.town.economy.refund, data.draw(st.sampled_from([*self.sold, "ans_none"])), "why")

    @rule()
    def settle(self) -> None:
        period = self.town.economy.current_period()
        pool = self.town.economy.pool("py", period)
        self.town.economy.settle(scores(period), {}, left_out=pool.left_out)

    @rule()
    def settle_what_waits(self) -> None:
        for adapter, period in self.town.economy.pools():
            pool = self.town.economy.pool(adapter, period)
            self.town.economy.settle(scores(period), {}, left_out=pool.left_out)

    @rule(back=st.booleans())
    def stake(self, back) -> None:
        self.number += 1
        move = self.town.economy.unstake if back else self.town.economy.stake
        self.tried(move, "user:bob", "adapter:py", 5 * OPEN, f"s{self.number}")

    @rule(close=st.booleans())
    def withdraw(self, close) -> None:
        self.number += 1
        if close:
            self.tried(self.town.economy.close_claims)
        else:
            self.tried(self.town.economy.withdraw, "user:bob", OPEN, "0x" + "ab" * 20, f"w{self.number}")

    @rule()
    def deposit(self) -> None:
        self.number += 1
        self.contributions.append(f"ctb_{self.number}")
        self.town.economy.deposit("user:bob", self.contributions[-1])

    @rule(data=st.data(), is_spam=st.booleans())
    def judge(self, data, is_spam) -> None:
        if self.contributions:
            self.town.economy.judge(data.draw(st.sampled_from(self.contributions)), is_spam)

    @rule(data=st.data())
    def dismiss(self, data) -> None:
        if self.contributions:
            self.town.economy.dismiss(data.draw(st.sampled_from(self.contributions)))

    @rule(number=st.integers(1, 3))
    def dispute(self, number) -> None:
        given = "contributor:ctr_a", "py", f"p{number:04d}", "ctr_a", 10**6, "more"
        self.tried(self.town.economy.dispute, *given)

    @rule(days=st.integers(0, 20))
    def wait(self, days) -> None:
        self.town.clock.advance(days * DAY_MS)
        self.town.economy.expire_disputes()

    def teardown(self) -> None:
        economy = self.town.economy
        self.settle_what_waits()
        economy.open_period()
        for name in self.contributions:
            economy.judge(name, False)
        self.town.clock.advance(60 * DAY_MS)
        self.town.restart()
        self.town.economy.open_period()
        self.town.ledger.audit()
        balances = {one.account_id: one for one in self.town.ledger.balances()}
        waits = ("escrow:", "stakers:", "pool:")
        assert [name for name, one in balances.items() if name.startswith(waits) and one.posted_nano] == []
        assert [name for name, one in balances.items() if one.debits_pending_nano] == []
        self.town.close()
        shutil.rmtree(self.folder)


TestRestores = Restores.TestCase
TestRestores.settings = settings(max_examples=8, stateful_step_count=15, deadline=None)


class LongerRestores(Restores):
    pass


TestLongerRestores = LongerRestores.TestCase
TestLongerRestores.settings = settings(max_examples=1000, stateful_step_count=30, deadline=None)
TestLongerRestores = pytest.mark.slow(TestLongerRestores)
