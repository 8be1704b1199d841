"""EK-FAC: the curvature that turns gradients into influence (George et al., 2018; Grosse et al., 2023).

For one matrix with token inputs x and output gradients g, K-FAC says H = E[g g^T] (x) E[x x^T]. With the eigenbases Q_g
and Q_x of the two factors, EK-FAC keeps the basis and measures the eigenvalues:

    Lambda = E over rows of (Q_g^T G Q_x)^2          H^-1 G  ~  Q_g ((Q_g^T G Q_x) / (Lambda + damping)) Q_x^T

Labels are drawn from the model (the true Fisher), not taken from the data. Damping is a part of Lambda's mean, for each
matrix on its own, and the larger the less the fit saw of it:

    damping = (least + unseen * longer side / positions) * mean of Lambda

Positions are the tokens of the fit's rows that a gradient reaches: with few of them most measured eigenvalues are too
small, and dividing by them makes noise of what a row teaches (docs/decisions/0019-index-damping.md).

The fit takes FIT_ROWS rows, evenly spaced, whatever the number of rows indexed: curvature is a mean over rows, and the
fit's cost would otherwise grow with them (docs/attribution/log.md has what fewer or more of them change).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from tempfile import TemporaryFile
from typing import Any

import numpy as np
import torch

from openledger.attribution.gradients import Site, not_finite, sampled_fisher_pass, sites
from openledger.core.errors import InvalidInput
from openledger.training.task import LANGUAGE, Task, Trainable

FIT_ROWS = 64
_BATCH_ROWS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Damping:
    """Of a matrix, as a part of its mean eigenvalue."""

    least: float = 0.01
    unseen: float = 0.25

    def of(self, site: Site, num_positions: int) -> float:
        return self.least + self.unseen * max(site.outputs, site.inputs) / max(1, num_positions)


DAMPING = Damping()


@dataclass(frozen=True, slots=True)
class Eigenbasis:
    """Of one matrix whose sides are S and L: eigenvectors in columns, `curvature_SL` is Lambda + damping."""

    short_SS: torch.Tensor
    long_LL: torch.Tensor
    curvature_SL: torch.Tensor

    def rotate(self, gradient_BSL: torch.Tensor) -> torch.Tensor:
        return self.short_SS.T @ (gradient_BSL @ self.long_LL)

    def restore(self, rotated_BSL: torch.Tensor) -> torch.Tensor:
        """From the eigenbasis to the gradient's own coordinates."""
        return (self.short_SS @ rotated_BSL) @ self.long_LL.T

    def precondition(self, gradient_BSL: torch.Tensor) -> torch.Tensor:
        """H^-1 G in the gradient's own coordinates."""
        return self.restore(self.rotate(gradient_BSL) / self.curvature_SL)

    @property
    def balance(self) -> float:
        """The root of the mean curvature: a preconditioned gradient is about one over it."""
        return float(self.curvature_SL.mean().sqrt())

    def balanced(self) -> "Eigenbasis":
        """A basis whose `precondition` multiplies by `balance` as well."""
        return Eigenbasis(self.short_SS, self.long_LL, self.curvature_SL / self.balance)

    def to(self, device: torch.device | str) -> "Eigenbasis":
        return Eigenbasis(self.short_SS.to(device), self.long_LL.to(device), self.curvature_SL.to(device))


Basis = dict[str, Eigenbasis]


