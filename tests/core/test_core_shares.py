"""The shares rule: weak evidence pays nobody, nothing is inflated, the sum is one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openledger.core.errors import InvalidInput
from openledger.core.shares import WHOLE_PPB, combined_ppb, shares_ppb
from openledger.core.values import UNATTRIBUTED

measured = st.dictionaries(
    st.text("abcdefgh", min_size=1, max_size=2),
    st.tuples(st.integers(-(10**20), 10**20), st.integers(0, 10**19)),
    max_size=8,
)
gains = st.integers(-(10**20), 10**21)


def shares_of(drawn, gain, z_milli=1000):
    return shares_ppb({k: v[0] for k, v in drawn.items()}, {k: v[1] for k, v in drawn.items()}, gain, z_milli)


@given(measured, gains, st.integers(0, 5000))
def test_shares_are_never_negative_and_sum_to_one(drawn, gain, z_milli):
    shares = shares_of(drawn, gain, z_milli)
    assert sum(shares.values()) == WHOLE_PPB
    assert shares.keys() == drawn.keys() | {UNATTRIBUTED}
    assert all(share >= 0 for share in shares.values())


@given(measured, gains)
def test_a_score_within_its_error_pays_nothing(drawn, gain):
    shares = shares_of(drawn, gain)
    assert all(shares[name] == 0 for name, (score, error) in drawn.items() if score <= error)


@given(measured, gains)
def test_no_share_exceeds_the_part_of_the_gain_that_was_measured(drawn, gain):
    shares = shares_of(drawn, gain)
    for name, (score, _) in drawn.items():
        if score > 0 and gain >= score:
            assert shares[name] <= WHOLE_PPB * score // gain + 1


def test_a_known_case():
    shares = shares_ppb({"a": 50, "b": 30, "c": -9}, {"a": 5, "b": 3, "c": 1}, 90, 1000)
    assert shares == {"a": 500_000_000, "b": 300_000_000, "c": 0, UNATTRIBUTED: 200_000_000}


def test_no_positive_evidence_leaves_all_unattributed():
    assert shares_ppb({"a": -1}, {"a": 0}, -5, 1000) == {"a": 0, UNATTRIBUTED: WHOLE_PPB}


@pytest.mark.parametrize(
    ("scores", "errors", "z_milli"),
    [({"a": 1}, {}, 1), ({"a": 1}, {"a": -1}, 1), ({UNATTRIBUTED: 1}, {UNATTRIBUTED: 1}, 1), ({"a": 1}, {"a": 1}, -1)],
)
def test_scores_without_a_sound_error_are_refused(scores, errors, z_milli):
    with pytest.raises(InvalidInput):
        shares_ppb(scores, errors, 1, z_milli)


@given(measured, gains, measured, gains, st.integers(0, 10**6))
def test_shares_of_a_whole_are_its_parts_shares_weighed(one, gain, two, other_gain, ppm):
    parts = [(ppm, shares_of(one, gain)), (10**6 - ppm, shares_of(two, other_gain))]
    whole = combined_ppb(parts)
    assert sum(whole.values()) == WHOLE_PPB
    assert whole.keys() == one.keys() | two.keys() | {UNATTRIBUTED}
    for name, share in whole.items():
        exact = sum(weight * shares.get(name, 0) for weight, shares in parts)
        assert abs(share * 10**6 - exact) < 10**6


def test_shares_of_one_part_are_the_wholes():
    shares = shares_ppb({"a": 50}, {"a": 5}, 90, 1000)
    assert combined_ppb([(10**6, shares), (0, {UNATTRIBUTED: WHOLE_PPB})]) == shares
