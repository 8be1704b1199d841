"""A backup that put back only the ledger, or only economy.db: at the next start both say the same again."""

from itertools import count

import pytest
from economy_values import answer, kill_at, put_back, scores

from openledger.core.errors import Conflict
from openledger.economy.restored import Reconciliation

OPEN = 10**9


def state(town, answer_id):
    return town.economy._answers.find(answer_id).state


def test_a_sale_that_an_older_log_lacks_is_unpaid_and_its_key_buys_a_new_answer(town):
    town.sell("k1")
    with put_back(town, "ledger.db"):
        lost = town.sell("k2")
    assert state(town, lost.answer_id) == "unpaid"
    assert (town.economy.pool("py", "p0001").total_nano, town.available("pool:py:p0001")) == (155, 155)
    again = town.sell("k2")
    assert again.answer_id != lost.answer_id
    assert town.available() == 1_000_000 - 2 * 310
    assert town.economy.balance("user:alice").debits_pending_nano == 0
    town.ledger.audit()


def test_a_sale_whose_hold_an_older_log_still_has_is_paid_for_again(town):
    authorized = town.authorize("k1")
    with put_back(town, "ledger.db"):
        town.economy.complete(answer(authorized))
    assert state(town, authorized.answer_id) == "posted"
    assert (town.available(), town.available("pool:py:p0001")) == (1_000_000 - 310, 155)
    town.ledger.audit()


def test_a_customer_whom_an_older_log_does_not_know_keeps_nothing_from_starting(bare):
    town, _ = bare
    with put_back(town, "ledger.db"):
        town.economy.grant("user:alice", 1_000_000, "start")
        lost = town.sell("k1")
    assert state(town, lost.answer_id) == "unpaid"
    town.ledger.audit()


def test_a_settlement_that_an_older_log_lacks_is_made_again(town):
    town.sell("k1")
    with put_back(town, "ledger.db"):
        first = town.economy.settle(scores(), {})
    assert town.economy.pools() == [("py", "p0001")]
    assert town.economy.settle(scores(), {}).payouts_nano == first.payouts_nano
    town.sell("k2")
    assert town.economy.settle(scores(town.economy.current_period()), {}).pool_nano == 155
    town.ledger.audit()


@pytest.mark.parametrize("settled", [False, True])
def test_a_refund_that_an_older_log_lacks_did_not_happen(town, settled):
    sold, _ = town.sell("k1"), town.sell("k2")
    if settled:
        town.economy.settle(scores(), {})
    with put_back(town, "ledger.db"):
        town.economy.refund(sold.answer_id, "why")
    assert state(town, sold.answer_id) == ("settled" if settled else "posted")
    town.economy.refund(sold.answer_id, "why")
    assert town.available() == 1_000_000 - 310
    assert town.ledger.audit().num_refunds == 1


def test_a_sale_that_an_older_journal_lacks_is_in_its_pool_without_its_content(town):
    town.sell("k1")
    with put_back(town, "economy.db"):
        sold, refunded = town.sell("k2"), town.sell("k3")
        town.economy.refund(refunded.answer_id, "why")
    assert (state(town, sold.answer_id), state(town, refunded.answer_id)) == ("posted", "refunded")
    pool = town.economy.pool("py", "p0001")
    assert (pool.total_nano, pool.num_unreadable, pool.unreadable_nano) == (310, 1, 155)
    assert town.economy.settle(scores(), {}, left_out=pool.left_out).pool_nano == 310
    with pytest.raises(Conflict) as caught:
        town.economy.completed(sold.answer_id)
    assert caught.value.code == "answer_settled"
    town.ledger.audit()


def test_a_pool_that_only_the_log_has_is_still_settled(town):
    with put_back(town, "economy.db"):
        town.sell("k1")
    assert town.economy.pools() == [("py", "p0001")]


def test_a_pool_that_only_the_log_has_settled_waits_no_more(town):
    town.sell("k1")
    with put_back(town, "economy.db"):
        sold = town.sell("k2")
        town.economy.settle(scores(), {})
    assert (town.economy.pools(), state(town, sold.answer_id)) == ([], "settled")


def test_a_refund_that_an_older_journal_lacks_is_no_more_of_its_pool(town):
    sold, _ = town.sell("k1"), town.sell("k2", completion=9)
    with put_back(town, "economy.db"):
        town.economy.refund(sold.answer_id, "why")
    pool = town.economy.pool("py", "p0001")
    assert (pool.total_nano, len(pool.answers)) == (185, 1)
    assert town.economy.settle(scores(), {}, left_out=pool.left_out).pool_nano == 185
    town.ledger.audit()


def test_what_a_refund_took_that_an_older_journal_lacks_can_not_be_disputed(town):
    sold, _ = town.sell("k1"), town.sell("k2", completion=9)
    town.economy.settle(scores(), {})
    with put_back(town, "economy.db"):
        town.economy.refund(sold.answer_id, "why")
    town.sell("k3")
    town.economy.settle(scores("p0002"), {})
    assert town.economy._disputes.free_nano("py", "p0001") < town.available("unattributed")
    town.economy.grant("contributor:ctr_a", OPEN, "d")
    town.economy.dispute("contributor:ctr_a", "py", "p0001", "ctr_a", 340, "more")
    town.ledger.audit()


def test_a_start_asks_the_log_no_more_for_more_sales(town, monkeypatch):
    def asked():
        calls = []
        find = town.ledger.find
        with monkeypatch.context() as counted:
            counted.setattr(town.ledger, "find", lambda name: calls.append(name) or find(name))
            town.economy._restored.run()
        return len(calls)

    town.sell("k1")
    few = asked()
    for number in range(20):
        town.sell(f"more{number}")
    assert asked() == few


def test_one_restore_after_another_leaves_no_sale_that_keeps_it_from_starting(town):
    sold = town.sell("k1")
    with put_back(town, "ledger.db"):
        with put_back(town, "economy.db"):
            read_back = town.sell("k2")
        assert state(town, read_back.answer_id) == "posted"
    assert (state(town, sold.answer_id), state(town, read_back.answer_id)) == ("posted", "unpaid")
    assert town.economy.pool("py", "p0001").total_nano == town.available("pool:py:p0001") == 155
    town.ledger.audit()


@pytest.mark.parametrize("num_read", [0, 1, 2])
def test_a_start_that_is_killed_while_it_reads_sales_back_loses_none(town, num_read):
    """What is read back before the kill stays: the next start looks for what comes after it."""
    reads = count()
    with put_back(town, "economy.db", kill_at(Reconciliation, "_adopt_sale", lambda _: next(reads) == num_read)):
        sold = [town.sell(f"k{number}") for number in range(3)]
    assert [state(town, one.answer_id) for one in sold] == ["posted"] * 3
    assert town.economy.pool("py", "p0001").total_nano == town.available("pool:py:p0001") == 3 * 155
    assert town.authorize("k0").answer_id == sold[0].answer_id
    town.ledger.audit()
