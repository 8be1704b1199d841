"""Many LoRA adapters over one model's own linear layers, a different one for every row of a packed batch.

y = W x + B A x, with A of the row's adapter and its scale folded into B (Hu et al., 2021). Rows of one adapter lie
together in runs; ranks and target modules may differ from run to run. `NativeProducts` hands the runs to the kernel,
`lora_torch.TorchProducts` computes the same with torch alone.

An adapter can also be merged, y = (W + B A) x, into weights that stand in for the base's: where all rows of a pass are
under it, the product above isn't needed. The base's own weights are never changed, so that nothing has to be undone.

Owns the wrapping of layers and which adapters are resident. Does not read files (`adapters.checks` does).

Shapes: T rows, I features in, O out, R rank, K runs, M modules.
"""

import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from openledger.adapters.checks import AdapterWeights, Stored
from openledger.core.errors import invariant
from openledger.openlora.native import SEGMENT_FIELDS, Kernels, Packing, packed_size
from openledger.openlora.packing import PackedStep

Weights = Mapping[str, torch.Tensor]  # of linear layers, as the base keeps them, by module
_PART_PRODUCTS, _PART_LEAST = 150_000_000, 64  # of a layer between giving way: some 2 ms of a core; and outputs
_MERGED_ROWS = 512  # of a weight at a time: what is added to them is held beside it


@dataclass(frozen=True, slots=True)
class Run:
    """Rows [begin, end) under one adapter, whose product is multiplied by `weight`."""

    begin: int
    end: int
    digest: str
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where in memory each of some modules' segments begin, 0 where it has none; each has `num_segments`."""

    places: npt.NDArray[np.int64]
    num_segments: int


class Plan(Protocol):
    """What is added to each module's result, for the rows of one step."""

    def add(self, module: str, x_TI: torch.Tensor, y_TO: torch.Tensor) -> None: ...

    def addresses(self, modules: tuple[str, ...]) -> "Addresses | None":
        """For a kernel that computes these modules itself; None where it can't, or where others add something too."""
        ...


class Products(Protocol):
    """The factors of the resident adapters, and how they are multiplied. `install` may run beside a pass."""

    def install(self, digest: str, weights: AdapterWeights) -> None: ...

    def remove(self, digest: str) -> None: ...

    def resident(self) -> tuple[str, ...]: ...

    def num_bytes(self) -> int: ...

    def plan(self, runs: Sequence[Run]) -> Plan: ...

    def modules(self, digest: str) -> Collection[str]:
        """Those that the adapter changes. May run beside a pass, as `alone`."""
        ...

    def alone(self, digest: str, num_rows: int) -> Plan:
        """For a product outside of any pass, all of whose rows are under one adapter."""
        ...


class LoraLayers:
    """The adapters that are resident on `model`. `install` may run beside a forward pass: a layer wrapped in mid-pass
    belongs to an adapter that isn't in that batch, and adds nothing."""

    def __init__(self, model: nn.Module, products: Products):
        self._model, self._products = model, products
        self._wrapped: set[str] = set()
        self._installing = threading.Lock()
        self._batch = _Batch()
        head = getattr(model, "get_output_embeddings", lambda: None)()
        if isinstance(head, nn.Linear):
            head.forward = partial(_computed, head, head.forward, self._batch)

    def install(self, digest: str, weights: AdapterWeights) -> None:
        self._products.install(digest, weights)
        with self._installing:
            for module in weights.factors.keys() - self._wrapped:
                wrapped = _LoraLinear(self._model.get_submodule(module), module, self._batch)
                self._model.set_submodule(module, wrapped)
                self._wrapped.add(module)

    def remove(self, digest: str) -> None:
        """On the step thread, between passes."""
        self._products.remove(digest)

    def resident(self) -> tuple[str, ...]:
        return self._products.resident()

    def num_bytes(self) -> int:
        return self._products.num_bytes()

    def use(self, step: PackedStep, merged: Weights | None = None) -> Plan | None:
        """Aim the layers at the rows of `step`, until the next call; None where no row has an adapter. With `merged`
        they compute with those weights, and add nothing."""
        runs = runs_of(step) if merged is None else ()
        self._batch.aim(self._products.plan(runs) if runs else None, step, merged)
        return self._batch.plan

    def let_go(self) -> None:
        """Between passes: aim at nothing, so that merged weights aren't held by the last step that used them."""
        self._batch.aim(None, None)

    def num_merged_bytes(self, digest: str) -> int:
        """What `merge` will take."""
        return sum(self._weight(module).nbytes for module in self._products.modules(digest))

    def merge(self, digest: str) -> Weights:
        """The weights of the layers that an adapter changes, with it merged into them: to each the product of the
        identity's rows is added, as it is to theirs. May run beside a pass."""
        return {module: self._merged(digest, module) for module in self._products.modules(digest)}

    def _merged(self, digest: str, module: str) -> torch.Tensor:
        merged = self._weight(module).detach().clone()
        merged_IO = merged.t() if isinstance(self._model.get_submodule(module).base, nn.Linear) else merged
        for begin in range(0, len(merged_IO), _MERGED_ROWS):
            rows_NO = merged_IO[begin : begin + _MERGED_ROWS]
            one_NI, change_NO = torch.zeros(len(rows_NO), len(merged_IO)), torch.zeros(rows_NO.shape)
            one_NI[:, begin:].fill_diagonal_(1.0)
            self._products.alone(digest, len(rows_NO)).add(module, one_NI, change_NO)
            rows_NO += change_NO
        return merged

    def _weight(self, module: str) -> torch.Tensor:
        weight = self._model.get_submodule(module).base.weight
        assert isinstance(weight, torch.Tensor)
        return weight

    @contextmanager
    def set_aside(self) -> Iterator[None]:
        """Within it other steps may be used; after it, all is as before."""
        batch = self._batch
        before = batch.plan, batch.step, batch.merged
        try:
            yield
        finally:
            batch.aim(*before)


