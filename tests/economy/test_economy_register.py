"""Any sequence of stakes, votes, slashes and proposals against a simple model: who holds what, who has what power."""

from copy import deepcopy

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from openledger.core.errors import OpenLedgerError
from openledger.economy import Parameters
from openledger.ledger.accounts import Account, opened
from openledger.ledger.governance import CANCEL, DELEGATE, EXECUTE, PROPOSE, VOTE, proposal_id, quorum, times
from openledger.ledger.parameters import DAY_MS, PARAMETERS, PERIOD
from openledger.ledger.register import Register, seat
from openledger.ledger.rules import Book, apply
from openledger.ledger.stakes import RETURN, SLASH, SLASH_END, STAKE, UNSTAKE
from openledger.ledger.transfers import CREATED, Transfer

PEOPLE = ("user:a", "user:b", "user:c")
OBJECTS = ("adapter:x", "datanet:y")
START = 1000
VALUES = Parameters(stake_minimum_nano=10, vote_threshold_nano=50).values
people, objects = st.sampled_from(PEOPLE), st.sampled_from(OBJECTS)
amounts = st.integers(1, 400)


class RegisterMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.register, self.book, self.now_ms, self.keys = Register(), Book(), 10**12, 0
        self.free = dict.fromkeys(PEOPLE, START)
        self.staked: dict[tuple[str, str], int] = {}
        self.cooling: dict[int, list] = {}
        self.slashed: dict[int, dict[str, int]] = {}
        self.delegates: dict[str, str] = {}
        self.votes: dict[str, set[str]] = {}
        self.treasury = 0
        self._open("genesis", "holds", "holds:register", *PEOPLE)
        self._move([seat(), *(_grant(name) for name in PEOPLE)])
        assert self.write(PARAMETERS, version=1, values=VALUES)
        assert self.write(PERIOD, period="p0001", version=1)

    def write(self, form: str, **fields: object) -> bool:
        """Whether it was allowed; refused, it leaves everything as it was."""
        statement = {"format": form, "number": self.register.number, "time_ms": self.now_ms, **fields}
        before = deepcopy(self.register)
        try:
            transfers = self.register.plan(statement)
        except OpenLedgerError:
            assert self.register == before
            return False
        assert self.register == before  # planning changes nothing either
        self._open(*(name for item in transfers for name in (item.debit, item.credit)))
        if not self._move(transfers):
            return False
        self.register.apply(statement)
        return True

    @rule(days=st.integers(0, 20), rest=st.integers(0, 3))
    def wait(self, days: int, rest: int) -> None:
        self.now_ms += days * DAY_MS + rest

    @precondition(lambda self: self.votes)
    @rule(data=st.data(), moment=st.sampled_from(["snapshot_ms", "deadline_ms", "eta_ms"]))
    def wait_for(self, data: st.DataObject, moment: str) -> None:
        proposal = self.register.governance.proposals[data.draw(st.sampled_from([*self.votes]))]
        self.now_ms = max(self.now_ms, getattr(proposal, moment) + 1)

    @rule(account=people, of=objects, amount=amounts)
    def stake(self, account: str, of: str, amount: int) -> None:
        self.keys += 1
        done = self.write(STAKE, account=account, object=of, amount_nano=amount, key=f"k{self.keys}")
        assert done == (10 <= amount <= self.free[account])
        if done:
            self.free[account] -= amount
            self.staked[of, account] = self.staked.get((of, account), 0) + amount

    @rule(account=people, of=objects, amount=amounts)
    def unstake(self, account: str, of: str, amount: int) -> None:
        self.keys += 1
        number, held = self.register.number, self.staked.get((of, account), 0)
        ends_ms = self.now_ms + VALUES["stake_cooldown_ms"]
        done = self.write(UNSTAKE, account=account, object=of, amount_nano=amount, key=f"k{self.keys}", ends_ms=ends_ms)
        assert done == (amount <= held and not 0 < held - amount < 10)
        if done:
            self.staked[of, account] = held - amount
            self.cooling[number] = [account, of, amount, ends_ms]

    @rule(data=st.data())
    def come_back(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from([*self.cooling, 10**6]))
        account, _, amount, ends_ms = self.cooling.get(number, ("user:a", "", 0, 10**18))
        done = self.write(RETURN, unstake=number)
        assert done == (self.now_ms >= ends_ms)
        if done:
            self.free[account] += amount
            del self.cooling[number]

    @rule(of=objects, evidence=st.sampled_from(["aa" * 32, "bb" * 32]))
    def slash(self, of: str, evidence: str) -> None:
        number = self.register.number
        ppm = VALUES["slash_ppm"]
        held = [(name, amount) for (at, name), amount in self.staked.items() if at == of]
        held += [(name, amount) for name, at, amount, _ in self.cooling.values() if at == of]
        taken = {name: sum(amount * ppm // 10**6 for who, amount in held if who == name) for name in sorted(PEOPLE)}
        taken = {name: amount for name, amount in taken.items() if amount}
        ends_ms = self.now_ms + VALUES["slash_appeal_ms"]
        told = {"object": of, "cause": "false_scores", "evidence": evidence, "taken_nano": taken, "ends_ms": ends_ms}
        if self.write(SLASH, **told):
            self.slashed[number] = taken
            for key in [key for key in self.staked if key[0] == of]:
                self.staked[key] -= self.staked[key] * ppm // 10**6
            for one in self.cooling.values():
                one[2] -= one[2] * ppm // 10**6 if one[1] == of else 0

    @rule(data=st.data())
    def end_slash(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from([*self.slashed, 10**6]))
        if self.write(SLASH_END, slash=number):
            self.treasury += sum(self.slashed.pop(number).values())

    @rule(account=people, delegate=people)
    def delegate(self, account: str, delegate: str) -> None:
        assert self.write(DELEGATE, account=account, delegate=delegate)
        self.delegates[account] = delegate

    @rule(account=people, appeal=st.booleans(), data=st.data())
    def propose(self, account: str, appeal: bool, data: st.DataObject) -> None:
        self.keys += 1
        action = {"kind": "text"}
        if appeal and self.slashed:
            action = {"kind": "appeal", "slash": data.draw(st.sampled_from([*self.slashed]))}
        name = proposal_id(self.register.number)
        told = {"proposer": account, "title": "t", "text": "", "action": action, "key": f"k{self.keys}",
                "proposal": name, "quorum_ppm": quorum(VALUES, action), **times(VALUES, self.now_ms)}  # fmt: skip
        if self.write(PROPOSE, **told):
            assert self.power(account) >= 50
            self.votes[name] = set()

    @rule(account=people, data=st.data(), support=st.sampled_from(["for", "for", "against", "abstain", "maybe"]))
    def vote(self, account: str, data: st.DataObject, support: str) -> None:
        """Mostly on the newest proposal, for which it waits if need be."""
        name = data.draw(st.sampled_from(["prop_999999", *self.votes])) if data.draw(st.booleans()) else self.newest()
        known = self.register.governance.proposals.get(name)
        if known is not None:
            self.now_ms = max(self.now_ms, known.snapshot_ms + 1)
        power = 0 if known is None else self.register.stakes.powers.of(account, known.snapshot_ms)
        if self.write(VOTE, proposal=name, voter=account, support=support, power_nano=power):
            assert account not in self.votes[name]
            assert power > 0
            self.votes[name].add(account)

    @rule(account=people, data=st.data())
    def cancel(self, account: str, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from([*self.votes, "prop_999999"]))
        self.write(CANCEL, proposal=name, account=account)

    @precondition(lambda self: self.slashed)
    @rule(account=people, data=st.data())
    def appeal_alone(self, account: str, data: st.DataObject) -> None:
        """One voter carries an appeal through, if he has a quarter of all power."""
        self.keys += 1
        number = data.draw(st.sampled_from([*self.slashed]))
        action, name = {"kind": "appeal", "slash": number}, proposal_id(self.register.number)
        told = {"proposer": account, "title": "t", "text": "", "action": action, "key": f"k{self.keys}",
                "proposal": name, "quorum_ppm": quorum(VALUES, action), **times(VALUES, self.now_ms)}  # fmt: skip
        if not self.write(PROPOSE, **told):
            return
        power, total = self.power(account), sum(self.staked.values())
        self.votes[name] = {account}
        self.now_ms = told["snapshot_ms"] + 1
        assert self.write(VOTE, proposal=name, voter=account, support="for", power_nano=power)
        self.now_ms = told["eta_ms"]
        done = self.write(EXECUTE, proposal=name, version=0)
        assert done == (4 * power >= total)
        if done:
            for who, amount in self.slashed.pop(number).items():
                self.free[who] += amount

    @precondition(lambda self: self.votes)
    @rule(data=st.data())
    def execute(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from([*self.votes])) if data.draw(st.booleans()) else self.newest()
        self.now_ms = max(self.now_ms, self.register.governance.proposals[name].eta_ms)
        if self.write(EXECUTE, proposal=name, version=0):
            returned = self.slashed.pop(self.register.governance.proposals[name].action["slash"])
            for account, amount in returned.items():
                self.free[account] += amount

    @invariant()
    def everybody_holds_what_the_model_says(self) -> None:
        held = {name: balance.posted_nano for name, balance in self.book.balances.items()}
        assert {name: held[name] for name in PEOPLE} == self.free
        for of in OBJECTS:
            resting = sum(amount for (at, _), amount in self.staked.items() if at == of)
            resting += sum(amount for _, at, amount, _ in self.cooling.values() if at == of)
            assert held.get(f"holds:stake:{of}", 0) == resting
        for number, taken in self.slashed.items():
            assert held[f"holds:slash:{number}"] == sum(taken.values())
        assert held.get("treasury", 0) == self.treasury
        assert sum(held.values()) == 0

    @invariant()
    def power_is_stake(self) -> None:
        stakes = self.register.stakes
        assert {name: stakes.powers.of(name, self.now_ms) for name in PEOPLE} == {
            name: self.power(name) for name in PEOPLE
        }
        assert stakes.powers.total_at(self.now_ms) == sum(self.staked.values()) == sum(stakes.totals.values())

    def newest(self) -> str:
        return max(self.votes, default="prop_999999")

    def power(self, delegate: str) -> int:
        return sum(
            amount for (_, account), amount in self.staked.items() if self.delegates.get(account, account) == delegate
        )

    def _open(self, *names: str) -> None:
        for name in names:
            if name not in self.book.balances:
                account = Account(account_id=name, kind=name.partition(":")[0], may_go_negative=name == "genesis")
                self.book.balances[name] = opened(account)

    def _move(self, transfers: list) -> bool:
        changes, results = apply(self.book, transfers, self.now_ms)
        self.book.take(changes)
        return set(results) == {CREATED}


def _grant(name: str) -> Transfer:
    return Transfer(transfer_id=f"to.{name}", debit="genesis", credit=name, amount_nano=START, code="grant")


TestRegister = RegisterMachine.TestCase
TestRegister.settings = settings(max_examples=12, stateful_step_count=40, deadline=None)


class LongerMachine(RegisterMachine):
    pass


TestLongerRegister = LongerMachine.TestCase
TestLongerRegister.settings = settings(max_examples=10_000, stateful_step_count=60, deadline=None)
TestLongerRegister = pytest.mark.slow(TestLongerRegister)
