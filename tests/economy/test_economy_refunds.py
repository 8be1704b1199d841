"""A refund gives the whole fee back, once, and takes each part from where it went; the treasury bears the rest."""

import pytest
from economy_values import answer, scores
from test_economy_recovery import PowerCut, cut_power

from openledger.core.errors import Conflict, InsufficientFunds, InvalidInput, NotFound
from openledger.core.money import NANO_PER_OPEN
from openledger.economy import Parameters
from openledger.economy.answers import AnswerStore
from openledger.economy.verdicts import record_verdict
from openledger.ledger import Ledger, encode_proof, verify_proof

OPEN = NANO_PER_OPEN
ADDRESS = "0x" + "ab" * 20
DAY_MS = 24 * 60 * 60_000


def settle(town, **values):
    """By scores of the pool as it is."""
    return town.economy.settle(scores(**values), {}, left_out=town.economy.pool("py", "p0001").left_out)


def books(town):
    return {balance.account_id: balance.posted_nano for balance in town.ledger.balances()}


def test_before_settlement_every_part_comes_back_and_the_answer_leaves_its_pool(town):
    before = books(town)
    sold = town.sell("k1")
    kept = town.sell("k2", completion=9)
    told = town.economy.refund(sold.answer_id, "the adapter was mislabelled")
    assert told["taken_nano"] == {"pool:py:p0001": 155, "treasury": 93, "user:owner": 62}
    assert town.available() == 1_000_000 - kept.fee_nano
    pool = town.economy.pool("py", "p0001")
    assert (pool.total_nano, [one.answer_id for one in pool.answers]) == (185, [kept.answer_id])
    town.economy.refund(kept.answer_id, "this one too")
    assert {name: amount for name, amount in books(town).items() if amount} == {
        name: amount for name, amount in before.items() if amount
    }
    assert town.ledger.audit().num_refunds == 2


def test_the_pool_is_settled_without_it_and_its_payouts_are_proven(town):
    sold, _ = town.sell("k1"), town.sell("k2", completion=9)
    town.economy.refund(sold.answer_id, "why")
    settlement = settle(town)
    assert settlement.pool_nano == 185
    proof = encode_proof(town.ledger.proof(settlement.transfer_ids["contributor:ctr_a"]))
    lines = verify_proof(proof, town.ledger.verification_key()).lines
    assert any("1 answers make the pool" in line for line in lines)
    town.ledger.audit()


def test_an_answer_that_was_marked_wrong_can_be_refunded_and_leaves_the_pool(town):
    sold, _ = town.sell("k1"), town.sell("k2")
    town.economy.mark(sold.answer_id, "wrong", "user:alice")
    town.economy.refund(sold.answer_id, "wrong indeed")
    assert settle(town).pool_nano == 155
    town.ledger.audit()


def test_scores_that_count_an_answer_refunded_since_are_not_settled_though_another_can_not_be_read(town):
    sold, _ = town.sell("k1"), town.sell("k2")
    town.economy.set_retention("user:alice", keep=False)
    town.sell("k3")
    before = town.economy.pool("py", "p0001").left_out
    town.economy.refund(sold.answer_id, "why")
    for left_out in (None, before):
        with pytest.raises(Conflict) as caught:
            town.economy.settle(scores(ceilings=((10**9, 620),)), {}, left_out=left_out)
        assert caught.value.code == "verdicts_changed"
    settle(town, ceilings=((10**9, 310),))
    town.ledger.audit()


def test_scores_in_whose_ceilings_a_marked_answer_is_are_not_settled_once_it_is_refunded(town):
    sold, _ = town.sell("k1"), town.sell("k2")
    town.economy.mark(sold.answer_id, "wrong", "user:alice")
    before = town.economy.pool("py", "p0001").left_out
    town.economy.refund(sold.answer_id, "why")
    with pytest.raises(Conflict):
        town.economy.settle(scores(), {}, left_out=before)


def test_an_answer_that_was_refunded_can_not_be_marked(town):
    sold, _ = town.sell("k1"), town.sell("k2")
    town.economy.refund(sold.answer_id, "wrong indeed")
    before = town.ledger.checkpoint()
    with pytest.raises(Conflict) as caught:
        town.economy.mark(sold.answer_id, "wrong", "user:alice")
    assert caught.value.code == "answer_refunded"
    assert town.ledger.checkpoint() == before


def test_a_log_in_which_a_refunded_answer_was_marked_is_settled_without_it_and_audits(town):
    sold, _ = town.sell("k1"), town.sell("k2")
    usage = town.ledger.usages("pool:py:p0001")[0]
    town.economy.refund(sold.answer_id, "wrong indeed")
    record_verdict(town.ledger, usage, "wrong")
    assert settle(town).pool_nano == 155
    assert town.ledger.audit().num_settlements == 1


