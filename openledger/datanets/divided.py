"""The duplicate index divided over the shards: each has the keyed features of its own rows (`owner`), and this process,
which judges, has none.

Owns the questions to the shards and what their answers say together, which is what one `DuplicateIndex` of all rows
would: the same verdicts, for the same earlier rows. A contribution costs one round, in which every shard is sent its
features and tells what its own rows have for them. Where an earlier row is near if the later question names its
subject, a second round asks how many questions have its words; the subject is judged here, as it depends on the rows
before it in the same contribution.

Rows that were judged are entered with the shards before the next question, and so in order. Until then they wait here.
A shard that was started anew has lost its part, says so, and is given it again, made of the rows that the registry
credits, as far as their files can be read. So nothing here has to be durable, and a shard that is away stops whoever
asks before anything is fixed.

To be called from one thread.
"""

import secrets
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain, groupby
from typing import TypeVar

from openledger.core.errors import Unavailable
from openledger.datanets.dedupe import Duplicate, DuplicateIndex, Features, Matches, Near, Order, kept, names_subject
from openledger.datanets.keyed import FeatureKey, batch_of
from openledger.datanets.owner import Found, OwnerPort
from openledger.datanets.placement import shard_of
from openledger.datanets.registry import CreditedRow

ENTERED_AT_ONCE = 10_000
_TRIES = 3  # to give a shard its part, while it is lost again and again
_Answer = TypeVar("_Answer")
_Row = tuple[str, Features, Order]


