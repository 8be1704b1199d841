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

from openledger.training.task import LANGUAGE, Task, Trainable, trainable_parameters

Visit = Callable[[str, torch.Tensor, torch.Tensor], None]


@dataclass(frozen=True, slots=True)
class Site:
    """One LoRA matrix: its parameter's name and its shape [outputs, inputs]."""

    name: str
    outputs: int
    inputs: int


def sites(module: Any) -> list[Site]:
    """LoRA's matrices in the order in which their gradients stand in an index."""
    return [Site(name, *parameter.shape) for name, parameter in trainable_parameters(module).items()]


@contextmanager
def visiting(module: Any, visit: Visit) -> Iterator[None]:
    """While open, every backward pass calls visit(site name, input_BTI, output_gradient_BTO) for each LoRA matrix."""
    modules = {f"{name}.weight": module for name, module in module.named_modules()}
    handles = [modules[site.name].register_forward_hook(_forward_hook(site.name, visit)) for site in sites(module)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def row_gradients(module: Any, examples: Sequence[Trainable], task: Task = LANGUAGE) -> dict[str, torch.Tensor]:
    """Gradients of each example's mean completion loss, by site: [B, O, I]."""
    found: dict[str, torch.Tensor] = {}

    def visit(name: str, input_BTI: torch.Tensor, gradient_BTO: torch.Tensor) -> None:
        found[name] = torch.einsum("bto,bti->boi", gradient_BTO, input_BTI)

    with visiting(module, visit):
        task.losses(module, examples).sum().backward()
    _forget_gradients(module)
    return found


def sampled_fisher_pass(
    module: Any, examples: Sequence[Trainable], visit: Visit, seed: int, task: Task = LANGUAGE
) -> None:
    """A backward pass with labels drawn from the model, as the Fisher matrix needs (Martens and Grosse, 2015)."""
    with visiting(module, visit):
        task.sampled_losses(module, examples, seed).sum().backward()
    _forget_gradients(module)


def _forward_hook(name: str, visit: Visit) -> Callable[[Any, Any, torch.Tensor], None]:
    def hook(_module: Any, inputs: Any, output: torch.Tensor) -> None:
        if output.requires_grad:
            input_BTI = inputs[0].detach()
            output.register_hook(lambda gradient_BTO: visit(name, input_BTI, gradient_BTO.detach()))

    return hook


def _forget_gradients(module: Any) -> None:
    for parameter in trainable_parameters(module).values():
        parameter.grad = None
