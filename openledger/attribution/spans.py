"""The verbatim channel: which runs of an answer's tokens stand, word for word, in rows of a Datanet version.

Owns the suffix array over a version's tokens, its files, and the search for maximal spans (as OLMoTrace,
arXiv 2504.07096, over the array of infini-gram, arXiv 2401.17377). It knows nothing of influence: a row may hold an
answer's words without having taught them, and may have taught them without holding them.

The rows' tokens stand one after the other, t_0 .. t_{N-1}, with a separator after each row. A special token (template
markers, the end token) counts as a separator too, in rows and in answers, so that no span begins with one, holds one
or crosses into another row. The suffix array s lists the positions of all other tokens so that the suffixes they
begin, each read up to its separator, are in lexicographic order.

    l_i = the longest prefix of a_i, a_{i+1}, .. that stands in some row
        = the longer of its common prefixes with the two suffixes between which it sorts
    [i, i + l_i) is maximal   <=>   i + l_i > (i - 1) + l_{i-1}          (ends never fall, as l_i >= l_{i-1} - 1)
    bits of a span = sum over its tokens x of -log2(count(x) / N)        (unigram frequencies of the version)

Finding all spans of L tokens takes O(L log N) comparisons; one reads no more than some two lengths of the match.
Listing a span's rows takes time in proportion to its occurrences.

The array is made by prefix doubling (Manber and Myers, 1993), sorting only what is still tied (Larsson and Sadakane,
2007). As suffixes end with their row, there are at most log2(longest row) + 1 rounds, repetitive data or not:
O(N log N log m). Memory while building is some 80 bytes a token; on disk it is 8.

On disk: tokens.u4 (id + 1, 0 for a separator; big-endian, so that comparing bytes compares tokens), suffixes.u4,
rows.json, spans.json (format, row root, base model, digests of the others and of itself). Built in a temporary folder
and renamed: a folder that is there is complete.
"""

import bisect
import json
import math
import mmap
import os
import shutil
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from openledger.core.errors import Corrupt, InvalidInput, NotFound, TooLarge
from openledger.core.files import sync_folder
from openledger.core.hashing import digest_file, digest_json
from openledger.datanets import versions

SPANS_FORMAT = "openledger.spans/1"
MIN_TOKENS = 6
MAX_ROWS = 10
MAX_INDEX_TOKENS = 2**31 - 1
_MAX_ID = 2**32 - 2
_BYTES = 4
_STORED = np.dtype(">u4")
_FILES = ("tokens.u4", "suffixes.u4", "rows.json")


class TokenRow(Protocol):
    """A row as token ids; `training.examples.Example` is one."""

    @property
    def row_id(self) -> str: ...

    @property
    def ids(self) -> Sequence[int]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class VerbatimSpan:
    """Tokens [start, stop) of an answer that stand in rows of the version, and in no longer run around them.

    `row_ids` are the first rows that hold it, sorted; `num_more_rows` others do. `num_occurrences` counts places, of
    which a row may have several. `bits` says how unlikely the tokens are one by one: it orders spans, no more.
    """

    channel: Literal["verbatim"] = field(default="verbatim", init=False)
    start: int
    stop: int
    token_ids: tuple[int, ...]
    row_ids: tuple[str, ...]
    num_more_rows: int
    num_occurrences: int
    bits: float


def build_span_index(
    rows: Iterable[TokenRow], folder: Path, *, row_root: str, base_digest: str, special_ids: Collection[int]
) -> "SpanIndex":
    """Build the index of a Datanet version at `folder`; one that is there already is opened as it is.

    `rows` are all rows of the version whose root is `row_root`, encoded by the tokenizer of the base model
    `base_digest`. Raises InvalidInput where the rows are not those of the version, hold bad ids or no text at all,
    TooLarge beyond 2^31 - 1 tokens.
    """
    if folder.exists():
        return SpanIndex.open(folder, row_root=row_root, base_digest=base_digest)
    ordered = sorted(rows, key=lambda row: row.row_id)
    row_ids = [row.row_id for row in ordered]
    if versions.row_root(row_ids) != row_root:
        raise InvalidInput("the rows are not those of this version", code="wrong_rows", param="rows")
    specials = sorted(set(special_ids))
    lengths = [len(row.ids) + 1 for row in ordered]
    if sum(lengths) > MAX_INDEX_TOKENS:
        raise TooLarge(f"{sum(lengths)} tokens; an index holds {MAX_INDEX_TOKENS}", code="too_many_tokens")
    tokens = _joined(ordered, sum(lengths), specials)
    if not tokens.any():
        raise InvalidInput("the version holds no text", code="no_text", param="rows")
    building = folder.with_name(f".{folder.name}.building")  # one process owns a working folder
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    tokens.astype(_STORED).tofile(building / "tokens.u4")
    suffix_array(tokens).astype("<u4").tofile(building / "suffixes.u4")
    (building / "rows.json").write_text(json.dumps({"row_ids": row_ids, "lengths": lengths}))
    _write_header(building, row_root=row_root, base_digest=base_digest, special_ids=specials)
    _sync(building)
    building.rename(folder)
    sync_folder(folder.parent)
    return SpanIndex.open(folder, row_root=row_root, base_digest=base_digest)


