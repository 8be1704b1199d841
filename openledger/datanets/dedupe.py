"""The duplicate index: has this row been contributed before, word for word or lightly edited?

Owns the features by which rows are compared and the thresholds of the published gate. Knows nothing of storage: it is
rebuilt from rows. MinHash (Broder, 1997) with banded locality-sensitive hashing, from `rensa`, finds candidates; each
candidate is then compared exactly, so the sketches can miss a duplicate but never accuse one.

Rows are short and their questions follow templates, so two rules tell a copy from an honest neighbour:

- *Same question*: the later question names the earlier one's subject. Answers that share four words in ten, or a later
  answer that holds six in ten of the earlier one's words, are one answer edited.
- *Another question*: honest answers repeat formulas, and say of one thing what they say of its neighbour. So only
  almost equal answers count, long ones sooner, and none whose every differing word stands in a name that only its own
  question has ("a 1D pool" of `pool1d`, "a 2D pool" of `pool2d`). A question of more than 128 words is a text, in which
  any short word stands within some other: there it has to be a word of its own.

Rows have a place in the order of credit, which for sealed rows is earlier than their arrival (`seals`): a row repeats
only what stands in an earlier place, and the index tells which rows of later places repeat it.

The subject of a question is those of its words that fewest questions have. "What does the function" stands in every
question; the function's name tells them apart.
"""

import hashlib
import re
import unicodedata
from array import array
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, chain, groupby, pairwise
from typing import Any, Literal, Protocol

import numpy as np
import rensa
from numpy.typing import NDArray

DuplicateKind = Literal["exact_duplicate", "near_duplicate"]

MIN_REPEATED_WORDS = 8  # a shorter answer to another question may be a coincidence
SAME_QUESTION_SIMILARITY = 0.4
SAME_QUESTION_CONTAINMENT = 0.6
OTHER_QUESTION_WORDS, OTHER_QUESTION_SIMILARITY = 10, 0.95
LONG_ANSWER_WORDS, LONG_ANSWER_SIMILARITY = 40, 0.7
MAX_NAMING_WORDS = 128  # distinct ones of a question whose names are looked into
MAX_CANDIDATES = 100  # rows like this one: ten thousand times one formula must not stop the gate

NUM_BANDS = 32
_PERMUTATIONS, _SEED = 128, 1
_CANDIDATE_SIMILARITY = 0.4  # a hint to rensa; the bands decide: half of the pairs at 0.38 are found, 99.6 % at 0.63
_IDEOGRAPH = "[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af]"
_WORD = re.compile(rf"{_IDEOGRAPH}|\w+")
_BLANK_BETWEEN_WORDS = bytes(sign if sign < 128 and re.match(r"\w", chr(sign)) else ord(" ") for sign in range(256))
_DOTTED_NAME = re.compile(r"\w+(?:\.\w+)+")
LAST = (2**63, 0)  # a place behind every other
Order = tuple[tuple[int, int], int]  # of a row among all: its place, and its number within its contribution


@dataclass(frozen=True, slots=True, kw_only=True)
class Duplicate:
    kind: DuplicateKind
    row_id: str


@dataclass(frozen=True, slots=True)
class Text:
    """A text as it is compared: `normal` is its normalised form, `words` are those of it, in order, `distinct` the same
    without repetition."""

    normal: str
    words: list[str]
    distinct: frozenset[str]


@dataclass(frozen=True, slots=True)
class Words:
    """Distinct words, as numbers of a table that the rows which came together share."""

    table: Sequence[str]
    numbers: "array[int]"

    def __len__(self) -> int:
        return len(self.numbers)

    def __iter__(self) -> Iterator[str]:
        return map(self.table.__getitem__, self.numbers)


@dataclass(frozen=True, slots=True, kw_only=True)
class Features:
    """What the index compares: digests of the normalised text, word sets, and sketches of 128 permutations.

    Under a key (`keyed`) words aren't spelled out, and `within` tells which stand within which: pairs of a word's place
    in `answer` and one's in `question`, in that order.
    """

    pair_key: bytes
    answer_key: bytes | None
    question: Words
    answer: Words
    num_words: int
    answer_sketch: Any  # rensa.RMinHash; under a key its bands
    row_sketch: Any
    within: bytes | None = None


