"""The LoRA products with torch alone: for processors without our kernels, and to hold the kernels against.

Short runs are padded to equal counts and multiplied at once with the batch's adapters packed into one tensor (padded to
the largest rank among them), which is kept while the set stays the same. Long runs are multiplied one by one, unpadded.

Shapes: T rows, I features in, O out, R rank, K adapters of the batch, M rows of each after padding.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from openledger.adapters.checks import AdapterWeights
from openledger.openlora.lora import Addresses, Run

Factors = Mapping[str, tuple[torch.Tensor, torch.Tensor]]
_LONG = 16  # rows: from here on padding the others costs more than a product of its own


class TorchProducts:
    def __init__(self, dtype: torch.dtype, device: torch.device | str = "cpu"):
        self._dtype, self._device = dtype, torch.device(device)
        self._adapters: dict[str, Factors] = {}
        self._pack = _Pack(digests=(), adapters=())

    def install(self, digest: str, weights: AdapterWeights) -> None:
        self._adapters[digest] = {
            module: (self._kept(a_RI.t()), self._kept(b_OR.t() * scale))
            for module, (a_RI, b_OR, scale) in weights.factors.items()
        }

    def _kept(self, factor: torch.Tensor) -> torch.Tensor:
        return factor.to(self._device, self._dtype).contiguous()

    def remove(self, digest: str) -> None:
        self._adapters.pop(digest, None)
        if digest in self._pack.digests:
            self._pack = _Pack(digests=(), adapters=())

    def resident(self) -> tuple[str, ...]:
        return tuple(self._adapters)

    def num_bytes(self) -> int:
        return sum(x.nbytes for each in list(self._adapters.values()) for pair in each.values() for x in pair)

    def plan(self, runs: Sequence[Run]) -> "_TorchPlan":
        short = [run for run in runs if run.end - run.begin < _LONG]
        long = runs if len(short) < 2 else [run for run in runs if run.end - run.begin >= _LONG]
        return _TorchPlan(
            long=tuple((run, self._adapters[run.digest]) for run in long),
            packed=self._packed_rows(short) if len(short) > 1 else None,
        )

    def modules(self, digest: str) -> list[str]:
        return list(self._adapters[digest])

    def alone(self, digest: str, num_rows: int) -> "_TorchPlan":
        return _TorchPlan(long=((Run(0, num_rows, digest), self._adapters[digest]),), packed=None)

    def _packed_rows(self, runs: Sequence[Run]) -> "_PackedRows":
        digests = tuple(run.digest for run in runs)
        if digests != self._pack.digests:
            self._pack = _Pack(digests=digests, adapters=tuple(self._adapters[digest] for digest in digests))
        most = max(run.end - run.begin for run in runs)
        gather = [min(run.begin + offset, run.end - 1) for run in runs for offset in range(most)]
        rows = [row for run in runs for row in range(run.begin, run.end)]
        places = [number * most + at for number, run in enumerate(runs) for at in range(run.end - run.begin)]
        return _PackedRows(
            pack=self._pack,
            gather=torch.tensor(gather, device=self._device),
            rows=torch.tensor(rows, device=self._device),
            places=torch.tensor(places, device=self._device),
            weights_K11=torch.tensor([run.weight for run in runs], device=self._device)[:, None, None],
        )


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


@dataclass(frozen=True, slots=True, kw_only=True)
class _PackedRows:
    """`gather` pads the runs to equal size by repeating a row; `places` finds the true `rows` among the padded."""

    pack: _Pack
    gather: torch.Tensor
    rows: torch.Tensor
    places: torch.Tensor
    weights_K11: torch.Tensor

    def add(self, module: str, x_TI: torch.Tensor, y_TO: torch.Tensor) -> None:
        factors = self.pack.factors(module)
        if factors is None:
            return
        a_KIR, b_KRO = factors
        x_KMI = x_TI[self.gather].to(a_KIR.dtype).view(len(a_KIR), -1, a_KIR.shape[1])
        delta_KMO = torch.bmm(torch.bmm(x_KMI, a_KIR), b_KRO) * self.weights_K11
        y_TO.index_add_(0, self.rows, delta_KMO.view(-1, b_KRO.shape[2])[self.places].to(y_TO.dtype))


@dataclass(frozen=True, slots=True, kw_only=True)
class _TorchPlan:
    long: tuple[tuple[Run, Factors], ...]
    packed: _PackedRows | None

    def addresses(self, modules: tuple[str, ...]) -> Addresses | None:
        return None

    def add(self, module: str, x_TI: torch.Tensor, y_TO: torch.Tensor) -> None:
        if self.packed is not None:
            self.packed.add(module, x_TI, y_TO)
        for run, factors in self.long:
            if pair := factors.get(module):
                a_IR, b_RO = pair
                delta = x_TI[run.begin : run.end].to(a_IR.dtype) @ a_IR @ b_RO * run.weight
                y_TO[run.begin : run.end] += delta.to(y_TO.dtype)