def fit(
    module: Any,
    examples: Sequence[Trainable],
    *,
    task: Task = LANGUAGE,
    fit_rows: int = FIT_ROWS,
    seed: int = 0,
    damping: Damping = DAMPING,
) -> Basis:
    """The eigenbasis of every site, on the CPU, from one pass over `fit_rows` of `examples`.

    That pass gives the covariances, and keeps each row's gradient in a temporary file (4 bytes for each parameter and
    row): the eigenvalues are measured on the same gradients once the basis is known. Raises InvalidInput without
    examples, Corrupt (`not_finite`) where a loss or the curvature is not finite.
    """
    if not examples:
        raise InvalidInput("there are no rows to index", code="empty_index", param="rows")
    chosen, all_sites = examples[:: -(-len(examples) // fit_rows)], sites(module)
    with TemporaryFile() as stream:
        gradients = _Gradients(stream, all_sites, len(chosen))
        seen = {site.name: _Seen(*_empty(site, module)) for site in all_sites}
        for start in range(0, len(chosen), _BATCH_ROWS):
            batch = chosen[start : start + _BATCH_ROWS]
            sampled_fisher_pass(module, batch, _Visit(seen, gradients, start), seed + start, task)
        return {site.name: _eigenbasis(site, seen[site.name], gradients.of(site), damping) for site in all_sites}


class _Gradients:
    """Gradients of the fit's rows in a file, those of one site together."""

    def __init__(self, stream: Any, all_sites: Sequence[Site], num_rows: int):
        flat = np.memmap(stream, dtype=np.float32, mode="w+", shape=(num_rows * sum(site.size for site in all_sites),))
        self._blocks, start = {}, 0
        for site in all_sites:
            self._blocks[site.name] = flat[start : start + num_rows * site.size].reshape(num_rows, site.size)
            start += num_rows * site.size

    def add(self, site: Site, first_row: int, gradient_BSL: torch.Tensor) -> None:
        self._blocks[site.name][first_row : first_row + len(gradient_BSL)] += gradient_BSL.flatten(1).cpu().numpy()

    def of(self, site: Site) -> torch.Tensor:
        return torch.from_numpy(self._blocks[site.name])


@dataclass(slots=True)
class _Seen:
    """Of one matrix: sums over positions, and how many they were."""

    outputs_OO: torch.Tensor
    inputs_II: torch.Tensor
    num_positions: int = 0


@dataclass(frozen=True, slots=True)
class _Visit:
    seen: dict[str, _Seen]
    gradients: _Gradients
    first_row: int

    def __call__(self, site: Site, input_BTI: torch.Tensor, gradient_BTO: torch.Tensor) -> None:
        own = self.seen[site.name]
        gradient_NO, input_NI = gradient_BTO.flatten(0, 1), input_BTI.flatten(0, 1)
        reaches_N = gradient_NO.any(dim=1)  # positions before the completion have no gradient
        gradient_NO, input_NI = gradient_NO[reaches_N], input_NI[reaches_N]
        own.outputs_OO += gradient_NO.T @ gradient_NO
        own.inputs_II += input_NI.T @ input_NI
        own.num_positions += len(gradient_NO)
        self.gradients.add(site, self.first_row, site.outer(input_BTI, gradient_BTO))


def _empty(site: Site, module: Any) -> tuple[torch.Tensor, torch.Tensor]:
    device = next(module.parameters()).device
    return torch.zeros(site.outputs, site.outputs, device=device), torch.zeros(site.inputs, site.inputs, device=device)


def _eigenbasis(site: Site, seen: _Seen, gradient_BP: torch.Tensor, damping: Damping) -> Eigenbasis:
    if not (seen.outputs_OO.isfinite().all() and seen.inputs_II.isfinite().all()):
        raise not_finite(f"the curvature of {site.name}")
    sides = (seen.inputs_II, seen.outputs_OO) if site.tall else (seen.outputs_OO, seen.inputs_II)
    short_SS, long_LL = (torch.linalg.eigh(covariance)[1].cpu() for covariance in sides)
    gradient_BSL = gradient_BP.view(-1, len(short_SS), len(long_LL))
    square_SL = (short_SS.T @ (gradient_BSL @ long_LL)).square().mean(dim=0)
    floor = damping.of(site, seen.num_positions) * square_SL.mean() + torch.finfo(torch.float32).tiny
    return Eigenbasis(short_SS, long_LL, square_SL + floor)
