"""Features under a key: equal, near or neither exactly where the plain ones are, and nothing to read in them."""

import pickle
from collections.abc import Sequence
from dataclasses import replace

import pytest
from duplicate_world import contributions, formulas, neighbours

from openledger.core.values import RowDraft
from openledger.datanets import dedupe
from openledger.datanets.dedupe import DuplicateIndex, Features, Words, features_of
from openledger.datanets.keyed import Bands, FeatureKey, batch_of, features_in, keyed_index

KEY, OTHER = FeatureKey(bytes(range(32))), FeatureKey(bytes(32))
DRAFTS = [draft for one in contributions() for draft in one.drafts]


def features(drafts: Sequence[RowDraft] = DRAFTS) -> list[Features]:
    return features_of((draft.prompt, draft.completion) for draft in drafts)


@pytest.fixture(scope="module")
def plain() -> list[Features]:
    return features()


@pytest.fixture(scope="module")
def keyed(plain: list[Features]) -> list[Features]:
    return KEY.keyed(plain)


def filled(index: DuplicateIndex, some: Sequence[Features]) -> DuplicateIndex:
    index.extend([(str(at), one, ((1, 0), at)) for at, one in enumerate(some)])
    return index


def test_rows_have_the_same_candidates(plain: list[Features], keyed: list[Features]) -> None:
    one, other = filled(DuplicateIndex(), plain), filled(keyed_index(), keyed)
    found = [one._like(row, lambda _: True) for row in plain]
    assert [other._like(row, lambda _: True) for row in keyed] == found
    assert sum(len(both) > 1 for both, _ in found) > 100
    assert any(by_one for _, by_one in found)


def test_rows_have_the_same_words_and_digests_in_common(plain: list[Features], keyed: list[Features]) -> None:
    def shape(rows: list[Features]) -> list[tuple[int, ...]]:
        """Each value as the number of its first occurrence."""
        seen: dict[object, int] = {}
        return [
            tuple(
                seen.setdefault(value, len(seen))
                for value in (*row.question, "|", *row.answer, row.pair_key, row.answer_key)
            )
            for row in rows
        ]

    assert shape(keyed) == shape(plain)
    assert [row.num_words for row in keyed] == [row.num_words for row in plain]


def test_a_dotted_name_is_told_from_other_words(plain: list[Features], keyed: list[Features]) -> None:
    dots = [["." in word for word in row.question] for row in plain]
    assert [["." in word for word in row.question] for row in keyed] == dots
    assert any(map(any, dots))


def test_which_words_stand_within_which_is_told_where_a_rule_asks() -> None:
    row = neighbours()[0]
    (one,) = KEY.keyed(features([row]))
    assert one.within is not None
    question, answer = list(features([row])[0].question), list(features([row])[0].answer)
    pairs = {(answer[a], question[q]) for a, q in zip(one.within[::2], one.within[1::2], strict=True)}
    assert ("1d", "pool1d") in pairs
    assert pairs == {(a, q) for a in answer for q in question if a in q and a != q}


@pytest.mark.parametrize(("num_words", "num_asked"), [(9, 4), (42, 4), (20, 129)])
def test_which_words_stand_within_which_is_not_told_else(num_words: int, num_asked: int) -> None:
    words = " ".join(f"w{number}" for number in range(num_words))
    asked = " ".join(f"pool_w1_w{number}" for number in range(num_asked))
    (one,) = KEY.keyed(features([RowDraft(prompt=asked, completion=words)]))
    assert one.within == b""


def test_a_row_made_to_tell_much_tells_two_bytes_a_pair() -> None:
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    asked = " ".join(f"{letters}{number:03}" for number in range(128))
    (one,) = KEY.keyed(features([RowDraft(prompt=asked, completion=" ".join(letters))]))
    assert one.within is not None
    assert len(one.within) == 2 * 36 * 128


@pytest.mark.parametrize(("num_more", "expected"), [(0, None), (100, None), (130, "near_duplicate")])
def test_neighbours_are_told_apart_in_both_forms_where_the_question_is_no_text(
    num_more: int, expected: str | None
) -> None:
    more = " ".join(f"then {number} of them" for number in range(num_more))
    drafts = [replace(draft, prompt=f"{draft.prompt} {more}") for draft in neighbours()[:2]]
    plain = features(drafts)
    for index, (first, second) in ((DuplicateIndex(), plain), (keyed_index(), KEY.keyed(plain))):
        index.add("first", first, (1, 0), 0)
        found = index.overlay((2, 0)).find(second)
        assert (found and found.kind) == expected


def test_the_words_of_the_row_that_is_asked_about_are_spelled_out_once(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = KEY.keyed(features(formulas()[:60]))
    index, spelled, said = filled(keyed_index(), rows[:59]), list[object](), dedupe._said
    monkeypatch.setattr(dedupe, "_said", lambda *some: (spelled.append(some[-1]), said(*some))[1])
    near = index.matches(rows[59], (1, 0))
    assert len(near.by_both.near) + len(near.by_one.near) > 20
    assert sum(one is rows[59] for one in spelled) <= 2


def test_on_the_way_nothing_is_changed_and_no_word_is_spelled_out(keyed: list[Features]) -> None:
    sent = pickle.dumps(batch_of(keyed[10:60]))
    assert not any(word in sent for word in (b"archive", b"return", b"json"))
    arrived = features_in(pickle.loads(sent))

    def said(one: Features) -> tuple[object, ...]:
        rest = (one.pair_key, one.answer_key, one.num_words, one.answer_sketch, one.row_sketch, one.within)
        return (list(one.question), list(one.answer), *rest)

    assert list(map(said, arrived)) == list(map(said, keyed[10:60]))
    assert {word for one in keyed[10:60] for word in (*one.question, *one.answer)} == set(arrived[0].answer.table)


def test_of_no_row_there_is_a_batch_too() -> None:
    assert features_in(batch_of(KEY.keyed([]))) == []


def test_another_key_gives_nothing_in_common(plain: list[Features], keyed: list[Features]) -> None:
    others = OTHER.keyed(plain)
    assert KEY.name != OTHER.name
    for one, other in zip(keyed, others, strict=True):
        assert not set(one.answer) & set(other.answer)
        assert one.pair_key != other.pair_key
        assert not set(one.row_sketch) & set(other.row_sketch)


def test_the_same_key_gives_the_same_in_any_company(plain: list[Features], keyed: list[Features]) -> None:
    (again,) = FeatureKey(bytes(range(32))).keyed(plain[30:31])
    assert list(again.answer) == list(keyed[30].answer)
    assert (again.pair_key, again.row_sketch) == (keyed[30].pair_key, keyed[30].row_sketch)


def test_a_row_that_leaves_the_bands_leaves_nothing(keyed: list[Features]) -> None:
    bands, without = Bands(), Bands()
    for key, row in enumerate(keyed[:50]):
        bands.insert(key, row.row_sketch)
        if key != 20:
            without.insert(key, row.row_sketch)
    assert 20 in bands.query(keyed[20].row_sketch)
    bands.remove(20)
    assert [bands.query(row.row_sketch) for row in keyed[:50]] == [without.query(row.row_sketch) for row in keyed[:50]]
    assert [rows.keys() for rows in bands._rows] == [rows.keys() for rows in without._rows]


def test_words_of_a_text_that_utf_8_cannot_say_have_a_key_too() -> None:
    (one,) = KEY.keyed(features([RowDraft(prompt="a", completion="lone \ud800x stays here")]))
    assert isinstance(one.answer, Words)
    assert len(set(one.answer)) == len(one.answer) >= 4
