"""A crash between any two steps: started again, the economy has taken each fee once and paid each pool once."""

import pytest
from economy_values import answer, scores

from openledger.core.errors import Conflict, Unavailable
from openledger.economy import Parameters
from openledger.economy.answers import AnswerStore
from openledger.economy.holds import HoldStore
from openledger.ledger import Ledger


class PowerCut(BaseException):
    """Not an Exception: nothing may catch it."""


def cut_power(monkeypatch, owner, name, *, after):
    """The next call of `owner.name` ends the process, before or after it did its work."""
    original = getattr(owner, name)

    def crash(self, *arguments, **more):
        if after:
            original(self, *arguments, **more)
        raise PowerCut

    monkeypatch.setattr(owner, name, crash)


STEPS = [
    (AnswerStore, "add", False),
    (AnswerStore, "add", True),
    (Ledger, "commit_each", False),
    (Ledger, "commit_each", True),
    (AnswerStore, "mark", True),
    (HoldStore, "mark", False),
    (HoldStore, "mark", True),
]


@pytest.mark.parametrize(("owner", "name", "after"), STEPS)
def test_a_fee_is_taken_once_wherever_completing_stopped(town, monkeypatch, owner, name, after):
    authorized = town.authorize("k1")
    cut_power(monkeypatch, owner, name, after=after)
    with pytest.raises(PowerCut):
        town.economy.complete(answer(authorized))
    monkeypatch.undo()
    town.restart()
    assert town.economy.complete(answer(authorized)).fee_nano == 310
    assert town.available() == 1_000_000 - 310
    assert town.economy.pool("py", "p0001").total_nano == 155
    town.ledger.audit()


@pytest.mark.parametrize(("owner", "name", "after"), STEPS[1:])
def test_starting_again_posts_what_was_stored(town, monkeypatch, owner, name, after):
    authorized = town.authorize("k1")
    cut_power(monkeypatch, owner, name, after=after)
    with pytest.raises(PowerCut):
        town.economy.complete(answer(authorized))
    monkeypatch.undo()
    town.restart()
    assert town.available() == 1_000_000 - 310
    assert town.economy.balance("user:alice").debits_pending_nano == 0


@pytest.mark.parametrize(("owner", "name", "after"), STEPS)
def test_of_an_answers_parts_all_are_paid_for_or_none_wherever_completing_stopped(
    town, monkeypatch, owner, name, after
):
    held = [town.authorize(key) for key in ("k1", "k2")]
    cut_power(monkeypatch, owner, name, after=after)
    with pytest.raises(PowerCut):
        town.economy.complete_all([answer(one) for one in held])
    monkeypatch.undo()
    town.restart()
    kept = [town.economy.completed(one.answer_id) is not None for one in held]
    assert kept == [(owner, name, after) != (AnswerStore, "add", False)] * 2
    assert town.economy.pool("py", "p0001").total_nano == 155 * sum(kept)
    town.ledger.audit()


@pytest.mark.parametrize("after", [False, True])
def test_an_authorization_that_was_cut_off_is_the_same_on_retry(town, monkeypatch, after):
    cut_power(monkeypatch, Ledger, "commit_each", after=after)
    with pytest.raises(PowerCut):
        town.authorize("k1")
    monkeypatch.undo()
    town.restart()
    assert town.authorize("k1") == town.authorize("k1")
    assert town.available() == 1_000_000 - 700


def test_an_authorization_that_was_cut_off_expires(town, monkeypatch, clock):
    cut_power(monkeypatch, Ledger, "commit_each", after=False)
    with pytest.raises(PowerCut):
        town.authorize("k1")
    monkeypatch.undo()
    clock.advance(Parameters().hold_timeout_ms)
    town.restart()
    assert town.available() == 1_000_000
    town.economy.complete(answer(town.authorize("k1")))
    assert town.available() < 1_000_000


def test_a_stored_answer_is_paid_after_an_outage_longer_than_its_hold(town, monkeypatch, clock):
    authorized = town.authorize("k1")
    cut_power(monkeypatch, Ledger, "commit_each", after=False)
    with pytest.raises(PowerCut):
        town.economy.complete(answer(authorized))
    monkeypatch.undo()
    clock.advance(Parameters().hold_timeout_ms + 1)
    town.restart()
    assert town.available() == 1_000_000 - 310


def test_after_the_grace_the_hold_is_released_and_the_answer_stays_unpaid(town, monkeypatch, clock):
    authorized = town.authorize("k1")
    cut_power(monkeypatch, Ledger, "commit_each", after=False)
    with pytest.raises(PowerCut):
        town.economy.complete(answer(authorized))
    monkeypatch.undo()
    clock.advance(Parameters().hold_timeout_ms + Parameters().posting_grace_ms)
    town.restart()
    assert town.available() == 1_000_000
    assert town.economy.pool("py", "p0001").answers == ()
    with pytest.raises(Conflict):
        town.economy.complete(answer(authorized))
    town.ledger.audit()