class SpanIndex:
    """A finished index, memory-mapped and never written to; calls may run side by side."""

    def __init__(
        self, tokens: mmap.mmap, suffixes: npt.NDArray[np.uint32], rows: dict[str, Any], special_ids: list[int]
    ):
        self.row_ids: list[str] = rows["row_ids"]
        self.num_tokens = len(suffixes)
        self._tokens = tokens
        self._suffixes = suffixes
        self._special_ids = np.array(special_ids, dtype=np.int64)
        self._stops = np.cumsum(rows["lengths"])
        self._longest = max(rows["lengths"])

    @classmethod
    def open(cls, folder: Path, *, row_root: str, base_digest: str) -> "SpanIndex":
        """Reads every file once, to check it. Raises NotFound where there is no index, Corrupt where a file is not
        what was written, InvalidInput for the index of another version or of another base model's tokens."""
        if not folder.is_dir():
            raise NotFound(f"there is no span index at {folder}", code="no_span_index", fix="build it from the rows")
        try:
            header = _read_header(folder)
            rows = json.loads((folder / "rows.json").read_text())
            suffixes = np.frombuffer(_mapped(folder / "suffixes.u4"), dtype="<u4")
            index = cls(_mapped(folder / "tokens.u4"), suffixes, rows, header["special_ids"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise Corrupt(
                f"the span index at {folder} can't be read: {error}",
                code="corrupt_span_index",
                param=str(folder),
                fix="remove the folder; it is built again from the version's rows",
            ) from error
        for name, expected in (("row_root", row_root), ("base_digest", base_digest)):
            if header[name] != expected:
                raise InvalidInput(
                    f"the span index at {folder} has another {name}: {header[name]}, not {expected}",
                    code="wrong_span_index",
                    param=name,
                )
        return index

    def spans(
        self, answer_ids: Sequence[int], *, min_tokens: int = MIN_TOKENS, max_rows: int = MAX_ROWS
    ) -> tuple[VerbatimSpan, ...]:
        """Every maximal span of at least `min_tokens`, least likely first (ties by place), at most `max_rows` rows
        listed for each. Raises InvalidInput for ids or limits that can't be."""
        for name, limit in (("min_tokens", min_tokens), ("max_rows", max_rows)):
            if limit < 1:
                raise InvalidInput(f"{name} is {limit}, less than 1", code="invalid_limit", param=name)
        ids = _checked_ids(answer_ids, "answer_ids")
        text = np.where(np.isin(ids, self._special_ids), 0, ids + 1)
        encoded = text.astype(_STORED).tobytes()
        places = [
            (start, stop) for start, stop in self._maximal(encoded, _run_stops(text)) if stop - start >= min_tokens
        ]
        bits = self._bits({value for start, stop in places for value in text[start:stop].tolist()})
        spans = [self._span(encoded, start, stop, max_rows, bits) for start, stop in places]
        return tuple(sorted(spans, key=lambda span: (-span.bits, span.start)))

    def _maximal(self, encoded: bytes, run_stops: npt.NDArray[np.int64]) -> list[tuple[int, int]]:
        spans, last_stop = [], 0
        for start, run_stop in enumerate(run_stops.tolist()):
            stop = start + self._longest_match(encoded, start, run_stop, last_stop - start)
            if stop > last_stop and stop > start:
                spans.append((start, stop))
            last_stop = max(last_stop, stop)
        return spans

    def _longest_match(self, encoded: bytes, start: int, run_stop: int, known: int) -> int:
        """Tokens from `start` on that stand in some row; `known` of them are known to. The window of comparison
        follows what matches, so that a long answer's comparisons stay short."""
        limit = min(run_stop - start, self._longest)
        width = min(limit, 2 * max(known, 0) + 16)
        while True:
            pattern = encoded[_BYTES * start : _BYTES * (start + width)]
            matched = self._common_prefix(pattern)
            if matched < width or width == limit:
                return matched
            width = min(limit, 2 * width)

    def _common_prefix(self, pattern: bytes) -> int:
        """The longest prefix of `pattern` in any row, in tokens: it is shared with a neighbour in sorted order."""
        place = bisect.bisect_left(self._suffixes, pattern, key=lambda position: self._read(position, len(pattern)))
        neighbours = self._suffixes[max(place - 1, 0) : place + 1]
        return max(_num_equal(pattern, self._read(position, len(pattern))) for position in neighbours)

    def _read(self, position: np.uint32, num_bytes: int) -> bytes:
        begin = _BYTES * int(position)
        return self._tokens[begin : begin + num_bytes]

    def _interval(self, pattern: bytes) -> tuple[int, int]:
        """The suffixes that begin with `pattern`, as a slice of the array."""

        def key(position: np.uint32) -> bytes:
            return self._read(position, len(pattern))

        low = bisect.bisect_left(self._suffixes, pattern, key=key)
        return low, bisect.bisect_right(self._suffixes, pattern, low, key=key)

    def _span(self, encoded: bytes, start: int, stop: int, max_rows: int, bits: dict[int, float]) -> VerbatimSpan:
        pattern = encoded[_BYTES * start : _BYTES * stop]
        values = np.frombuffer(pattern, _STORED).tolist()
        low, high = self._interval(pattern)
        rows = np.unique(np.searchsorted(self._stops, self._suffixes[low:high], side="right"))
        return VerbatimSpan(
            start=start,
            stop=stop,
            token_ids=tuple(value - 1 for value in values),
            row_ids=tuple(self.row_ids[row] for row in rows[:max_rows]),
            num_more_rows=max(0, len(rows) - max_rows),
            num_occurrences=high - low,
            bits=math.fsum(bits[value] for value in values),
        )

    def _bits(self, values: Collection[int]) -> dict[int, float]:
        """-log2 of the frequency of each stored value: a token's count is the width of its own interval."""
        intervals = {value: self._interval(value.to_bytes(_BYTES, "big")) for value in values}
        return {value: math.log2(self.num_tokens / (high - low)) for value, (low, high) in intervals.items()}


def suffix_array(tokens: npt.NDArray[np.uint32]) -> npt.NDArray[np.int64]:
    """Positions of the tokens that are not 0, by the suffixes they begin, each read up to the next 0.

    `tokens` ends with 0. Equal suffixes are in the order of their positions.
    """
    num_left = _run_stops(tokens) - np.arange(len(tokens))
    order = np.argsort(tokens, kind="stable")
    slots, positions, keys = np.arange(len(tokens)), order, tokens[order].astype(np.int64)
    rank = np.empty(len(tokens), dtype=np.int64)
    depth = 1  # `order` is right as far as the first `depth` tokens; `rank` is the first slot of those equal so far
    while True:
        first = np.concatenate(([True], keys[1:] != keys[:-1]))
        rank[positions] = slots[np.maximum.accumulate(np.where(first, np.arange(len(first)), 0))]
        alone = first & np.concatenate((first[1:], [True]))
        slots = slots[~alone & (num_left[positions] >= depth)]  # a suffix that has ended can't be told apart further
        if not len(slots):
            return order[np.count_nonzero(tokens == 0) :]
        positions = order[slots]
        keys = rank[positions] * len(tokens) + rank[positions + depth]
        sorting = np.argsort(keys, kind="stable")
        positions, keys = positions[sorting], keys[sorting]
        order[slots] = positions
        depth *= 2


def _run_stops(text: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """For each place the next 0 at or after it, or the end."""
    stops = np.append(np.flatnonzero(text == 0), len(text))
    return stops[np.searchsorted(stops, np.arange(len(text)))]


def _num_equal(left: bytes, right: bytes) -> int:
    """Equal tokens at the beginning of both."""
    size = min(len(left), len(right)) // _BYTES
    different = np.frombuffer(left, _STORED, size) != np.frombuffer(right, _STORED, size)
    return int(different.argmax()) if different.any() else size


def _joined(rows: Sequence[TokenRow], num_tokens: int, specials: Sequence[int]) -> npt.NDArray[np.uint32]:
    tokens = np.zeros(num_tokens, dtype=np.uint32)
    begin = 0
    for row in rows:
        ids = _checked_ids(row.ids, f"row {row.row_id}")
        tokens[begin : begin + len(ids)] = np.where(np.isin(ids, specials), 0, ids + 1)
        begin += len(ids) + 1
    return tokens


def _checked_ids(ids: Sequence[int], name: str) -> npt.NDArray[np.int64]:
    array = np.asarray(ids)
    if not array.size:
        return np.zeros(0, dtype=np.int64)
    if array.ndim != 1 or array.dtype.kind not in "iu" or array.min() < 0 or array.max() > _MAX_ID:
        raise InvalidInput(
            f"{name} is no sequence of token ids from 0 to {_MAX_ID}", code="invalid_token_ids", param=name
        )
    return array.astype(np.int64)


def _write_header(folder: Path, **identity: Any) -> None:
    header = {"format": SPANS_FORMAT, **identity, "files": {name: digest_file(folder / name) for name in _FILES}}
    (folder / "spans.json").write_text(json.dumps({**header, "digest": digest_json(header)}))


def _read_header(folder: Path) -> dict[str, Any]:
    """Raises ValueError, OSError or KeyError unless header and files are as they were written."""
    header: dict[str, Any] = json.loads((folder / "spans.json").read_text())
    digest = header.pop("digest")
    if header["format"] != SPANS_FORMAT:
        raise ValueError(f"its format is {header['format']}, not {SPANS_FORMAT}")
    if digest != digest_json(header):
        raise ValueError("spans.json was changed")
    for name in _FILES:
        if digest_file(folder / name) != header["files"][name]:
            raise ValueError(f"{name} was changed")
    return header


def _mapped(path: Path) -> mmap.mmap:
    with path.open("rb") as stream:
        return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)


def _sync(folder: Path) -> None:
    for path in folder.iterdir():
        with path.open("rb") as stream:
            os.fsync(stream.fileno())
    sync_folder(folder)
