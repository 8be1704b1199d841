"""The kernels for GPUs, in Triton: what `kernels.cpp` is for processors, checked against the same references.

Attention of single rows over blocks of keys and values (PagedAttention, Kwon et al., 2023), each row's positions split
over several programs where there are many of them (Flash-Decoding, Dao et al., 2023). The LoRA product of sorted
segments in two launches (Punica, Chen et al., 2023; S-LoRA, Sheng et al., 2023): h = A x, then y += w B h, each program
for a tile of rows under one adapter, at the adapter's true rank and through pointers from a table in the device's
memory, so that a captured graph serves whatever adapters come. And the small operations between the products of a
Llama-like layer: root-mean-square norms, rotation, SiLU gate.

Importing this imports Triton. Knows nothing of models and steps; `find_kernels` in `devices` decides whether it is
used. With TRITON_INTERPRET=1 the kernels run on the CPU, slowly: tests do that.

Shapes: T rows, I features in, O out, R rank, H heads, G key/value heads, d their size, n blocks of 16 positions,
S splits, J modules that share their input, N tiles.
"""

from dataclasses import dataclass
from subprocess import SubprocessError
from typing import Any, ClassVar

import torch
import triton
import triton.language as tl
from triton.errors import TritonError

from openledger.openlora.native import BLOCK, Rows, Weighing

TILE_FIELDS = 3  # begin, end, slot of the adapter (-1: none)
TABLE_FIELDS = 3  # pointer to A [R, I], pointer to B [R, O] with the scale in it, rank (0: the module isn't targeted)
_LONG = 256  # positions: from here on rows are split
_MAX_SPLITS, _PROGRAMS = 16, 264  # about two programs for each of a GPU's multiprocessors
_RANKS = 64  # at a time
_LORA_SPLITS = 8  # of a module's inputs, at most
_WIDTH = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiles:
    """Which rows are under which adapter: `fields` int32 [N, TILE_FIELDS], `weights` fp32 [N]; none has more than
    `num_rows` rows, and no two have a row in common. `table` int64 [slots, M, TABLE_FIELDS] says where each adapter's
    factors lie, in `dtype`, of `max_rank` at most."""

    fields: torch.Tensor
    weights: torch.Tensor
    num_rows: int
    table: torch.Tensor
    dtype: torch.dtype
    max_rank: int


