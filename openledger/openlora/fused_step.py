"""Small steps of Llama-like models, decode steps above all: one call of the kernels in place of transformers' modules.

With few rows a step's time goes into Python and small operations as much as into products. Where a model's layers are
made as Llama's are (RMSNorm, rotation by halves, SiLU gate; with Qwen's biases and norms of heads, with windows), the
call computes what its modules would, on the model's own weights as they lie, or on copies of them in int8:
q = round(w / s) with s = max |w| / 127 over the row of an output. Owns the reading of such a model and the tables of
pointers; `PackedModel` decides by its probe whether the result may be used. Larger steps, and scoring, go through the
modules.
"""

import copy
import ctypes
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from transformers.activations import SiLUActivation

from openledger.openlora.kv import KeyValueBlocks
from openledger.openlora.native import Kernels, Layer, Linear, Step, Weighing
from openledger.openlora.packing import PackedStep

MAX_ROWS = 192  # more gain little
_MAX_BYTES = 1 << 20  # of the rows that enter a layer: what falls out of the second cache is read again and again
_FLOAT, _HALF, _INT8 = 0, 1, 2
_WIDE = 6  # rows of weights that the kernels make floats of at a time, at most
_LAYERS = ("LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer", "Qwen3DecoderLayer")
_STEADY_ROTATIONS = ("default", "linear", "llama3", "yarn")  # others depend on what else is in the batch
_SITES = (
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
    "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
)  # fmt: skip
_FIELDS = ("query", "key", "value", "output", "gate", "up", "down")  # of `Layer`, in the order of the sites


