"""Deposits and one-time fees: returned, forfeited, withheld; each once."""

from dataclasses import replace

import pytest
from economy_values import Town, scores
from test_economy_recovery import PowerCut, cut_power

from openledger.core.appealing import Judged, sign_appeal, sign_decision
from openledger.core.clock import ManualClock
from openledger.core.errors import Conflict, Corrupt, InsufficientFunds, InvalidInput, Unavailable
from openledger.core.ids import derived_id
from openledger.core.signing import SigningKey, contributor_id
from openledger.core.values import RowDraft
from openledger.economy import Parameters
from openledger.ledger import Ledger, Transfer, verify_proof
from openledger.ledger.deposits import hold_id, returned_statement, returned_transfer, withheld_id
from openledger.ledger.signers import Signer, sign_signer

COSTS = Parameters(contribution_deposit_nano=50, datanet_fee_nano=1000, adapter_fee_nano=200)


@pytest.fixture
def priced(tmp_path, clock: ManualClock):
    """A town that charges; alice has 1,000,000 nano-OPEN."""
    made = Town(tmp_path, clock, COSTS)
    made.economy.grant("user:alice", 1_000_000, "start")
    yield made
    made.close()


def test_a_deposit_is_held_and_returned_when_the_contribution_is_accepted(priced):
    assert priced.economy.deposit("user:alice", "ctb_1") == "held"
    assert priced.economy.deposit("user:alice", "ctb_1") == "held"
    assert priced.available() == 1_000_000 - 50
    assert priced.economy.judge("ctb_1", is_spam=False) == "returned"
    assert priced.economy.judge("ctb_1", is_spam=True) == "returned"
    assert priced.available() == 1_000_000
    priced.ledger.audit()


def test_spam_forfeits_it_to_the_treasury_once(priced):
    priced.economy.deposit("user:alice", "ctb_1")
    for _ in range(2):
        assert priced.economy.judge("ctb_1", is_spam=True) == "forfeited"
    assert (priced.available(), priced.available("treasury")) == (1_000_000 - 50, 50)
    priced.restart()
    assert priced.economy.deposit("user:alice", "ctb_1") == "forfeited"
    priced.ledger.audit()


def test_without_a_balance_nothing_is_held_and_spam_is_withheld_from_earnings(priced):
    assert priced.economy.deposit("contributor:ctr_a", "ctb_1") == "owed"
    assert priced.economy.judge("ctb_1", is_spam=True) == "owed"
    priced.sell("k1")  # ctr_a earns 56 of it
    priced.economy.settle(scores(), {})
    assert priced.available("contributor:ctr_a") == 6
    assert priced.economy.judge("ctb_1", is_spam=True) == "forfeited"
    priced.economy.settle(scores(), {})
    assert priced.available("contributor:ctr_a") == 6
    priced.ledger.audit()


def test_what_is_owed_is_withheld_whole_or_not_yet(priced):
    for number in (1, 2):
        priced.economy.deposit("contributor:ctr_a", f"ctb_{number}")
        priced.economy.judge(f"ctb_{number}", is_spam=True)
    priced.sell("k1")
    priced.economy.settle(scores(), {})
    assert priced.available("contributor:ctr_a") == 6
    assert priced.economy._deposits.owed_nano("contributor:ctr_a") == 50


def test_without_a_balance_an_accepted_contribution_owes_nothing(priced):
    priced.economy.deposit("contributor:ctr_a", "ctb_1")
    assert priced.economy.judge("ctb_1", is_spam=False) == "returned"
    priced.sell("k1")
    priced.economy.settle(scores(), {})
    assert priced.available("contributor:ctr_a") == 56


def test_a_deposit_that_was_dismissed_is_held_again_when_the_same_is_sent_again(priced):
    for _ in range(3):
        assert priced.economy.deposit("user:alice", "ctb_1") == "held"
        assert priced.available() == 1_000_000 - 50
        for _ in range(2):
            priced.economy.dismiss("ctb_1")
        assert priced.available() == 1_000_000
    assert priced.economy.deposit("user:alice", "ctb_1") == "held"
    assert priced.economy.judge("ctb_1", is_spam=True) == "forfeited"
    priced.economy.dismiss("ctb_1")
    assert (priced.available(), priced.available("treasury")) == (1_000_000 - 50, 50)
    priced.ledger.audit()


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize(("is_spam", "left"), [(True, 50), (False, 100)])
def test_a_dismissal_that_was_cut_off_is_finished(priced, monkeypatch, after, is_spam, left):
    priced.economy.grant("user:bob", 100, "bob")
    priced.economy.deposit("user:bob", "ctb_1")
    cut_power(monkeypatch, Ledger, "commit", after=after)
    with pytest.raises(PowerCut):
        priced.economy.dismiss("ctb_1")
    monkeypatch.undo()
    priced.restart()
    assert priced.economy.deposit("user:bob", "ctb_1") == "held"
    assert priced.available("user:bob") == 50
    priced.economy.judge("ctb_1", is_spam=is_spam)
    assert priced.available("user:bob") == left
    priced.ledger.audit()