def runs_of(step: PackedStep) -> list[Run]:
    """Neighbours under one adapter together; rows of the base alone are in none, those of an ensemble in several."""
    groups = (list(group) for _, group in groupby(step.segments, key=lambda segment: segment.piece.adapter))
    return [
        Run(group[0].begin, group[-1].end, digest, weight)
        for group in groups
        if group[0].piece.adapter
        for digest, weight in group[0].piece.members or ((group[0].piece.adapter, 1.0),)
    ]


class _Batch:
    """What all wrapped layers look at while a pass runs."""

    __slots__ = ("merged", "plan", "step")

    def __init__(self) -> None:
        self.aim(None, None)

    def aim(self, plan: Plan | None, step: PackedStep | None, merged: Weights | None = None) -> None:
        self.plan, self.step, self.merged = plan, step, merged


class _LoraLinear(nn.Module):
    """A layer of the base (Linear, or GPT-2's Conv1D) that adds each row's adapter to its result."""

    def __init__(self, base: nn.Module, name: str, batch: _Batch):
        super().__init__()
        self.base, self._name, self._batch = base, name, batch
        self._plain = base.forward  # the base has no hooks: one call less for each of a step's layers

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        step = self._batch.step
        if (merged := self._batch.merged) is not None and self._name in merged:
            return _product(self.base, merged[self._name], x)
        y = _computed(self.base, self._plain, self._batch, x)
        plan = self._batch.plan
        if plan is not None and step is not None:
            x_TI, y_TO = x.reshape(-1, x.shape[-1]), y.view(-1, y.shape[-1])
            invariant(len(x_TI) == step.num_rows, f"{self._name} was handed {len(x_TI)} rows")
            plan.add(self._name, x_TI, y_TO)
        return y


