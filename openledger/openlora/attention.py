"""Attention over a packed batch, as a function that transformers' own model code calls.

Registered under our name with no mask function beside it, so that the model builds no mask: causality and sliding
windows are applied here. The step comes as the keyword `openlora_step` through the model's forward. With kernels short
pieces look up their keys in place (PagedAttention, Kwon et al., 2023); long pieces, and all without kernels, are
attended to one by one with torch.

Shapes: T rows of the batch, L stored tokens, H heads, G key/value heads (H a multiple), d their size, n blocks.
"""

from typing import Any

import torch
from torch.nn import functional
from transformers import AttentionInterface

from openledger.core.errors import InvalidInput
from openledger.openlora.native import BLOCK, Paged, Weighing
from openledger.openlora.packing import PackedStep, Segment

NAME = "openlora_packed"
_UNKNOWN_MATHEMATICS = ("position_bias",)


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
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    openlora_step: PackedStep | None = None,
    openlora_kernels: Paged | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """query `[1, H, T, d]`, key and value `[1, G, T, d]`, rotated already; the result is `[1, T, H, d]`. Softcap as in
    Gemma 2, `s_aux` `[H]` are attention sinks as in gpt-oss: one more score, without a value."""
    step = _checked(openlora_step, attention_mask, options)
    if step.between is not None:
        step.between()
    weighing = Weighing(
        scale=query.shape[-1] ** -0.5 if scaling is None else scaling,
        window=sliding_window,
        softcap=softcap,
        sinks=None if s_aux is None else s_aux.float().contiguous(),
    )
    step.calls.append((module.layer_idx, weighing))
    out_THd = query.new_empty(query.shape[2], query.shape[1], value.shape[3])
    stored = None if step.kv is None else _store(step, openlora_kernels, module.layer_idx, key, value)
    segments = step.segments
    if openlora_kernels is not None and stored is not None and step.short_rows is not None:
        # the rows after the short ones are left alone
        openlora_kernels.attend(_plain(query[0]), *stored, step.short_rows, out_THd, weighing)
        segments = segments[step.num_short :]
    for segment in segments:
        rows = slice(segment.begin, segment.end)
        seen = _seen(segment, key, value, stored)
        out_THd[rows] = attend_piece(query[:, :, rows], *seen, segment.piece.start, weighing)
    return out_THd.unsqueeze(0), None


def attend_piece(
    query_1HTd: torch.Tensor, key_1GLd: torch.Tensor, value_1GLd: torch.Tensor, start: int, weighing: Weighing
) -> torch.Tensor:
    """Causal attention of the rows from position `start` on; `[T, H, d]`. What the kernel computes, with torch."""
    length, window = key_1GLd.shape[2], weighing.window
    if weighing.softcap is not None or weighing.sinks is not None:
        return _written_out(query_1HTd, key_1GLd, value_1GLd, _mask(start, length, window, query_1HTd.device), weighing)
    plain = start == 0 and (window is None or window >= length)
    all_seen = plain or (query_1HTd.shape[2] == 1 and window is None)
    out = functional.scaled_dot_product_attention(
        query_1HTd,
        key_1GLd,
        value_1GLd,
        attn_mask=None if all_seen else _mask(start, length, window, query_1HTd.device),
        is_causal=plain,
        scale=weighing.scale,
        enable_gqa=query_1HTd.shape[1] != key_1GLd.shape[1],
    )
    return out[0].transpose(0, 1)


def _checked(step: PackedStep | None, mask: torch.Tensor | None, options: dict[str, Any]) -> PackedStep:
    odd = [name for name in _UNKNOWN_MATHEMATICS if options.get(name) is not None]
    if step is None or mask is not None or odd:
        raise InvalidInput(
            f"this model's attention needs what OpenLoRA doesn't compute: {odd or 'its own mask or call'}",
            code="unsupported_model",
            param="base_model",
        )
    return step


def _store(
    step: PackedStep, kernels: Paged | None, layer: int, key: torch.Tensor, value: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Put the new keys and values into their blocks; the layer's storage."""
    assert step.kv is not None
    keys, values = step.kv.layer(layer, key, value)
    key_TGd, value_TGd = _plain(key[0]).transpose(0, 1), _plain(value[0]).transpose(0, 1)
    if kernels is not None:
        kernels.store(key_TGd, value_TGd, keys, values, step.slots)
    else:
        kept = step.slots >= 0
        blocks, offsets = step.slots[kept] // BLOCK, step.slots[kept] % BLOCK
        keys[blocks, :, :, offsets] = key_TGd[kept]
        values[blocks, :, offsets] = value_TGd[kept]
    return keys, values


def _seen(
    segment: Segment, key: torch.Tensor, value: torch.Tensor, stored: tuple[torch.Tensor, torch.Tensor] | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values `[1, G, L, d]` of a piece: those just computed, or with what is stored before them."""
    piece = segment.piece
    if piece.start == 0 or stored is None:
        return key[:, :, segment.begin : segment.end], value[:, :, segment.begin : segment.end]
    blocks = torch.tensor(piece.blocks[: -(-piece.end // BLOCK)], device=key.device)
    keys_GLd = stored[0][blocks].permute(1, 0, 3, 2).flatten(1, 2)[:, : piece.end]
    values_GLd = stored[1][blocks].permute(1, 0, 2, 3).flatten(1, 2)[:, : piece.end]
    return keys_GLd.unsqueeze(0), values_GLd.unsqueeze(0)


def _plain(x: torch.Tensor) -> torch.Tensor:
    """Kernels go by strides, but for the last axis."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _mask(start: int, end: int, window: int | None, device: torch.device) -> torch.Tensor:
    """True where the row at a position (start..end) may look at a stored position (0..end)."""
    row, column = torch.arange(start, end, device=device)[:, None], torch.arange(end, device=device)
    seen = column <= row
    return seen if window is None else seen & (column > row - window)


def _written_out(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor, weighing: Weighing
) -> torch.Tensor:
    group = query.shape[1] // key.shape[1]
    scores_HTL = (query[0] @ key[0].repeat_interleave(group, 0).transpose(1, 2)).float() * weighing.scale
    if weighing.softcap is not None:
        scores_HTL = torch.tanh(scores_HTL / weighing.softcap) * weighing.softcap
    scores_HTL = scores_HTL.masked_fill(~mask, float("-inf"))
    if weighing.sinks is not None:
        sinks = weighing.sinks.view(-1, 1, 1).expand(-1, scores_HTL.shape[1], 1)
        scores_HTL = torch.cat([scores_HTL, sinks], -1)
    weights = scores_HTL.softmax(-1)[..., : value.shape[2]].to(value.dtype)
    return (weights @ value[0].repeat_interleave(group, 0)).transpose(0, 1)
