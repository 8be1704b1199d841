"""Reputation and seeded trust: they start low, follow what was measured, and are bought by nobody."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openledger.core.errors import InvalidInput
from openledger.economy import Parameters
from openledger.economy.reputation import averaged, quota_rows, review_ppm
from openledger.economy.trust import WHOLE, seeded_trust

P = Parameters()
counts = st.integers(0, 30)


def test_a_new_key_has_a_small_quota_and_is_reviewed_much(town):
    assert town.economy.reputation("ctr_a", "py-docs") == {"ppm": 100_000, "quota_rows": 590, "review_ppm": 452_000}


def test_good_rows_raise_it_and_spam_lowers_it_once_for_each_event(town):
    risen = town.economy.record_outcomes("ctr_a", "py-docs", {"accepted": 40}, "ctb_1")
    assert 880_000 < risen < 890_000
    assert town.economy.record_outcomes("ctr_a", "py-docs", {"accepted": 40}, "ctb_1") == risen
    fallen = town.economy.record_outcomes("ctr_a", "py-docs", {"spam": 40, "accepted": 5}, "ctb_2")
    assert fallen < 130_000
    assert town.economy.reputation("ctr_a", "other")["ppm"] == P.reputation_start_ppm
    town.restart()
    assert town.economy.reputation("ctr_a", "py-docs")["ppm"] == fallen


def test_stake_buys_none_of_it(town):
    town.economy.grant("contributor:ctr_a", 10**15, "rich")
    town.economy.stake("contributor:ctr_a", "datanet:py-docs", 10**15, "s1")
    assert town.economy.reputation("ctr_a", "py-docs")["ppm"] == P.reputation_start_ppm


@pytest.mark.parametrize("outcomes", [{"stake": 1}, {"accepted": -1}, {"accepted": 0.5}, {"spam": 100_001}])
def test_outcomes_that_are_none_are_refused(town, outcomes):
    with pytest.raises(InvalidInput):
        town.economy.record_outcomes("ctr_a", "py-docs", outcomes, "ctb_1")


@given(st.integers(0, 10**6), counts, counts)
def test_it_stays_within_its_bounds_and_so_does_what_follows(ppm, good, bad):
    now = averaged(ppm, {"accepted": good, "duplicate": bad}, P.reputation_step_ppm)
    assert 0 <= now <= 10**6
    assert now <= averaged(ppm, {"accepted": good + 1, "duplicate": bad}, P.reputation_step_ppm)
    assert P.quota_low_rows <= quota_rows(now, P) <= P.quota_high_rows
    assert P.review_low_ppm <= review_ppm(now, P) <= P.review_high_ppm


def test_trust_reaches_sybils_only_over_the_edges_from_outside():
    honest = {f"h{n}": [f"h{(n + step) % 20}" for step in (1, 2, 3)] for n in range(20)}
    sybils = {f"s{n}": [f"s{(n + step) % 100}" for step in (1, 2, 3, 4)] for n in range(100)}
    alone = seeded_trust({**honest, **sybils}, ["h0", "h7"])
    assert sum(alone.values()) == WHOLE
    assert not [name for name in alone if name.startswith("s")]
    fooled = {**honest, "h13": [*honest["h13"], "s0"]}
    taken = sum(amount for name, amount in seeded_trust({**fooled, **sybils}, ["h0", "h7"]).items() if name[0] == "s")
    assert 0 < taken < WHOLE // 10


@pytest.mark.parametrize(("vouches", "seeds"), [({"a": ["b"]}, []), ({"a": ["a"]}, ["a"])])
def test_trust_from_nowhere_or_from_oneself_is_refused(vouches, seeds):
    with pytest.raises(InvalidInput):
        seeded_trust(vouches, seeds)