def _computed(
    layer: nn.Module, plain: Callable[[torch.Tensor], torch.Tensor], batch: _Batch, x: torch.Tensor
) -> torch.Tensor:
    """What `layer` gives; in a pass that gives way some of the outputs at a time, since somebody may wait. All rows at
    once for each: fewer rows would take longer in all, fewer outputs don't."""
    between = None if batch.step is None else batch.step.between
    if between is None:
        return plain(x)
    weight_OI = layer.weight if isinstance(layer, nn.Linear) else layer.weight.t()
    x_TI, size_out = x.reshape(-1, x.shape[-1]), len(weight_OI)
    size = max(_PART_LEAST, _PART_PRODUCTS // x_TI.numel() // _PART_LEAST * _PART_LEAST)
    if size_out <= size or not x.is_cpu:
        between()
        return plain(x)
    y_TO = x.new_empty(len(x_TI), size_out)
    for begin in range(0, size_out, size):
        between()
        torch.mm(x_TI, weight_OI[begin : begin + size].t(), out=y_TO[:, begin : begin + size])
    return (y_TO if layer.bias is None else y_TO.add_(layer.bias)).view(*x.shape[:-1], size_out)


def _product(layer: nn.Module, weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """What `layer` gives, with another weight."""
    weight_OI = weight if isinstance(layer, nn.Linear) else weight.t()
    return nn.functional.linear(x, weight_OI, layer.bias)


class NativeProducts:
    """Each adapter is one buffer in the kernel's layout, at its true ranks, and a table of where its factors lie."""

    def __init__(self, kernels: Kernels, dtype: torch.dtype):
        self._kernels, self._dtype = kernels, dtype
        self._numbers: dict[str, int] = {}
        self._adapters: dict[str, tuple[torch.Tensor, npt.NDArray[np.int64]]] = {}
        self._plan: tuple[tuple[Run, ...], _NativePlan] | None = None
        self._installing = threading.Lock()

    def install(self, digest: str, weights: AdapterWeights) -> None:
        with self._installing:
            stored = weights.stored()
            for module in stored:
                self._numbers.setdefault(module, len(self._numbers))
            self._adapters[digest] = self._packed(stored)

    def remove(self, digest: str) -> None:
        self._adapters.pop(digest, None)
        self._plan = None

    def resident(self) -> tuple[str, ...]:
        return tuple(self._adapters)

    def num_bytes(self) -> int:
        return sum(buffer.nbytes + table.nbytes for buffer, table in list(self._adapters.values()))

    def plan(self, runs: Sequence[Run]) -> "_NativePlan":
        """The one before where the same adapters have the same rows, as in most steps of decoding."""
        if self._plan is None or self._plan[0] != tuple(runs):
            self._plan = (tuple(runs), self._new_plan(runs))
        return self._plan[1]

    def modules(self, digest: str) -> list[str]:
        _, table = self._adapters[digest]
        return [module for module, number in dict(self._numbers).items() if number < len(table) and table[number, 2]]

    def alone(self, digest: str, num_rows: int) -> "_NativePlan":
        return self._new_plan((Run(0, num_rows, digest),))

    def _packed(self, stored: Stored) -> tuple[torch.Tensor, npt.NDArray[np.int64]]:
        dtype, packing, entries, place = self._dtype, list[Packing](), [], 0
        table = np.zeros((len(self._numbers), 4), np.int64)
        for module, (a_RI, b_OR, scale) in stored.items():
            (rank, size_in), size_out = a_RI.shape, b_OR.shape[0]
            place_B = place + packed_size(rank, size_in, dtype) * dtype.itemsize
            packing += (a_RI, False, 1.0, place), (b_OR, True, scale, place_B)
            entries.append((self._numbers[module], place, place_B, rank))
            place = place_B + packed_size(rank, size_out, dtype) * dtype.itemsize
        buffer = torch.empty(place // dtype.itemsize, dtype=dtype)
        begin = buffer.data_ptr()
        for number, place_A, place_B, rank in entries:
            table[number] = begin + place_A, begin + place_B, rank, dtype is torch.bfloat16
        self._kernels.pack([(factor, is_B, times, begin + at) for factor, is_B, times, at in packing], dtype)
        return buffer, table

    def _new_plan(self, runs: Sequence[Run]) -> "_NativePlan":
        numbers = dict(self._numbers)  # `install` may add to it meanwhile
        segments = np.zeros((len(numbers), len(runs), SEGMENT_FIELDS), np.int64)
        segments.view(np.float64)[:, :, -1] = [run.weight for run in runs]
        for number, run in enumerate(runs):
            _, table = self._adapters[run.digest]
            segments[:, number, :2] = run.begin, run.end
            segments[: len(table), number, 2:-1] = table
        used: npt.NDArray[np.bool_] = np.any(segments[:, :, 4], axis=1)
        places = {module: segments[number].ctypes.data for module, number in numbers.items() if used[number]}
        return _NativePlan(kernels=self._kernels, segments=segments, places=places)


@dataclass(slots=True, kw_only=True)
class _NativePlan:
    """`segments` int64 [M, K, fields]; `places` says where each module's part begins in memory."""

    kernels: Kernels
    segments: npt.NDArray[np.int64]
    places: dict[str, int]
    _known: tuple[tuple[str, ...], Addresses | None] = ((), None)

    def addresses(self, modules: tuple[str, ...]) -> Addresses | None:
        if self._known[0] is not modules:
            places = np.array([self.places.get(module, 0) for module in modules], np.int64)
            whole = self.places.keys() <= set(modules)
            self._known = (modules, Addresses(places, self.segments.shape[1]) if whole else None)
        return self._known[1]

    def add(self, module: str, x_TI: torch.Tensor, y_TO: torch.Tensor) -> None:
        if (place := self.places.get(module)) is not None:
            self.kernels.add_lora(x_TI, y_TO, place, self.segments.shape[1])