@dataclass(frozen=True, slots=True)
class PackedFeatures:
    """Features of one table on their way to another process. `numbers` has those of every row's question, then of its
    answer; `sizes` how many of either there are."""

    table: tuple[str, ...]
    numbers: "array[int]"
    sizes: "array[int]"
    rest: list[tuple[bytes, bytes | None, int, rensa.RMinHash, rensa.RMinHash]]


@dataclass(frozen=True, slots=True)
class _Said:
    """The words of a row that is compared. `told` is what tells which of the answer's stand within which of the
    question's; None where the words themselves do."""

    question: frozenset[str]
    answer: frozenset[str]
    num_words: int
    told: "_Told | None"


@dataclass(frozen=True, slots=True)
class _Told:
    """`Features.within`, and the words that it numbers."""

    question: Sequence[str]
    answer: Sequence[str]
    within: bytes

    def names(self, word: str) -> Iterator[str]:
        """Those of the question in which the answer's `word` stands."""
        places, place = self.within[::2], self.answer.index(word)
        start = places.find(place)
        return map(self.question.__getitem__, self.within[1::2][start : start + places.count(place)])


class _Asked:
    """The row that others are compared with. Its words are spelled out once, and only where one comes near."""

    def __init__(self, features: Features, known: Any):
        self.num_words = len(features.answer)  # distinct ones
        self.known = known  # numbers of the answer's words
        self._features = features

    @cached_property
    def said(self) -> _Said:
        row = self._features
        return _said(list(row.question), list(row.answer), row)


@dataclass(frozen=True, slots=True)
class Near:
    """A row of the index of which the one asked about is an edited copy, or the other way round. `question` is its own
    where that depends on whether the later question names the subject of the earlier one; None where it is certain."""

    order: Order
    row_id: str
    question: Words | None


@dataclass(frozen=True, slots=True)
class Candidates:
    """Rows with a like sketch, in their order, and those of them that are near."""

    orders: list[Order]
    near: list[Near]


@dataclass(frozen=True, slots=True)
class Matches:
    """What a part of all rows has for one row, as far as the part alone can tell. Candidates by both sketches come
    before those by one."""

    exact: list[tuple[Order, str]]
    by_both: Candidates
    by_one: Candidates


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    """A row as it is kept: in the index four bytes for each distinct word, whose spelling its vocabulary has."""

    row_id: str
    order: Order
    question: Any  # an array of numbers; in an overlay Words
    answer: Any
    num_words: int
    within: bytes | None

    @property
    def place(self) -> tuple[int, int]:
        return self.order[0]


class Overlay(Protocol):
    """Rows that are judged, over those that stand (`Index.overlay`)."""

    def find(self, features: Features) -> Duplicate | None: ...
    def add(self, row_id: str, features: Features, *, ordinal: int) -> None: ...


class Index(Protocol):
    """What stands, in one process (`DuplicateIndex`) or in several (`divided.DividedIndex`); each takes its own
    overlays back."""

    def overlay(self, place: tuple[int, int], coming: Sequence[Features] = ()) -> Overlay: ...
    def add(self, row_id: str, features: Features, place: tuple[int, int], ordinal: int) -> None: ...
    def absorb(self, overlay: Any) -> None: ...
    def discard(self, row_ids: Collection[str]) -> None: ...
    def displaced_by(self, overlay: Any) -> dict[str, str]: ...
    def repeated_by(self, features: Features, place: tuple[int, int]) -> list[str]: ...


