"""The duplicate index divided over the shards: each has the keyed features of its own rows (`owner`), and this process,
which judges, has none.

Owns the questions to the shards and what their answers say together, which is what one `DuplicateIndex` of all rows
would: the same verdicts, for the same earlier rows. A contribution costs one round, in which every shard is sent its
features and tells what its own rows have for them; more rounds where its rows are long, or like long ones: what is sent
and told at once is bounded, and kept until the rows it is about are judged. Where an earlier row is near if the later
question names its subject, another round asks how many questions have its words; the subject is judged here, as it
depends on the rows before it in the same contribution.

Rows that were judged are entered with the shards before the next question, and so in order. Until then they wait here.
A shard that was started anew has lost its part, says so, and is given it again, made of the rows that the registry
credits, as far as their files can be read. So nothing here has to be durable, and a shard that is away stops whoever
asks before anything is fixed. So does a later process that has opened the shards: it is the one that may.

To be called from one thread.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import accumulate, chain, groupby, takewhile
from typing import TypeVar

from openledger.core.errors import Unavailable
from openledger.datanets.dedupe import Duplicate, DuplicateIndex, Features, Matches, Near, Order, kept, names_subject
from openledger.datanets.keyed import FeatureKey, KeyedBatch, batch_of
from openledger.datanets.owner import Found, OwnerPort
from openledger.datanets.placement import shard_of
from openledger.datanets.registry import CreditedRow

READ_AT_ONCE = 10_000  # rows
SENT_AT_ONCE = 250_000  # words, by whose numbers a message's bytes go
_ROW_SIZE = 128  # the bands of a row take the room of so many numbers
_TRIES = 3  # to give a shard its part, while it is lost again and again
_Sent = TypeVar("_Sent")
_Answer = TypeVar("_Answer")
_Row = tuple[str, Features, Order]


class DividedIndex:
    """Rows are with the first `num_owners` of `owners`, by `placement`; the others are emptied. `session` is higher
    than that of every process before. `credited` tells all that stand, `features_of` makes the plain features of those
    of some that can be read. Raises as the owners do, and Unavailable (`stale_process`)."""

    def __init__(
        self,
        owners: Sequence[OwnerPort],
        num_owners: int,
        key: FeatureKey,
        session: int,
        credited: Callable[[], Iterable[CreditedRow]],
        features_of: Callable[[Sequence[CreditedRow]], list[tuple[CreditedRow, Features]]],
    ):
        self._owners = owners
        self._num_owners = num_owners
        self._key = key
        self._credited = credited
        self._features_of = features_of
        self._session = session
        self._awaiting: dict[int, list[_Row]] = defaultdict(list)  # judged, and not entered yet
        self._pool = ThreadPoolExecutor(max(1, len(owners)))
        try:
            self._fill(range(len(owners)))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._pool.shutdown()

    def overlay(self, place: tuple[int, int], coming: Sequence[Features] = ()) -> "DividedOverlay":
        """The shards are asked about those that are `coming` together, in their order."""
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
        found = self._behind([features for _, features, _ in rows], overlay.place)
        by_row = zip(rows, found, strict=True)
        return {repeated: row_id for (row_id, _, _), ids in reversed(list(by_row)) for repeated in ids}

    def repeated_by(self, features: Features, place: tuple[int, int]) -> list[str]:
        """Ids of the rows that stand behind `place` and repeat the row of `features`."""
        return self._behind(self._key.keyed([features]), place)[0]

    def keyed_word(self, word: str) -> str:
        return self._key.words([word])[0]

    def known(self, rows: Sequence[Features], place: tuple[int, int]) -> "Iterator[list[Known]]":
        """What stands in `place` or before for some rows of one table, in their order, as many at a time as fit."""
        keyed = self._key.keyed(rows)
        plain = iter(rows)
        for part in self._found(keyed, lambda owner, batch: owner.find_duplicates(self._session, batch, place)):
            yield [Known(next(plain), under_key, stand) for under_key, stand in part]

    def question_counts(self, words: Collection[str]) -> Counter[str]:
        """How many questions of rows that stand have each of these keyed words."""
        total, left = Counter[str](), sorted(words)
        while left:
            asked, left = left[:SENT_AT_ONCE], left[SENT_AT_ONCE:]
            for counts in self._ask(lambda owner, words: owner.count_questions(self._session, words), asked):
                total.update(dict(zip(asked, counts, strict=True)))
        return total

    def _behind(self, keyed: Sequence[Features], place: tuple[int, int]) -> list[list[str]]:
        ids = []
        for part in self._found(keyed, lambda owner, batch: owner.find_repetitions(self._session, batch, place)):
            near = [kept(stand) for _, stand in part]
            conditional = [one for (one, _), rows in zip(part, near, strict=True) if any(row.question for row in rows)]
            counts = self.question_counts({word for one in conditional for word in one.question})
            for (one, stand), candidates in zip(part, near, strict=True):
                question = frozenset(one.question)
                copies = [row for row in candidates if _is_copied_by(row, question, counts)]
                repeated = {row for found in stand for row in found.exact} | {(row.order, row.row_id) for row in copies}
                ids.append([row_id for _, row_id in sorted(repeated)])
        return ids

    def _found(
        self, keyed: Sequence[Features], ask: Callable[[OwnerPort, KeyedBatch], Found | None]
    ) -> Iterator[list[tuple[Features, list[Matches]]]]:
        """What the shards tell of some rows of one table. No more are sent again than twice those that were told."""
        left, most = list(keyed), len(keyed)
        while left:
            self._enter_awaiting()
            asked = left[: min(most, _num_sent(left))]
            told = zip(*self._ask(ask, batch_of(asked)), strict=False)  # to the shortest answer
            part = [(one, list(filter(None, of_shards))) for one, of_shards in zip(left, told, strict=False)]
            yield part
            left, most = left[len(part) :], 2 * len(part)

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
            left = list(together)
            while left:
                num = _num_sent(features for _, features, _ in left)
                ids, features, orders = zip(*left[:num], strict=True)
                if not self._owners[number].enter_duplicates(self._session, ids, orders, batch_of(features)):
                    return False
                left = left[num:]
        return True

    def _ask(self, ask: Callable[[OwnerPort, _Sent], _Answer | None], sent: _Sent) -> list[_Answer]:
        """Of each owner, in their order."""
        numbers = range(self._num_owners)
        for _ in range(_TRIES):
            answers = list(self._pool.map(lambda number: ask(self._owners[number], sent), numbers))
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
        held = {number: self._open(number) for number in numbers}
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

    def _open(self, number: int) -> dict[str, Order]:
        held = self._owners[number].open_duplicates(self._key.name, self._session)
        if held is None:
            raise Unavailable(
                f"another process has opened shard {number}",
                code="stale_process",
                fix="send the request to the process that has it now; after a restored backup start the shards anew",
            )
        return held

    def _enter_credited(self, number: int, rows: Sequence[CreditedRow]) -> bool:
        for start in range(0, len(rows), READ_AT_ONCE):
            read = self._features_of(rows[start : start + READ_AT_ONCE])
            keyed = self._key.keyed([features for _, features in read])
            given = [(row.row_id, one, row.order) for (row, _), one in zip(read, keyed, strict=True)]
            if not self._enter(number, given):
                return False
        return True


class DividedOverlay:
    """As an overlay of `DuplicateIndex`. What the shards told is kept of those rows that came in one answer."""

    def __init__(self, index: DividedIndex, place: tuple[int, int], coming: Sequence[Features]):
        self.rows: list[_Row] = []  # that were added
        self.place = place
        self._index = index
        self._own = DuplicateIndex().overlay(place)  # in plain: they don't leave this process
        self._keyed_words = _KeyedWords(index.keyed_word)
        self._coming = index.known(coming, place)
        self._known: dict[int, Known] = {}
        self._counts: dict[str, int] = {}  # of keyed words, in questions of rows that stand
        self._uncounted = set[str]()  # words of this contribution's questions
        self._passing = set[str]()  # counted words of rows that were near: some are near to many
        self._added = Counter[str]()  # of keyed words, in questions of rows that were added

    def find(self, features: Features) -> Duplicate | None:
        """The earliest row that `features` repeats, an exact repetition before an edited one."""
        known = self._look_up(features)
        own = self._own.matches(features, self.place)
        for layer in (known.stand, [own]):
            if exact := [row for one in layer for row in one.exact]:
                return Duplicate(kind="exact_duplicate", row_id=min(exact)[1])
        asked = frozenset(known.keyed.question)
        stand = ((near, near.question) for near in kept(known.stand))
        added = ((near, near.question and map(self._keyed_words.__getitem__, near.question)) for near in kept([own]))
        for near, question in chain(stand, added):
            if question is None or self._is_named(frozenset(question), asked):
                return Duplicate(kind="near_duplicate", row_id=near.row_id)
        return None

    def add(self, row_id: str, features: Features, *, ordinal: int) -> None:
        keyed = self._look_up(features).keyed
        self._own.add(row_id, features, self.place, ordinal)
        self._added.update(keyed.question)
        self.rows.append((row_id, keyed, (self.place, ordinal)))

    def _look_up(self, features: Features) -> "Known":
        if id(features) not in self._known:
            for part in chain(self._coming, self._index.known([features], self.place)):
                self._take(part)
                if id(features) in self._known:
                    break
        return self._known[id(features)]

    def _take(self, part: "list[Known]") -> None:
        if len(self._passing) > SENT_AT_ONCE:
            for word in self._passing - self._added.keys():
                del self._counts[word]
            self._passing = set()
        self._known = {id(one.plain): one for one in part}
        self._uncounted.update(word for one in part for word in one.keyed.question)

    def _is_named(self, earlier: frozenset[str], later: frozenset[str]) -> bool:
        return names_subject(earlier, earlier - later, self._question_counts)

    def _question_counts(self, words: frozenset[str]) -> Mapping[str, int]:
        """Of keyed words. Shards are asked once about all that may be needed."""
        if not words <= self._counts.keys():
            near = (row.question for known in self._known.values() for row in kept(known.stand))
            self._passing.update(word for question in near if question is not None for word in question)
            asked = (self._passing | self._uncounted | words) - self._counts.keys()
            self._counts.update(self._index.question_counts(asked))
            self._uncounted.clear()
        return {word: self._counts[word] + self._added[word] for word in words}


@dataclass(frozen=True, slots=True)
class Known:
    """A row that was looked for: as it came (or its `id` might become another's), under the key; what is like it."""

    plain: Features
    keyed: Features
    stand: list[Matches]


class _KeyedWords(dict[str, str]):
    """A word is written under the key once."""

    def __init__(self, keyed_word: Callable[[str], str]):
        self._keyed_word = keyed_word

    def __missing__(self, word: str) -> str:
        self[word] = keyed = self._keyed_word(word)
        return keyed


def _num_sent(keyed: Iterable[Features]) -> int:
    """How many of the first go together."""
    sizes = accumulate(_ROW_SIZE + len(one.question) + len(one.answer) for one in keyed)
    return max(1, sum(1 for _ in takewhile(lambda size: size <= SENT_AT_ONCE, sizes)))


def _is_copied_by(later: Near, question: frozenset[str], counts: Mapping[str, int]) -> bool:
    """Whether a row that is near copies an earlier one with this `question`."""
    if later.question is None:
        return True
    return names_subject(question, question.difference(later.question), lambda words: {w: counts[w] for w in words})


def emptied(owners: Iterable[OwnerPort], session: int) -> None:
    """Leave nothing with the shards. One that is away keeps its part until the next time, or loses it."""
    for owner in owners:
        with suppress(Unavailable):
            owner.open_duplicates("", session)


def _lost_again(numbers: Sequence[int]) -> Unavailable:
    return Unavailable(
        f"shard {', '.join(map(str, numbers))} was lost again and again while its index of duplicates was made",
        code="actor_unavailable",
        fix="look why its actor ends (memory, in 'ray list actors'), then send the same again",
    )
