"""Many LoRA adapters over one model's own linear layers, a different one for every row of a packed batch.

y = W x + B A x, with A of the row's adapter and its scale folded into B (Hu et al., 2021). Single rows are sorted by
adapter, so each adapter's rows lie together: they are padded to equal counts and multiplied at once with the batch's
adapters packed into one tensor (padded to the largest rank among them), which is kept while the set stays the same.
Longer pieces are multiplied one by one, unpadded.

Owns the wrapping of layers and which adapters are resident. Does not read files (`adapters.checks` does).

Shapes: T rows, I features in, O out, r or R rank, K adapters of the batch, M rows of each after padding.
"""

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

from openledger.adapters.checks import AdapterWeights
from openledger.core.errors import invariant
from openledger.openlora.packing import PackedStep

Factors = Mapping[str, tuple[torch.Tensor, torch.Tensor]]


class LoraLayers:
    """The adapters that are resident on `model`. `install` may run beside a forward pass: a layer wrapped in mid-pass
    belongs to an adapter that isn't in that batch, and adds nothing."""

    def __init__(self, model: nn.Module):
        self._model = model
        self._adapters: dict[str, Factors] = {}
        self._wrapped: set[str] = set()
        self._installing = threading.Lock()
        self._batch = _Batch()
        self._pack = _Pack(digests=(), adapters=())

    def install(self, digest: str, weights: AdapterWeights) -> None:
        factors = {
            module: (a_RI.t().contiguous(), (b_OR.t() * scale).contiguous())
            for module, (a_RI, b_OR, scale) in weights.factors.items()
        }
        with self._installing:
            for module in factors.keys() - self._wrapped:
                wrapped = _LoraLinear(self._model.get_submodule(module), module, self._batch)
                self._model.set_submodule(module, wrapped)
                self._wrapped.add(module)
            self._adapters[digest] = factors

    def remove(self, digest: str) -> None:
        """On the step thread, between passes."""
        self._adapters.pop(digest, None)
        if digest in self._pack.digests:
            self._pack = _Pack(digests=(), adapters=())

    def resident(self) -> tuple[str, ...]:
        return tuple(self._adapters)

    def num_bytes(self) -> int:
        pairs = [pair for factors in list(self._adapters.values()) for pair in factors.values()]
        return sum(x.numel() * x.element_size() for pair in pairs for x in pair)

    def use(self, step: PackedStep) -> None:
        """Aim the layers at the rows of `step`, until the next call."""
        self._batch.aim(self._plan(step))

    def _plan(self, step: PackedStep) -> "_Plan | None":
        singles = [segment.piece.adapter for segment in step.segments[: step.num_singles]]
        pieces = [
            _Rows(begin=segment.begin, end=segment.end, factors=self._adapters[segment.piece.adapter])
            for segment in step.segments[step.num_singles :]
            if segment.piece.adapter
        ]
        first = singles.count("")  # rows without an adapter sort first
        digests = tuple(dict.fromkeys(singles[first:]))
        if len(digests) == 1:
            pieces.append(_Rows(begin=first, end=len(singles), factors=self._adapters[digests[0]]))
        packed = self._packed_rows(digests, singles, first) if len(digests) > 1 else None
        return _Plan(num_rows=step.num_rows, pieces=tuple(pieces), packed=packed) if pieces or packed else None

    def _packed_rows(self, digests: tuple[str, ...], singles: list[str], first: int) -> "_PackedRows":
        if digests != self._pack.digests:
            self._pack = _Pack(digests=digests, adapters=tuple(self._adapters[digest] for digest in digests))
        counts = [singles.count(digest) for digest in digests]
        most = max(counts)
        equal = min(counts) == most
        gather, places, row = [], [], first
        for number, count in enumerate(counts):
            gather += [row + min(offset, count - 1) for offset in range(most)]
            places += [number * most + offset for offset in range(count)]
            row += count
        return _PackedRows(
            begin=first,
            end=len(singles),
            pack=self._pack,
            gather=None if equal else torch.tensor(gather),
            places=torch.tensor(places),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rows:
    """Rows [begin, end) under one adapter."""

    begin: int
    end: int
    factors: Factors

    def add(self, module: str, x_TI: torch.Tensor, y_TO: torch.Tensor) -> None:
        if pair := self.factors.get(module):
            a_IR, b_RO = pair
            y_TO[self.begin : self.end].addmm_(x_TI[self.begin : self.end] @ a_IR, b_RO)


@dataclass(slots=True, kw_only=True)
class _Pack:
    """The factors of several adapters side by side, module by module, made when a module first asks."""

    digests: tuple[str, ...]
    adapters: tuple[Factors, ...]
    _modules: dict[str, tuple[torch.Tensor, torch.Tensor] | None] = field(default_factory=dict)

    def factors(self, module: str) -> tuple[torch.Tensor, torch.Tensor] | None:
        """A `[K, I, R]` and B `[K, R, O]`; None where no adapter has the module. Zeros stand for what one lacks."""
        if module not in self._modules:
            self._modules[module] = self._build([factors.get(module) for factors in self.adapters])
        return self._modules[module]

    def _build(self, pairs: list[tuple[torch.Tensor, torch.Tensor] | None]) -> tuple[torch.Tensor, torch.Tensor] | None:
        present = [pair for pair in pairs if pair is not None]
        if not present:
            return None
        rank = max(a.shape[1] for a, _ in present)
        a_KIR = present[0][0].new_zeros(len(pairs), present[0][0].shape[0], rank)
        b_KRO = present[0][1].new_zeros(len(pairs), rank, present[0][1].shape[1])
        for number, pair in enumerate(pairs):
            if pair is not None:
                a_KIR[number, :, : pair[0].shape[1]] = pair[0]
                b_KRO[number, : pair[1].shape[0]] = pair[1]
        return a_KIR, b_KRO


@dataclass(slots=True, kw_only=True)
class _PackedRows:
    """Rows [begin, end), grouped by the adapters of `pack`. `gather` pads the groups to equal size by repeating a row;
    `places` finds the true rows among the padded. Layers that share their input share the gathered rows."""

    begin: int
    end: int
    pack: _Pack
    gather: torch.Tensor | None
    places: torch.Tensor
    _last: tuple[torch.Tensor, torch.Tensor] | None = None

    def add(self, module: str, x_TI: torch.Tensor, y_TO: torch.Tensor) -> None:
        factors = self.pack.factors(module)
        if factors is None:
            return
        a_KIR, b_KRO = factors
        x_KMI = self._grouped(x_TI).view(len(a_KIR), -1, a_KIR.shape[1])
        rows_TO = y_TO[self.begin : self.end]
        if self.gather is None:
            y_KMO = rows_TO.view(len(b_KRO), -1, b_KRO.shape[2])
            y_KMO.baddbmm_(torch.bmm(x_KMI, a_KIR), b_KRO)
        else:
            delta = torch.bmm(torch.bmm(x_KMI, a_KIR), b_KRO)
            rows_TO += delta.view(-1, b_KRO.shape[2])[self.places]

    def _grouped(self, x_TI: torch.Tensor) -> torch.Tensor:
        if self.gather is None:
            return x_TI[self.begin : self.end]
        if self._last is None or self._last[0].data_ptr() != x_TI.data_ptr() or self._last[0].shape != x_TI.shape:
            self._last = (x_TI, x_TI[self.gather])  # holding x_TI keeps its memory from being used again
        return self._last[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    num_rows: int
    pieces: tuple[_Rows, ...]
    packed: _PackedRows | None

    def add(self, module: str, x_TI: torch.Tensor, y_TO: torch.Tensor) -> None:
        invariant(x_TI.shape[0] == self.num_rows, f"{module} was handed {x_TI.shape[0]} rows of {self.num_rows}")
        if self.packed is not None:
            self.packed.add(module, x_TI, y_TO)
        for piece in self.pieces:
            piece.add(module, x_TI, y_TO)


class _Batch:
    """What all wrapped layers look at while a pass runs."""

    __slots__ = ("plan",)

    def __init__(self) -> None:
        self.plan: _Plan | None = None

    def aim(self, plan: "_Plan | None") -> None:
        self.plan = plan


class _LoraLinear(nn.Module):
    """A layer of the base (Linear, or GPT-2's Conv1D) that adds each row's adapter to its result."""

    def __init__(self, base: nn.Module, name: str, batch: _Batch):
        super().__init__()
        self.base, self._name, self._batch = base, name, batch

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.base(x)
        if self._batch.plan is not None:
            self._batch.plan.add(self._name, x.reshape(-1, x.shape[-1]), y.view(-1, y.shape[-1]))
        return y