def test_a_ledger_that_is_away_leaves_the_answer_stored_and_a_settlement_waits_for_it(town, monkeypatch):
    authorized = town.authorize("k1")

    def away(*_):
        raise Unavailable("away")

    monkeypatch.setattr(town.ledger, "commit_each", away)
    with pytest.raises(Unavailable):
        town.economy.complete(answer(authorized))
    with pytest.raises(Unavailable):
        town.economy.settle(scores(), {})
    monkeypatch.undo()
    assert town.economy.settle(scores(), {}).pool_nano == 155


@pytest.mark.parametrize(
    ("owner", "name", "after"),
    [
        (Ledger, "commit", False),
        (Ledger, "commit", True),
        (AnswerStore, "settle", False),
        (AnswerStore, "settle", True),
    ],
)
def test_a_pool_is_paid_once_wherever_settling_stopped(town, monkeypatch, owner, name, after):
    town.sell("k1")
    town.economy.open_period()
    cut_power(monkeypatch, owner, name, after=after)
    with pytest.raises(PowerCut):
        town.economy.settle(scores(), {})
    monkeypatch.undo()
    town.restart()
    assert town.economy.settle(scores(), {}).pool_nano == 155
    assert town.economy.pools() == []
    assert town.economy.balance("pool:py:p0001").credits_posted_nano == 155
    assert town.economy.balance("pool:py:p0001").debits_posted_nano == 155
    town.ledger.audit()


@pytest.mark.parametrize(("owner", "name", "after"), [(Ledger, "commit", True), (AnswerStore, "settle", False)])
@pytest.mark.parametrize("how", ["restart", "pools", "pool"])
def test_a_pool_that_only_the_log_settled_leaves_the_queue(town, monkeypatch, owner, name, after, how):
    sold = town.sell("k1").answer_id
    town.economy.open_period()
    cut_power(monkeypatch, owner, name, after=after)
    with pytest.raises(PowerCut):
        town.economy.settle(scores(), {})
    monkeypatch.undo()
    if how == "restart":
        town.restart()
    elif how == "pools":
        assert town.economy.pools() == []
    else:
        assert town.economy.pool("py", "p0001").settled
    assert town.economy._answers.find(sold).state == "settled"
    assert town.economy.pools() == []
    town.ledger.audit()


@pytest.mark.parametrize(("owner", "name", "after"), [*((HoldStore, "free_key", a) for a in (False, True)),
                                                      *((HoldStore, "add", a) for a in (False, True)),
                                                      (Ledger, "commit_each", False),
                                                      (Ledger, "commit_each", True)])  # fmt: skip
def test_a_freed_key_holds_once_wherever_authorizing_stopped(town, monkeypatch, owner, name, after):
    first = town.authorize("k1")
    town.economy.cancel(first.answer_id)
    cut_power(monkeypatch, owner, name, after=after)
    with pytest.raises(PowerCut):
        town.authorize("k1")
    monkeypatch.undo()
    town.restart()
    second = town.authorize("k1")
    assert second.answer_id != first.answer_id
    assert town.available() == 1_000_000 - 700
    assert town.economy.complete(answer(second)).fee_nano == 310
    town.ledger.audit()


def test_the_key_of_an_expired_hold_can_be_used_again(town, clock):
    first = town.authorize("k1")
    clock.advance(Parameters().hold_timeout_ms)
    town.restart()
    second = town.authorize("k1")
    assert (second.answer_id != first.answer_id, town.available()) == (True, 1_000_000 - 700)


def stored_only(town, monkeypatch):
    """An answer that was stored while the ledger was away."""
    authorized = town.authorize("k1")

    def away(*_):
        raise Unavailable("away")

    monkeypatch.setattr(town.ledger, "commit_each", away)
    with pytest.raises(Unavailable):
        town.economy.complete(answer(authorized))
    monkeypatch.undo()
    return authorized


def test_a_stored_answer_is_paid_for_before_it_is_told_again(town, monkeypatch):
    authorized = stored_only(town, monkeypatch)
    _, receipt = town.economy.completed(authorized.answer_id)
    assert (receipt.fee_nano, town.available()) == (310, 1_000_000 - 310)


def test_the_key_of_an_answer_that_can_no_longer_be_paid_can_be_used_again(town, monkeypatch, clock):
    authorized = stored_only(town, monkeypatch)
    clock.advance(Parameters().hold_timeout_ms + Parameters().posting_grace_ms)
    assert town.authorize("k1").answer_id != authorized.answer_id


def test_what_the_ledger_missed_is_posted_once_it_is_back_and_not_lost_with_its_hold(town, clock, monkeypatch):
    held = [town.authorize(key) for key in ("k1", "k2")]
    commit_each = town.ledger.commit_each

    def goes_away(commits):
        commit_each(commits[:1])
        raise Unavailable("the ledger is away", code="ledger_unavailable")

    with monkeypatch.context() as away:
        away.setattr(town.ledger, "commit_each", goes_away)
        with pytest.raises(Unavailable):
            town.economy.complete_all([answer(one) for one in held])
    town.economy.run_due()
    assert town.available("pool:py:p0001") == 2 * 155
    assert town.economy.balance("user:alice").debits_pending_nano == 0
    clock.advance(Parameters().posting_grace_ms + Parameters().hold_timeout_ms + 1)
    assert [town.economy.completed(one.answer_id)[1].fee_nano for one in held] == [310, 310]
    town.ledger.audit()
