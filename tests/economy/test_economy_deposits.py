"""Deposits and one-time fees: returned, forfeited, withheld; each once."""

import pytest
from economy_values import Town, scores

from openledger.core.clock import ManualClock
from openledger.core.errors import Conflict, InsufficientFunds, InvalidInput
from openledger.economy import Parameters

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
        raise InsufficientFunds("cut")

    monkeypatch.setattr(priced.ledger, "commit", away)
    with pytest.raises(InsufficientFunds):
        priced.economy.deposit("user:alice", "ctb_1")
    monkeypatch.undo()
    assert priced.economy._deposits.state("ctb_1") == "owed"
    assert priced.economy.deposit("user:alice", "ctb_1") == "held"