class _Vocabulary:
    """The words of an index's rows, each kept once, as rows share most of theirs; and how many rows and questions have
    each, so that a word is forgotten with the last row that had it."""

    def __init__(self) -> None:
        self._words: list[str] = []
        self._numbers = Numbers(self._words)
        self._num_uses = array("i")  # by number, in questions and in answers
        self._num_questions = array("i")

    def add(self, rows: Iterable[tuple[Words, Words]]) -> list[tuple[Any, Any]]:
        """Question and answer of each row as its entry keeps them. Each table's words are looked up once."""
        tables = (list(together) for _, together in groupby(rows, lambda row: id(row[0].table)))
        return [numbers for together in tables for numbers in self._of_table(together)]

    def numbers(self, some: Iterable[str]) -> set[int]:
        """Of those words that are known."""
        return {number for number in map(self._numbers.get, some) if number is not None}

    def words(self, numbers: "array[int]") -> Words:
        return Words(self._words, numbers)

    def question_count(self, word: str) -> int:
        number = self._numbers.get(word)
        return 0 if number is None else self._num_questions[number]

    def remove(self, question: "array[int]", answer: "array[int]") -> None:
        """A word's number isn't given again."""
        for number in question:
            self._num_questions[number] -= 1
        for number in chain(question, answer):
            self._num_uses[number] -= 1
            if not self._num_uses[number]:
                del self._numbers[self._words[number]]
                self._words[number] = ""

    def _of_table(self, rows: Sequence[tuple[Words, Words]]) -> "Iterator[tuple[array[int], array[int]]]":
        asked, said = (_joined(one.numbers for one in column) for column in zip(*rows, strict=True))
        used, places = np.unique(np.concatenate([asked, said]), return_inverse=True)
        table = rows[0][0].table
        own = np.fromiter((self._numbers[table[number]] for number in used.tolist()), np.uint32, len(used))
        num_asked, num_uses = (np.bincount(some, minlength=len(used)) for some in (places[: len(asked)], places))
        for counts, num in (self._num_questions, num_asked), (self._num_uses, num_uses):
            counts.frombytes(bytes(counts.itemsize * (len(self._words) - len(counts))))
            np.frombuffer(counts, np.int32)[own] += num
        numbers, questions, answers = own[places], *zip(*rows, strict=True)
        return zip(_parts(numbers[: len(asked)], questions), _parts(numbers[len(asked) :], answers), strict=True)


class _Unnumbered:
    """What an overlay has in a vocabulary's place: its rows leave it soon, and keep their words as they came."""

    def __init__(self) -> None:
        self._num_questions = Counter[str]()

    def add(self, rows: Iterable[tuple[Words, Words]]) -> list[tuple[Any, Any]]:
        added = list(rows)
        for question, _ in added:
            self._num_questions.update(question)
        return added

    def numbers(self, some: Iterable[str]) -> frozenset[str]:
        return frozenset(some)

    def words(self, some: Words) -> Words:
        return some

    def question_count(self, word: str) -> int:
        return self._num_questions[word]


class Numbers(dict[str, int]):
    """A word that is asked for gets the next number."""

    def __init__(self, words: list[str]):
        self._words = words

    def __missing__(self, word: str) -> int:
        self[word] = number = len(self._words)
        self._words.append(word)
        return number


