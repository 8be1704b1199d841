"""Which rows are trained on: in proportion, by lot, and never also as decoys."""

from collections import Counter

import pytest

from openledger.core.errors import InvalidInput
from openledger.core.values import Row
from openledger.factory.selection import choose_rows


def rows(**counts: int) -> list[Row]:
    return [
        Row(row_id=f"row_{who}_{number}", datanet="d", contributor_id=who, contribution_id="c", ordinal=number,
            source="s", prompt="p", completion="c")
        for who, count in counts.items()
        for number in range(count)
    ]  # fmt: skip


def test_contributors_give_in_proportion_to_their_rows():
    trained, _ = choose_rows(rows(a=60, b=30, c=10), 50, "root")
    assert Counter(row.contributor_id for row in trained) == {"a": 30, "b": 15, "c": 5}


def test_the_order_of_rows_changes_nothing():
    everything = rows(a=40, b=40)
    assert choose_rows(everything, 30, "root") == choose_rows(everything[::-1], 30, "root")


def test_decoys_are_rows_that_were_not_trained_on():
    trained, decoys = choose_rows(rows(a=50, b=50), 40, "root", max_decoys=20)
    assert len(decoys) == 20
    assert not {row.row_id for row in trained} & {row.row_id for row in decoys}


def test_a_tenth_of_a_small_version_is_held_back_as_decoys():
    trained, decoys = choose_rows(rows(a=50, b=30), 200, "root")
    assert (len(trained), len(decoys)) == (72, 8)


def test_fewer_than_ten_rows_are_trained_on_whole():
    trained, decoys = choose_rows(rows(a=5, b=3), 40, "root")
    assert (len(trained), decoys) == (8, [])


def test_another_version_draws_other_rows():
    everything = rows(a=60)
    assert choose_rows(everything, 20, "one root") != choose_rows(everything, 20, "another root")


def test_a_version_without_rows_is_refused():
    with pytest.raises(InvalidInput) as caught:
        choose_rows([], 10, "root")
    assert caught.value.code == "empty_version"