class TritonKernels:
    """All calls are queued on the current stream and return at once; the first of a kind compiles, which may fail."""

    failures: ClassVar[tuple[type[Exception], ...]] = (TritonError, SubprocessError)

    def __init__(self) -> None:
        self.interpreted = bool(triton.knobs.runtime.interpret)

    def __repr__(self) -> str:
        return f"triton {triton.__version__}" + (", interpreted" if self.interpreted else "")

    def store(
        self, key_TGd: torch.Tensor, value_TGd: torch.Tensor, keys: torch.Tensor, values: torch.Tensor,
        slots: torch.Tensor,
    ) -> None:  # fmt: skip
        """Put each row's key and value into slot `slots` int64 [T] (block * 16 + position; negative: nowhere)."""
        rows, heads, key_dim = key_TGd.shape
        _store[(rows, heads)](
            key_TGd, *key_TGd.stride()[:2], value_TGd, *value_TGd.stride()[:2], keys, values, slots, heads, key_dim,
            value_TGd.shape[2], BLOCK=BLOCK, WIDTH=_whole(max(key_dim, value_TGd.shape[2])),
        )  # fmt: skip

    def attend(
        self, query_HTd: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, rows: Rows, out_THd: torch.Tensor,
        weighing: Weighing, splits: int = 0,
    ) -> None:  # fmt: skip
        """Attention of the first rows, those that `rows` tells of. `keys` [n, G, d, 16], `values` [n, G, 16, d], all
        of one dtype. Rows of no length get zeros. `splits` 0: as the tables' width suggests."""
        num_rows, heads, kv_heads = rows.lengths.shape[0], query_HTd.shape[0], keys.shape[1]
        splits = splits or splits_for(num_rows, kv_heads, rows.tables.shape[1] * BLOCK)
        sizes = {"KEY": _whole(keys.shape[2]), "VALUE": _whole(values.shape[3])}
        narrow = keys.dtype is torch.bfloat16 and max(sizes.values()) <= 128
        partial = out_THd
        if splits > 1:
            partial = out_THd.new_empty(num_rows, heads, splits, values.shape[3] + 2, dtype=torch.float32)
        sinks = out_THd if weighing.sinks is None else weighing.sinks
        _attend[(num_rows, kv_heads, splits)](
            query_HTd, query_HTd.stride(1), query_HTd.stride(0), keys, values, rows.tables, rows.tables.stride(0),
            rows.row_tables, rows.lengths, sinks, out_THd, out_THd.stride(0), partial, weighing.scale,
            weighing.softcap or 0.0, weighing.window or 0, kv_heads, heads // kv_heads, keys.shape[2],
            values.shape[3], BLOCK=BLOCK, POSITIONS=64 if narrow else 32, GROUP=_whole(heads // kv_heads),
            SPLITS=splits, HAS_SINKS=weighing.sinks is not None, HAS_SOFTCAP=weighing.softcap is not None,
            HAS_WINDOW=weighing.window is not None, **sizes, num_stages=2,
        )  # fmt: skip
        if splits > 1:
            _join[(num_rows, heads)](
                partial, sinks, out_THd, out_THd.stride(0), heads, values.shape[3], SPLITS=splits,
                VALUE=sizes["VALUE"], HAS_SINKS=weighing.sinks is not None,
            )  # fmt: skip

    def add_lora(
        self, x_TI: torch.Tensor, y_TO: torch.Tensor, tiles: Tiles, first_module: int, sizes: tuple[int, ...]
    ) -> None:
        """y += x A B of modules `first_module` and on, whose outputs of `sizes` lie side by side in y."""
        self.expand(self.shrink(x_TI, tiles, first_module, len(sizes)), y_TO, tiles, first_module, sizes)

    def shrink(self, x_TI: torch.Tensor, tiles: Tiles, first_module: int, num_modules: int) -> torch.Tensor:
        """x A of so many modules, fp32 `[S, T, J, R]`: its sum over S."""
        chunk, chunks = _rank_chunks(tiles)
        plain = x_TI.dtype != tiles.dtype
        inputs = 256 if tiles.num_rows == 16 and not plain and tiles.dtype is torch.bfloat16 else 64
        splits = min(_LORA_SPLITS, -(-x_TI.shape[1] // inputs)) if tiles.num_rows == 16 else 1
        h_STJR = x_TI.new_empty(splits, len(x_TI), num_modules, chunks * chunk, dtype=torch.float32)
        _shrink[(len(tiles.fields), num_modules * chunks, splits)](
            x_TI, x_TI.stride(0), h_STJR, len(x_TI), tiles.fields, tiles.table, tiles.table.shape[1], first_module,
            x_TI.shape[1], MODULES=num_modules, CHUNKS=chunks, CHUNK=chunk, SPLITS=splits, ROWS=tiles.num_rows,
            INPUTS=inputs, FACTOR=_factor_type(tiles), PLAIN=plain, FIELDS=TILE_FIELDS, ENTRY=TABLE_FIELDS,
            num_stages=2,
        )  # fmt: skip
        return h_STJR

    def expand(
        self, h_STJR: torch.Tensor, y_TO: torch.Tensor, tiles: Tiles, first_module: int, sizes: tuple[int, ...]
    ) -> None:
        """y += h B, of what `shrink` gave for as many modules as there are `sizes`."""
        chunk, chunks = _rank_chunks(tiles)
        outputs = 256 if tiles.num_rows == 16 and tiles.dtype is torch.bfloat16 else 128
        blocks = [-(-size // outputs) for size in sizes]
        _expand[(len(tiles.fields), sum(blocks))](
            h_STJR, len(y_TO), y_TO, y_TO.stride(0), tiles.fields, tiles.weights, tiles.table, tiles.table.shape[1],
            first_module, *(*sizes, 0, 0)[:3], MODULES=len(sizes), CHUNKS=chunks, CHUNK=chunk, SPLITS=len(h_STJR),
            ROWS=tiles.num_rows, OUTPUTS=outputs, FACTOR=_factor_type(tiles), PLAIN=y_TO.dtype != tiles.dtype,
            FIELDS=TILE_FIELDS, ENTRY=TABLE_FIELDS, num_stages=1,
        )  # fmt: skip

    def add_norm(
        self, x_TI: torch.Tensor, delta_TI: torch.Tensor | None, norm_I: torch.Tensor, eps: float
    ) -> torch.Tensor:
        """x += delta where there is one; then x / sqrt(mean x^2 + eps), times `norm_I`."""
        out_TI = torch.empty_like(x_TI)
        _add_norm[(len(x_TI),)](
            x_TI, x_TI if delta_TI is None else delta_TI, norm_I, out_TI, x_TI.shape[1], eps,
            HAS_DELTA=delta_TI is not None, WIDTH=_whole(x_TI.shape[1]),
        )  # fmt: skip
        return out_TI

    def rotate_and_store(
        self, qkv_TO: torch.Tensor, cos_Td: torch.Tensor, sin_Td: torch.Tensor,
        norms: tuple[torch.Tensor, torch.Tensor] | None, eps: float, keys: torch.Tensor, values: torch.Tensor,
        slots: torch.Tensor, heads: int,
    ) -> None:  # fmt: skip
        """Rotate the queries in place and the keys on their way into the storage, after their heads' `norms` where
        there are any; values go there as they are. A row of `qkv_TO` is its heads side by side: queries, keys,
        values. `cos_Td` and `sin_Td` are fp32, of half a head's size."""
        kv_heads, size = keys.shape[1], keys.shape[2]
        query_norm, key_norm = norms or (cos_Td, cos_Td)
        _rotate[(len(qkv_TO), heads + 2 * kv_heads)](
            qkv_TO, qkv_TO.stride(0), cos_Td, sin_Td, query_norm, key_norm, eps, keys, values, slots, heads, kv_heads,
            size, BLOCK=BLOCK, HALF=_whole(size // 2), HAS_NORMS=norms is not None,
        )  # fmt: skip

    def silu_gate(self, gate_up_TO: torch.Tensor) -> torch.Tensor:
        """SiLU of a row's first half times its second."""
        rows, size = len(gate_up_TO), gate_up_TO.shape[1] // 2
        out_TI = gate_up_TO.new_empty(rows, size)
        _silu_gate[(rows, -(-size // _WIDTH))](gate_up_TO, out_TI, size, WIDTH=_WIDTH)
        return out_TI


def splits_for(num_rows: int, kv_heads: int, longest: int) -> int:
    """Over how many programs a row's positions are split: as many as fill the GPU."""
    if longest <= _LONG:
        return 1
    wanted = max(1, _PROGRAMS // (num_rows * kv_heads))
    return min(_MAX_SPLITS, 1 << (wanted.bit_length() - 1))


def _rank_chunks(tiles: Tiles) -> tuple[int, int]:
    """How many ranks are taken at a time, and how often."""
    chunk = min(_RANKS, _whole(tiles.max_rank))
    return chunk, -(-tiles.max_rank // chunk)


def _factor_type(tiles: Tiles) -> Any:
    return tl.bfloat16 if tiles.dtype is torch.bfloat16 else tl.float32


def _whole(size: int) -> int:
    """A power of two that the matrix units take."""
    return max(16, triton.next_power_of_2(size))


@triton.jit
def _store(
    key, key_row, key_head, value, value_row, value_head, keys, values, slots, kv_heads, key_dim, value_dim,
    BLOCK: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    row, head = tl.program_id(0), tl.program_id(1)
    slot = tl.load(slots + row)
    if slot >= 0:
        block, offset = slot // BLOCK, slot % BLOCK
        at = tl.arange(0, WIDTH)
        k = tl.load(key + row * key_row + head * key_head + at, mask=at < key_dim)
        tl.store(keys + ((block * kv_heads + head) * key_dim + at) * BLOCK + offset, k, mask=at < key_dim)
        v = tl.load(value + row * value_row + head * value_head + at, mask=at < value_dim)
        tl.store(values + ((block * kv_heads + head) * BLOCK + offset) * value_dim + at, v, mask=at < value_dim)


@triton.jit(do_not_specialize=["table_stride"])
def _attend(
    query, query_row, query_head, keys, values, tables, table_stride, row_tables, lengths, sinks, out, out_row, partial,
    scale, softcap, window, kv_heads, group, key_dim, value_dim,
    BLOCK: tl.constexpr, POSITIONS: tl.constexpr, GROUP: tl.constexpr, SPLITS: tl.constexpr, HAS_SINKS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr, HAS_WINDOW: tl.constexpr, KEY: tl.constexpr, VALUE: tl.constexpr,
):  # fmt: skip
    row, kv_head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    length, table = tl.load(lengths + row), tl.load(row_tables + row)
    member, at_key, at_value = tl.arange(0, GROUP), tl.arange(0, KEY), tl.arange(0, VALUE)
    head = kv_head * group + member
    is_head, is_key, is_value = member < group, at_key < key_dim, at_value < value_dim
    q = tl.load(
        query + row * query_row + head[:, None] * query_head + at_key[None, :],
        mask=is_head[:, None] & is_key[None, :], other=0.0,
    )  # fmt: skip
    first = 0
    if HAS_WINDOW:
        first = tl.maximum(length - window, 0) // POSITIONS
    chunks = tl.cdiv(length, POSITIONS)
    each = tl.cdiv(chunks - first, SPLITS)
    begin = first + split * each
    largest = tl.full((GROUP,), float("-inf"), tl.float32)
    total = tl.zeros((GROUP,), tl.float32)
    mean = tl.zeros((GROUP, VALUE), tl.float32)
    for chunk in range(begin, tl.minimum(begin + each, chunks)):
        at = chunk * POSITIONS + tl.arange(0, POSITIONS)
        seen = at < length
        if HAS_WINDOW:
            seen = seen & (at >= length - window)
        block = tl.load(tables + table * table_stride + at // BLOCK, mask=seen, other=0).to(tl.int64)
        stored, offset = block * kv_heads + kv_head, at % BLOCK
        k = tl.load(
            keys + (stored[None, :] * key_dim + at_key[:, None]) * BLOCK + offset[None, :],
            mask=is_key[:, None] & seen[None, :], other=0.0,
        )  # fmt: skip
        score = tl.dot(q, k, input_precision="ieee") * scale
        if HAS_SOFTCAP:
            score = softcap * (1.0 - 2.0 / (1.0 + tl.exp(2.0 * score / softcap)))
        score = tl.where(seen[None, :], score, float("-inf"))
        larger = tl.maximum(largest, tl.max(score, 1))
        base = tl.where(larger == float("-inf"), 0.0, larger)
        weight, kept = tl.exp(score - base[:, None]), tl.exp(largest - base)
        v = tl.load(
            values + (stored[:, None] * BLOCK + offset[:, None]) * value_dim + at_value[None, :],
            mask=seen[:, None] & is_value[None, :], other=0.0,
        )  # fmt: skip
        total = total * kept + tl.sum(weight, 1)
        mean = mean * kept[:, None] + tl.dot(weight.to(v.dtype), v, input_precision="ieee")
        largest = larger
    is_out = is_head[:, None] & is_value[None, :]
    if SPLITS == 1:
        if HAS_SINKS:
            sink = tl.load(sinks + head, mask=is_head, other=0.0)
            larger = tl.maximum(largest, sink)
            kept = tl.exp(largest - larger)
            total, mean = total * kept + tl.exp(sink - larger), mean * kept[:, None]
        mean = mean / tl.where(total == 0.0, 1.0, total)[:, None]
        place = out + row.to(tl.int64) * out_row + head[:, None] * value_dim + at_value[None, :]
        tl.store(place, mean.to(out.dtype.element_ty), mask=is_out)
    else:
        place = partial + ((row.to(tl.int64) * kv_heads * group + head) * SPLITS + split) * (value_dim + 2)
        tl.store(place[:, None] + at_value[None, :], mean, mask=is_out)
        tl.store(place + value_dim, largest, mask=is_head)
        tl.store(place + value_dim + 1, total, mask=is_head)


@triton.jit
def _join(
    partial, sinks, out, out_row, heads, value_dim,
    SPLITS: tl.constexpr, VALUE: tl.constexpr, HAS_SINKS: tl.constexpr,
):  # fmt: skip
    row, head = tl.program_id(0), tl.program_id(1)
    split, at_value = tl.arange(0, SPLITS), tl.arange(0, VALUE)
    place = partial + ((row.to(tl.int64) * heads + head) * SPLITS + split) * (value_dim + 2)
    largest, total = tl.load(place + value_dim), tl.load(place + value_dim + 1)
    mean = tl.load(place[:, None] + at_value[None, :], mask=at_value[None, :] < value_dim, other=0.0)
    larger = tl.max(largest, 0)
    if HAS_SINKS:
        larger = tl.maximum(larger, tl.load(sinks + head))
    base = tl.where(larger == float("-inf"), 0.0, larger)
    kept = tl.exp(largest - base)
    whole = tl.sum(total * kept, 0)
    if HAS_SINKS:
        whole += tl.exp(tl.load(sinks + head) - base)
    mean = tl.sum(mean * kept[:, None], 0) / tl.where(whole == 0.0, 1.0, whole)
    place = out + row.to(tl.int64) * out_row + head * value_dim + at_value
    tl.store(place, mean.to(out.dtype.element_ty), mask=at_value < value_dim)


@triton.jit(do_not_specialize=["num_rows", "first_module", "num_modules"])
def _shrink(
    x, x_row, h, num_rows, tiles, table, num_modules, first_module, size_in,
    MODULES: tl.constexpr, CHUNKS: tl.constexpr, CHUNK: tl.constexpr, SPLITS: tl.constexpr, ROWS: tl.constexpr,
    INPUTS: tl.constexpr, FACTOR: tl.constexpr, PLAIN: tl.constexpr, FIELDS: tl.constexpr, ENTRY: tl.constexpr,
):  # fmt: skip
    tile, module, split = tl.program_id(0), tl.program_id(1) // CHUNKS, tl.program_id(2)
    rank_at = (tl.program_id(1) % CHUNKS) * CHUNK + tl.arange(0, CHUNK)
    slot = tl.load(tiles + tile * FIELDS + 2)
    if slot >= 0:
        entry = table + (slot.to(tl.int64) * num_modules + first_module + module) * ENTRY
        rank = tl.load(entry + 2)
        if (tl.program_id(1) % CHUNKS) * CHUNK < rank:
            a = tl.load(entry).to(tl.pointer_type(FACTOR))
            row = tl.load(tiles + tile * FIELDS) + tl.arange(0, ROWS)
            is_row = row < tl.load(tiles + tile * FIELDS + 1)
            each = tl.cdiv(tl.cdiv(size_in, INPUTS), SPLITS)
            h_NR = tl.zeros((ROWS, CHUNK), tl.float32)
            for part in range(split * each, tl.minimum((split + 1) * each, tl.cdiv(size_in, INPUTS))):
                at = part * INPUTS + tl.arange(0, INPUTS)
                x_NI = tl.load(
                    x + row[:, None].to(tl.int64) * x_row + at[None, :],
                    mask=is_row[:, None] & (at < size_in)[None, :], other=0.0,
                )  # fmt: skip
                a_IR = tl.load(
                    a + rank_at[None, :] * size_in + at[:, None],
                    mask=(rank_at < rank)[None, :] & (at < size_in)[:, None], other=0.0,
                )  # fmt: skip
                if PLAIN:
                    x_NI, a_IR = x_NI.to(tl.float32), a_IR.to(tl.float32)
                h_NR += tl.dot(x_NI, a_IR, input_precision="ieee")
            place = h + ((split.to(tl.int64) * num_rows + row) * MODULES + module)[:, None] * (CHUNKS * CHUNK)
            tl.store(place + rank_at[None, :], h_NR, mask=is_row[:, None] & (rank_at < rank)[None, :])


@triton.jit(do_not_specialize=["num_rows", "first_module", "num_modules"])
def _expand(
    h, num_rows, y, y_row, tiles, weights, table, num_modules, first_module, first_size, second_size, third_size,
    MODULES: tl.constexpr, CHUNKS: tl.constexpr, CHUNK: tl.constexpr, SPLITS: tl.constexpr, ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr, FACTOR: tl.constexpr, PLAIN: tl.constexpr, FIELDS: tl.constexpr, ENTRY: tl.constexpr,
):  # fmt: skip
    tile, column = tl.program_id(0), tl.program_id(1)
    slot = tl.load(tiles + tile * FIELDS + 2)
    if slot >= 0:
        first_end = tl.cdiv(first_size, OUTPUTS)
        second_end = first_end + tl.cdiv(second_size, OUTPUTS)
        is_second, is_third = column >= first_end, column >= second_end
        module = tl.where(is_third, 2, tl.where(is_second, 1, 0))
        before = tl.where(is_third, first_size + second_size, tl.where(is_second, first_size, 0))
        size = tl.where(is_third, third_size, tl.where(is_second, second_size, first_size))
        column = column - tl.where(is_third, second_end, tl.where(is_second, first_end, 0))
        entry = table + (slot.to(tl.int64) * num_modules + first_module + module) * ENTRY
        rank = tl.load(entry + 2)
        if rank > 0:
            b = tl.load(entry + 1).to(tl.pointer_type(FACTOR))
            row = tl.load(tiles + tile * FIELDS) + tl.arange(0, ROWS)
            is_row = row < tl.load(tiles + tile * FIELDS + 1)
            at = column * OUTPUTS + tl.arange(0, OUTPUTS)
            delta_NO = tl.zeros((ROWS, OUTPUTS), tl.float32)
            for chunk in range(0, tl.cdiv(rank, CHUNK)):
                rank_at = chunk * CHUNK + tl.arange(0, CHUNK)
                is_h = is_row[:, None] & (rank_at < rank)[None, :]
                b_RO = tl.load(
                    b + rank_at[:, None] * size + at[None, :],
                    mask=(rank_at < rank)[:, None] & (at < size)[None, :], other=0.0,
                )  # fmt: skip
                h_NR = tl.zeros((ROWS, CHUNK), tl.float32)
                for split in tl.static_range(SPLITS):
                    place = h + ((row.to(tl.int64) + split * num_rows) * MODULES + module)[:, None] * (CHUNKS * CHUNK)
                    h_NR += tl.load(place + rank_at[None, :], mask=is_h, other=0.0)
                if PLAIN:
                    b_RO = b_RO.to(tl.float32)
                delta_NO += tl.dot(h_NR.to(b_RO.dtype), b_RO, input_precision="ieee")
            place = y + row[:, None].to(tl.int64) * y_row + before + at[None, :]
            is_y = is_row[:, None] & (at < size)[None, :]
            y_NO = tl.load(place, mask=is_y, other=0.0).to(tl.float32) + delta_NO * tl.load(weights + tile)
            tl.store(place, y_NO.to(y.dtype.element_ty), mask=is_y)


@triton.jit
def _add_norm(x, delta, norm, out, size, eps, HAS_DELTA: tl.constexpr, WIDTH: tl.constexpr):
    row, at = tl.program_id(0).to(tl.int64), tl.arange(0, WIDTH)
    inside = at < size
    x_I = tl.load(x + row * size + at, mask=inside, other=0.0)
    if HAS_DELTA:
        x_I = (x_I.to(tl.float32) + tl.load(delta + row * size + at, mask=inside, other=0.0).to(tl.float32)).to(
            x_I.dtype
        )
        tl.store(x + row * size + at, x_I, mask=inside)
    x_I = x_I.to(tl.float32)
    scaled_I = x_I / tl.sqrt(tl.sum(x_I * x_I, 0) / size + eps) * tl.load(norm + at, mask=inside, other=0.0)
    tl.store(out + row * size + at, scaled_I.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _rotate(
    qkv, qkv_row, cos, sin, query_norm, key_norm, eps, keys, values, slots, heads, kv_heads, size,
    BLOCK: tl.constexpr, HALF: tl.constexpr, HAS_NORMS: tl.constexpr,
):  # fmt: skip
    row, head = tl.program_id(0), tl.program_id(1)
    half, at = size // 2, tl.arange(0, HALF)
    inside = at < half
    place = qkv + row.to(tl.int64) * qkv_row + head * size + at
    low = tl.load(place, mask=inside, other=0.0).to(tl.float32)
    high = tl.load(place + half, mask=inside, other=0.0).to(tl.float32)
    if head < heads + kv_heads:
        if HAS_NORMS:
            norm = query_norm
            if head >= heads:
                norm = key_norm
            root = tl.sqrt(tl.sum(low * low + high * high, 0) / size + eps)
            low = low / root * tl.load(norm + at, mask=inside, other=0.0)
            high = high / root * tl.load(norm + half + at, mask=inside, other=0.0)
        c = tl.load(cos + row * half + at, mask=inside, other=0.0)
        s = tl.load(sin + row * half + at, mask=inside, other=0.0)
        low, high = low * c - high * s, high * c + low * s
    if head < heads:
        tl.store(place, low.to(qkv.dtype.element_ty), mask=inside)
        tl.store(place + half, high.to(qkv.dtype.element_ty), mask=inside)
    else:
        slot = tl.load(slots + row)
        if slot >= 0:
            block, offset = slot // BLOCK, slot % BLOCK
            if head < heads + kv_heads:
                stored = keys + ((block * kv_heads + head - heads) * size + at) * BLOCK + offset
                tl.store(stored, low.to(keys.dtype.element_ty), mask=inside)
                tl.store(stored + half * BLOCK, high.to(keys.dtype.element_ty), mask=inside)
            else:
                stored = values + ((block * kv_heads + head - heads - kv_heads) * BLOCK + offset) * size + at
                tl.store(stored, low.to(values.dtype.element_ty), mask=inside)
                tl.store(stored + half, high.to(values.dtype.element_ty), mask=inside)


@triton.jit
def _silu_gate(gate_up, out, size, WIDTH: tl.constexpr):
    row, at = tl.program_id(0).to(tl.int64), tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    inside = at < size
    gate = tl.load(gate_up + row * 2 * size + at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * 2 * size + size + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * size + at, (gate / (1.0 + tl.exp(-gate)) * up).to(out.dtype.element_ty), mask=inside)