class DividedIndex:
    """Rows are with the first `num_owners` of `owners`, by `placement`; the others are emptied. `credited` tells all
    that stand, `features_of` makes the plain features of those of some that can be read. Raises as the owners do."""

    def __init__(
        self,
        owners: Sequence[OwnerPort],
        num_owners: int,
        key: FeatureKey,
        credited: Callable[[], Iterable[CreditedRow]],
        features_of: Callable[[Sequence[CreditedRow]], list[tuple[CreditedRow, Features]]],
    ):
        self._owners = owners
        self._num_owners = num_owners
        self._key = key
        self._credited = credited
        self._features_of = features_of
        self._session = secrets.token_hex(8)
        self._awaiting: dict[int, list[_Row]] = defaultdict(list)  # judged, and not entered yet
        self._pool = ThreadPoolExecutor(max(1, len(owners)))
        self._fill(range(len(owners)))

    def close(self) -> None:
        self._pool.shutdown()

    def dissolve(self) -> None:
        """Leave nothing with the shards."""
        for owner in self._owners:
            owner.open_duplicates("", self._session)
        self.close()

    def overlay(self, place: tuple[int, int], coming: Sequence[Features] = ()) -> "DividedOverlay":
        """The shards are asked about all that are `coming` at once."""
        return DividedOverlay(self, place, coming)

    def add(self, row_id: str, features: Features, place: tuple[int, int], ordinal: int) -> None:
        (keyed,) = self._key.keyed([features])
        self._await(row_id, keyed, (place, ordinal))

    def absorb(self, overlay: "DividedOverlay") -> None:
        """Take over the rows that were added to `overlay`."""
        for row in overlay.rows:
            self._await(*row)

    def discard(self, row_ids: Collection[str]) -> None:
        """Forget rows that shards have or are about to have. One that is away has lost them, or forgets them with the
        rows themselves."""
        placed: dict[int, list[str]] = defaultdict(list)
        for row_id in row_ids:
            placed[shard_of(row_id, self._num_owners)].append(row_id)
        for number, ids in placed.items():
            self._awaiting[number] = [row for row in self._awaiting[number] if row[0] not in row_ids]
            with suppress(Unavailable):
                self._owners[number].forget_duplicates(ids)

    def displaced_by(self, overlay: "DividedOverlay") -> dict[str, str]:
        """As `DuplicateIndex.displaced_by`."""
        rows = overlay.rows
        found = self._behind([features for _, features, _ in rows], overlay.place) if rows else []
        by_row = zip(rows, found, strict=True)
        return {repeated: row_id for (row_id, _, _), ids in reversed(list(by_row)) for repeated in ids}

    def repeated_by(self, features: Features, place: tuple[int, int]) -> list[str]:
        """Ids of the rows that stand behind `place` and repeat the row of `features`."""
        return self._behind(self._key.keyed([features]), place)[0]

    def keyed(self, features: Sequence[Features]) -> list[Features]:
        return self._key.keyed(features)

    def words(self, some: Iterable[str]) -> tuple[str, ...]:
        """Under the key."""
        return self._key.words(some)

    def found(self, keyed: Sequence[Features], place: tuple[int, int]) -> list[Found]:
        """What each shard has in `place` or before for some rows of one table."""
        self._enter_awaiting()
        batch = batch_of(keyed)
        return self._ask(lambda owner: owner.find_duplicates(self._session, batch, place))

    def question_counts(self, words: Iterable[str]) -> Counter[str]:
        """How many questions of rows that stand have each of these keyed words."""
        asked, total = sorted(words), Counter[str]()
        for counts in self._ask(lambda owner: owner.count_questions(self._session, asked)):
            total.update(dict(zip(asked, counts, strict=True)))
        return total

    def _behind(self, keyed: Sequence[Features], place: tuple[int, int]) -> list[list[str]]:
        self._enter_awaiting()
        batch = batch_of(keyed)
        found = self._ask(lambda owner: owner.find_repetitions(self._session, batch, place))
        each = [[one for one in of_shards if one] for of_shards in zip(*found, strict=True)]
        near = [kept(parts) for parts in each]
        counts = self.question_counts(_conditional_words(chain.from_iterable(near)))
        ids = []
        for parts, candidates in zip(each, near, strict=True):
            repeated = {row for one in parts for row in one.exact}
            repeated |= {(one.order, one.row_id) for one in candidates if _is_copy(one, counts)}
            ids.append([row_id for _, row_id in sorted(repeated)])
        return ids

    def _await(self, row_id: str, keyed: Features, order: Order) -> None:
        self._awaiting[shard_of(row_id, self._num_owners)].append((row_id, keyed, order))

    def _enter_awaiting(self) -> None:
        waiting = [number for number, rows in self._awaiting.items() if rows]
        sent = [self._pool.submit(self._enter, number, self._awaiting[number]) for number in waiting]
        entered = {number: one.result() for number, one in zip(waiting, sent, strict=True)}
        for number in waiting:
            if entered[number]:
                self._awaiting[number] = []
        self._fill([number for number in waiting if not entered[number]])

    def _enter(self, number: int, rows: Sequence[_Row]) -> bool:
        """Whether the shard has them; not where it was started anew."""
        for _, together in groupby(rows, lambda row: id(row[1].answer.table)):
            ids, features, orders = zip(*together, strict=True)
            if not self._owners[number].enter_duplicates(self._session, ids, orders, batch_of(features)):
                return False
        return True

    def _ask(self, ask: Callable[[OwnerPort], _Answer | None]) -> list[_Answer]:
        """Of each owner, in their order."""
        numbers = range(self._num_owners)
        for _ in range(_TRIES):
            answers = list(self._pool.map(ask, [self._owners[number] for number in numbers]))
            lost = [number for number in numbers if answers[number] is None]
            if not lost:
                return [answer for answer in answers if answer is not None]
            self._fill(lost)
        raise _lost_again(lost)

    def _fill(self, numbers: Iterable[int]) -> None:
        left = list(numbers)
        for _ in range(_TRIES):
            if not left:
                return
            left = self._fill_once(left)
        if left:
            raise _lost_again(left)

    def _fill_once(self, numbers: Sequence[int]) -> list[int]:
        """Which of them were lost meanwhile. What an owner has and should have stays as it is."""
        held = {number: self._owners[number].open_duplicates(self._key.name, self._session) for number in numbers}
        missing: dict[int, list[CreditedRow]] = defaultdict(list)
        for row in self._credited():
            number = shard_of(row.row_id, self._num_owners)
            if number in held and held[number].get(row.row_id) != row.order:
                missing[number].append(row)
            elif number in held:
                del held[number][row.row_id]
        lost = []
        for number, rest in held.items():
            if rest:
                self._owners[number].forget_duplicates(list(rest))
            if self._enter_credited(number, missing[number]) and self._enter(number, self._awaiting[number]):
                self._awaiting[number] = []
            else:
                lost.append(number)
        return lost

    def _enter_credited(self, number: int, rows: Sequence[CreditedRow]) -> bool:
        for start in range(0, len(rows), ENTERED_AT_ONCE):
            read = self._features_of(rows[start : start + ENTERED_AT_ONCE])
            keyed = self._key.keyed([features for _, features in read])
            given = [(row.row_id, one, row.order) for (row, _), one in zip(read, keyed, strict=True)]
            if not self._enter(number, given):
                return False
        return True


