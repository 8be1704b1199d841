"""EK-FAC: the curvature that turns gradients into influence (George et al., 2018; Grosse et al., 2023).

For one LoRA matrix with token inputs x and output gradients g, K-FAC says H = E[g g^T] (x) E[x x^T]. With the
eigenbases Q_g and Q_x of the two factors, EK-FAC keeps the basis and measures the eigenvalues:

    Lambda = E over rows of (Q_g^T G Q_x)^2          H^-1 G  ~  Q_g ((Q_g^T G Q_x) / (Lambda + damping)) Q_x^T

Labels are drawn from the model (the true Fisher), not taken from the data. Damping is a tenth of Lambda's mean, for
each matrix on its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from openledger.attribution.gradients import Site, sampled_fisher_pass, sites
from openledger.training.examples import Example

DAMPING = 0.1
FACTOR_ROWS = 128


@dataclass(frozen=True, slots=True)
class Eigenbasis:
    """Of one matrix: `outputs_OO` and `inputs_II` (eigenvectors in columns), `curvature_OI` (Lambda + damping)."""

    outputs_OO: torch.Tensor
    inputs_II: torch.Tensor
    curvature_OI: torch.Tensor

    def rotate(self, gradient_BOI: torch.Tensor) -> torch.Tensor:
        return self.outputs_OO.T @ gradient_BOI @ self.inputs_II

    def precondition(self, rotated_BOI: torch.Tensor) -> torch.Tensor:
        return rotated_BOI / self.curvature_OI


def fit(lora_model: Any, examples: Sequence[Example], batch_rows: int = 16, seed: int = 0) -> dict[str, Eigenbasis]:
    """Two passes over `examples` (over FACTOR_ROWS of them, evenly spaced, where there are more): covariances, then
    eigenvalues in their eigenbasis."""
    examples = examples[:: -(-len(examples) // FACTOR_ROWS)]
    batches = [examples[start : start + batch_rows] for start in range(0, len(examples), batch_rows)]
    bases = _eigenbases(lora_model, batches, seed)
    squares = {site.name: torch.zeros(site.outputs, site.inputs) for site in sites(lora_model)}

    def visit(name: str, input_BTI: torch.Tensor, gradient_BTO: torch.Tensor) -> None:
        outputs_OO, inputs_II = bases[name]
        rotated = torch.einsum("bto,bti->boi", gradient_BTO @ outputs_OO, input_BTI @ inputs_II)
        squares[name] += rotated.square().sum(dim=0).cpu()

    for number, batch in enumerate(batches):
        sampled_fisher_pass(lora_model, batch, visit, seed + number)
    return {name: _eigenbasis(*bases[name], square / len(examples)) for name, square in squares.items()}


def _eigenbases(
    lora_model: Any, batches: Sequence[Sequence[Example]], seed: int
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    covariances = {site.name: _empty(site) for site in sites(lora_model)}

    def visit(name: str, input_BTI: torch.Tensor, gradient_BTO: torch.Tensor) -> None:
        outputs_OO, inputs_II = covariances[name]
        gradient_NO, input_NI = gradient_BTO.flatten(0, 1), input_BTI.flatten(0, 1)
        predicts = gradient_NO.abs().sum(dim=1, keepdim=True) > 0  # positions before the completion have no gradient
        outputs_OO += (gradient_NO.T @ gradient_NO).cpu()
        inputs_II += ((input_NI * predicts).T @ input_NI).cpu()

    for number, batch in enumerate(batches):
        sampled_fisher_pass(lora_model, batch, visit, seed + number)
    return {
        name: (torch.linalg.eigh(outputs_OO)[1], torch.linalg.eigh(inputs_II)[1])
        for name, (outputs_OO, inputs_II) in covariances.items()
    }


def _empty(site: Site) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.zeros(site.outputs, site.outputs), torch.zeros(site.inputs, site.inputs)


def _eigenbasis(outputs_OO: torch.Tensor, inputs_II: torch.Tensor, square_OI: torch.Tensor) -> Eigenbasis:
    damping = DAMPING * square_OI.mean() + torch.finfo(torch.float32).tiny
    return Eigenbasis(outputs_OO, inputs_II, square_OI + damping)