class DuplicateIndex:
    """Rows in the order in which they were credited; the earliest match is the original.

    `bands` makes a table of sketches: of rensa's, unless they stand under a key (`keyed.Bands`).

    An overlay sees the rows of the index below it that stand in its place or before, and takes new ones in its place
    without changing the index: rows are judged against an overlay, and enter the index below (`absorb`) once their
    verdicts are durable.
    """

    def __init__(
        self,
        below: "DuplicateIndex | None" = None,
        place: tuple[int, int] = LAST,
        bands: Callable[[], Any] | None = None,
    ):
        self._below = below
        self._place = place
        self._make_bands = bands or _plain_bands
        self._entries: list[_Entry | None] = []  # None: a row that was discarded
        self._vocabulary: Any = _Vocabulary() if below is None else _Unnumbered()
        self._features: list[Features] = []  # kept in overlays alone, to be absorbed
        self._pairs: dict[bytes, int] = {}
        self._answers: dict[bytes, int] = {}
        self._again: dict[bytes, list[int]] = {}  # more rows of one digest: only where a seal let a later place in
        self._answer_bands, self._row_bands = self._make_bands(), self._make_bands()
        self._last_order: Order = ((-1, 0), 0)
        self._is_in_order = True  # rows came as they stand: a row's key tells its order

    def __len__(self) -> int:
        return len(self._entries) + (0 if self._below is None else len(self._below))

    def overlay(self, place: tuple[int, int] = LAST, coming: Sequence[Features] = ()) -> "DuplicateIndex":
        """`coming` are the rows that will be looked for in it; here nothing has to be known of them before."""
        return DuplicateIndex(self, place, self._make_bands)

    def find(self, features: Features) -> Duplicate | None:
        """The earliest row that `features` repeats, an exact repetition before an edited one."""
        layers = [self] if self._below is None else [self._below, self]
        for layer in layers:
            if entry := layer._exact(features, self._place):
                return Duplicate(kind="exact_duplicate", row_id=entry.row_id)
        for layer in layers:
            if entry := layer._near(features, self):
                return Duplicate(kind="near_duplicate", row_id=entry.row_id)
        return None

    def repeated_by(self, features: Features, place: tuple[int, int]) -> list[str]:
        """Ids of the rows that stand behind `place` and repeat the row of `features`."""
        exact = {key for key in self._of_text(features) if self._entry(key).place > place}
        candidates = self._candidates(features, lambda entry: entry.place > place)
        asked = self._asked(features, candidates)
        compared = ((key, self._compared(self._entry(key), asked, is_earlier=False)) for key in candidates)
        near = {key for key, both in compared if _repeats(both, self)}
        return [self._entry(key).row_id for key in sorted(exact | near, key=self._order)]

    def matches(self, features: Features, place: tuple[int, int]) -> Matches:
        """What of these rows, in `place` or before, that of `features` repeats: what `find` makes its answer of, if
        there are no other rows. Near ones are told to the first certain one."""
        exact = [(entry.order, entry.row_id)] if (entry := self._exact(features, place)) else []
        both, one = ([], []) if exact else self._like(features, lambda entry: entry.place <= place)
        return Matches(
            exact, self._near_of(both, features, is_earlier=True), self._near_of(one, features, is_earlier=True)
        )

    def matches_behind(self, features: Features, place: tuple[int, int]) -> Matches:
        """What of these rows, behind `place`, repeats that of `features`: all of it."""
        exact = [self._entry(key) for key in self._of_text(features) if self._entry(key).place > place]
        both, one = self._like(features, lambda entry: entry.place > place)
        return Matches(
            [(entry.order, entry.row_id) for entry in exact],
            self._near_of(both, features, is_earlier=False),
            self._near_of(one, features, is_earlier=False),
        )

    def add(
        self, row_id: str, features: Features, place: tuple[int, int] | None = None, ordinal: int | None = None
    ) -> None:
        """`place` is the index's own unless it is given, `ordinal` behind all that were added."""
        order = (self._place if place is None else place, len(self._entries) if ordinal is None else ordinal)
        self.extend([(row_id, features, order)])

    def extend(self, rows: Sequence[tuple[str, Features, Order]]) -> None:
        """Add rows: many of one table cost less together."""
        both = self._vocabulary.add((one.question, one.answer) for _, one, _ in rows)
        for (row_id, features, order), (question, answer) in zip(rows, both, strict=True):
            key = len(self._entries)
            self._entries.append(
                _Entry(
                    row_id=row_id,
                    order=order,
                    question=question,
                    answer=answer,
                    num_words=features.num_words,
                    within=features.within,
                )
            )
            if order < self._last_order:
                self._is_in_order = False
            self._last_order = order
            if self._below is not None:
                self._features.append(features)
            for found, digest in self._digests(features):
                if found.setdefault(digest, key) != key:
                    self._again.setdefault(digest, []).append(key)
            self._answer_bands.insert(key, features.answer_sketch)
            self._row_bands.insert(key, features.row_sketch)

    def absorb(self, overlay: "DuplicateIndex") -> None:
        """Take over the rows that were added to `overlay`, in their order."""
        added = zip(overlay._entries, overlay._features, strict=True)
        self.extend([(entry.row_id, features, entry.order) for entry, features in added if entry is not None])

    def displaced_by(self, overlay: "DuplicateIndex") -> dict[str, str]:
        """Rows of this index in later places than the overlay's that repeat one of its rows: id to that row's id."""
        return {
            row_id: entry.row_id
            for entry, features in reversed(list(zip(overlay._entries, overlay._features, strict=True)))
            if entry is not None
            for row_id in self.repeated_by(features, entry.place)
        }

    def discard(self, row_ids: Collection[str]) -> None:
        """Forget rows, and the words that they alone had; of the index itself, not of an overlay. Another row that says
        the same is no duplicate of them any more."""
        gone = {key for key, entry in enumerate(self._entries) if entry is not None and entry.row_id in row_ids}
        again = {digest: [key for key in keys if key not in gone] for digest, keys in self._again.items()}
        self._again = {digest: keys for digest, keys in again.items() if keys}
        for table in (self._pairs, self._answers):
            for digest in [digest for digest, key in table.items() if key in gone]:
                if rest := self._again.get(digest):
                    table[digest] = rest.pop(0)
                else:
                    del table[digest]
        for key in gone:
            entry = self._entry(key)
            self._vocabulary.remove(entry.question, entry.answer)
            self._answer_bands.remove(key)
            self._row_bands.remove(key)
            self._entries[key] = None

    def question_counts(self, words: Iterable[str]) -> dict[str, int]:
        """How many questions have each of these words."""
        layers = [self] if self._below is None else [self._below, self]
        return {word: sum(layer._vocabulary.question_count(word) for layer in layers) for word in words}

    def _exact(self, features: Features, place: tuple[int, int]) -> _Entry | None:
        visible = [key for key in self._of_text(features) if self._entry(key).place <= place]
        return self._entry(min(visible, key=self._order)) if visible else None

    def _near(self, features: Features, top: "DuplicateIndex") -> _Entry | None:
        last = top._place
        candidates = self._candidates(features, lambda entry: entry.order[0] <= last)
        asked = self._asked(features, candidates)
        for key in candidates:
            if _repeats(self._compared(self._entry(key), asked, is_earlier=True), top):
                return self._entry(key)
        return None

    def _near_of(self, candidates: Sequence[int], features: Features, *, is_earlier: bool) -> Candidates:
        asked = self._asked(features, candidates)
        near: list[Near] = []
        for key in candidates:
            entry = self._entry(key)
            both = self._compared(entry, asked, is_earlier=is_earlier)
            if both is None or (is_edited := _is_edited(*both)) is False:
                continue
            near.append(Near(entry.order, entry.row_id, None if is_edited else self._vocabulary.words(entry.question)))
            if is_edited and is_earlier:
                break
        return Candidates([self._entry(key).order for key in candidates], near)

    def _asked(self, features: Features, candidates: Sequence[int]) -> _Asked:
        return _Asked(features, self._vocabulary.numbers(features.answer) if candidates else frozenset())

    def _compared(self, entry: _Entry, asked: _Asked, *, is_earlier: bool) -> tuple[_Said, _Said] | None:
        """The earlier and the later of the two; `is_earlier` of the entry. None for most candidates, which share too
        few words: they are not spelled out."""
        num_shared = len(asked.known.intersection(entry.answer))
        size_entry, size_asked = len(entry.answer), asked.num_words
        if (
            num_shared < SAME_QUESTION_SIMILARITY * (size_entry + size_asked - num_shared)
            and num_shared < SAME_QUESTION_CONTAINMENT * (size_entry if is_earlier else size_asked)
        ):  # fmt: skip
            return None
        question, answer = (list(self._vocabulary.words(some)) for some in (entry.question, entry.answer))
        stored = _said(question, answer, entry)
        return (stored, asked.said) if is_earlier else (asked.said, stored)

    def _of_text(self, features: Features) -> list[int]:
        """Rows with this question and answer, or with this answer."""
        given = [(found[digest], digest) for found, digest in self._digests(features) if digest in found]
        return [key for first, digest in given for key in (first, *self._again.get(digest, ()))]

    def _digests(self, features: Features) -> list[tuple[dict[bytes, int], bytes]]:
        pair = (self._pairs, features.pair_key)
        return [pair, (self._answers, features.answer_key)] if features.answer_key else [pair]

    def _candidates(self, features: Features, is_wanted: Callable[[_Entry], bool]) -> list[int]:
        both, one = self._like(features, is_wanted)
        if not (both and one):
            return both or one
        return self._sorted([*both, *one][:MAX_CANDIDATES])

    def _like(self, features: Features, is_wanted: Callable[[_Entry], bool]) -> tuple[list[int], list[int]]:
        """Rows with a like sketch of answer and row, and of one of them, in their order; of more than `MAX_CANDIDATES`
        the first."""
        by_answer = set(self._answer_bands.query(features.answer_sketch))
        by_row = set(self._row_bands.query(features.row_sketch))
        return self._wanted(by_answer & by_row, is_wanted), self._wanted(by_answer ^ by_row, is_wanted)

    def _wanted(self, keys: Collection[int], is_wanted: Callable[[_Entry], bool]) -> list[int]:
        if not keys:
            return []
        return [key for key in self._sorted(keys) if is_wanted(self._entry(key))][:MAX_CANDIDATES]

    def _sorted(self, keys: Iterable[int]) -> list[int]:
        return sorted(keys) if self._is_in_order else sorted(keys, key=self._order)

    def _entry(self, key: int) -> _Entry:
        entry = self._entries[key]
        assert entry is not None, "a discarded row stands in no table"
        return entry

    def _order(self, key: int) -> tuple[Order, int]:
        return self._entry(key).order, key