def test_spam_whose_deposit_was_dismissed_meanwhile_is_withheld(priced):
    """Two calls sent the same: one failed before the gate, the other reached it."""
    priced.economy.deposit("user:alice", "ctb_1")
    priced.economy.dismiss("ctb_1")
    assert priced.economy.judge("ctb_1", is_spam=True) == "forfeited"
    assert (priced.available(), priced.available("treasury")) == (1_000_000 - 50, 50)


@pytest.mark.parametrize(("first", "state"), [(True, "forfeited"), (False, "returned")])
def test_a_judgement_that_was_cut_off_after_the_ledger_stands(priced, monkeypatch, first, state):
    priced.economy.deposit("user:alice", "ctb_1")
    cut_power(monkeypatch, Ledger, "commit", after=True)
    with pytest.raises(PowerCut):
        priced.economy.judge("ctb_1", is_spam=first)
    monkeypatch.undo()
    assert priced.economy.judge("ctb_1", is_spam=not first) == state
    assert priced.economy.deposit("user:alice", "ctb_1") == state


def test_a_datanet_and_an_adapter_are_paid_for_once(priced):
    first = priced.economy.charge_datanet("user:alice", "py-docs")
    assert priced.economy.charge_datanet("user:alice", "py-docs") == first
    priced.economy.charge_adapter("user:alice", "ab" * 32)
    assert priced.available("treasury") == 1200
    with pytest.raises(Conflict):
        priced.economy.grant("user:bob", 5000, "bob") and priced.economy.charge_datanet("user:bob", "py-docs")
    priced.ledger.audit()


def test_whoever_can_not_pay_is_told_what_is_missing(priced):
    priced.economy.grant("user:bob", 1, "bob")
    with pytest.raises(InsufficientFunds) as caught:
        priced.economy.charge_datanet("user:bob", "mine")
    assert caught.value.fix == "add 0.000000999 OPEN"


def test_by_default_nothing_is_held_and_nothing_paid(town):
    before = town.ledger.checkpoint()
    assert town.economy.deposit("user:alice", "ctb_1") == "none"
    assert town.economy.judge("ctb_1", is_spam=True) == "none"
    assert town.economy.charge_datanet("user:alice", "py-docs") == ""
    assert town.economy.charge_adapter("user:alice", "ab" * 32) == ""
    assert town.ledger.checkpoint() == before


@pytest.mark.parametrize(("account", "name"), [("treasury", "ctb_1"), ("user:alice", ""), ("user:alice", None)])
def test_a_deposit_that_can_not_be_is_refused(priced, account, name):
    with pytest.raises(InvalidInput):
        priced.economy.deposit(account, name)


def test_economy_and_ledger_agree_after_a_deposit_was_cut_off(priced, monkeypatch):
    def away(*_):
        raise Unavailable("cut")

    monkeypatch.setattr(priced.ledger, "commit", away)
    with pytest.raises(Unavailable):
        priced.economy.deposit("user:alice", "ctb_1")
    monkeypatch.undo()
    assert priced.economy._deposits.state("ctb_1") == "owed"
    assert priced.economy.deposit("user:alice", "ctb_1") == "held"


ADA, OWNER = SigningKey(b"a" * 32), SigningKey(b"o" * 32)
ADAS = f"contributor:{contributor_id(ADA.public_key)}"


@pytest.fixture
def acquitted(overturned):
    """Ada forfeited the deposit of ctb_1, too."""
    overturned.economy.deposit(ADAS, "ctb_1")
    overturned.economy.judge("ctb_1", is_spam=True)
    return overturned


