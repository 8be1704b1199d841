"""Reputation and seeded trust: they start low, follow what was measured, and are bought by nobody."""

import pytest
from economy_values import improvement, scores
from hypothesis import given
from hypothesis import strategies as st
from test_economy_recovery import PowerCut, cut_power

from openledger.core.errors import InvalidInput, TooLarge
from openledger.economy import Parameters
from openledger.economy.reputation import ReputationBook, averaged, quota_rows, review_ppm
from openledger.economy.trust import WHOLE, seeded_trust

P = Parameters()
counts = st.integers(0, 30)


def test_a_new_key_has_a_small_quota_and_is_reviewed_much(town):
    assert town.economy.reputation("ctr_a", "py-docs") == {
        "ppm": 100_000, "quota_rows": 2450, "vouched_rows": 0, "review_ppm": 452_000,
    }  # fmt: skip


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


def admit(town, name, rows, contributor="ctr_a"):
    town.economy.admit(contributor, "py-docs", name, rows)


def test_what_was_sent_is_forgotten_after_a_day(town, clock):
    admit(town, "ctb_1", 10)
    clock.advance(24 * 60 * 60_000)
    admit(town, "ctb_2", 10, "ctr_b")
    assert town.economy._db.execute("SELECT contribution_id FROM sent_rows").fetchall() == [("ctb_2",)]


def test_rows_beyond_the_quota_are_refused_by_what_is_left_and_count_for_a_day(town, clock):
    admit(town, "ctb_1", 2000)
    for _ in range(2):
        with pytest.raises(TooLarge) as caught:
            admit(town, "ctb_2", 451)
        assert (caught.value.code, "send 450 rows now" in caught.value.fix) == ("quota_exceeded", True)
    admit(town, "ctb_1", 2000)  # the same again counts once
    admit(town, "ctb_3", 450)
    admit(town, "ctb_4", 2450, "ctr_b")
    town.restart()
    with pytest.raises(TooLarge):
        admit(town, "ctb_5", 1)
    clock.advance(24 * 60 * 60_000)
    admit(town, "ctb_5", 2450)


def test_accepted_rows_raise_the_quota_and_spam_lowers_it(town):
    town.economy.record_outcomes("ctr_a", "py-docs", {"accepted": 200}, "ctb_1")
    admit(town, "ctb_2", 19_900)
    town.economy.record_outcomes("ctr_b", "py-docs", {"spam": 200}, "ctb_3")
    with pytest.raises(TooLarge):
        admit(town, "ctb_4", 501, "ctr_b")


def test_what_the_gate_never_judged_counts_nothing(town):
    admit(town, "ctb_1", 2450)
    town.economy.dismiss("ctb_1")
    admit(town, "ctb_2", 2450)


@pytest.mark.parametrize("rows", [0, -1, 0.5, True, 10**6 + 1])
def test_a_number_of_rows_that_is_none_is_refused(town, rows):
    with pytest.raises(InvalidInput):
        admit(town, "ctb_1", rows)


def test_what_a_settlement_measured_counts_once_by_its_sign(town):
    """ctr_b's score on held-out rows lies beyond twice its error; ctr_a's and ctr_c's on answers don't."""
    town.sell("k1")
    far = scores(scores_nano={"ctr_a": 136, "ctr_b": 54, "ctr_c": -125})
    for _ in range(2):
        town.economy.settle(far, {}, improvement())
    told = {name: town.economy.reputation(name, "py-docs")["ppm"] for name in ("ctr_a", "ctr_b", "ctr_c")}
    assert told == {"ctr_a": 100_000, "ctr_b": 145_000, "ctr_c": 95_000}


def test_a_settlement_that_was_cut_off_still_counts(town, monkeypatch):
    town.sell("k1")
    cut_power(monkeypatch, ReputationBook, "record_settlement", after=False)
    with pytest.raises(PowerCut):
        town.economy.settle(scores(), {}, improvement())
    monkeypatch.undo()
    town.restart()
    assert town.economy.pools() == []
    assert town.economy.reputation("ctr_b", "py-docs")["ppm"] == 145_000


@pytest.mark.parametrize(("known", "ppm"), [("py-docs", 145_000), ("other", 100_000)])
def test_of_several_datanets_it_counts_where_the_contributor_is_known(town, known, ppm):
    town.sell("k1")
    other = {"adapter_digest": "ef" * 32, "datanet": "other", "datanet_version": 1, "row_root": "aa" * 32}
    town.economy.record_outcomes("ctr_b", known, {"accepted": 0}, "ctb_1")
    town.economy.settle(scores(), {}, improvement(), ancestors=[other])
    assert town.economy.reputation("ctr_b", "py-docs")["ppm"] == ppm


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
