"""An answer that its customer marks wrong counts nothing in use; its fee stays where it went."""

import pytest
from economy_values import TERMS, answer, improvement, scores
from test_economy_recovery import PowerCut, cut_power

from openledger.core.errors import Conflict, Forbidden, InvalidInput, NotFound, Unavailable
from openledger.core.signing import SigningKey
from openledger.economy import Parameters
from openledger.economy.economy import Economy
from openledger.economy.verdicts import record_verdict
from openledger.ledger import Ledger, verify_proof

POOL = "pool:py:p0001"


@pytest.fixture
def sold(town):
    """Two answers of alice's; the first one's id."""
    town.economy.grant("user:bob", 10_000, "bob")
    first = town.sell("k1").answer_id
    town.sell("k2", completion=3)
    return first


def counted(town):
    return {item.answer_id: item.counted for item in town.economy.pool("py", "p0001").answers}


def test_a_wrong_answer_weighs_nothing_and_its_fee_stays_in_the_pool(town, sold):
    total, balance = town.economy.pool("py", "p0001").total_nano, town.available()
    town.economy.mark(sold, "wrong", "user:alice")
    pool = town.economy.pool("py", "p0001")
    (marked,) = [item for item in pool.answers if not item.counted]
    assert (marked.answer_id, marked.fee_nano, marked.weight_nano) == (sold, 310, 0)
    assert [item.weight_nano for item in pool.answers if item.counted] == [190]
    assert (pool.total_nano, town.available()) == (total, balance)
    town.ledger.audit()


def test_the_proof_of_a_payout_names_it_and_its_evidence_makes_the_whole_pool(town, sold):
    town.economy.mark(sold, "wrong", "user:alice")
    settlement = town.economy.settle(scores(), {}, improvement(), left_out=[sold])
    assert settlement.pool_nano == 155 + 95
    name = settlement.transfer_ids["contributor:ctr_a"]
    proof = town.ledger.proof(name)
    assert sum(amount for _, amount in proof["evidence"]) == 250
    assert len(verify_proof(proof, town.ledger.verification_key()).statement["not_counted"]) == 1
    assert "1 of these answers were marked wrong and count nothing in use" in town.economy.explain(name)
    town.ledger.audit()


def test_marking_again_changes_nothing_also_after_the_settlement(town, sold):
    first = town.economy.mark(sold, "wrong", "user:alice")
    before = town.ledger.checkpoint()
    assert town.economy.mark(sold, "wrong", "user:alice") == first
    assert town.ledger.checkpoint() == before
    town.economy.settle(scores(), {}, left_out=[sold])
    assert town.economy.mark(sold, "wrong", "user:alice") == first


def test_after_the_settlement_it_is_too_late(town, sold):
    town.economy.settle(scores(), {})
    before = town.ledger.checkpoint()
    with pytest.raises(Conflict) as caught:
        town.economy.mark(sold, "wrong", "user:alice")
    assert caught.value.code == "period_closed"
    with pytest.raises(Conflict) as caught:  # the ledger's own refusal, whoever writes
        record_verdict(town.ledger, town.ledger.usages(POOL)[0], "wrong")
    assert caught.value.code == "pool_settled"
    assert town.ledger.checkpoint() == before


def test_once_its_period_is_closed_an_answer_is_not_marked(town, sold):
    town.economy.open_period()
    before = town.ledger.checkpoint()
    with pytest.raises(Conflict) as caught:
        town.economy.mark(sold, "wrong", "user:alice")
    assert caught.value.code == "period_closed"
    assert (town.ledger.checkpoint(), town.economy.pool("py", "p0001").marked) == (before, ())


def test_a_verdict_from_before_its_period_was_closed_is_told_again(town, sold):
    first = town.economy.mark(sold, "wrong", "user:alice")
    town.economy.open_period()
    assert town.economy.mark(sold, "wrong", "user:alice") == first


def test_a_marked_answer_whose_content_is_gone_is_still_among_the_marked(town, sold):
    town.economy.mark(sold, "wrong", "user:alice")
    town.economy.forget_content("user:alice")
    pool = town.economy.pool("py", "p0001")
    assert (pool.answers, pool.marked) == ((), (sold,))
    assert town.economy.settle(scores(), {}, left_out=pool.marked).pool_nano == 250
    town.ledger.audit()


