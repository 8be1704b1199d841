"""Random sequences of everything, against a model of a few lines of dictionaries."""

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from ledger_values import move
from packed_values import record, submit_packed

from openledger.core.clock import ManualClock
from openledger.core.signing import SigningKey
from openledger.ledger import Account, Ledger

# no power is cut here: in memory a sequence waits for no disk, and costs 40 ms of CPU
IN_MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
USERS = ["user:a", "user:b", "user:c"]
amounts, users = st.integers(1, 50), st.sampled_from(USERS)


class LedgerAgainstModel(RuleBasedStateMachine):
    """The model: what each user has, what is held, and every id that was ever created."""

    @initialize()
    def open(self):
        self.folder = tempfile.TemporaryDirectory(dir=IN_MEMORY)
        self.clock = ManualClock()
        self.have = dict.fromkeys(USERS, 0)
        self.held = {}
        self.done = {}
        self.count = 0
        self.submitted = []
        self.ledger = None
        self.reopen()
        genesis = Account(account_id="genesis", kind="genesis", may_go_negative=True)
        self.ledger.create_accounts([genesis, *(Account(account_id=name, kind="user") for name in USERS)])

    @rule()
    def reopen(self):
        if self.ledger:
            self.ledger.close()
        path = Path(self.folder.name) / "ledger.db"
        self.ledger = Ledger(path, self.clock, SigningKey(b"k" * 32), "openledger/test")

    @rule(user=users, amount=amounts)
    def grant(self, user, amount):
        assert self.commit(move(self.fresh(), amount, "genesis", user)) == ["created"]
        self.have[user] += amount

    @rule(legs=st.lists(st.tuples(users, users, amounts), min_size=1, max_size=4))
    def pay(self, legs):
        legs = [leg for leg in legs if leg[0] != leg[1]]
        if not legs:
            return
        after, possible = dict(self.have), True
        for debit, credit, amount in legs:
            possible = possible and after[debit] - self.reserved(debit) >= amount
            after[debit] -= amount
            after[credit] += amount
        results = self.commit(*(move(self.fresh(), amount, debit, credit) for debit, credit, amount in legs))
        assert (set(results) == {"created"}) == possible
        if possible:
            self.have = after

    @rule(debit=users, credit=users, amount=amounts, timeout=st.sampled_from([0, 5]))
    def hold(self, debit, credit, amount, timeout):
        if debit == credit:
            return
        name, possible = self.fresh(), self.have[debit] - self.reserved(debit) >= amount
        results = self.commit(move(name, amount, debit, credit, kind="pending", timeout_ms=timeout))
        assert results == (["created"] if possible else ["exceeds_credits"])
        if possible:
            expires = self.clock.now_ms() + timeout if timeout else None
            self.held[name] = (debit, credit, amount, expires)

    @rule(data=st.data(), take=amounts)
    def post(self, data, take):
        if not self.held:
            return
        name = data.draw(st.sampled_from(sorted(self.held)))
        debit, credit, amount, expires = self.held[name]
        results = self.commit(move(self.fresh(), take, debit, credit, kind="post", pending_id=name))
        if take > amount:
            assert results == ["exceeds_pending_amount"]
        elif expires is not None and self.clock.now_ms() >= expires:
            assert results == ["pending_transfer_expired"]
        else:
            assert results == ["created"]
            del self.held[name]
            self.have[debit] -= take
            self.have[credit] += take

    @rule(data=st.data())
    def void(self, data):
        if not self.held:
            return
        name = data.draw(st.sampled_from(sorted(self.held)))
        debit, credit, amount, _ = self.held.pop(name)
        assert self.commit(move(self.fresh(), amount, debit, credit, kind="void", pending_id=name)) == ["created"]

    @rule(legs=st.lists(st.tuples(users, users, amounts, st.booleans()), min_size=1, max_size=6), packed=st.booleans())
    def submit(self, legs, packed):
        """Each by itself, chains together; as values or as records."""
        legs = [leg for leg in legs if leg[0] != leg[1]]
        if not legs:
            return
        batch = [record(self.next_number(), amount, debit, credit) for debit, credit, amount, _ in legs]
        linked = [*(tied for *_, tied in legs[:-1]), False]
        expected, chain = [], []
        for place, tied in enumerate(linked):
            chain.append(legs[place])
            if not tied:
                expected += self.paid(chain)
                chain = []
        results = submit_packed(self.ledger, batch, linked) if packed else self.ledger.submit(batch, linked)
        assert results == expected
        created = [item for item, result in zip(batch, results, strict=True) if result == "created"]
        self.submitted += created
        if created:
            assert submit_packed(self.ledger, created) == ["exists"] * len(created) == self.ledger.submit(created)

    def paid(self, chain):
        """Pay a chain in the model, whole or not at all; its results."""
        after, results = dict(self.have), []
        for debit, credit, amount, _ in chain:
            possible = after[debit] - self.reserved(debit) >= amount
            results.append("created" if possible else "exceeds_credits")
            if possible:
                after[debit] -= amount
                after[credit] += amount
        if "exceeds_credits" in results:
            return ["linked_transfer_failed" if result == "created" else result for result in results]
        self.have = after
        return results

    @rule(data=st.data())
    def repeat(self, data):
        if self.done:
            batch = self.done[data.draw(st.sampled_from(sorted(self.done)))]
            assert self.ledger.commit(batch) == ["exists"] * len(batch)

    @rule(milliseconds=st.integers(-3, 6))
    def wait(self, milliseconds):
        """Forward only as far as the ledger is concerned: its time never goes back."""
        self.clock.advance(max(0, milliseconds))

    @invariant()
    def balances_agree(self):
        for user in USERS:
            balance = self.ledger.balance(user)
            assert balance.posted_nano == self.have[user]
            assert balance.available_nano == self.have[user] - self.reserved(user) >= 0

    def teardown(self):
        if getattr(self, "ledger", None):
            assert [self.ledger.find(item.transfer_id).transfer for item in self.submitted] == self.submitted
            self.ledger.audit()
            self.ledger.close()
            self.folder.cleanup()

    def commit(self, *batch):
        results = self.ledger.commit(batch)
        if set(results) == {"created"}:
            self.done[batch[0].transfer_id] = batch
        return results

    def fresh(self):
        return f"t{self.next_number()}"

    def next_number(self):
        self.count += 1
        return self.count

    def reserved(self, user):
        return sum(amount for debit, _, amount, _ in self.held.values() if debit == user)


TestModel = LedgerAgainstModel.TestCase
TestModel.settings = settings(max_examples=12, stateful_step_count=25, deadline=None)


class LongerModel(LedgerAgainstModel):
    pass


TestLongerModel = LongerModel.TestCase
TestLongerModel.settings = settings(max_examples=10_000, stateful_step_count=50, deadline=None)
TestLongerModel = pytest.mark.slow(TestLongerModel)
