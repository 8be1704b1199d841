"""Small steps of Llama-like models on a GPU, decode steps above all: few launches a layer, captured as a CUDA graph.

Launched one by one, a step's operations keep the GPU waiting for Python. So a step of up to `MAX_ROWS` rows is filled
up to a power of two and computed by one graph of its size: products of the base by torch (cuBLAS), of adapters,
attention and what lies between by our kernels. What changes from step to step (tokens, positions, blocks, adapters'
slots) is written to memory that the graph reads, in one copy. The first step of a size is computed as it is, which also
compiles the kernels; the second is captured. There are at most `MAX_GRAPHS`; where one finds no memory its steps go on
as they are.

The weights of products that share their input are laid side by side; the model's own modules look into the same memory.
Owns the reading of such a model; `PackedModel` decides by its probe whether the result may be used.

Shapes: B rows of the filled step, H hidden size, d of a head, V vocabulary.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from openledger.openlora.kv import KeyValueBlocks
from openledger.openlora.lora import Plan
from openledger.openlora.lora_triton import TritonPlan
from openledger.openlora.native import Rows, Weighing
from openledger.openlora.packing import PackedStep
from openledger.openlora.triton_kernels import TILE_FIELDS, Tiles, TritonKernels

MAX_ROWS = 256
MAX_GRAPHS = 64  # the one that wasn't used for longest goes
_GROUPS = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("self_attn.o_proj",),
    ("mlp.gate_proj", "mlp.up_proj"),
    ("mlp.down_proj",),
)
_NUM_SITES = sum(map(len, _GROUPS))
_FEWEST_BLOCKS = 16
_FEW_TILES = 8  # where there are so many times fewer tiles than rows, a graph of its own launches no empty ones
_LEAST_RANK = 16  # smaller ones have the same kernels
_IN_PLACE = 4  # int64 of a row: token, position, slot, kept row
_Key = tuple[int, int, int, bool]  # rows, blocks of a row, largest rank, whether there are few tiles
_log = logging.getLogger(__name__)


class GraphStep:
    """`modules` are the names of the linear layers it computes, in the order in which adapters' tables must have them.
    Without `capture` every step is computed as it is."""

    def __init__(
        self,
        model: Any,
        kernels: TritonKernels,
        weighings: Mapping[int, Weighing],
        *,
        capture: bool,
    ):
        inner = model.model
        attention = inner.layers[0].self_attn
        self._kernels, self._capture, self.max_rows = kernels, capture, MAX_ROWS
        self.name = "one graph" if capture else "kernel by kernel"
        self._layers = tuple(_Layer.read(layer, weighings[number]) for number, layer in enumerate(inner.layers))
        self._embeddings, self._norm = inner.embed_tokens.weight, inner.norm.weight
        self._head = model.lm_head
        self._eps = float(inner.norm.variance_epsilon)
        self._frequencies = inner.rotary_emb.inv_freq.float()
        self._rotation_scale = float(inner.rotary_emb.attention_scaling)
        self._dim = int(attention.head_dim)
        self._heads = attention.q_proj.out_features // self._dim
        self._kv_heads = attention.k_proj.out_features // self._dim
        self.modules = tuple(
            f"model.layers.{number}.{site}"
            for number in range(len(self._layers))
            for group in _GROUPS
            for site in group
        )
        self._inputs: dict[tuple[int, int], _Inputs] = {}
        self._graphs: dict[_Key, _Graph] = {}
        self._computed, self._refused = set[_Key](), set[_Key]()
        self._logits: dict[int, torch.Tensor] = {}
        self._aimed: tuple[KeyValueBlocks | None, torch.Tensor | None] = (None, None)
        self._pool: Any = None
        self._side: Any = torch.cuda.Stream() if capture else None

    @property
    def num_graphs(self) -> int:
        return len(self._graphs)

    def takes(self, step: PackedStep, plan: Plan | None) -> bool:
        """Whether all of the step's pieces are short, few enough, and under one adapter each."""
        return (
            0 < step.num_rows <= self.max_rows
            and step.num_short == len(step.segments)
            and step.between is None
            and (plan is None or (isinstance(plan, TritonPlan) and len(plan.waves) == 1))
        )

    def logits(self, step: PackedStep, plan: Plan | None) -> torch.Tensor:
        """Logits fp32 `[number of kept rows, V]`, good until the next call."""
        assert step.kv is not None  # short pieces have blocks
        assert step.short_rows is not None
        assert plan is None or isinstance(plan, TritonPlan)
        self._aim(step.kv, None if plan is None else plan.table)
        size = _filled(step.num_rows), max(_FEWEST_BLOCKS, _filled(step.short_rows.tables.shape[1]))
        if size not in self._inputs:
            self._inputs[size] = _Inputs.make(*size, self._embeddings.device)
        inputs, kv = self._inputs[size], step.kv
        inputs.fill(step, plan)
        max_rank = 0 if plan is None else max(_LEAST_RANK, _filled(plan.max_rank))
        few = plan is not None and len(plan.waves[0][0]) <= size[0] // _FEW_TILES
        tiles = None if plan is None else inputs.tiles(plan, max_rank, size[0] // _FEW_TILES if few else size[0])
        return self._run((*size, max_rank, few), lambda: self._compute(inputs, tiles, kv))[: len(step.kept_rows)]

    def _run(self, key: _Key, compute: Callable[[], torch.Tensor]) -> torch.Tensor:
        graph = self._graphs.pop(key, None)
        if graph is None and self._capture and key in self._computed and key not in self._refused:
            graph = self._captured(key, compute)
        if graph is None:
            self._computed.add(key)
            return compute().float()
        self._graphs[key] = graph  # those used last are last
        graph.graph.replay()
        return graph.logits

    def _captured(self, key: _Key, compute: Callable[[], torch.Tensor]) -> "_Graph | None":
        """None where it can't be, as there is no memory for it: such steps are computed as they are from then on."""
        while len(self._graphs) >= MAX_GRAPHS:
            del self._graphs[next(iter(self._graphs))]
        try:
            logits = self._logits_of(key[0])
            return _Graph(graph=self._record(lambda: logits.copy_(compute())), logits=logits)
        except RuntimeError as error:
            self._refused.add(key)
            _log.warning("steps of %d rows are computed without a graph: %s", key[0], error)
        if not self._graphs:
            self._pool = None  # torch takes none again that has lost its last graph
        torch.cuda.empty_cache()
        return None

    def _logits_of(self, size: int) -> torch.Tensor:
        """All graphs of a size leave their logits in one place."""
        if size not in self._logits:
            weight = self._head.weight
            self._logits[size] = torch.empty(size, len(weight), dtype=torch.float32, device=weight.device)
        return self._logits[size]

    def _record(self, compute: Callable[[], object]) -> Any:
        """Other threads may load adapters meanwhile."""
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        try:
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                compute()
        finally:
            torch.cuda.set_stream(stream)  # a capture that fails leaves its own
        return graph

    def _aim(self, kv: KeyValueBlocks, table: torch.Tensor | None) -> None:
        """Graphs hold addresses: with another storage, or another table of adapters, they are of no use."""
        known_kv, known_table = self._aimed
        if kv is not known_kv or (table is not None and known_table is not None and table is not known_table):
            self._graphs.clear()
            self._computed.clear()
            self._pool = None  # it went with the last of them
        self._aimed = kv, known_table if table is None else table

    def _compute(self, inputs: "_Inputs", tiles: Tiles | None, kv: KeyValueBlocks) -> torch.Tensor:
        kernels, heads, dim, delta_BH = self._kernels, self._heads, self._dim, None
        x_BH = functional.embedding(inputs.ids, self._embeddings)
        angles_Bd = inputs.positions[:, None].float() * self._frequencies
        cos_Bd, sin_Bd = angles_Bd.cos() * self._rotation_scale, angles_Bd.sin() * self._rotation_scale
        like = x_BH.new_empty(1, self._kv_heads, 1, dim)
        for number, layer in enumerate(self._layers):
            stored = kv.layer(number, like, like)
            h_BH = kernels.add_norm(x_BH, delta_BH, layer.norm, self._eps)
            qkv_BO = self._product(layer.products[0], h_BH, tiles, number, 0)
            kernels.rotate_and_store(qkv_BO, cos_Bd, sin_Bd, layer.head_norms, self._eps, *stored, inputs.slots, heads)
            query_HBd = qkv_BO[:, : heads * dim].view(-1, heads, dim).transpose(0, 1)
            mean_BHd = x_BH.new_empty(len(x_BH), heads, dim)
            kernels.attend(query_HBd, *stored, inputs.rows, mean_BHd, layer.weighing)
            delta_BH = self._product(layer.products[1], mean_BHd.flatten(1), tiles, number, 1)
            h_BH = kernels.add_norm(x_BH, delta_BH, layer.mlp_norm, self._eps)
            gated_BI = kernels.silu_gate(self._product(layer.products[2], h_BH, tiles, number, 2))
            delta_BH = self._product(layer.products[3], gated_BI, tiles, number, 3)
        h_BH = kernels.add_norm(x_BH, delta_BH, self._norm, self._eps)
        return functional.linear(h_BH[inputs.kept], self._head.weight, self._head.bias)

    def _product(
        self, product: "_Product", x_BI: torch.Tensor, tiles: Tiles | None, layer: int, group: int
    ) -> torch.Tensor:
        if tiles is None:
            return functional.linear(x_BI, product.weight, product.bias)
        first = layer * _NUM_SITES + sum(map(len, _GROUPS[:group]))
        with self._beside():
            h_SBJR = self._kernels.shrink(x_BI, tiles, first, len(product.sizes))
        y_BO = functional.linear(x_BI, product.weight, product.bias)
        self._join()
        self._kernels.expand(h_SBJR, y_BO, tiles, first, product.sizes)
        return y_BO

    @contextmanager
    def _beside(self) -> Iterator[None]:
        """What is queued within runs at the same time as what comes after, up to `_join`."""
        if self._side is None:
            yield
            return
        self._side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._side):
            yield

    def _join(self) -> None:
        if self._side is not None:
            torch.cuda.current_stream().wait_stream(self._side)


