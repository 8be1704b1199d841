"""Coalitions: balanced, public, and told apart as far as there are any."""

import numpy as np
import pytest

from openledger.attribution.coalitions import bank_groups, design, membership
from openledger.core.errors import InvalidInput

TWELVE = {f"c{number:02}": 10 for number in range(12)}


def test_every_group_is_in_half_of_the_coalitions_and_each_has_its_complement():
    members = design(TWELVE, 32, "constant").members_MG
    assert members.shape == (32, 12)
    assert (members.sum(axis=0) == 16).all()
    assert (members[0::2] ^ members[1::2]).all()
    assert len({row.tobytes() for row in members}) == 32


def test_sizes_are_halves_and_in_every_fourth_pair_a_quarter():
    sizes = design(TWELVE, 32, "constant").members_MG.sum(axis=1)
    assert sorted(set(sizes.tolist())) == [3, 6, 9]
    assert (sizes == 6).sum() == 24


def test_the_constant_alone_decides():
    first, same, other = (design(TWELVE, 16, constant).members_MG for constant in ("a", "a", "b"))
    assert np.array_equal(first, same)
    assert not np.array_equal(first, other)


def test_few_contributors_give_each_coalition_once():
    assert len(design({"a": 1, "b": 5}, 32, "c").members_MG) == 2
    four = design(dict.fromkeys("abcd", 3), 32, "c").members_MG
    assert len({row.tobytes() for row in four}) == len(four) == 14


def test_one_contributor_and_an_odd_number_of_coalitions_are_refused():
    with pytest.raises(InvalidInput) as caught:
        design({"a": 5}, 32, "c")
    assert caught.value.code == "one_contributor"
    with pytest.raises(InvalidInput, match="pairs"):
        design(TWELVE, 7, "c")


def test_many_contributors_are_grouped_with_the_largest_alone():
    counts = {**{f"c{number:03}": 1 for number in range(100)}, "large": 50}
    groups = bank_groups(counts, 10, "constant")
    assert len(groups) == 10
    assert sorted(name for group in groups for name in group) == sorted(counts)
    assert ("large",) in groups


def test_membership_asks_for_all_of_a_group():
    assert membership([("a",), ("b", "c")], [{"a", "b"}, {"b", "c"}]).tolist() == [[True, False], [False, True]]