def test_after_settlement_contributors_give_what_they_have_not_withdrawn_and_the_treasury_bears_the_rest(town):
    town.economy.grant("user:x", 10 * OPEN, "x")
    sold = town.sell("k1", completion=20)
    settlement = town.economy.settle(scores(), {"ctr_a": "user:x"})
    assert settlement.payouts_nano == {"ctr_a": 127, "ctr_b": 44, "ctr_c": 0, "unattributed": 179}
    town.economy.withdraw("user:x", 10 * OPEN + 95, ADDRESS, "w1")  # 32 nano-OPEN stay
    later = [town.sell(key).fee_nano for key in ("k2", "k3")]  # the treasury has something of its own
    told = town.economy.refund(sold.answer_id, "why")
    assert told["owed_nano"]["user:x"] == 127
    assert told["taken_nano"] == {
        "contributor:ctr_b": 44, "treasury": 210 + 95, "unattributed": 179, "user:owner": 140, "user:x": 32,
    }  # fmt: skip
    assert town.available() == 1_000_000 - sum(later)
    town.ledger.audit()


def test_where_the_treasury_can_not_bear_it_nothing_changes(town):
    town.economy.grant("user:owner", 10 * OPEN, "own")
    sold = town.sell("k1", completion=20)
    town.economy.settle(scores(), {"ctr_a": "user:owner", "ctr_b": "user:owner", "ctr_c": "user:owner"})
    town.economy.withdraw("user:owner", town.available("user:owner"), ADDRESS, "w1")
    before = books(town), town.ledger.checkpoint()
    with pytest.raises(InsufficientFunds) as caught:
        town.economy.refund(sold.answer_id, "why")
    assert (caught.value.code, caught.value.fix) == ("refund_not_covered", "add 0.000000311 OPEN to the treasury")
    assert (books(town), town.ledger.checkpoint()) == before


@pytest.mark.parametrize("closed", [False, True])
def test_stakers_give_their_part_back_from_where_it_is(town, clock, closed):
    for name in ("bob", "carol"):
        town.economy.grant(f"user:{name}", 10 * OPEN, name)
        town.economy.stake(f"user:{name}", "adapter:py", 5 * OPEN, "s1")
    sold = town.sell("k1")
    clock.advance(DAY_MS)
    if closed:
        town.economy.open_period()
    told = town.economy.refund(sold.answer_id, "why")
    stakers = {"user:bob": 31, "user:carol": 31} if closed else {"stakers:py:p0001": 62}
    assert told["taken_nano"] == {"pool:py:p0001": 155, "treasury": 31, "user:owner": 62, **stakers}
    town.economy.open_period()
    assert town.available("user:bob") == 5 * OPEN
    town.ledger.audit()


def test_whoever_bought_from_himself_gets_his_own_part_without_moving_it(town):
    town.economy.grant("user:owner", 10_000, "own")
    authorized = town.authorize("k1", "user:owner")
    town.economy.complete(answer(authorized))
    town.economy.refund(authorized.answer_id, "why")
    assert town.available("user:owner") == 10_000
    town.ledger.audit()


def test_asking_again_gives_the_first_refund(town):
    sold = town.sell("k1")
    first = town.economy.refund(sold.answer_id, "why")
    town.restart()
    assert town.economy.refund(sold.answer_id, "another reason") == first
    assert town.available() == 1_000_000


def test_a_refunded_answer_is_not_told_again(town):
    sold = town.sell("k1")
    town.economy.refund(sold.answer_id, "why")
    with pytest.raises(Conflict) as caught:
        town.economy.completed(sold.answer_id)
    assert caught.value.code == "answer_settled"


def test_the_window_closes(town, clock):
    sold = town.sell("k1")
    clock.advance(Parameters().refund_window_ms + 1)
    with pytest.raises(Conflict) as caught:
        town.economy.refund(sold.answer_id, "why")
    assert caught.value.code == "refund_window_closed"


@pytest.mark.parametrize(
    ("answer_id", "reason", "error"), [("ans_none", "why", NotFound), ("", "why", NotFound), (None, "", InvalidInput)]
)
def test_a_refund_that_can_not_be_changes_nothing(town, answer_id, reason, error):
    sold = town.sell("k1").answer_id
    before = town.ledger.checkpoint()
    with pytest.raises(error):
        town.economy.refund(sold if answer_id is None else answer_id, reason)
    assert town.ledger.checkpoint() == before


@pytest.mark.parametrize(
    ("owner", "name", "after"),
    [(Ledger, "commit", False), (Ledger, "commit", True), (AnswerStore, "mark", False), (AnswerStore, "mark", True)],
)
@pytest.mark.parametrize("settled", [False, True])
def test_a_refund_happens_once_wherever_it_stopped(town, monkeypatch, owner, name, after, settled):
    sold, _ = town.sell("k1"), town.sell("k2")
    if settled:
        town.economy.settle(scores(), {})
    cut_power(monkeypatch, owner, name, after=after)
    with pytest.raises(PowerCut):
        town.economy.refund(sold.answer_id, "why")
    monkeypatch.undo()
    town.restart()
    if not settled:
        assert town.economy.pool("py", "p0001").total_nano == (155 if (owner, after) != (Ledger, False) else 310)
    town.economy.refund(sold.answer_id, "why")
    assert town.available() == 1_000_000 - 310
    assert town.ledger.audit().num_refunds == 1