def _filled(size: int) -> int:
    """The next power of two."""
    return 1 << (size - 1).bit_length()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Graph:
    graph: Any
    logits: torch.Tensor


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Product:
    """Layers that share their input, their outputs (of `sizes`) side by side."""

    weight: torch.Tensor
    bias: torch.Tensor | None
    sizes: tuple[int, ...]

    @classmethod
    def join(cls, layers: Sequence[nn.Linear]) -> "_Product":
        """The layers' own weights become views of the joined ones, so that nothing is kept twice."""
        sizes = tuple(layer.out_features for layer in layers)
        if len(layers) == 1:
            return cls(weight=layers[0].weight.data, bias=_data(layers[0].bias), sizes=sizes)
        weight_OI = torch.cat([layer.weight.data for layer in layers])
        biases = [layer.bias for layer in layers]
        bias_O = None if biases[0] is None else torch.cat([each.data for each in biases])
        for layer, part_OI in zip(layers, weight_OI.split(sizes), strict=True):
            layer.weight.data = part_OI
        return cls(weight=weight_OI, bias=bias_O, sizes=sizes)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Layer:
    norm: torch.Tensor
    mlp_norm: torch.Tensor
    head_norms: tuple[torch.Tensor, torch.Tensor] | None
    products: tuple[_Product, ...]
    weighing: Weighing

    @classmethod
    def read(cls, layer: Any, weighing: Weighing) -> "_Layer":
        norms = [getattr(layer.self_attn, name, None) for name in ("q_norm", "k_norm")]
        return cls(
            norm=layer.input_layernorm.weight,
            mlp_norm=layer.post_attention_layernorm.weight,
            head_norms=None if norms[0] is None or norms[1] is None else (norms[0].weight, norms[1].weight),
            products=tuple(_Product.join([layer.get_submodule(site) for site in group]) for group in _GROUPS),
            weighing=weighing,
        )