def features_of(rows: Iterable[tuple[str, str]]) -> list[Features]:
    """Features of (prompt, completion) pairs; the sketches of all rows are made in one call."""
    return features_of_texts([(text_of(prompt), text_of(completion)) for prompt, completion in rows])


def features_of_texts(rows: Sequence[tuple[Text, Text]]) -> list[Features]:
    answers = [_answer_tokens(answer.words) for _, answer in rows]
    answer_sketches = _sketches(answers)
    row_sketches = _sketches(
        [_row_tokens(question.words, answer) for (question, _), answer in zip(rows, answers, strict=True)]
    )
    table: list[str] = []
    number_of = Numbers(table).__getitem__
    return [
        Features(
            pair_key=_digest(f"{question.normal}\0{answer.normal}"),
            answer_key=_digest(answer.normal) if len(answer.words) >= MIN_REPEATED_WORDS else None,
            question=Words(table, array("I", map(number_of, question.distinct.union(_dotted_names(question.normal))))),
            answer=Words(table, array("I", map(number_of, answer.distinct))),
            num_words=len(answer.words),
            answer_sketch=answer_sketch,
            row_sketch=row_sketch,
        )
        for (question, answer), answer_sketch, row_sketch in zip(rows, answer_sketches, row_sketches, strict=True)
    ]


