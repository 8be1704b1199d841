"""The kernels of `kernels.cpp` from Python: found, built or given up, and called by pointers through ctypes.

Owns which way is live: the library that came with the package, else one built at first use into the user's cache,
else none (`load` returns None and the callers compute with torch). Every call releases the GIL and touches only what
it is given, so any thread may call.

Shapes: T rows, R rank, I features in, O out, H heads, G key/value heads, d their size, n blocks of 16 positions.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import ClassVar, Protocol

import torch

from openledger.adapters.checks import StoredFactor
from openledger.core.errors import InvalidInput
from openledger.openlora import build_kernels

ABI = 5
BLOCK = 16  # positions of a block of keys and values
_KINDS = {"F32": 0, "BF16": 1, "F16": 2}  # of what `Factor` is read from
SEGMENT_FIELDS = 7  # begin, end, pointer to A, pointer to B, rank, whether they are bfloat16, weight as a double


Packing = tuple[StoredFactor, bool, float, int]  # a factor, whether it is B `[N, R]` or A `[R, N]`, times, and where to


class _Attention(ctypes.Structure):
    """As `Attention` in kernels.cpp; filled by place, which is faster than by name."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in (
            "query", "row_stride", "head_stride", "keys", "values", "tables", "table_stride", "row_tables", "lengths",
            "sinks", "out", "out_stride", "rows", "heads", "kv_heads", "key_dim", "value_dim", "window", "is_bf16",
        )),
        ("scale", ctypes.c_double), ("softcap", ctypes.c_double),
    ]  # fmt: skip


class _Store(ctypes.Structure):
    """As `Store` in kernels.cpp."""

    _fields_ = [
        (name, ctypes.c_int64) for name in (
            "key", "key_row", "key_head", "value", "value_row", "value_head", "keys", "values", "slots",
            "rows", "kv_heads", "key_dim", "value_dim", "is_bf16",
        )
    ]  # fmt: skip


class Factor(ctypes.Structure):
    """As `Factor` in kernels.cpp."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("from", "kind", "row", "column", "rank", "size", "to", "is_bf16")),
        ("scale", ctypes.c_double),
    ]  # fmt: skip


class Linear(ctypes.Structure):
    """As `Linear` in kernels.cpp: a linear layer of a base, and as what its weights are kept."""

    _fields_ = [(name, ctypes.c_int64) for name in ("weight", "bias", "scales", "in", "out", "kind")]


class Layer(ctypes.Structure):
    """As `Layer` in kernels.cpp. Norms that a layer hasn't are 0."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in (
            "norm", "query_norm", "key_norm", "mlp_norm", "keys", "values", "window",
        )),
        *((name, Linear) for name in ("query", "key", "value", "output", "gate", "up", "down")),
    ]  # fmt: skip


class Step(ctypes.Structure):
    """As `Step` in kernels.cpp: the model, then what one step brings."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in (
            "layers", "num_layers", "embeddings", "norm", "frequencies", "scratch", "hidden", "heads", "kv_heads",
            "head_dim", "inner", "is_bf16",
        )),
        ("head", Linear),
        *((name, ctypes.c_double) for name in ("eps", "scale", "rotation_scale")),
        *((name, ctypes.c_int64) for name in (
            "ids", "positions", "slots", "tables", "table_stride", "row_tables", "lengths", "rows", "kept", "num_kept",
            "segments", "num_segments", "logits",
        )),
    ]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Whose keys each row looks at: `tables` int32 [requests, n] of blocks, `row_tables` int32 [T] says which of them,
    `lengths` int32 [T] how many positions."""

    tables: torch.Tensor
    row_tables: torch.Tensor
    lengths: torch.Tensor

    @cached_property
    def pointers(self) -> tuple[int, int, int, int]:
        """As the kernel takes them: tables, their stride, row tables, lengths."""
        return self.tables.data_ptr(), self.tables.stride(0), self.row_tables.data_ptr(), self.lengths.data_ptr()


@dataclass(frozen=True, slots=True, kw_only=True)
class Weighing:
    """How a family weighs positions: softmax of `scale` q k, over the last `window` positions, each score capped at
    `softcap` (times tanh), with `sinks` fp32 [H] as one more score that belongs to no position."""

    scale: float
    window: int | None = None
    softcap: float | None = None
    sinks: torch.Tensor | None = None


class Paged(Protocol):
    """Attention over blocks of keys and values, by whichever kernels; see `Kernels` for what each does. `failures` are
    what a call raises where they don't run on this device."""

    failures: ClassVar[tuple[type[Exception], ...]]

    def store(
        self, key_TGd: torch.Tensor, value_TGd: torch.Tensor, keys: torch.Tensor, values: torch.Tensor,
        slots: torch.Tensor,
    ) -> None: ...  # fmt: skip

    def attend(
        self, query_HTd: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, rows: Rows, out_THd: torch.Tensor,
        weighing: Weighing,
    ) -> None: ...  # fmt: skip


