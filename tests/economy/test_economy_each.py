"""Many holds, and many payments, in one call: each by itself, made durable together."""

import pytest
from economy_values import TERMS, answer

from openledger.core.errors import Conflict, Corrupt, InsufficientFunds, InvalidInput, NotFound
from openledger.core.values import Authorization
from openledger.economy.sales import Order
from openledger.ledger import Ledger


def order(key, account="user:alice", most=20, **more):
    return Order(account=account, terms=TERMS, num_prompt_tokens=10, max_tokens=most, idempotency_key=key, **more)


@pytest.fixture
def syncs(monkeypatch):
    """Calls of the ledger that end in a sync of its disk."""
    serve, made = Ledger.serve, []
    monkeypatch.setattr(Ledger, "serve", lambda self, requests: made.append(len(requests)) or serve(self, requests))
    return made


def test_holds_are_placed_together_as_each_by_itself(town, syncs):
    told = town.economy.authorize_each([order("k1"), order("k2")])
    assert [hold.answer_id for hold, _ in told] == [town.authorize(key).answer_id for key in ("k1", "k2")]
    assert syncs[0] == 2
    assert town.available() == 1_000_000 - 2 * 700
    town.ledger.audit()


def test_of_holds_placed_together_each_is_refused_by_itself(town):
    town.economy.grant("user:bob", 1_000, "bob")
    asked = [order("k1", "user:bob"), order("k2", "user:bob"), order("", "user:bob"), order("k4", "user:nobody")]
    told = town.economy.authorize_each(asked)
    assert isinstance(told[0][0], Authorization)
    assert [type(error) for error in told[1:]] == [InsufficientFunds, InvalidInput, NotFound]
    assert town.available("user:bob") == 300
    town.economy.grant("user:bob", 1_000, "more")
    assert town.authorize("k2", "user:bob").answer_id != told[0][0].answer_id


def test_a_key_that_comes_twice_is_held_once(town):
    (first, _), (second, _) = town.economy.authorize_each([order("k1"), order("k1")])
    assert (first, town.available()) == (second, 1_000_000 - 700)


def test_a_key_with_another_request_is_a_conflict_for_that_one(town):
    (hold, _), conflict, (other, _) = town.economy.authorize_each([order("k1"), order("k1", most=10), order("k2")])
    assert (conflict.code, hold.answer_id != other.answer_id) == ("idempotency_conflict", True)


def test_the_cap_of_a_key_holds_for_holds_that_are_placed_together(town):
    key = town.economy.create_key("user:alice", 1_000)
    digest = town.economy._keys.digest_of(key)
    (hold, _), refused = town.economy.authorize_each([order("k1", key_digest=digest), order("k2", key_digest=digest)])
    assert (hold.max_fee_nano, refused.code, town.available()) == (700, "spending_cap_reached", 1_000_000 - 700)


def test_what_was_sold_under_a_key_is_told_with_its_hold(town):
    sold = town.sell("k1")
    (_, told), (_, nothing) = town.economy.authorize_each([order("k1"), order("k2")])
    assert (told[1].answer_id, told[1].fee_nano, nothing) == (sold.answer_id, 310, None)


def test_answers_are_paid_for_together_as_each_by_itself(town, syncs):
    held = [town.authorize(key) for key in ("k1", "k2")]
    town.economy.complete(answer(town.authorize("k0")))
    syncs.clear()
    told = town.economy.complete_each([[answer(one)] for one in held])
    assert syncs == [2]
    assert [receipt.answer_id for (receipt,) in told] == [one.answer_id for one in held]
    for (receipt,), one in zip(told, held, strict=True):
        assert receipt.signed == town.ledger.receipt(f"{one.answer_id}.fee")
    assert (town.available(), town.economy.balance("user:alice").debits_pending_nano) == (1_000_000 - 3 * 310, 0)
    town.ledger.audit()


def test_of_answers_paid_for_together_each_is_refused_by_itself(town):
    held = [town.authorize(key) for key in ("k1", "k2", "k3")]
    town.economy.cancel(held[1].answer_id)
    told = town.economy.complete_each([[answer(held[0])], [answer(held[1])], [answer(held[2], completion=21)]])
    assert told[0][0].fee_nano == 310
    assert [(type(error), error.code) for error in told[1:]] == [
        (Conflict, "hold_released"),
        (InvalidInput, "exceeds_authorization"),
    ]
    assert town.economy.completed(held[2].answer_id) is None
    town.ledger.audit()


def test_a_request_of_which_one_part_can_not_be_stored_leaves_none_and_the_others_stay(town):
    held = [town.authorize(key) for key in ("k1", "k2", "k3")]
    broken = [answer(held[0]), answer(held[1], completion=21)]
    error, (paid,) = town.economy.complete_each([broken, [answer(held[2])]])
    assert (error.code, paid.fee_nano) == ("exceeds_authorization", 310)
    assert town.economy.completed(held[0].answer_id) is None


def test_a_tenant_whose_key_is_damaged_fails_alone(town):
    for name in ("user:bob", "user:carol"):
        town.economy.grant(name, 10_000, name)
    held = [town.authorize("k1", name) for name in ("user:alice", "user:bob", "user:carol")]
    sold = town.authorize("k0", "user:bob")
    town.economy.complete(answer(sold))
    town.economy._db.execute("UPDATE tenants SET wrapped_key = x'00' WHERE account = 'user:bob'")
    first, error, third = town.economy.complete_each([[answer(one)] for one in held])
    assert ([receipt.answer_id for receipt in (*first, *third)], type(error)) == (
        [held[0].answer_id, held[2].answer_id],
        Corrupt,
    )
    assert town.economy.balance("user:bob").debits_pending_nano == 700
    town.ledger.audit()


@pytest.mark.parametrize(("token", "code"), [(2, None), (3, "answer_completed")], ids=["the same", "other tokens"])
def test_an_answer_that_comes_twice_is_paid_for_once(town, token, code):
    held = town.authorize("k1")
    first, second = town.economy.complete_each([[answer(held)], [answer(held, token=token)]])
    assert getattr(second, "code", None) == code
    assert (first[0].fee_nano, town.available()) == (310, 1_000_000 - 310)
    town.ledger.audit()
