"""Per-row gradients of LoRA's matrices, at the cost of one batched forward and backward pass.

For a linear layer y = W x the gradient of row b's loss is sum over tokens t of (dL/dy_bt) x_bt^T: hooks take x on the
way in and dL/dy on the way out, so that no row needs a pass of its own.

Shapes: B rows, T tokens, I inputs and O outputs of one LoRA matrix.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from openledger.training.examples import Example, collate, completion_logits, row_losses
from openledger.training.lora import lora_parameters

Visit = Callable[[str, torch.Tensor, torch.Tensor], None]


@dataclass(frozen=True, slots=True)
class Site:
    """One LoRA matrix: its parameter's name and its shape [outputs, inputs]."""

    name: str
    outputs: int
    inputs: int


def sites(lora_model: Any) -> list[Site]:
    """LoRA's matrices in the order in which their gradients stand in an index."""
    return [Site(name, *parameter.shape) for name, parameter in lora_parameters(lora_model).items()]


@contextmanager
def visiting(lora_model: Any, visit: Visit) -> Iterator[None]:
    """While open, every backward pass calls visit(site name, input_BTI, output_gradient_BTO) for each LoRA matrix."""
    modules = {f"{name}.weight": module for name, module in lora_model.named_modules()}
    handles = [modules[site.name].register_forward_hook(_forward_hook(site.name, visit)) for site in sites(lora_model)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def row_gradients(lora_model: Any, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
    """Gradients of each example's mean completion loss, by site: [B, O, I]."""
    found: dict[str, torch.Tensor] = {}

    def visit(name: str, input_BTI: torch.Tensor, gradient_BTO: torch.Tensor) -> None:
        found[name] = torch.einsum("bto,bti->boi", gradient_BTO, input_BTI)

    batch = collate(examples, next(lora_model.parameters()).device)
    with visiting(lora_model, visit):
        row_losses(lora_model, batch).sum().backward()
    _forget_gradients(lora_model)
    return found


def sampled_fisher_pass(lora_model: Any, examples: Sequence[Example], visit: Visit, seed: int) -> None:
    """A backward pass with labels drawn from the model, as the Fisher matrix needs (Martens and Grosse, 2015).

    Token losses are scaled by 1/sqrt(n), n the row's completion tokens: squares of a row's summed gradients then have
    the expectation of the mean of its tokens' squares, which is the curvature of the row's mean loss.
    """
    batch = collate(examples, next(lora_model.parameters()).device)
    generator = torch.Generator(device=batch.input_ids_BT.device).manual_seed(seed)
    weight_BT = batch.weight_BT[:, batch.first_target :]
    predicts_BT = weight_BT > 0
    with visiting(lora_model, visit):
        logits_NV = completion_logits(lora_model, batch)[predicts_BT]
        labels_N = torch.multinomial(logits_NV.detach().softmax(-1), 1, generator=generator)[:, 0]
        losses_N = torch.nn.functional.cross_entropy(logits_NV, labels_N, reduction="none")
        (losses_N * weight_BT[predicts_BT].sqrt()).sum().backward()
    _forget_gradients(lora_model)


def _forward_hook(name: str, visit: Visit) -> Callable[[Any, Any, torch.Tensor], None]:
    def hook(_module: Any, inputs: Any, output: torch.Tensor) -> None:
        if output.requires_grad:
            input_BTI = inputs[0].detach()
            output.register_hook(lambda gradient_BTO: visit(name, input_BTI, gradient_BTO.detach()))

    return hook


def _forget_gradients(lora_model: Any) -> None:
    for parameter in lora_parameters(lora_model).values():
        parameter.grad = None
