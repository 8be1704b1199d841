"""Coalitions: balanced, public, and told apart as far as there are any; blocks: of one size, whoever sent the rows."""

from collections import Counter

import numpy as np
import pytest

from openledger.attribution.coalitions import (
    bank_groups,
    contributor_design,
    deal_blocks,
    design,
    membership,
    rows_of_counts,
)
from openledger.core.errors import InvalidInput

TWELVE = {f"c{number:02}": 10 for number in range(12)}


def test_every_group_is_in_half_of_the_coalitions_and_each_has_its_complement():
    members = contributor_design(TWELVE, 32, "constant").members_MG
    assert members.shape == (32, 12)
    assert (members.sum(axis=0) == 16).all()
    assert (members[0::2] ^ members[1::2]).all()
    assert len({row.tobytes() for row in members}) == 32


def test_sizes_are_halves_and_in_every_fourth_pair_a_quarter():
    sizes = contributor_design(TWELVE, 32, "constant").members_MG.sum(axis=1)
    assert sorted(set(sizes.tolist())) == [3, 6, 9]
    assert (sizes == 6).sum() == 24


def test_the_constant_alone_decides():
    first, same, other = (contributor_design(TWELVE, 16, constant).members_MG for constant in ("a", "a", "b"))
    assert np.array_equal(first, same)
    assert not np.array_equal(first, other)


def test_few_contributors_give_each_coalition_once():
    assert len(contributor_design({"a": 1, "b": 5}, 32, "c").members_MG) == 2
    four = contributor_design(dict.fromkeys("abcd", 3), 32, "c").members_MG
    assert len({row.tobytes() for row in four}) == len(four) == 14


@pytest.mark.parametrize(
    "made",
    [
        lambda counts, number: contributor_design(counts, number, "c"),
        lambda counts, number: design(rows_of_counts(counts), number, "c"),
    ],
)
def test_one_contributor_and_an_odd_number_of_coalitions_are_refused(made):
    with pytest.raises(InvalidInput) as caught:
        made({"a": 5}, 32)
    assert caught.value.code == "one_contributor"
    with pytest.raises(InvalidInput, match="pairs"):
        made(TWELVE, 7)


def test_many_contributors_are_grouped_with_the_largest_alone():
    counts = {**{f"c{number:03}": 1 for number in range(100)}, "large": 50}
    groups = bank_groups(counts, 10, "constant")
    assert len(groups) == 10
    assert sorted(name for group in groups for name in group) == sorted(counts)
    assert ("large",) in groups


def test_membership_asks_for_all_of_a_group():
    assert membership([("a",), ("b", "c")], [{"a", "b"}, {"b", "c"}]).tolist() == [[True, False], [False, True]]


def owners(blocks):
    return [Counter(row_id.partition("/")[0] for row_id in block) for block in blocks]


@pytest.mark.parametrize(
    "counts", [TWELVE, {"a": 100, "b": 1, "c": 7}, {f"c{n}": 1 for n in range(50)}, {"a": 2, "b": 3}]
)
@pytest.mark.parametrize("coalitions", [8, 32, 64])
def test_blocks_hold_every_row_once_and_differ_by_one_row_at_most(counts, coalitions):
    rows = rows_of_counts(counts)
    groups = design(rows, coalitions, "constant").groups
    assert sorted(row_id for block in groups for row_id in block) == sorted(row_id for row_id, _ in rows)
    assert len(groups) == min(len(rows), max(8, min(coalitions // 2, len(rows) // 8)))
    sizes = [len(block) for block in groups]
    assert max(sizes) - min(sizes) <= 1


def test_whoever_fills_blocks_has_them_alone_and_what_is_left_lies_with_its_like():
    """72 rows in 8 blocks of 9."""
    blocks = owners(deal_blocks(rows_of_counts({"a": 20, "b": 30, **{f"one{n}": 1 for n in range(22)}}), 8, "constant"))
    assert (blocks.count(Counter(a=9)), blocks.count(Counter(b=9))) == (2, 3)
    assert [set(block) & {"a", "b"} for block in blocks[5:]] == [{"a", "b"}, set(), set()]
    assert (blocks[5]["a"], blocks[5]["b"]) == (2, 3)


def test_names_decide_nothing_about_the_size_of_a_block():
    one, many = {"a": 60, "b": 60}, {"b": 60, **{f"a{n}": 12 for n in range(5)}}
    sizes = [[len(block) for block in deal_blocks(rows_of_counts(counts), 8, "c")] for counts in (one, many)]
    assert sizes[0] == sizes[1] == [15] * 8


def test_the_constant_and_the_rows_alone_deal_the_blocks():
    rows = rows_of_counts(TWELVE)
    first, same, other = (
        deal_blocks(own, 8, constant) for own, constant in ((rows, "a"), (rows[::-1], "a"), (rows, "b"))
    )
    assert first == same
    assert first != other


def test_a_row_id_that_is_there_twice_is_refused():
    with pytest.raises(InvalidInput) as caught:
        design([("r1", "a"), ("r2", "b"), ("r1", "b")], 8, "c")
    assert caught.value.code == "row_twice"


def test_parts_say_how_much_of_each_block_is_whose():
    rows = rows_of_counts({"a": 6, "b": 3})
    found = design(rows, 8, "c", num_blocks=3)
    parts = found.parts(rows, ["a", "b"])
    assert parts.sum(axis=0).tolist() == [1, 1, 1]
    assert sorted(parts[0].tolist()) == [0, 1, 1]
    with pytest.raises(InvalidInput) as caught:
        found.numbers([("other", "a")])
    assert caught.value.code == "wrong_bank"