@pytest.fixture
def overturned(priced):
    """A reviewer has overturned the verdict on row_1 of Ada's ctb_1; she has a deposit left."""
    terms = Parameters()
    priced.economy.grant(ADAS, terms.dispute_deposit_nano + 50, "deposits")
    signature = sign_signer(OWNER, "reviewer", "user:owner", "py-docs")["signature"]
    reviewer = Signer(role="reviewer", account="user:owner", public_key=OWNER.public_key, datanet="py-docs")
    priced.economy.add_signer(reviewer, signature)
    draft = RowDraft(prompt="p", completion="c")
    judged = Judged(outcome="reject", reasons=("noise",), duplicate_of="", rival="", received_ms=priced.clock.now_ms())
    priced.economy.open_appeal(sign_appeal(ADA, "py-docs", "ctb_1", "row_1", 0, draft, (), "no noise"), judged)
    decision = sign_decision(OWNER, "py-docs", "row_1", "user:owner", overturned=True, note="it is none")
    priced.economy.decide_appeal(decision)
    return priced


def spend_treasury(town, amount_nano):
    move = Transfer(
        transfer_id=f"spent{amount_nano}", debit="treasury", credit="user:alice", amount_nano=amount_nano, code="spent"
    )
    assert town.ledger.commit([move]) == ["created"]


def test_a_deposit_comes_back_once_where_its_verdict_was_overturned(acquitted):
    before = acquitted.available(ADAS)
    for _ in range(2):
        assert acquitted.economy.acquit("ctb_1", "row_1") == "returned"
    assert (acquitted.available(ADAS) - before, acquitted.available("treasury")) == (50, 0)
    acquitted.restart()
    assert acquitted.economy.acquit("ctb_1", "row_1") == "returned"
    name = derived_id("der", "ctb_1")
    proof = verify_proof(acquitted.ledger.proof(name), acquitted.ledger.verification_key())
    told = f"the deposit of ctb_1, 0.00000005 OPEN, went back to {ADAS}: the verdict on row_1 was overturned"
    assert told in proof.lines
    assert told in acquitted.economy.explain(name)
    acquitted.ledger.audit()


@pytest.mark.parametrize("after", [False, True])
def test_a_deposit_comes_back_once_wherever_its_return_stopped(acquitted, monkeypatch, after):
    before = acquitted.available(ADAS)
    cut_power(monkeypatch, Ledger, "commit", after=after)
    with pytest.raises(PowerCut):
        acquitted.economy.acquit("ctb_1", "row_1")
    monkeypatch.undo()
    acquitted.restart()
    assert acquitted.economy.acquit("ctb_1", "row_1") == "returned"
    assert acquitted.available(ADAS) - before == 50
    acquitted.ledger.audit()


@pytest.mark.parametrize("held", [True, False])
def test_a_deposit_comes_back_where_taking_it_was_cut_off_after_the_ledger(acquitted, monkeypatch, held):
    if not held:
        assert acquitted.economy.deposit("user:bob", "ctb_2") == "owed"
    acquitted.economy.grant("user:bob", 60, "bob")
    if held:
        assert acquitted.economy.deposit("user:bob", "ctb_2") == "held"
    cut_power(monkeypatch, Ledger, "commit", after=True)
    with pytest.raises(PowerCut):
        acquitted.economy.judge("ctb_2", is_spam=True)
    monkeypatch.undo()
    assert (acquitted.available("user:bob"), acquitted.available("treasury")) == (10, 100)
    assert acquitted.economy._deposits.acquit("ctb_2", "row_1") == "returned"
    assert (acquitted.available("user:bob"), acquitted.available("treasury")) == (60, 50)


@pytest.mark.parametrize(
    "again", [lambda economy: economy.judge("ctb_1", is_spam=True), lambda economy: economy.recover()]
)
def test_what_was_owed_is_taken_by_the_next_judgement_or_start(priced, again):
    priced.economy.deposit("user:bob", "ctb_1")
    assert priced.economy.judge("ctb_1", is_spam=True) == "owed"
    priced.economy.grant("user:bob", 60, "bob")
    again(priced.economy)
    assert (priced.available("user:bob"), priced.economy._deposits.state("ctb_1")) == (10, "forfeited")


def test_a_deposit_that_the_treasury_has_spent_comes_back_when_it_has_it(acquitted):
    spend_treasury(acquitted, 1)
    assert acquitted.economy.acquit("ctb_1", "row_1") == "forfeited"
    acquitted.sell("k1")
    acquitted.economy.open_period()
    assert acquitted.economy.acquit("ctb_1", "row_1") == "returned"
    acquitted.ledger.audit()


def test_a_forfeited_deposit_that_is_owed_is_owed_no_more(acquitted):
    acquitted.economy.deposit("contributor:ctr_a", "ctb_2")
    acquitted.economy.judge("ctb_2", is_spam=True)
    assert acquitted.economy._deposits.acquit("ctb_2", "row_1") == "returned"
    acquitted.sell("k1")
    acquitted.economy.settle(scores(), {})
    assert acquitted.available("contributor:ctr_a") == 56