class FusedStep:
    """`modules` are the names of the linear layers it computes, in the order in which it takes adapters' segments.
    With `int8` it keeps their weights, and the head's, in a byte each. Up to `max_rows` rows it is the faster way."""

    def __init__(self, model: Any, kernels: Kernels, weighings: Mapping[int, Weighing], *, int8: bool = False):
        self._kernels, self._inner, self._int8 = kernels, model.model, int8
        self._held: list[torch.Tensor] = []  # what the tables point to, beside the model's own parameters
        layers = list(self._inner.layers)
        self.modules = tuple(f"model.layers.{number}.{site}" for number in range(len(layers)) for site in _SITES)
        self._no_segments = np.zeros(len(self.modules), np.int64)
        self._layers = (Layer * len(layers))(*(self._layer(each, weighings[n]) for n, each in enumerate(layers)))
        self._step = self._constants(model, weighings[0].scale)
        widest = max(self._step.hidden, self._step.inner, self._step.heads * self._step.head_dim)
        self._wide = _WIDE * widest
        self.max_rows = min(MAX_ROWS, _MAX_BYTES // (4 * widest))
        self._kv: KeyValueBlocks | None = None
        self._scratch, self._logits = torch.empty(0), torch.empty(0, 0)

    def over(self, weights: Mapping[str, torch.Tensor]) -> "FusedStep":
        """The same step with these weights, fp32 as torch keeps them, in place of those of some of its modules."""
        other = copy.copy(self)
        other._held = [*self._held, *weights.values()]
        other._layers = (Layer * len(self._layers)).from_buffer_copy(self._layers)
        for number, module in enumerate(self.modules):
            if module in weights:
                layer, site = divmod(number, len(_SITES))
                getattr(other._layers[layer], _FIELDS[site]).weight = weights[module].data_ptr()
        other._step = Step.from_buffer_copy(self._step)
        other._step.layers = ctypes.addressof(other._layers)
        other._kv = None
        other._scratch, other._logits = torch.empty(0), torch.empty(0, 0)
        return other

    def takes(self, step: PackedStep) -> bool:
        """Whether all of the step's pieces are short, and few enough."""
        return 0 < step.num_rows <= self.max_rows and step.num_short == len(step.segments) and step.between is None

    def logits(self, step: PackedStep, segments: npt.NDArray[np.int64] | None, num_segments: int) -> torch.Tensor:
        """Logits fp32 `[number of kept rows, V]`, good until the next call. `segments` are addresses by `modules`."""
        assert step.kv is not None  # short pieces have blocks
        assert step.short_rows is not None
        call, kept = self._step, len(step.kept_rows)
        self._aim(step.kv)
        self._make_room(step.num_rows, kept)
        call.rows, call.ids, call.positions = step.num_rows, step.input_ids.data_ptr(), step.position_ids.data_ptr()
        call.slots, call.kept, call.num_kept = step.slots.data_ptr(), step.kept_rows.data_ptr(), kept
        call.tables, call.table_stride, call.row_tables, call.lengths = step.short_rows.pointers
        call.segments = (self._no_segments if segments is None else segments).ctypes.data
        call.num_segments = num_segments
        self._kernels.step(call)
        return self._logits[:kept]

    def _constants(self, model: Any, scale: float) -> Step:
        inner, attention = self._inner, self._inner.layers[0].self_attn
        dim = attention.head_dim
        return Step(
            layers=ctypes.addressof(self._layers),
            num_layers=len(self._layers),
            embeddings=inner.embed_tokens.weight.data_ptr(),
            norm=self._floats(inner.norm.weight),
            frequencies=self._floats(inner.rotary_emb.inv_freq),
            hidden=inner.embed_tokens.weight.shape[1],
            heads=attention.q_proj.out_features // dim,
            kv_heads=attention.k_proj.out_features // dim,
            head_dim=dim,
            inner=inner.layers[0].mlp.gate_proj.out_features,
            is_bf16=inner.embed_tokens.weight.dtype is torch.bfloat16,
            head=self._linear(model.lm_head),
            eps=inner.norm.variance_epsilon,
            scale=scale,
            rotation_scale=inner.rotary_emb.attention_scaling,
        )

    def _layer(self, layer: Any, weighing: Weighing) -> Layer:
        attention = layer.self_attn
        norms = [getattr(attention, name, None) for name in ("q_norm", "k_norm")]
        query_norm, key_norm = (0 if norm is None else self._floats(norm.weight) for norm in norms)
        sites = (self._linear(layer.get_submodule(site)) for site in _SITES)
        return Layer(
            self._floats(layer.input_layernorm.weight), query_norm, key_norm,
            self._floats(layer.post_attention_layernorm.weight), 0, 0, weighing.window or 0, *sites,
        )  # fmt: skip

    def _linear(self, linear: nn.Linear) -> Linear:
        weight_OI = linear.weight
        bias = 0 if linear.bias is None else self._floats(linear.bias)
        if not self._int8:
            kind = _HALF if weight_OI.dtype is torch.bfloat16 else _FLOAT
            return Linear(weight_OI.data_ptr(), bias, 0, weight_OI.shape[1], weight_OI.shape[0], kind)
        bytes_OI, scales_O = quantise(weight_OI)
        self._held.append(bytes_OI)
        return Linear(bytes_OI.data_ptr(), bias, self._floats(scales_O), weight_OI.shape[1], weight_OI.shape[0], _INT8)

    def _floats(self, values: torch.Tensor) -> int:
        self._held.append(values.detach().float().contiguous())
        return self._held[-1].data_ptr()

    def _aim(self, kv: KeyValueBlocks) -> None:
        """Point the layers at the storage of `kv`."""
        if kv is self._kv:
            return
        dtype = torch.bfloat16 if self._step.is_bf16 else torch.float32
        token = torch.empty(1, self._step.kv_heads, 1, self._step.head_dim, dtype=dtype)
        for number, layer in enumerate(self._layers):
            layer.keys, layer.values = (stored.data_ptr() for stored in kv.layer(number, token, token))
        self._kv = kv

    def _make_room(self, rows: int, kept: int) -> None:
        call = self._step
        heads = call.heads + call.kv_heads
        size = rows * (2 * call.hidden + 2 * call.inner + (3 * heads + 1) * call.head_dim) + self._wide
        if len(self._scratch) < size:
            self._scratch = torch.empty(size)
            call.scratch = self._scratch.data_ptr()
        if len(self._logits) < kept:
            self._logits = torch.empty(kept, call.head.out)
            call.logits = self._logits.data_ptr()


def quantise(weight_OI: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """int8 `[O, I]`, I filled up to whole chunks in the order of the kernel, and the scale fp32 `[O]` of each row."""
    whole_OI, scales_O = _whole_numbers(weight_OI)
    filled_OI = nn.functional.pad(whole_OI.to(torch.int8), (0, -whole_OI.shape[1] % 64))
    return filled_OI.unflatten(1, (-1, 4, 16)).transpose(2, 3).flatten(1).contiguous(), scales_O


def rounded(weight_OI: torch.Tensor) -> torch.Tensor:
    """What `quantise` makes of a weight, as a weight."""
    whole_OI, scales_O = _whole_numbers(weight_OI)
    return (whole_OI * scales_O[:, None]).to(weight_OI.dtype)


def _whole_numbers(weight_OI: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    weight_OI = weight_OI.detach().float()
    scales_O = weight_OI.abs().amax(1).clamp(min=1e-30) / 127
    return (weight_OI / scales_O[:, None]).round_(), scales_O


def is_like_llama(model: Any, weighings: Mapping[int, Weighing]) -> bool:
    """Whether the parts of `model` are those that the call computes. Made so, it still has to prove it."""
    layers = list(getattr(getattr(model, "model", None), "layers", ()))
    if not layers or weighings.keys() != set(range(len(layers))):
        return False
    rotation: Any = getattr(model.model, "rotary_emb", None)
    return (
        all(
            type(layer).__name__ in _LAYERS and isinstance(layer.mlp.act_fn, SiLUActivation | nn.SiLU)
            for layer in layers
        )
        and all(type(layer.get_submodule(site)) is nn.Linear for layer in layers for site in _SITES)
        and getattr(rotation, "rope_type", "") in _STEADY_ROTATIONS
        and 2 * len(rotation.inv_freq) == layers[0].self_attn.head_dim
        and len({each.scale for each in weighings.values()}) == 1
        and all(each.softcap is None and each.sinks is None for each in weighings.values())
        and len({norm.variance_epsilon for norm in _norms(model.model)}) == 1
    )


def _norms(inner: Any) -> Sequence[Any]:
    every = [getattr(layer.self_attn, name, None) for layer in inner.layers for name in ("q_norm", "k_norm")]
    every += [norm for layer in inner.layers for norm in (layer.input_layernorm, layer.post_attention_layernorm)]
    return [norm for norm in (*every, inner.norm) if norm is not None]
