"""Which rows are trained on: in proportion, by lot, and never also as decoys or held out."""

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


def ids(rows):
    return {row.row_id for row in rows}


def test_contributors_give_in_proportion_to_their_rows():
    chosen = choose_rows(rows(a=60, b=30, c=10), 50, "root", max_held_out=10)
    assert Counter(row.contributor_id for row in chosen.trained) == {"a": 30, "b": 15, "c": 5}
    assert Counter(row.contributor_id for row in chosen.held_out) == {"a": 6, "b": 3, "c": 1}


def test_the_order_of_rows_changes_nothing():
    everything = rows(a=40, b=40)
    assert choose_rows(everything, 30, "root") == choose_rows(everything[::-1], 30, "root")


def test_no_row_is_in_two_of_trained_decoys_and_held_out():
    chosen = choose_rows(rows(a=50, b=50), 40, "root", max_decoys=20, max_held_out=10)
    assert [len(own) for own in (chosen.trained, chosen.decoys, chosen.held_out)] == [40, 20, 10]
    assert len(ids(chosen.trained) | ids(chosen.decoys) | ids(chosen.held_out)) == 70


def test_a_tenth_of_a_small_version_is_held_back_for_each():
    chosen = choose_rows(rows(a=50, b=30), 200, "root")
    assert [len(own) for own in (chosen.trained, chosen.decoys, chosen.held_out)] == [64, 8, 8]


def test_fewer_than_ten_rows_are_trained_on_whole():
    chosen = choose_rows(rows(a=5, b=3), 40, "root")
    assert (len(chosen.trained), chosen.decoys, chosen.held_out) == (8, (), ())


def test_another_version_draws_other_rows():
    everything = rows(a=60)
    assert choose_rows(everything, 20, "one root").trained != choose_rows(everything, 20, "another root").trained


def test_copies_are_in_none_of_them():
    copies = {"row_a_0", "row_b_3"}
    chosen = choose_rows(rows(a=5, b=5), 40, "root", copies=copies)
    assert len(chosen.trained) == 8
    assert not ids(chosen.trained) & copies


def test_nothing_is_held_out_that_a_trained_or_held_out_row_says_too():
    everything = rows(a=50, b=50)
    alike = {row.row_id: f"row_{row.contributor_id}_{row.ordinal % 30}" for row in everything if row.ordinal >= 30}
    chosen = choose_rows(everything, 40, "root", alike=alike)
    said = [alike.get(row.row_id, row.row_id) for row in chosen.held_out]
    trained = {alike.get(row.row_id, row.row_id) for row in chosen.trained}
    assert len(said) == len(set(said)) == 10
    assert not set(said) & trained
    assert not ids(chosen.held_out) & ids(chosen.decoys)


@pytest.mark.parametrize(("given", "copies"), [([], ()), (rows(a=2), ("row_a_0", "row_a_1"))])
def test_a_version_without_rows_of_its_own_is_refused(given, copies):
    with pytest.raises(InvalidInput) as caught:
        choose_rows(given, 10, "root", copies=copies)
    assert caught.value.code == "empty_version"


def test_rows_that_an_ancestor_was_trained_on_are_trained_on_again_and_measure_nothing():
    everything = rows(a=60)
    seen = {row.row_id for row in everything[:30]}
    alike = {"row_a_40": "row_a_3"}  # says what an ancestor's row says
    chosen = choose_rows(everything, 20, "root", seen=seen, alike=alike, max_held_out=60, max_decoys=60)
    assert seen & ids(chosen.trained)
    assert not seen & ids((*chosen.decoys, *chosen.held_out))
    assert "row_a_40" not in ids(chosen.held_out)
    assert len(chosen.held_out) == 6
