"""The index of ids, which both stores keep: in the batch's order, all or none, in few rows and in many."""

from pathlib import Path

import pytest

from openledger.ledger.opening import open_store
from openledger.ledger.packed import id_key
from openledger.ledger.store import MAX_TRANSFERS

FEW, MANY = 3, 300


def packed_ids(count: int, first: int = 1) -> list[bytes]:
    return [id_key(f"{number:032x}") for number in range(first, first + count)]


def text_ids(count: int) -> list[bytes]:
    return [id_key(f"pay.{number}") for number in range(count)]


@pytest.fixture
def store(storage: Path | str):
    opened = open_store(storage)
    yield opened
    opened.close()


@pytest.mark.parametrize("count", [FEW, MANY])
@pytest.mark.parametrize("ids", [packed_ids, text_ids])
def test_ids_are_found_at_the_places_they_had_in_their_batch(store, ids, count):
    keys = ids(count)
    with store.writing():
        assert store.add_ids(keys, 7)
    assert store.places(keys) == {key: (7, place) for place, key in enumerate(keys)}
    assert store.counts()["transfers"] == count


def test_ids_of_both_kinds_may_stand_in_one_batch(store):
    keys = packed_ids(MANY) + text_ids(MANY)
    with store.writing():
        assert store.add_ids(keys, 0)
    assert store.places(keys)[keys[-1]] == (0, 2 * MANY - 1)
    assert 2 * MANY < MAX_TRANSFERS


@pytest.mark.parametrize("count", [FEW, MANY])
def test_where_one_id_is_known_none_is_added_and_the_batch_goes_on(store, count):
    with store.writing():
        assert store.add_ids(packed_ids(1), 0)
    with store.writing():
        assert not store.add_ids(packed_ids(count), 1)
        assert store.add_ids(packed_ids(count, first=2), 1)
    assert store.places(packed_ids(1))[packed_ids(1)[0]] == (0, 0)
    assert store.counts()["transfers"] == count + 1


@pytest.mark.parametrize("count", [FEW, MANY])
def test_where_one_id_comes_twice_none_is_added(store, count):
    keys = packed_ids(count)
    with store.writing():
        assert not store.add_ids([*keys, keys[0]], 0)
    assert store.counts()["transfers"] == 0


def test_no_ids_are_added_by_a_batch_without_transfers(store):
    with store.writing():
        assert store.add_ids([], 0)
    assert store.counts()["transfers"] == 0