@pytest.mark.parametrize(
    ("answer_id", "verdict", "account", "error", "code"),
    [
        (None, "wrong", "user:bob", Forbidden, "not_the_customer"),
        (None, "right", "user:alice", InvalidInput, "invalid_verdict"),
        ("ans_x", "wrong", "user:alice", NotFound, "answer_not_sold"),
    ],
)
def test_only_the_customer_can_say_that_it_was_wrong(town, sold, answer_id, verdict, account, error, code):
    before = town.ledger.checkpoint()
    with pytest.raises(error) as caught:
        town.economy.mark(answer_id or sold, verdict, account)
    assert caught.value.code == code
    assert town.ledger.checkpoint() == before
    assert set(counted(town).values()) == {True}


def test_a_verdict_is_proven_and_explained(town, sold):
    name = town.economy.mark(sold, "wrong", "user:alice")
    lines = verify_proof(town.ledger.proof(name), town.ledger.verification_key()).lines
    assert lines[-1] == f"answer {sold} of py in p0001 was marked wrong by user:alice; no money moves"
    assert town.economy.explain(name)[-1] == (
        f"user:alice marked answer {sold} wrong: it counts nothing in the use part of the pool of py in p0001;"
        " no money moves"
    )


@pytest.mark.parametrize("after", [False, True])
def test_a_verdict_is_in_the_log_once_wherever_marking_stopped(town, sold, monkeypatch, after):
    cut_power(monkeypatch, Ledger, "commit", after=after)
    with pytest.raises(PowerCut):
        town.economy.mark(sold, "wrong", "user:alice")
    monkeypatch.undo()
    town.restart()
    assert counted(town)[sold] is not after
    town.economy.mark(sold, "wrong", "user:alice")
    town.restart()
    assert counted(town)[sold] is False
    assert len(town.ledger.verdicts(POOL)) == 1
    town.ledger.audit()


def test_an_answer_that_waits_to_be_paid_for_is_paid_for_before_it_is_marked(town, monkeypatch):
    authorized = town.authorize("k1")

    def away(*_):
        raise Unavailable("away")

    monkeypatch.setattr(town.ledger, "commit_each", away)
    with pytest.raises(Unavailable):
        town.economy.complete(answer(authorized))
    monkeypatch.undo()
    town.economy.mark(authorized.answer_id, "wrong", "user:alice")
    assert counted(town) == {authorized.answer_id: False}


@pytest.mark.parametrize("left_out", [None, [], ["ans_x"]])
def test_scores_from_before_a_verdict_are_not_settled(town, sold, left_out):
    town.economy.mark(sold, "wrong", "user:alice")
    with pytest.raises(Conflict) as caught:
        town.economy.settle(scores(), {}, left_out=left_out)
    assert caught.value.code == "verdicts_changed"
    assert town.ledger.audit().num_settlements == 0
    assert town.economy.settle(scores(), {}, left_out=[sold]).pool_nano == 250


def test_an_answer_that_paid_nothing_into_a_pool_has_nothing_to_mark(tmp_path, clock):
    all_to_owner = Parameters(contributors_ppm=0, owner_ppm=700_000)
    ledger = Ledger(tmp_path / "ledger.db", clock, SigningKey(b"k" * 32), "openledger/test")
    economy = Economy(ledger, tmp_path, clock, all_to_owner)
    economy.grant("user:alice", 1_000_000, "start")
    authorized = economy.authorize("user:alice", TERMS, 10, 20, "k1")
    economy.complete(answer(authorized))
    with pytest.raises(Conflict) as caught:
        economy.mark(authorized.answer_id, "wrong", "user:alice")
    assert caught.value.code == "answer_in_no_pool"
    economy.close()
    ledger.close()


def test_answers_of_other_pools_are_not_touched(town, sold):
    town.economy.open_period()
    later = town.sell("k3").answer_id
    town.economy.mark(later, "wrong", "user:alice")
    assert set(counted(town).values()) == {True}
    assert town.economy.pool("py", "p0002").answers[0].counted is False
