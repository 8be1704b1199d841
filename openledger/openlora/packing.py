"""A step's batch as one ragged row of tokens `[1, T]`: single tokens of running requests first, then longer pieces.

Owns the order of the tokens. The single ones are sorted by adapter, so that each adapter's rows lie together; pieces
(prompts, parts of prompts, answers to be scored) keep their order. Knows nothing of models and sampling.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from openledger.openlora.kv import KeyValueSlots


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Consecutive tokens of one request, the first at position `start`. Without a slot nothing is stored, and
    `start` must be 0. `keep` is how many of its last rows need logits."""

    token_ids: Sequence[int]
    start: int = 0
    slot: int | None = None
    adapter: str = ""
    keep: int = 1

    @property
    def end(self) -> int:
        return self.start + len(self.token_ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """Rows [begin, end) of the packed batch, which belong to one piece."""

    begin: int
    end: int
    piece: Piece


@dataclass(slots=True)
class SingleRows:
    """The first B rows: one token of each of B requests. `length` counts the tokens stored with the new one.

    Where the slots in use lie close together, attention runs in place over the first `span` slots (rows of slots
    that aren't in the batch are computed and dropped); otherwise the slots are gathered.
    """

    slots_B: torch.Tensor
    lengths_B: torch.Tensor
    max_length: int
    span: int
    in_place: bool
    _masks: dict[int | None, torch.Tensor] = field(default_factory=dict)

    def mask(self, window: int | None) -> torch.Tensor:
        """Additive mask `[span or B, 1, 1, max_length]`."""
        if window not in self._masks:
            self._masks[window] = self._build_mask(window)
        return self._masks[window]

    def _build_mask(self, window: int | None) -> torch.Tensor:
        lengths = self.lengths_B
        if self.in_place:
            lengths = torch.ones(self.span, dtype=torch.long).index_copy_(0, self.slots_B, self.lengths_B)
        position = torch.arange(self.max_length)
        hidden = position >= lengths[:, None]
        if window is not None:
            hidden |= position < lengths[:, None] - window
        mask = torch.zeros(hidden.shape).masked_fill_(hidden, float("-inf"))
        return mask[:, None, None, :]


@dataclass(slots=True, kw_only=True)
class PackedStep:
    """What one forward pass needs beside the weights. `order` says which piece each entry came from, singles first.

    `kept_rows` are the rows that need logits, piece by piece in `order`. `calls` counts attention by layer.
    """

    kv: KeyValueSlots | None
    order: tuple[int, ...]
    segments: tuple[Segment, ...]
    num_singles: int
    singles: SingleRows | None
    input_ids: torch.Tensor
    position_ids: torch.Tensor
    kept_rows: torch.Tensor
    stored_rows: torch.Tensor
    stored_slots: torch.Tensor
    stored_positions: torch.Tensor
    calls: list[int] = field(default_factory=list)

    @property
    def num_rows(self) -> int:
        return self.input_ids.shape[1]


def pack(pieces: Sequence[Piece], kv: KeyValueSlots | None) -> PackedStep:
    singles = [index for index, piece in enumerate(pieces) if len(piece.token_ids) == 1 and piece.slot is not None]
    singles.sort(key=lambda index: (pieces[index].adapter, pieces[index].slot))
    taken = set(singles)
    order = (*singles, *(index for index in range(len(pieces)) if index not in taken))
    segments = _segments([pieces[index] for index in order])
    stored = [
        (segment.begin + offset, segment.piece.slot, segment.piece.start + offset)
        for segment in segments
        if segment.piece.slot is not None
        for offset in range(segment.end - segment.begin)
    ]
    stored_T3 = torch.tensor(stored, dtype=torch.long).view(-1, 3)
    return PackedStep(
        kv=kv,
        order=order,
        segments=segments,
        num_singles=len(singles),
        singles=_single_rows(segments[: len(singles)]) if singles else None,
        input_ids=torch.tensor([[token for s in segments for token in s.piece.token_ids]]),
        position_ids=torch.tensor([[position for s in segments for position in range(s.piece.start, s.piece.end)]]),
        kept_rows=torch.tensor([row for s in segments for row in range(s.end - s.piece.keep, s.end)]),
        stored_rows=stored_T3[:, 0],
        stored_slots=stored_T3[:, 1],
        stored_positions=stored_T3[:, 2],
    )


def _segments(pieces: Sequence[Piece]) -> tuple[Segment, ...]:
    begin, segments = 0, []
    for piece in pieces:
        segments.append(Segment(begin=begin, end=begin + len(piece.token_ids), piece=piece))
        begin += len(piece.token_ids)
    return tuple(segments)


def _single_rows(segments: Sequence[Segment]) -> SingleRows:
    slots = [segment.piece.slot or 0 for segment in segments]
    lengths = [segment.piece.end for segment in segments]
    span = max(slots) + 1
    return SingleRows(
        slots_B=torch.tensor(slots),
        lengths_B=torch.tensor(lengths),
        max_length=max(lengths),
        span=span,
        in_place=2 * span <= 3 * len(slots) + 2,  # up to half as many rows again cost less than copying all keys
    )
