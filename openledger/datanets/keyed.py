"""Features under a key: what another process may hold and compare without knowing the words.

Owns how `dedupe.Features` are written anew under an installation's secret, so that two of them are equal, near or
neither exactly where the plain ones are. Knows nothing of who compares them.

- A *word* becomes 64 bits of BLAKE2b under the key (RFC 7693), as hexadecimal digits; a dotted name keeps a dot.
- A *digest* of a text, 128 bits, is one block of AES-256 (FIPS 197).
- A *sketch* of 128 numbers of 32 bits is compared in bands of four, and four are one block of AES: equal bands stay
  equal and others differ, so the same candidates are found. Of each block 64 bits are kept.
- Which word of an answer *stands within* which of the question can't be read from keyed words. It is told for the rows
  for which the rules ask (`dedupe._follows`): those of ten words or more that are not long, to a question that isn't
  either. So it is at most 5,248 pairs, of two bytes each.

Each is a function of the key and the plain value alone, or nothing could be compared. So whoever holds them sees which
rows share words, how many, and how often each occurs; which words have which within them; and whoever knows a row and
its keyed features knows its words.
"""

import hashlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from openledger.core.errors import invariant
from openledger.datanets.dedupe import (
    LONG_ANSWER_WORDS,
    MAX_NAMING_WORDS,
    NUM_BANDS,
    OTHER_QUESTION_SIMILARITY,
    OTHER_QUESTION_WORDS,
    DuplicateIndex,
    Features,
    Words,
    divided_words,
)

KEY_BYTES = 32
_WORD_BYTES = 8
_MAX_COMPARED_WORDS = int((LONG_ANSWER_WORDS - 1) / OTHER_QUESTION_SIMILARITY)  # of more, other rules decide


@dataclass(frozen=True, slots=True)
class KeyedBatch:
    """Keyed features of rows with one table of words, on their way to another process. `numbers` has those of every
    row's question, then of its answer, `sizes` how many of either there are; `bands` two times `NUM_BANDS` of a row."""

    table: tuple[str, ...]
    numbers: "array[int]"
    sizes: "array[int]"
    bands: "array[int]"
    rest: list[tuple[bytes, bytes | None, int, bytes | None]]


class FeatureKey:
    """`secret` has `KEY_BYTES`. What is written under one key says nothing under another; `name` tells keys apart."""

    def __init__(self, secret: bytes):
        self._word_key = _derived(secret, b"words")
        self._cipher = Cipher(algorithms.AES(_derived(secret, b"blocks")), modes.ECB())  # equal stays equal, as wanted
        self.name = _derived(secret, b"name").hex()

    def keyed(self, features: Sequence[Features]) -> list[Features]:
        """Of some that have one table."""
        own = features[0].answer.table if features else ()
        invariant(all(one.answer.table is own for one in features), "features that are keyed together share a table")
        table = self.words(own)
        digests, bands = self._digests(features), self._bands(features)
        return [
            Features(
                answer_key=None if one.answer_key is None else next(digests),
                pair_key=next(digests),
                question=Words(table, one.question.numbers),
                answer=Words(table, one.answer.numbers),
                num_words=one.num_words,
                answer_sketch=next(bands),
                row_sketch=next(bands),
                within=_within(one),
            )
            for one in features
        ]

    def words(self, some: Iterable[str]) -> tuple[str, ...]:
        return tuple(map(self._word, some))

    def _word(self, word: str) -> str:
        said = word.encode("utf-8", "surrogatepass")
        token = hashlib.blake2b(said, digest_size=_WORD_BYTES, key=self._word_key).hexdigest()
        return f"{token}." if "." in word else token

    def _digests(self, features: Sequence[Features]) -> Iterator[bytes]:
        """Of each row that of its answer, if it has one, then that of both."""
        joined = b"".join((one.answer_key or b"") + one.pair_key for one in features)
        blocks = self._encrypted(joined)
        return (blocks[at : at + 16] for at in range(0, len(blocks), 16))

    def _bands(self, features: Sequence[Features]) -> "Iterator[array[int]]":
        """Of each row those of its answer's sketch, then those of its own."""
        sketches = [sketch.digest() for one in features for sketch in (one.answer_sketch, one.row_sketch)]
        blocks = np.frombuffer(self._encrypted(np.array(sketches, np.uint32).tobytes()), np.uint64)
        kept = blocks[::2].reshape(-1, NUM_BANDS)
        return (array("Q", bands.tobytes()) for bands in kept)

    def _encrypted(self, blocks: bytes) -> bytes:
        encryptor = self._cipher.encryptor()
        return encryptor.update(blocks) + encryptor.finalize()


