"""A shard's part of the duplicate index, where it is divided over the shards (`divided`): keyed features of the shard's
rows, held in memory alone.

Owns which of them are there, and answers what its own rows have for those of a contribution. Knows no word, no key and
no verdict: features come under a key (`keyed`), and who asks puts the answers of all shards together.

An owner is opened for a session, that of the process which asks. Whatever comes of another session is answered None: an
owner that was started anew has nothing, and a process that was replaced changes nothing any more.
"""

import threading
from collections.abc import Callable, Collection, Sequence
from typing import Protocol

from openledger.datanets.dedupe import DuplicateIndex, Features, Matches, Order
from openledger.datanets.keyed import KeyedBatch, features_in, keyed_index

Found = list[Matches | None]  # for each row asked about; None where nothing is like it


class OwnerPort(Protocol):
    """All of it may be repeated."""

    def open_duplicates(self, key_name: str, session: str) -> dict[str, Order]: ...
    def enter_duplicates(
        self, session: str, row_ids: Sequence[str], orders: Sequence[Order], features: KeyedBatch
    ) -> bool | None: ...
    def find_duplicates(self, session: str, features: KeyedBatch, place: tuple[int, int]) -> Found | None: ...
    def find_repetitions(self, session: str, features: KeyedBatch, place: tuple[int, int]) -> Found | None: ...
    def count_questions(self, session: str, words: Sequence[str]) -> list[int] | None: ...
    def forget_duplicates(self, row_ids: Collection[str]) -> None: ...


class DuplicateOwner:
    """Its methods may be called by several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._session = self._key_name = ""
        self._empty()

    def open(self, key_name: str, session: str) -> dict[str, Order]:
        """Which rows are there under this key; of another one nothing is left."""
        with self._lock:
            if key_name != self._key_name:
                self._empty()
            self._key_name, self._session = key_name, session
            return dict(self._orders)

    def enter(self, session: str, row_ids: Sequence[str], orders: Sequence[Order], features: KeyedBatch) -> bool | None:
        """Take rows in. One that is there stays as it is."""
        with self._lock:
            if session != self._session:
                return None
            came = zip(row_ids, features_in(features), orders, strict=True)
            new = [(row_id, one, order) for row_id, one, order in came if row_id not in self._orders]
            self._index.extend(new)
            self._orders.update((row_id, order) for row_id, _, order in new)
            return True

    def find(self, session: str, features: KeyedBatch, place: tuple[int, int]) -> Found | None:
        """What stands in `place` or before and is repeated by each row."""
        return self._answer(session, features, lambda one: self._index.matches(one, place))

    def find_behind(self, session: str, features: KeyedBatch, place: tuple[int, int]) -> Found | None:
        """What stands behind `place` and repeats each row."""
        return self._answer(session, features, lambda one: self._index.matches_behind(one, place))

    def question_counts(self, session: str, words: Sequence[str]) -> list[int] | None:
        """How many questions have each of these words."""
        with self._lock:
            return list(self._index.question_counts(words).values()) if session == self._session else None

    def forget(self, row_ids: Collection[str]) -> None:
        """Of whatever session: a row that is gone is gone."""
        with self._lock:
            gone = self._orders.keys() & set(row_ids)
            if gone:
                self._index.discard(gone)
            for row_id in gone:
                del self._orders[row_id]

    def _answer(self, session: str, features: KeyedBatch, ask: Callable[[Features], Matches]) -> Found | None:
        with self._lock:
            if session != self._session:
                return None
            found = [ask(one) for one in features_in(features)]
        return [one if one.exact or one.by_both.orders or one.by_one.orders else None for one in found]

    def _empty(self) -> None:
        self._index: DuplicateIndex = keyed_index()
        self._orders: dict[str, Order] = {}
