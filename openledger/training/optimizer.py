"""AdamW (Loshchilov and Hutter, 2019) with `eps_root`: the step is m / (sqrt(v + eps_root) + eps).

torch's AdamW has no eps_root. It matters for LoRA: B = 0 makes A's first gradients tiny, Adam divides by their size,
and the update's sign then flips under the smallest change of the data.
"""

from collections.abc import Sequence
from typing import Any

import torch

from openledger.training.recipe import Recipe

Tensors = list[torch.Tensor]


class AdamWEpsRoot:
    """State is one first and one second moment for each parameter, fp32, and the number of steps taken."""

    def __init__(self, parameters: Sequence[torch.nn.Parameter], recipe: Recipe):
        self._parameters = list(parameters)
        self._recipe = recipe
        self._first = [torch.zeros_like(p) for p in self._parameters]
        self._second = [torch.zeros_like(p) for p in self._parameters]
        self._num_steps = 0

    def step(self, gradients: Sequence[torch.Tensor], learning_rate: float | torch.Tensor) -> None:
        """`learning_rate` may be a tensor that broadcasts over each parameter's first dimension."""
        data = [p.data for p in self._parameters]
        found = adamw(
            data, gradients, self._first, self._second, self._num_steps, learning_rate, self._recipe
        )  # fmt: skip
        for parameter, value in zip(self._parameters, found[0], strict=True):
            parameter.data = value
        _, self._first, self._second = found
        self._num_steps += 1

    def state_dict(self) -> dict[str, Any]:
        return {"first": self._first, "second": self._second, "num_steps": self._num_steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._first = [tensor.clone() for tensor in state["first"]]
        self._second = [tensor.clone() for tensor in state["second"]]
        self._num_steps = state["num_steps"]


def adamw(
    parameters: Sequence[torch.Tensor],
    gradients: Sequence[torch.Tensor],
    first: Sequence[torch.Tensor],
    second: Sequence[torch.Tensor],
    num_steps: int,
    learning_rate: float | torch.Tensor,
    recipe: Recipe,
) -> tuple[Tensors, Tensors, Tensors]:
    """One step from state (parameters, first, second) after `num_steps` steps to the next: a pure function that
    autograd can go through, so that training and its replay are the same arithmetic."""
    correction_1, correction_2 = 1 - recipe.beta1 ** (num_steps + 1), 1 - recipe.beta2 ** (num_steps + 1)
    next_first = [torch.lerp(m, g, 1 - recipe.beta1) for m, g in zip(first, gradients, strict=True)]
    next_second = [recipe.beta2 * v + (1 - recipe.beta2) * g * g for v, g in zip(second, gradients, strict=True)]
    moved = [
        p - learning_rate * (m / correction_1) / ((v / correction_2 + recipe.eps_root).sqrt() + recipe.eps)
        for p, m, v in zip(parameters, next_first, next_second, strict=True)
    ]
    return moved, next_first, next_second