def packed(features: Sequence[Features]) -> PackedFeatures:
    """Of what one call of `features_of_texts` made: its rows have one table."""
    numbers, sizes, rest = array("I"), array("I"), []
    for one in features:
        for some in (one.question, one.answer):
            numbers.extend(some.numbers)
            sizes.append(len(some))
        rest.append((one.pair_key, one.answer_key, one.num_words, one.answer_sketch, one.row_sketch))
    return PackedFeatures(tuple(features[0].answer.table) if features else (), numbers, sizes, rest)


def divided_words(table: Sequence[str], numbers: "array[int]", sizes: Iterable[int]) -> list[Words]:
    """`numbers` are those of all texts, one after the other; `sizes` are how many each has."""
    return [Words(table, numbers[start:end]) for start, end in pairwise(accumulate(sizes, initial=0))]


def unpacked(features: PackedFeatures) -> list[Features]:
    each = divided_words(features.table, features.numbers, features.sizes)
    return [
        Features(
            pair_key=pair_key,
            answer_key=answer_key,
            question=question,
            answer=answer,
            num_words=num_words,
            answer_sketch=answer_sketch,
            row_sketch=row_sketch,
        )
        for question, answer, (pair_key, answer_key, num_words, answer_sketch, row_sketch) in zip(
            each[::2], each[1::2], features.rest, strict=True
        )
    ]


def text_of(text: str) -> Text:
    normal = normalized(text)
    found = _words(normal)
    return Text(normal, found, frozenset(found))


def normalized(text: str) -> str:
    """`text` in Unicode compatibility form (NFKC), case folded, every run of white space one blank."""
    if text.isascii():  # the same by a shorter way
        return " ".join(text.lower().split())
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def words(text: str) -> list[str]:
    """The words of normalised text; an ideograph or a Hangul syllable is a word, as no blanks part them."""
    return _words(normalized(text))


def _words(normal: str) -> list[str]:
    if normal.isascii():  # the same by a shorter way
        return normal.encode().translate(_BLANK_BETWEEN_WORDS).decode().split()
    return _WORD.findall(normal)


def kept(found: Iterable[Matches]) -> list[Near]:
    """The near rows of several parts that would be looked at if the parts were one, in their order."""
    parts, near, left = list(found), list[Near](), MAX_CANDIDATES
    for some in ([one.by_both for one in parts], [one.by_one for one in parts]):
        orders = sorted(chain.from_iterable(one.orders for one in some))[:left]
        near += [row for one in some for row in one.near if row.order <= orders[-1]] if orders else []
        left -= len(orders)
    return sorted(near, key=lambda row: row.order)


