"""The shares rule: weak evidence pays nobody, nothing is inflated, the sum is one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openledger.core.errors import InvalidInput
from openledger.core.shares import (
    RULE,
    RULE_1,
    RULE_2,
    RULE_3,
    RULE_4,
    RULES,
    WHOLE_PPB,
    ceiling_nano,
    combined_ppb,
    leaves_unpaid,
    shares_ppb,
    terms_of,
)
from openledger.core.values import UNATTRIBUTED

measured = st.dictionaries(
    st.text("abcdefgh", min_size=1, max_size=2),
    st.tuples(st.integers(-(10**20), 10**20), st.integers(0, 10**19)),
    max_size=8,
)
gains = st.integers(-(10**20), 10**21)


def shares_of(drawn, gain, z_milli=1000, **more):
    return shares_ppb({k: v[0] for k, v in drawn.items()}, {k: v[1] for k, v in drawn.items()}, gain, z_milli, **more)


@given(measured, gains, st.integers(0, 5000), st.sampled_from(RULES))
def test_shares_are_never_negative_and_sum_to_one(drawn, gain, z_milli, rule):
    shares = shares_of(drawn, gain, z_milli, rule=rule)
    assert sum(shares.values()) == WHOLE_PPB
    assert shares.keys() == drawn.keys() | {UNATTRIBUTED}
    assert all(share >= 0 for share in shares.values())


@given(measured, gains)
def test_by_the_first_rule_a_score_within_its_error_pays_nothing(drawn, gain):
    shares = shares_of(drawn, gain, rule=RULE_1)
    assert all(shares[name] == 0 for name, (score, error) in drawn.items() if score <= error)


@given(measured, gains)
def test_a_score_within_its_part_of_the_sums_error_pays_nothing(drawn, gain):
    shares, squares = shares_of(drawn, gain), sum(error**2 for _, error in drawn.values())
    for name, (score, error) in drawn.items():
        if score <= 0 or 0 < score**2 * squares <= error**4:
            assert shares[name] == 0


@given(
    st.lists(st.tuples(st.integers(10**9, 10**12), st.integers(0, 10**8)), min_size=1, max_size=8),
    st.integers(10**13, 10**14),
)
def test_rows_are_worth_the_same_under_any_number_of_names(rows, gain):
    """Each row with a score and an independent error of its own; errors add by their squares."""
    names = {"others": (10**12, 10**8)}
    apart = {**names, **{f"own.{place}": row for place, row in enumerate(rows)}}
    whole = (sum(score for score, _ in rows), round(sum(error**2 for _, error in rows) ** 0.5))
    split, merged = shares_of(apart, gain), shares_of({**names, "own": whole}, gain)
    assert abs(sum(v for k, v in split.items() if k.startswith("own")) - merged["own"]) <= len(rows) + 1
    assert abs(split["others"] - merged["others"]) <= 1


def test_what_is_left_out_is_the_sums_error():
    shares = shares_ppb({"a": 500, "b": 300}, {"a": 30, "b": 40}, 1000, 1000)  # E = 50: 18 and 32
    assert shares == {"a": 482_000_000, "b": 268_000_000, UNATTRIBUTED: 250_000_000}


@given(st.integers(0, 10**6), st.integers(1, 10**6))
def test_junk_beside_weak_evidence_makes_it_no_more_certain(score, error):
    """Neither what is paid nothing at once, nor what falls out only when others have."""
    alone = shares_ppb({"a": 60, "b": 1000}, {"a": 60, "b": 10}, 2000, 1000)
    beside = shares_ppb({"a": 60, "b": 1000, "j": 0, "k": 1}, {"a": 60, "b": 10, "j": error, "k": 60}, 2000, 1000)
    assert [beside[name] for name in ("a", "b", "j")] == [alone["a"], alone["b"], 0]
    assert shares_ppb({"a": 60, "j": -score}, {"a": 60, "j": error}, 100, 1000)["a"] == 0


def test_little_influence_and_much_error_earn_nothing_whatever_the_others_bring():
    large = {f"h{number}": 1000 for number in range(8)}
    shares = shares_ppb({**large, "x": 300}, {**dict.fromkeys(large, 10), "x": 400}, 10_000, 1000)
    assert shares["x"] == 0
    assert all(shares[name] > 99 * 10**6 for name in large)  # his error is not theirs


@given(measured, gains, st.integers(0, 10**21))
def test_no_more_is_divided_than_answers_can_owe(drawn, gain, fees):
    shares = shares_of(drawn, gain, ceilings=[(3 * 10**9, fees)])
    positive = sum(max(0, score) for score, _ in drawn.values())
    if fees:
        assert WHOLE_PPB - shares[UNATTRIBUTED] <= WHOLE_PPB * positive // (3 * fees) + len(drawn) + 1


def test_ceilings_of_adapters_add_and_one_without_gain_is_none():
    ceilings = [(2 * 10**9, 100), (-(10**9), 50), (10**9, 7)]
    assert ceiling_nano(ceilings) == 207
    assert shares_ppb({"a": 69}, {"a": 0}, 60, 1000, ceilings=ceilings)["a"] == WHOLE_PPB // 3


def test_only_rules_that_exist_make_shares_and_the_first_has_no_ceilings():
    for more in (
        {"rule": "shares/6"},
        {"rule": RULE_1, "ceilings": [(1, 1)]},
        {"rule": RULE_2, "unpaid_nano": {"a": 1}},
    ):
        with pytest.raises(InvalidInput) as caught:
            shares_ppb({"a": 1}, {"a": 0}, 1, 0, **more)
        assert caught.value.code == "unknown_rule"
    assert RULES[-1] == RULE


@given(measured, gains, st.integers(0, 5000), st.data())
def test_what_is_unpaid_of_one_goes_to_nobody_else(drawn, gain, z_milli, data):
    unpaid = {name: data.draw(st.integers(1, 10**20)) for name in drawn if data.draw(st.booleans())}
    whole, left = shares_of(drawn, gain, z_milli), shares_of(drawn, gain, z_milli, unpaid_nano=unpaid)
    assert all(left[name] == 0 for name in unpaid if drawn[name][0] <= unpaid[name])
    assert all(left[name] <= whole[name] + 1 for name in drawn)  # rounding
    assert sum(left.values()) == WHOLE_PPB


def test_rules_know_their_own_terms():
    ceilings, unpaid = [(1, 2)], {"a": 3}
    assert terms_of(RULE_1, ceilings, unpaid) == {}
    assert terms_of(RULE_2, ceilings, unpaid) == {"ceilings": [[1, 2]]}
    assert terms_of(RULE_3, ceilings, unpaid) == {"ceilings": [[1, 2]], "unpaid_nano": {"a": 3}}
    assert terms_of(RULE, ceilings, unpaid) == terms_of(RULE_3, ceilings, unpaid)
    assert [rule for rule in RULES if leaves_unpaid(rule)] == [RULE_3, RULE_4, RULE]


@given(measured, gains, st.integers(0, 5000), st.data())
def test_the_later_rules_divide_as_the_third_does_what_is_unpaid_by_either(drawn, gain, z_milli, data):
    unpaid = {name: data.draw(st.integers(1, 10**20)) for name in drawn if data.draw(st.booleans())}
    third, *later = (shares_of(drawn, gain, z_milli, rule=r, unpaid_nano=unpaid) for r in (RULE_3, RULE_4, RULE))
    assert later == [third, third]


@pytest.mark.parametrize("unpaid", [{"a": 0}, {"a": 0.5}, {"b": 1}])
def test_what_is_unpaid_is_a_part_of_a_score(unpaid):
    with pytest.raises(InvalidInput) as caught:
        shares_ppb({"a": 1}, {"a": 0}, 1, 0, unpaid_nano=unpaid)
    assert (caught.value.code, caught.value.param) == ("invalid_scores", "unpaid_nano")


@pytest.mark.parametrize("ceilings", [[(1,)], [(1.0, 1)], [(1, -1)]])
def test_ceilings_are_a_gain_and_the_fees_under_it(ceilings):
    with pytest.raises(InvalidInput) as caught:
        shares_ppb({"a": 1}, {"a": 0}, 1, 0, ceilings=ceilings)
    assert (caught.value.code, caught.value.param) == ("invalid_scores", "ceilings")


@given(measured, gains)
def test_no_share_exceeds_the_part_of_the_gain_that_was_measured(drawn, gain):
    shares = shares_of(drawn, gain)
    for name, (score, _) in drawn.items():
        if score > 0 and gain >= score:
            assert shares[name] <= WHOLE_PPB * score // gain + 1


def test_a_known_case():
    shares = shares_ppb({"a": 50, "b": 30, "c": -9}, {"a": 5, "b": 3, "c": 1}, 90, 1000, rule=RULE_1)
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
