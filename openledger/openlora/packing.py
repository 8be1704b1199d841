"""A step's batch as one ragged row of tokens `[1, T]`: short pieces of requests first, then long ones.

Owns the order of the tokens: within short and long, pieces of one adapter lie together, so that its rows are
multiplied at once. Short pieces (the next token of a running request above all) look up their keys block by block;
long ones (prompts, answers to be scored) are attended to one by one. Knows nothing of models and sampling.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch

from openledger.openlora.kv import KeyValueBlocks
from openledger.openlora.native import BLOCK, Rows, Weighing

SHORT = 16  # tokens: from here on one large product a piece is faster than looking up blocks row by row


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Consecutive tokens of one request, the first at position `start`. `blocks` hold its positions 0 to `end`;
    without any nothing is stored, and `start` must be 0. `keep` is how many of its last rows need logits. Where
    `adapter` is an ensemble, `members` are its adapters and their weights."""

    token_ids: Sequence[int]
    start: int = 0
    blocks: Sequence[int] = ()
    adapter: str = ""
    keep: int = 1
    members: tuple[tuple[str, float], ...] = ()

    @property
    def end(self) -> int:
        return self.start + len(self.token_ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """Rows [begin, end) of the packed batch, which belong to one piece."""

    begin: int
    end: int
    piece: Piece


@dataclass(slots=True, kw_only=True)
class PackedStep:
    """What one forward pass needs beside the weights. `order` says which piece each entry of `segments` came from.

    `kept_rows` are the rows that need logits, piece by piece in `order`. `slots` int64 [T] say where each row's key
    goes (block * 16 + position, -1: nowhere). `calls` are those of attention, by layer. `between`, where there is one,
    is called again and again on the way through the model.
    """

    kv: KeyValueBlocks | None
    order: tuple[int, ...]
    segments: tuple[Segment, ...]
    num_short: int
    short_rows: Rows | None
    input_ids: torch.Tensor
    position_ids: torch.Tensor
    kept_rows: torch.Tensor
    slots: torch.Tensor
    between: Callable[[], None] | None = None
    calls: list[tuple[int, Weighing]] = field(default_factory=list)

    @property
    def num_rows(self) -> int:
        return self.input_ids.shape[1]

    def to(self, device: torch.device) -> "PackedStep":
        """The same step, for a model that is there; `calls` are noted in both."""
        if self.input_ids.device == device:
            return self
        short = self.short_rows
        if short is not None:
            short = Rows(
                tables=short.tables.to(device),
                row_tables=short.row_tables.to(device),
                lengths=short.lengths.to(device),
            )
        return replace(
            self,
            short_rows=short,
            input_ids=self.input_ids.to(device),
            position_ids=self.position_ids.to(device),
            kept_rows=self.kept_rows.to(device),
            slots=self.slots.to(device),
        )


def pack(
    pieces: Sequence[Piece],
    kv: KeyValueBlocks | None,
    between: Callable[[], None] | None = None,
    few: int = 0,
    longest: int = SHORT,
) -> PackedStep:
    """Pieces of up to `longest` tokens are short; where all together are `few` or less, all are."""
    longest = few if sum(len(piece.token_ids) for piece in pieces) <= few else longest
    is_long = [not piece.blocks or len(piece.token_ids) > longest for piece in pieces]
    order = sorted(range(len(pieces)), key=lambda index: (is_long[index], pieces[index].adapter, index))
    segments = _segments([pieces[index] for index in order])
    short = segments[: is_long.count(False)]
    return PackedStep(
        kv=kv,
        between=between,
        order=tuple(order),
        segments=segments,
        num_short=len(short),
        short_rows=_rows(short) if short else None,
        input_ids=torch.tensor([[token for s in segments for token in s.piece.token_ids]]),
        position_ids=torch.tensor([[position for s in segments for position in range(s.piece.start, s.piece.end)]]),
        kept_rows=torch.tensor([row for s in segments for row in range(s.end - s.piece.keep, s.end)], dtype=torch.long),
        slots=torch.tensor([slot for s in segments for slot in _slots(s.piece)]),
    )


def _segments(pieces: Sequence[Piece]) -> tuple[Segment, ...]:
    begin, segments = 0, []
    for piece in pieces:
        segments.append(Segment(begin=begin, end=begin + len(piece.token_ids), piece=piece))
        begin += len(piece.token_ids)
    return tuple(segments)


def _slots(piece: Piece) -> list[int]:
    if not piece.blocks:
        return [-1] * len(piece.token_ids)
    return [piece.blocks[at // BLOCK] * BLOCK + at % BLOCK for at in range(piece.start, piece.end)]


def _rows(segments: Sequence[Segment]) -> Rows:
    longest = max(len(segment.piece.blocks) for segment in segments)
    tables = [[*segment.piece.blocks, *[0] * (longest - len(segment.piece.blocks))] for segment in segments]
    owners = [number for number, segment in enumerate(segments) for _ in segment.piece.token_ids]
    lengths = [at + 1 for segment in segments for at in range(segment.piece.start, segment.piece.end)]
    return Rows(
        tables=torch.tensor(tables, dtype=torch.int32),
        row_tables=torch.tensor(owners, dtype=torch.int32),
        lengths=torch.tensor(lengths, dtype=torch.int32),
    )