class DividedOverlay:
    """As an overlay of `DuplicateIndex`."""

    def __init__(self, index: DividedIndex, place: tuple[int, int], coming: Sequence[Features]):
        self.rows: list[_Row] = []  # that were added
        self.place = place
        self._index = index
        self._own = DuplicateIndex().overlay(place)  # in plain: they don't leave this process
        self._known: dict[int, _Known] = {}
        self._counts: dict[str, int] = {}  # of keyed words, in questions of rows that stand
        self._added = Counter[str]()  # and in those of rows that were added
        self._look_up(coming)

    def find(self, features: Features) -> Duplicate | None:
        """The earliest row that `features` repeats, an exact repetition before an edited one."""
        if id(features) not in self._known:
            self._look_up([features])
        known = self._known[id(features)]
        own = self._own.matches(features, self.place)
        for layer in (known.stand, [own]):
            if exact := [row for one in layer for row in one.exact]:
                return Duplicate(kind="exact_duplicate", row_id=min(exact)[1])
        for near in chain(kept(known.stand), map(self._under_key, kept([own]))):
            if near.is_certain or names_subject(near.question, near.missing, self._question_counts):
                return Duplicate(kind="near_duplicate", row_id=near.row_id)
        return None

    def add(self, row_id: str, features: Features, *, ordinal: int) -> None:
        keyed = self._known[id(features)].keyed
        self._own.add(row_id, features, self.place, ordinal)
        self._added.update(keyed.question)
        self.rows.append((row_id, keyed, (self.place, ordinal)))

    def _look_up(self, coming: Sequence[Features]) -> None:
        if not coming:
            return
        keyed = self._index.keyed(coming)
        found = zip(*self._index.found(keyed, self.place), strict=True)
        for plain, under_key, of_shards in zip(coming, keyed, found, strict=True):
            self._known[id(plain)] = _Known(plain, under_key, [one for one in of_shards if one])

    def _under_key(self, near: Near) -> Near:
        return replace(
            near,
            question=frozenset(self._index.words(near.question)),
            missing=frozenset(self._index.words(near.missing)),
        )

    def _question_counts(self, words: frozenset[str]) -> Mapping[str, int]:
        """Of keyed words. Shards are asked once about all that may be needed."""
        if not words <= self._counts.keys():
            near = (one for known in self._known.values() for one in kept(known.stand))
            asked = _conditional_words(near).union(words, *(known.keyed.question for known in self._known.values()))
            self._counts = dict(self._index.question_counts(asked))
        return {word: self._counts[word] + self._added[word] for word in words}


@dataclass(frozen=True, slots=True)
class _Known:
    """A row that was looked for: as it came (or its `id` might become another's), under the key; what is like it."""

    plain: Features
    keyed: Features
    stand: list[Matches]


def _conditional_words(near: Iterable[Near]) -> set[str]:
    return {word for one in near if not one.is_certain for word in one.question}


def _is_copy(near: Near, counts: Mapping[str, int]) -> bool:
    return near.is_certain or names_subject(
        near.question, near.missing, lambda words: {word: counts[word] for word in words}
    )


def _lost_again(numbers: Sequence[int]) -> Unavailable:
    return Unavailable(
        f"shard {', '.join(map(str, numbers))} was lost again and again while its index of duplicates was made",
        code="actor_unavailable",
        fix="look why its actor ends (memory, in 'ray list actors'), then send the same again",
    )