@pytest.mark.parametrize(("contribution", "row"), [("ctb_1", "row_2"), ("ctb_2", "row_1")])
def test_no_deposit_comes_back_without_an_appeal_that_says_so(acquitted, contribution, row):
    with pytest.raises(Conflict) as caught:
        acquitted.economy.acquit(contribution, row)
    assert caught.value.code == "appeal_not_overturned"


class TestTheAudit:
    """Each of these is committed past the book's checks, as an operator who cheats would."""

    def wrong(self, town, transfer, statement):
        assert town.ledger.commit([transfer], statement) == ["created"]
        with pytest.raises(Corrupt) as caught:
            town.ledger.audit()
        return caught.value.code

    @pytest.mark.parametrize(
        ("change", "code"),
        [
            ({"contribution_id": "ctb_2"}, "deposit_not_lost"),
            ({"amount_nano": 49}, "deposit_not_lost"),
            ({"account": "user:alice"}, "deposit_not_lost"),
            ({"row_id": "row_2"}, "deposit_without_appeal"),
            ({"more": 1}, "deposit_differs"),
        ],
    )
    def test_names_a_deposit_that_comes_back_without_reason(self, acquitted, change, code):
        statement = {**returned_statement("ctb_1", ADAS, 50, "row_1"), **change}
        assert self.wrong(acquitted, returned_transfer(statement), statement) == code

    def test_names_one_that_says_nothing(self, acquitted):
        transfer = returned_transfer(returned_statement("ctb_1", ADAS, 50, "row_1"))
        assert self.wrong(acquitted, transfer, None) == "unexplained_deposit"

    @pytest.mark.parametrize("kind", ["pending", "void"])
    @pytest.mark.parametrize("code", ["deposit_forfeited", "deposit_withheld"])
    def test_takes_no_hold_that_was_placed_or_released_for_a_lost_deposit(self, overturned, code, kind):
        hold = Transfer(
            transfer_id=hold_id("ctb_1"), debit=ADAS, credit="treasury", amount_nano=50,
            code=code if kind == "pending" else "deposit", reference="ctb_1", kind="pending",
        )  # fmt: skip
        void = replace(
            hold, transfer_id=f"{hold_id('ctb_1')}.back", code=code, kind="void", pending_id=hold.transfer_id
        )
        overturned.economy.charge_datanet("user:alice", "py-docs")  # so that the treasury has something
        for transfer in (hold,) if kind == "pending" else (hold, void):
            assert overturned.ledger.commit([transfer]) == ["created"]
        statement = returned_statement("ctb_1", ADAS, 50, "row_1")
        assert self.wrong(overturned, returned_transfer(statement), statement) == "deposit_not_lost"

    @pytest.mark.parametrize("code", ["deposit_forfeited", "deposit_withheld"])
    def test_takes_no_other_transfer_for_a_lost_deposit(self, overturned, code):
        """The first only ends a hold; the second has an id of its own, so it can be there once."""
        named = withheld_id("ctb_1") if code == "deposit_forfeited" else "another"
        other = Transfer(transfer_id=named, debit=ADAS, credit="treasury", amount_nano=50, code=code, reference="ctb_1")
        assert overturned.ledger.commit([other]) == ["created"]
        statement = returned_statement("ctb_1", ADAS, 50, "row_1")
        assert self.wrong(overturned, returned_transfer(statement), statement) == "deposit_not_lost"

    def test_takes_the_post_of_anothers_hold_for_no_lost_deposit(self, overturned):
        overturned.economy.deposit(ADAS, "ctb_2")
        hold = hold_id("ctb_2")
        post = Transfer(
            transfer_id=f"{hold}.kept", debit=ADAS, credit="treasury", amount_nano=50, code="deposit_forfeited",
            reference="ctb_1", kind="post", pending_id=hold,
        )  # fmt: skip
        assert overturned.ledger.commit([post]) == ["created"]
        statement = returned_statement("ctb_1", ADAS, 50, "row_1")
        assert self.wrong(overturned, returned_transfer(statement), statement) == "deposit_not_lost"

    def test_knows_a_deposit_that_was_held_again_after_its_dismissal(self, overturned):
        overturned.economy.deposit(ADAS, "ctb_1")
        overturned.economy.dismiss("ctb_1")
        assert overturned.economy.deposit(ADAS, "ctb_1") == "held"
        assert overturned.economy.judge("ctb_1", is_spam=True) == "forfeited"
        assert overturned.economy.acquit("ctb_1", "row_1") == "returned"
        overturned.ledger.audit()
