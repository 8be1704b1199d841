"""Attention over a packed batch, as a function that transformers' own model code calls.

Registered under our name with no mask function beside it, so that the model builds no mask: causality and sliding
windows are applied here. The step comes as the keyword `openlora_step` through the model's forward.

Shapes: T rows of the batch, B single rows, S slots, L stored tokens, H heads, G key/value heads (H a multiple), d.
"""

from typing import Any

import torch
from torch.nn import functional
from transformers import AttentionInterface

from openledger.core.errors import InvalidInput
from openledger.openlora.packing import PackedStep, Segment, SingleRows

NAME = "openlora_packed"
_UNKNOWN_MATHEMATICS = ("softcap", "s_aux", "position_bias")


def register() -> str:
    """Make the function known to transformers; the name to select it by."""
    AttentionInterface.register(NAME, packed_attention)
    return NAME


def packed_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    openlora_step: PackedStep | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """query `[1, H, T, d]`, key and value `[1, G, T, d]`, rotated already; the result is `[1, T, H, d]`."""
    step = _checked(openlora_step, attention_mask, options)
    step.calls.append(module.layer_idx)
    keys, values = _store(step, module.layer_idx, key, value)
    parts = []
    if step.singles is not None:
        parts.append(
            _attend_singles(query[0, :, : step.num_singles], keys, values, step.singles, scaling, sliding_window)
        )
    for segment in step.segments[step.num_singles :]:
        parts.append(_attend_segment(query, key, value, keys, values, segment, scaling, sliding_window))
    out_THd = parts[0] if len(parts) == 1 else torch.cat(parts)
    return out_THd.unsqueeze(0), None


def _checked(step: PackedStep | None, mask: torch.Tensor | None, options: dict[str, Any]) -> PackedStep:
    odd = [name for name in _UNKNOWN_MATHEMATICS if options.get(name) is not None]
    if step is None or mask is not None or odd:
        raise InvalidInput(
            f"this model's attention needs what OpenLoRA doesn't compute: {odd or 'its own mask or call'}",
            code="unsupported_model",
            param="base_model",
        )
    return step


def _store(step: PackedStep, layer: int, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Put the new keys and values into their slots. The layer's storage, `[num_slots, G, slot_tokens, d]` each."""
    if step.kv is None:
        return key, value
    keys, values = step.kv.layer(layer, key, value)
    new_key, new_value = key[0].transpose(0, 1), value[0].transpose(0, 1)
    if len(step.stored_rows) != step.num_rows:
        new_key, new_value = new_key[step.stored_rows], new_value[step.stored_rows]
    keys[step.stored_slots, :, step.stored_positions] = new_key
    values[step.stored_slots, :, step.stored_positions] = new_value
    return keys, values


def _attend_singles(
    query_HBd: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    rows: SingleRows,
    scaling: float | None,
    window: int | None,
) -> torch.Tensor:
    query_BHd = query_HBd.transpose(0, 1)
    if rows.in_place:
        spread = query_BHd.new_zeros(rows.span, *query_BHd.shape[1:])
        query_BHd = spread.index_copy_(0, rows.slots_B, query_BHd)
        keys, values = keys[: rows.span, :, : rows.max_length], values[: rows.span, :, : rows.max_length]
    else:
        keys, values = keys[rows.slots_B, :, : rows.max_length], values[rows.slots_B, :, : rows.max_length]
    out_BHd = _grouped(query_BHd, keys, values, rows.mask(window), scaling)
    return out_BHd[rows.slots_B] if rows.in_place else out_BHd


def _grouped(
    query_BHd: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, scaling: float | None
) -> torch.Tensor:
    """One query row per request: its heads that share a key/value head become the rows of one small attention."""
    batch, heads, size = query_BHd.shape
    grouped = query_BHd.view(batch, keys.shape[1], heads // keys.shape[1], size)
    out = functional.scaled_dot_product_attention(grouped, keys, values, attn_mask=mask, scale=scaling)
    return out.reshape(batch, heads, values.shape[3])


def _attend_segment(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    segment: Segment,
    scaling: float | None,
    window: int | None,
) -> torch.Tensor:
    piece = segment.piece
    query_1HTd = query[:, :, segment.begin : segment.end]
    if piece.start == 0:
        key_1GLd, value_1GLd = key[:, :, segment.begin : segment.end], value[:, :, segment.begin : segment.end]
    else:
        slot = slice(piece.slot, (piece.slot or 0) + 1)
        key_1GLd, value_1GLd = keys[slot, :, : piece.end], values[slot, :, : piece.end]
    plain = piece.start == 0 and (window is None or window >= piece.end)
    out = functional.scaled_dot_product_attention(
        query_1HTd,
        key_1GLd,
        value_1GLd,
        attn_mask=None if plain else _piece_mask(piece.start, piece.end, window),
        is_causal=plain,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return out[0].transpose(0, 1)


def _piece_mask(start: int, end: int, window: int | None) -> torch.Tensor:
    """True where the row at a position (start..end) may look at a stored position (0..end)."""
    row, column = torch.arange(start, end)[:, None], torch.arange(end)
    seen = column <= row
    return seen if window is None else seen & (column > row - window)