@dataclass(slots=True, kw_only=True, eq=False)
class _Inputs:
    """What a step brings, at places that stay: `host` is written, and copied to `device` at once.

    Both are int32: four int64 of each row, three int32 of each tile, its weight, each row's length, table, and blocks.
    """

    size: int
    num_blocks: int
    host: torch.Tensor
    device: torch.Tensor
    copied: Any

    @classmethod
    def make(cls, size: int, num_blocks: int, device: torch.device) -> "_Inputs":
        on_gpu, width = device.type == "cuda", 2 * _IN_PLACE + TILE_FIELDS + 3 + num_blocks
        host = torch.zeros(size * width, dtype=torch.int32, pin_memory=on_gpu)
        copied = torch.cuda.Event() if on_gpu else None
        return cls(size=size, num_blocks=num_blocks, host=host, device=host.to(device, copy=True), copied=copied)

    @property
    def ids(self) -> torch.Tensor:
        return self._whole(self.device)[0]

    @property
    def positions(self) -> torch.Tensor:
        return self._whole(self.device)[1]

    @property
    def slots(self) -> torch.Tensor:
        return self._whole(self.device)[2]

    @property
    def kept(self) -> torch.Tensor:
        return self._whole(self.device)[3]

    @property
    def rows(self) -> Rows:
        lengths, tables, blocks = self._rows(self.device)
        return Rows(tables=blocks, row_tables=tables, lengths=lengths)

    def tiles(self, plan: TritonPlan, max_rank: int, count: int) -> Tiles:
        fields, weights = self._tiles(self.device)
        return Tiles(
            fields=fields[:count], weights=weights[:count], num_rows=plan.num_rows, table=plan.table,
            dtype=plan.products.dtype, max_rank=max_rank,
        )  # fmt: skip

    def fill(self, step: PackedStep, plan: TritonPlan | None) -> None:
        """Rows beyond the step's go nowhere and look at nothing."""
        assert step.short_rows is not None
        if self.copied is not None:
            self.copied.synchronize()
        rows, kept = step.num_rows, len(step.kept_rows)
        whole = self._whole(self.host)
        whole[:, rows:] = torch.tensor([0, 0, -1, 0])[:, None]
        whole[0, :rows], whole[1, :rows], whole[2, :rows] = step.input_ids[0], step.position_ids[0], step.slots
        whole[3, :kept] = step.kept_rows
        whole[3, kept:] = 0
        lengths, tables, blocks = self._rows(self.host)
        lengths[:rows], lengths[rows:] = step.short_rows.lengths, 0
        tables[:rows], tables[rows:] = step.short_rows.row_tables, 0
        known = step.short_rows.tables
        blocks[: len(known), : known.shape[1]] = known
        fields, weights = self._tiles(self.host)
        fields[:, 2] = -1
        if plan is not None:
            (found, weighed), *_ = plan.waves
            fields[: len(found)] = torch.from_numpy(found)
            weights[: len(found)] = torch.from_numpy(weighed)
        self.device.copy_(self.host, non_blocking=True)
        if self.copied is not None:
            self.copied.record()

    def _whole(self, memory: torch.Tensor) -> torch.Tensor:
        return memory[: 2 * _IN_PLACE * self.size].view(torch.int64).view(_IN_PLACE, self.size)

    def _tiles(self, memory: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        begin = 2 * _IN_PLACE * self.size
        middle = begin + TILE_FIELDS * self.size
        fields = memory[begin:middle].view(self.size, TILE_FIELDS)
        return fields, memory[middle : middle + self.size].view(torch.float32)

    def _rows(self, memory: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        begin = (2 * _IN_PLACE + TILE_FIELDS + 1) * self.size
        lengths, tables = memory[begin : begin + 2 * self.size].view(2, self.size)
        return lengths, tables, memory[begin + 2 * self.size :].view(self.size, self.num_blocks)


def _data(parameter: torch.Tensor | None) -> torch.Tensor | None:
    return None if parameter is None else parameter.data
