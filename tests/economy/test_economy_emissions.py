"""What vesting gives the community is paid beside fees, by one rule, under a cap, and is never taken for fees."""

from fractions import Fraction

import pytest
from economy_values import Town, answer, scores
from hypothesis import given
from hypothesis import strategies as st

from openledger.core.errors import Corrupt, InvalidInput
from openledger.core.money import NANO_PER_OPEN
from openledger.economy import Parameters
from openledger.economy.settlement import payout_id
from openledger.ledger import refunds
from openledger.ledger.emissions import emission
from openledger.ledger.statements import parts_by_account

OPEN = NANO_PER_OPEN
MATCH = Parameters(emission_match_ppm=200_000, emission_cap_nano=30)


@pytest.fixture
def founded(tmp_path, clock):
    """The standard supply; alice has 1,000,000 nano-OPEN from before, bob 10 OPEN."""
    made = Town(tmp_path, clock, MATCH)
    made.economy.grant("user:alice", 1_000_000, "start")
    made.economy.grant("user:bob", 10 * OPEN, "bob")
    made.economy.found()
    yield made
    made.close()


def test_contributors_get_the_rules_part_of_what_fees_paid_them(founded):
    founded.sell("k1")
    founded.economy.settle(scores(), {})
    paid = founded.economy.payouts("contributor:ctr_a")
    assert [(one.code, one.funding, one.reference, one.amount_nano) for one in paid] == [
        ("emission", "emission", "py:p0001", 11), ("payout", "fees", "py:p0001", 56),
    ]  # fmt: skip
    assert founded.available("contributor:ctr_b") == 20 + 4
    assert founded.economy.vesting()["emitted_nano"] == {"p0001": 15}
    founded.economy.settle(scores(), {})
    assert founded.available("contributor:ctr_a") == 67
    founded.ledger.audit()


def test_a_refund_takes_back_what_was_emitted_for_its_answer(founded):
    community = founded.available("treasury:community")
    sold = founded.sell("k1")
    founded.economy.settle(scores(), {"ctr_a": "user:alice"})
    assert founded.available("treasury:community") == community - 15
    told = founded.economy.refund(sold.answer_id, "why")
    assert told["emission_nano"] == {"contributor:ctr_b": 4, "user:alice": 11}
    assert (founded.available(), founded.available("treasury:community")) == (1_000_000, community)
    founded.ledger.audit()


def test_an_answers_refund_takes_back_its_part_of_what_was_emitted(founded):
    sold, _ = founded.sell("k1"), founded.sell("k2")
    founded.economy.settle(scores(), {})
    emitted = founded.economy.vesting()["emitted_nano"]["p0001"]
    assert (emitted, founded.economy.refund(sold.answer_id, "why")["emission_nano"]) == (
        30, {"contributor:ctr_a": 11, "contributor:ctr_b": 4}
    )  # fmt: skip
    founded.ledger.audit()


def test_what_was_withdrawn_of_an_emission_does_not_come_back(founded):
    sold, _ = founded.sell("k1"), founded.sell("k2")
    founded.economy.settle(scores(), {"ctr_a": "user:bob"})
    founded.economy.withdraw("user:bob", founded.available("user:bob") - 3, "0x" + "ab" * 20, "w1")
    told = founded.economy.refund(sold.answer_id, "why")
    assert (told["taken_nano"]["user:bob"], told["emission_nano"]) == (3, {"contributor:ctr_b": 4})
    founded.ledger.audit()


def test_whoever_bought_from_himself_gives_his_emission_back_out_of_the_fee(founded):
    authorized = founded.authorize("k1", "user:bob")
    founded.economy.complete(answer(authorized))
    founded.sell("k2")
    founded.economy.settle(scores(), {"ctr_a": "user:bob"})
    founded.economy.withdraw("user:bob", founded.available("user:bob"), "0x" + "ab" * 20, "w1")
    told = founded.economy.refund(authorized.answer_id, "why")
    assert told["emission_nano"] == {"contributor:ctr_b": 4, "user:bob": 11}
    assert founded.available("user:bob") == 310 - told["owed_nano"]["user:bob"] - 11
    founded.ledger.audit()


@pytest.mark.parametrize("back", [{}, {"contributor:ctr_a": 11}, {"contributor:ctr_a": 11, "contributor:ctr_b": 5}])
def test_the_audit_names_a_refund_that_takes_back_another_emission(founded, back):
    founded.sell("k1"), founded.sell("k2")
    founded.economy.settle(scores(), {})
    usage, _ = founded.ledger.usages("pool:py:p0001")
    settlement = founded.ledger.batch(founded.ledger.find(payout_id("py", "p0001")).seq).statement
    due = refunds.owed(usage, parts_by_account(settlement["payouts_nano"], settlement["accounts"]), None)
    forged = refunds.refund_statement(usage, due, due, "why", back)
    assert set(founded.ledger.commit(refunds.refund_transfers(forged), forged)) == {"created"}
    with pytest.raises(Corrupt) as caught:
        founded.ledger.audit()
    assert caught.value.code == "wrong_refund"


def test_the_cap_is_the_periods(founded):
    founded.sell("k1", completion=100)
    founded.economy.settle(scores(), {})
    assert founded.available("contributor:ctr_a") + founded.available("contributor:ctr_b") == 564 + 195 + 30
    founded.ledger.audit()


def test_by_default_there_is_none_and_without_supply_neither(town):
    town.sell("k1")
    town.economy.settle(scores(), {})
    assert [one.code for one in town.economy.payouts("contributor:ctr_a")] == ["payout"]


@given(
    st.dictionaries(st.sampled_from("abcde"), st.integers(0, 10**15), min_size=1),
    st.integers(0, 10**6),
    st.integers(0, 10**15),
)
def test_it_never_exceeds_rule_or_cap_and_gives_nobody_unattributed(paid, match_ppm, left):
    due = emission({**paid, "unattributed": 10**12}, left, {"emission_match_ppm": match_ppm})
    assert sum(due.values()) <= min(left, sum(paid.values()) * match_ppm // 10**6)
    assert "unattributed" not in due
    assert all(amount > 0 for amount in due.values())


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 10**6))
def test_no_allowed_set_pays_a_buyer_who_is_all_parties_more_than_he_paid(contributors, treasury, match_ppm):
    if contributors + treasury > 10**6:
        return
    rest = 10**6 - contributors - treasury
    try:
        allowed = Parameters(
            contributors_ppm=contributors, treasury_ppm=treasury, owner_ppm=rest, stakers_ppm=0,
            emission_match_ppm=match_ppm,
        )  # fmt: skip
    except InvalidInput:
        return
    back = Fraction(10**6 - allowed.treasury_ppm, 10**6) + Fraction(contributors * match_ppm, 10**12)
    assert back <= 1
