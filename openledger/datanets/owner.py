"""A shard's part of the duplicate index, where it is divided over the shards (`divided`): keyed features of the shard's
rows, held in memory alone.

Owns which of them are there, and answers what its own rows have for those of a contribution. Knows no word, no key and
no verdict: features come under a key (`keyed`), and who asks puts the answers of all shards together.

An owner is opened for a session, that of the process which asks: later ones have higher numbers. Whatever comes of
another session is answered None, as an owner that was started anew has nothing. A process that was replaced by a later
one can't open it again, and so enters nothing any more.

An answer is bounded: rows that are like very many, or like long ones, are told some at a time. However long what is
sent, an owner has no more than one answer of it in memory for each of its threads.
"""

import threading
from array import array
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Protocol

from openledger.datanets.dedupe import (
    Candidates,
    DuplicateIndex,
    Features,
    Matches,
    Near,
    Numbers,
    Order,
    Words,
)
from openledger.datanets.keyed import KeyedBatch, features_in, keyed_index

TOLD_AT_ONCE = 150_000  # numbers of words, by which an answer's bytes go
_PLACE_SIZE = 10  # telling where a row stands takes the room of so many
Found = list[Matches | None]  # for the first of the rows asked about, one at least; None where nothing is like it


class OwnerPort(Protocol):
    """All of it may be repeated."""

    def open_duplicates(self, key_name: str, session: int) -> dict[str, Order] | None: ...
    def enter_duplicates(
        self, session: int, row_ids: Sequence[str], orders: Sequence[Order], features: KeyedBatch
    ) -> bool | None: ...
    def find_duplicates(self, session: int, features: KeyedBatch, place: tuple[int, int]) -> Found | None: ...
    def find_repetitions(self, session: int, features: KeyedBatch, place: tuple[int, int]) -> Found | None: ...
    def count_questions(self, session: int, words: Sequence[str]) -> list[int] | None: ...
    def forget_duplicates(self, row_ids: Collection[str]) -> None: ...


class DuplicateOwner:
    """Its methods may be called by several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._session, self._key_name = 0, ""  # of nobody
        self._empty()

    def open(self, key_name: str, session: int) -> dict[str, Order] | None:
        """Which rows are there under this key; of another one nothing is left. None, and nothing changes, where a later
        session has opened it."""
        with self._lock:
            if session < self._session:
                return None
            if key_name != self._key_name:
                self._empty()
            self._key_name, self._session = key_name, session
            return dict(self._orders)

    def enter(self, session: int, row_ids: Sequence[str], orders: Sequence[Order], features: KeyedBatch) -> bool | None:
        """Take rows in. One that is there stays as it is."""
        with self._lock:
            if session != self._session:
                return None
            came = zip(row_ids, features_in(features), orders, strict=True)
            new = [(row_id, one, order) for row_id, one, order in came if row_id not in self._orders]
            self._index.extend(new)
            self._orders.update((row_id, order) for row_id, _, order in new)
            return True

    def find(self, session: int, features: KeyedBatch, place: tuple[int, int]) -> Found | None:
        """What stands in `place` or before and is repeated by each row."""
        return self._answer(session, features, lambda one: self._index.matches(one, place))

    def find_behind(self, session: int, features: KeyedBatch, place: tuple[int, int]) -> Found | None:
        """What stands behind `place` and repeats each row."""
        return self._answer(session, features, lambda one: self._index.matches_behind(one, place))

    def question_counts(self, session: int, words: Sequence[str]) -> list[int] | None:
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

    def _answer(self, session: int, features: KeyedBatch, ask: Callable[[Features], Matches]) -> Found | None:
        with self._lock:
            if session != self._session:
                return None
            answer = _Answer()
            for one in features_in(features):
                answer.add(ask(one))
                if answer.size >= TOLD_AT_ONCE:
                    break
            return answer.found

    def _empty(self) -> None:
        self._index: DuplicateIndex = keyed_index()
        self._orders: dict[str, Order] = {}


class _Answer:
    """What is told of some rows, with one table of words. A row that is near to several is told once."""

    def __init__(self) -> None:
        self.found: Found = []
        self.size = 0
        self._table: list[str] = []
        self._number_of = Numbers(self._table).__getitem__
        self._questions: dict[str, Words] = {}

    def add(self, one: Matches) -> None:
        num_places = len(one.exact) + len(one.by_both.orders) + len(one.by_one.orders)
        self.size += _PLACE_SIZE * num_places
        self.found.append(Matches(one.exact, self._told(one.by_both), self._told(one.by_one)) if num_places else None)

    def _told(self, some: Candidates) -> Candidates:
        return Candidates(some.orders, [replace(near, question=self._question(near)) for near in some.near])

    def _question(self, near: Near) -> Words | None:
        if near.question is None:
            return None
        if near.row_id not in self._questions:
            self.size += len(near.question)
            self._questions[near.row_id] = Words(self._table, array("I", map(self._number_of, near.question)))
        return self._questions[near.row_id]