class Kernels:
    """One instruction set of one library. `isa` is its name, `origin` says where the library came from."""

    failures: ClassVar[tuple[type[Exception], ...]] = ()

    def __init__(self, library: ctypes.CDLL, number: int, isa: str, origin: str):
        self.isa, self.origin, self._number = isa, origin, number
        self._lora = library.openlora_lora
        pointer, number_ = ctypes.c_void_p, ctypes.c_int64
        self._lora.argtypes = [
            ctypes.c_int, pointer, number_, pointer, number_, number_, pointer, number_, number_, number_,
        ]  # fmt: skip
        self._lora.restype = None
        self._attend, self._store = library.openlora_attend, library.openlora_store
        self._attend.argtypes = [ctypes.c_int, ctypes.POINTER(_Attention)]
        self._store.argtypes = [ctypes.c_int, ctypes.POINTER(_Store)]
        self._store.restype = None
        self._step = library.openlora_step
        self._step.argtypes = [ctypes.c_int, ctypes.POINTER(Step)]
        self._pack = library.openlora_pack
        self._pack.argtypes = [ctypes.POINTER(Factor), ctypes.c_int64]
        self._pack.restype = None

    def __repr__(self) -> str:
        return f"{self.isa}, {self.origin}"

    def add_lora(self, x_TI: torch.Tensor, y_TO: torch.Tensor, segments: int, num_segments: int) -> None:
        """y += x A B, each segment under its own adapter. `segments` points to int64 [num_segments, SEGMENT_FIELDS]."""
        self._lora(
            self._number, x_TI.data_ptr(), x_TI.stride(0), y_TO.data_ptr(), y_TO.stride(0),
            x_TI.dtype is torch.bfloat16, segments, num_segments, x_TI.shape[1], y_TO.shape[1],
        )  # fmt: skip

    def store(
        self, key_TGd: torch.Tensor, value_TGd: torch.Tensor, keys: torch.Tensor, values: torch.Tensor,
        slots: torch.Tensor,
    ) -> None:  # fmt: skip
        """Put each row's key and value into slot `slots` int64 [T] (block * 16 + position; negative: nowhere)."""
        self._store(
            self._number,
            _Store(
                key_TGd.data_ptr(), *key_TGd.stride()[:2], value_TGd.data_ptr(), *value_TGd.stride()[:2],
                keys.data_ptr(), values.data_ptr(), slots.data_ptr(), *key_TGd.shape, value_TGd.shape[2],
                key_TGd.dtype is torch.bfloat16,
            ),
        )  # fmt: skip

    def attend(
        self, query_HTd: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, rows: Rows, out_THd: torch.Tensor,
        weighing: Weighing,
    ) -> None:  # fmt: skip
        """Attention of the first rows, those that `rows` tells of. `keys` [n, G, d, 16], `values` [n, G, 16, d], all
        of one dtype."""
        sinks = weighing.sinks
        failed = self._attend(
            self._number,
            _Attention(
                query_HTd.data_ptr(), query_HTd.stride(1), query_HTd.stride(0), keys.data_ptr(), values.data_ptr(),
                *rows.pointers, 0 if sinks is None else sinks.data_ptr(), out_THd.data_ptr(), out_THd.stride(0),
                rows.lengths.shape[0], query_HTd.shape[0], keys.shape[1], keys.shape[2], values.shape[3],
                weighing.window or 0, query_HTd.dtype is torch.bfloat16, weighing.scale, weighing.softcap or 0.0,
            ),
        )  # fmt: skip
        if failed:
            raise MemoryError("no memory for the scores of one attention")

    def pack(self, factors: Sequence["Packing"], dtype: torch.dtype) -> None:
        """Write factors in the kernels' layout: [N / C][R][C] in chunks of 64 bytes, `packed_size` elements of
        `dtype`. One call for all of an adapter's."""
        is_bf16 = dtype is torch.bfloat16
        told = (Factor * len(factors))()
        for number, (factor, is_B, times, address) in enumerate(factors):
            rows, columns = factor.shape
            place = ctypes.addressof(ctypes.c_char.from_buffer(factor.data))
            strides_and_sizes = (1, columns, columns, rows) if is_B else (columns, 1, rows, columns)
            told[number] = Factor(place, _KINDS[factor.dtype], *strides_and_sizes, address, is_bf16, times)
        self._pack(told, len(factors))

    def step(self, step: Step) -> None:
        """A whole decode step of a Llama-like model: logits fp32 of the kept rows into `step.logits`."""
        if self._step(self._number, step):
            raise MemoryError("no memory for the scores of one attention")


def packed_size(rank: int, size: int, dtype: torch.dtype) -> int:
    """Elements that `Kernels.pack` writes of a factor; a multiple of 64 bytes."""
    chunk = 64 // dtype.itemsize
    return rank * -(-size // chunk) * chunk


def load(choice: str = "auto") -> Kernels | None:
    """The best kernels there are (`auto`), or those of one instruction set; None for `torch` and where none can be had.
    Raises InvalidInput (`unknown_kernels`) for a name that this machine or its library doesn't know."""
    found = {} if choice == "torch" else available()
    if choice in ("auto", "torch"):
        return next(reversed(found.values()), None)
    if choice not in found:
        raise InvalidInput(
            f"there are no kernels {choice!r} here: {', '.join(found) or 'none could be built'}",
            code="unknown_kernels",
            param="kernels",
            fix="auto, torch, or one of those named",
        )
    return found[choice]


@cache
def available() -> dict[str, Kernels]:
    """By instruction set, the best last. Empty where there is neither a library nor a compiler."""
    shipped = Path(build_kernels.__file__).with_name(build_kernels.LIBRARY)
    if shipped.exists() and (found := _open(shipped, "built with the package")):
        return found
    try:
        path = build_kernels.cached_path(tuple(build_kernels.instruction_sets()))
        if not path.exists():
            build_kernels.build(path)
    except (build_kernels.BuildFailed, OSError):
        return {}
    return _open(path, "built at first use")


def _open(path: Path, origin: str) -> dict[str, Kernels]:
    """What of the library runs here; nothing where it is another machine's or another version's."""
    try:
        library = ctypes.CDLL(str(path))
        if library.openlora_abi() != ABI:
            return {}
    except (OSError, AttributeError):
        return {}
    library.openlora_isa.restype = ctypes.c_char_p
    names: list[str] = []
    while (name := library.openlora_isa(len(names))) is not None:
        names.append(name.decode())
    return {name: Kernels(library, number, name, origin) for number, name in enumerate(names) if name}
