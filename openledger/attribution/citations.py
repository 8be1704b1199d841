"""The citation channel: rows whose words look like a question's or an answer's, by BM25.

Owns the inverted index over a version's texts, in memory, and the ranking. It knows nothing of influence: a citation
says where one may read about the same thing, not what taught the adapter.

    bm25(q, d) = sum over the distinct words w of q of  idf(w) tf (k1 + 1) / (tf + k1 (1 - b + b |d| / mean |d|))
    idf(w)     = ln(1 + (N - n_w + 1/2) / (n_w + 1/2))

tf: how often w stands in d; n_w: texts with w; N: texts; k1 = 1.2, b = 0.75. Robertson and Zaragoza, "The
Probabilistic Relevance Framework: BM25 and Beyond" (2009), with the idf that never goes below zero (as in Lucene). A
word that the query repeats counts once, so that an answer cannot raise a row by repeating itself. The scale depends
on the version's texts: scores order the rows of one query, and can't be compared between queries or versions.
"""

import math
from array import array
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from openledger.core.errors import InvalidInput
from openledger.core.values import Row
from openledger.datanets.shingles import normalized_words

TOP_ROWS = 5
_K1, _B = 1.2, 0.75


@dataclass(frozen=True, slots=True, kw_only=True)
class Citation:
    """A row that reads like the query. `rank` counts from 1; `bm25` has no unit."""

    channel: Literal["citation"] = field(default="citation", init=False)
    row_id: str
    rank: int
    bm25: float


@dataclass(frozen=True, slots=True)
class _Postings:
    """The rows that hold one word (numbers, ascending), and the word's part of their scores."""

    rows: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float64]


def row_text(row: Row) -> str:
    """What of a row is searched: the prompt and the completion."""
    return f"{row.prompt}\n{row.completion}"


class CitationIndex:
    """BM25 over (row id, text) pairs. Never changed once made; calls may run side by side."""

    def __init__(self, texts: Iterable[tuple[str, str]]):
        """Raises InvalidInput (`duplicate_row`) where a row id comes twice."""
        ordered = sorted(texts)
        self.row_ids = [row_id for row_id, _ in ordered]
        if len(set(self.row_ids)) != len(self.row_ids):
            raise InvalidInput("a row id comes twice", code="duplicate_row", param="texts")
        self._postings = _postings([text for _, text in ordered])

    def cite(self, text: str, top: int = TOP_ROWS) -> tuple[Citation, ...]:
        """The `top` rows for a question or an answer, best first, ties by row id; only rows that share a word."""
        if top < 1:
            raise InvalidInput("top is 1 or more", code="invalid_limit", param="top")
        scores = np.zeros(len(self.row_ids))
        for word in sorted(set(normalized_words(text))):  # one order of adding, so that ties stay ties
            if (postings := self._postings.get(word)) is not None:
                scores[postings.rows] += postings.scores
        best = np.argsort(-scores, kind="stable")[:top]
        return tuple(
            Citation(row_id=self.row_ids[number], rank=rank, bm25=float(scores[number]))
            for rank, number in enumerate(best, start=1)
            if scores[number] > 0
        )


def _postings(texts: list[str]) -> dict[str, _Postings]:
    rows: dict[str, array[int]] = {}
    counts: dict[str, array[int]] = {}
    lengths = np.zeros(len(texts))
    for number, text in enumerate(texts):
        words = normalized_words(text)
        lengths[number] = len(words)
        for word, count in Counter(words).items():
            rows.setdefault(word, array("q")).append(number)
            counts.setdefault(word, array("q")).append(count)
    norms = _K1 * (1 - _B + _B * lengths / (lengths.mean() or 1.0)) if texts else lengths
    return {word: _weighted(np.array(rows[word]), np.array(counts[word]), norms) for word in rows}


def _weighted(rows: npt.NDArray[np.int64], counts: npt.NDArray[np.int64], norms: npt.NDArray[np.float64]) -> _Postings:
    idf = math.log(1 + (len(norms) - len(rows) + 0.5) / (len(rows) + 0.5))
    return _Postings(rows, idf * counts * (_K1 + 1) / (counts + norms[rows]))
