"""The LoRA products on a GPU, by the kernels of `triton_kernels`.

An adapter is one buffer on the device and a row (slot) of a table there, which says where each module's factors lie. A
step names its adapters by their slots, so that a graph that was captured once serves whichever come later. An
ensemble's rows are under several adapters: one launch for the first of each, one for the second, ...

Shapes: I features in, O out, R rank, N tiles.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from threading import Lock

import numpy as np
import numpy.typing as npt
import torch

from openledger.adapters.checks import AdapterWeights
from openledger.openlora.lora import Addresses, Run
from openledger.openlora.triton_kernels import TABLE_FIELDS, TILE_FIELDS, Tiles, TritonKernels

_FEW, _MANY = 16, 64  # rows of a tile, in small and in large steps
_LARGE = 256  # rows
_SLOTS = 64  # at first
_ALIGNED = 16  # bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class _Adapter:
    slot: int
    buffer: torch.Tensor
    modules: frozenset[str]
    max_rank: int


class TritonProducts:
    """Adapters may target any of `modules`, which are known by their place there."""

    def __init__(
        self,
        kernels: TritonKernels,
        modules: Sequence[str],
        dtype: torch.dtype,
        device: torch.device,
    ):
        self.kernels, self.dtype, self._device = kernels, dtype, device
        self.numbers = {module: number for number, module in enumerate(modules)}
        self.table = torch.zeros(_SLOTS, len(modules), TABLE_FIELDS, dtype=torch.int64, device=device)
        self._empty = list(range(_SLOTS - 1, -1, -1))
        self._adapters: dict[str, _Adapter] = {}
        self._plan: tuple[tuple[Run, ...], TritonPlan] | None = None
        self._installing = Lock()

    @property
    def max_rank(self) -> int:
        """Of the adapters that are here."""
        return max((each.max_rank for each in list(self._adapters.values())), default=1)

    def install(self, digest: str, weights: AdapterWeights) -> None:
        with self._installing:
            buffer, entries = self._packed(weights)  # where the device has no memory for it, no slot is taken
            if not self._empty:
                self._grow()
            slot = self._empty.pop()
            self.table[slot] = entries.to(self._device)
            self._adapters[digest] = _Adapter(
                slot=slot,
                buffer=buffer,
                modules=frozenset(weights.factors),
                max_rank=max((a_RI.shape[0] for a_RI, _, _ in weights.factors.values()), default=1),
            )

    def remove(self, digest: str) -> None:
        with self._installing:
            if (adapter := self._adapters.pop(digest, None)) is not None:
                self._empty.append(adapter.slot)
                self._plan = None

    def resident(self) -> tuple[str, ...]:
        return tuple(self._adapters)

    def num_bytes(self) -> int:
        return sum(each.buffer.nbytes for each in list(self._adapters.values())) + self.table.nbytes

    def modules(self, digest: str) -> Collection[str]:
        return self._adapters[digest].modules

    def plan(self, runs: Sequence[Run]) -> "TritonPlan":
        """The one before where the same adapters have the same rows, as in most steps of decoding."""
        if self._plan is None or self._plan[0] != tuple(runs) or self._plan[1].table is not self.table:
            self._plan = (tuple(runs), self._new_plan(runs))
        return self._plan[1]

    def alone(self, digest: str, num_rows: int) -> "TritonPlan":
        return self._new_plan((Run(0, num_rows, digest),))

    def _new_plan(self, runs: Sequence[Run]) -> "TritonPlan":
        size = _FEW if max((run.end for run in runs), default=0) <= _LARGE else _MANY
        slots = {run.digest: self._adapters[run.digest].slot for run in runs}
        return TritonPlan(
            products=self,
            table=self.table,
            waves=tuple(_tiles(wave, slots, size) for wave in _waves(runs)),
            num_rows=size,
            max_rank=self.max_rank,
        )

    def _packed(self, weights: AdapterWeights) -> tuple[torch.Tensor, torch.Tensor]:
        """The factors side by side on the device, and where each begins: int64 `[M, TABLE_FIELDS]`."""
        parts, entries, begin = [], torch.zeros(self.table.shape[1:], dtype=torch.int64), 0
        for module, (a_RI, b_OR, scale) in weights.factors.items():
            entries[self.numbers[module], 2] = a_RI.shape[0]
            for place, factor in enumerate((a_RI, b_OR.t() * scale)):
                entries[self.numbers[module], place] = begin * self.dtype.itemsize
                flat = factor.to(self.dtype).reshape(-1)
                parts.append(torch.nn.functional.pad(flat, (0, -len(flat) % (_ALIGNED // self.dtype.itemsize))))
                begin += len(parts[-1])
        buffer = torch.cat(parts).to(self._device)
        entries[:, :2] += buffer.data_ptr() * (entries[:, 2:] > 0)
        return buffer, entries

    def _grow(self) -> None:
        """Twice the slots. Graphs that were captured with the old table are captured anew."""
        self._empty = list(range(2 * len(self.table) - 1, len(self.table) - 1, -1))
        self.table = torch.cat([self.table, torch.zeros_like(self.table)])


@dataclass(slots=True, kw_only=True)
class TritonPlan:
    """`waves` are tiles, of `num_rows` rows at most: begin, end and slot int32 `[N, TILE_FIELDS]`, weights fp32 `[N]`.
    Within a wave no row is under two adapters."""

    products: TritonProducts
    table: torch.Tensor
    waves: tuple[tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]], ...]
    num_rows: int
    max_rank: int
    _on_device: tuple[Tiles, ...] = field(default=())

    def addresses(self, modules: tuple[str, ...]) -> Addresses | None:
        return None

    def add(self, module: str, x_TI: torch.Tensor, y_TO: torch.Tensor) -> None:
        x_TI = x_TI if x_TI.stride(-1) == 1 else x_TI.contiguous()
        for tiles in self._tiles():
            self.products.kernels.add_lora(x_TI, y_TO, tiles, self.products.numbers[module], (y_TO.shape[1],))

    def _tiles(self) -> tuple[Tiles, ...]:
        if not self._on_device:
            device = self.table.device
            self._on_device = tuple(
                Tiles(
                    fields=torch.from_numpy(fields).to(device),
                    weights=torch.from_numpy(weights).to(device),
                    num_rows=self.num_rows,
                    table=self.table,
                    dtype=self.products.dtype,
                    max_rank=self.max_rank,
                )
                for fields, weights in self.waves
            )
        return self._on_device


def _waves(runs: Sequence[Run]) -> list[list[Run]]:
    """The runs of the same rows, members of an ensemble, one in each."""
    waves: list[list[Run]] = []
    number = 0
    for before, run in zip((None, *runs), runs, strict=False):
        number = number + 1 if before is not None and before.begin == run.begin else 0
        if number == len(waves):
            waves.append([])
        waves[number].append(run)
    return waves


def _tiles(
    runs: Sequence[Run], slots: Mapping[str, int], size: int
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    fields = [
        (begin, min(begin + size, run.end), slots[run.digest], run.weight)
        for run in runs
        for begin in range(run.begin, run.end, size)
    ]
    whole = np.array([each[:TILE_FIELDS] for each in fields], np.int32).reshape(-1, TILE_FIELDS)
    return whole, np.array([each[TILE_FIELDS] for each in fields], np.float32)