def _repeats(both: tuple[_Said, _Said] | None, index: DuplicateIndex) -> bool:
    """Whether the later of the two is the earlier one edited, where the rows of `index` stand."""
    if both is None:
        return False
    is_edited = _is_edited(*both)
    if is_edited is None:
        return names_subject(both[0].question, both[0].question - both[1].question, index.question_counts)
    return is_edited


def names_subject(
    question: frozenset[str], missing: frozenset[str], counts_of: Callable[[frozenset[str]], Mapping[str, int]]
) -> bool:
    """Whether a later question without the `missing` words of an earlier one names its subject: those of its words that
    fewest questions have; of these the dotted names alone, if there are any."""
    counts = counts_of(question)
    fewest = min(counts.values())
    rarest = {word for word, count in counts.items() if count == fewest}
    return not missing & ({word for word in rarest if "." in word} or rarest)


def _said(question: Sequence[str], answer: Sequence[str], of: "_Entry | Features") -> _Said:
    told = None if of.within is None else _Told(question, answer, of.within)
    return _Said(frozenset(question), frozenset(answer), of.num_words, told)


def _is_edited(earlier: _Said, later: _Said) -> bool | None:
    """None: it is if the later question names the earlier one's subject."""
    num_shared = len(earlier.answer & later.answer)
    similarity = num_shared / max(1, len(earlier.answer) + len(later.answer) - num_shared)
    num_words = min(earlier.num_words, later.num_words)
    if num_words >= LONG_ANSWER_WORDS and similarity >= LONG_ANSWER_SIMILARITY:
        return True
    if num_words >= OTHER_QUESTION_WORDS and similarity >= OTHER_QUESTION_SIMILARITY and not _follows(earlier, later):
        return True
    containment = num_shared / max(1, len(earlier.answer))
    if similarity < SAME_QUESTION_SIMILARITY and containment < SAME_QUESTION_CONTAINMENT:
        return False
    if not earlier.question or not later.question:
        return earlier.question == later.question
    return None if earlier.question - later.question else True


def _follows(earlier: _Said, later: _Said) -> bool:
    """Whether the answers differ as the questions do: every word that only one answer has stands within a word that
    only its question has."""
    return _are_named(earlier, earlier.answer - later.answer, earlier.question - later.question) and _are_named(
        later, later.answer - earlier.answer, later.question - earlier.question
    )


def _are_named(said: _Said, some: frozenset[str], names: frozenset[str]) -> bool:
    """Whether each of some words of its answer stands within one of these `names`, which its question has."""
    rest = some - names
    if not rest or len(said.question) > MAX_NAMING_WORDS:
        return not rest
    if said.told is None:
        return all(any(word in name for name in names) for word in rest)
    return all(not names.isdisjoint(said.told.names(word)) for word in rest)


def _dotted_names(normal: str) -> list[str]:
    return _DOTTED_NAME.findall(normal) if "." in normal else []


def _answer_tokens(answer: Sequence[str]) -> list[str]:
    """What an answer is sketched by: its words; pairs of them where it is long, for long texts share their common words
    whatever they are about, and candidates would become more with every row. A sketch takes no heed of order or
    repetition."""
    if len(answer) < LONG_ANSWER_WORDS:
        return list(answer)
    return list(map(" ".join, pairwise(answer)))


def _row_tokens(question: Sequence[str], answer_tokens: Sequence[str]) -> list[str]:
    triples = [f"? {a} {b} {c}" for a, b, c in zip(question, question[1:], question[2:], strict=False)]
    return [*answer_tokens, *triples]


def _sketches(token_sets: list[list[str]]) -> list[rensa.RMinHash]:
    sketches: list[rensa.RMinHash] = rensa.RMinHash.from_token_sets(token_sets, _PERMUTATIONS, _SEED)
    return sketches


def _plain_bands() -> rensa.RMinHashLSH:
    return rensa.RMinHashLSH(_CANDIDATE_SIMILARITY, _PERMUTATIONS, NUM_BANDS)


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _joined(some: "Iterable[array[int]]") -> NDArray[np.uint32]:
    return np.frombuffer(b"".join(some), np.uint32)


def _parts(numbers: NDArray[np.uint32], some: Sequence[Words]) -> "Iterator[array[int]]":
    """`numbers` divided as `some` are."""
    joined, ends = numbers.tobytes(), accumulate((numbers.itemsize * len(one) for one in some), initial=0)
    return (array("I", joined[start:end]) for start, end in pairwise(ends))