def batch_of(features: Sequence[Features]) -> KeyedBatch:
    """Of some that have one table; words that others alone have stay out."""
    each = [some for one in features for some in (one.question, one.answer)]
    joined = np.frombuffer(b"".join(some.numbers for some in each), np.uint32)
    used, numbers = np.unique(joined, return_inverse=True)
    table = features[0].answer.table if features else ()
    bands = array("Q", b"".join(bands for one in features for bands in (one.answer_sketch, one.row_sketch)))
    return KeyedBatch(
        table=tuple(table[number] for number in used.tolist()),
        numbers=array("I", numbers.astype(np.uint32).tobytes()),
        sizes=array("I", map(len, each)),
        bands=bands,
        rest=[(one.pair_key, one.answer_key, one.num_words, one.within) for one in features],
    )


def features_in(batch: KeyedBatch) -> list[Features]:
    """As a `DuplicateIndex` over `Bands` takes them."""
    words = divided_words(batch.table, batch.numbers, batch.sizes)
    bands = [batch.bands[at : at + NUM_BANDS] for at in range(0, len(batch.bands), NUM_BANDS)]
    return [
        Features(
            pair_key=pair_key,
            answer_key=answer_key,
            question=question,
            answer=answer,
            num_words=num_words,
            answer_sketch=answer_bands,
            row_sketch=row_bands,
            within=within,
        )
        for question, answer, answer_bands, row_bands, (pair_key, answer_key, num_words, within) in zip(
            words[::2], words[1::2], bands[::2], bands[1::2], batch.rest, strict=True
        )
    ]


def keyed_index() -> DuplicateIndex:
    return DuplicateIndex(bands=Bands)


class Bands:
    """Which rows have a band in common: what rensa's table is for sketches in plain."""

    def __init__(self) -> None:
        self._rows: list[dict[int, int | list[int]]] = [{} for _ in range(NUM_BANDS)]  # most bands are one row's
        self._bands: dict[int, array[int]] = {}

    def insert(self, key: int, bands: "array[int]") -> None:
        self._bands[key] = bands
        known_rows = map(dict.setdefault, self._rows, bands, repeat(key))
        for rows, band, known in zip(self._rows, bands, known_rows, strict=True):
            if isinstance(known, list):
                known.append(key)
            elif known != key:
                rows[band] = [known, key]

    def query(self, bands: "array[int]") -> set[int]:
        found = set[int]()
        for known in map(dict.get, self._rows, bands):
            if known is not None:
                found.update(known if isinstance(known, list) else (known,))
        return found

    def remove(self, key: int) -> None:
        for rows, band in zip(self._rows, self._bands.pop(key), strict=True):
            known = rows[band]
            if isinstance(known, list) and len(known) > 1:
                known.remove(key)
            else:
                del rows[band]


def _within(features: Features) -> bytes:
    """Pairs of places, in the answer and in the question; a word that stands in both needs none."""
    if (
        features.num_words < OTHER_QUESTION_WORDS
        or len(features.answer) > _MAX_COMPARED_WORDS
        or len(features.question) > MAX_NAMING_WORDS
    ):
        return b""
    question, pairs = list(features.question), bytearray()
    joined = " ".join(question)
    for place, word in enumerate(features.answer):
        if word in joined:
            for other_place, other in enumerate(question):
                if word != other and word in other:
                    pairs += bytes((place, other_place))
    return bytes(pairs)


def _derived(secret: bytes, use: bytes) -> bytes:
    return hashlib.blake2b(use, digest_size=KEY_BYTES, key=secret).digest()
