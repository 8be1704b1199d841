"""AdamW (Loshchilov and Hutter, 2019) with `eps_root`: the step is m / (sqrt(v + eps_root) + eps).

torch's AdamW has no eps_root. It matters for LoRA: B = 0 makes A's first gradients tiny, Adam divides by their size,
and the update's sign then flips under the smallest change of the data.
"""

from collections.abc import Sequence
from typing import Any

import torch

from openledger.training.recipe import Recipe


class AdamWEpsRoot:
    """State is one first and one second moment for each parameter, fp32, and the number of steps taken."""

    def __init__(self, parameters: Sequence[torch.nn.Parameter], recipe: Recipe):
        self._parameters = list(parameters)
        self._recipe = recipe
        self._first = [torch.zeros_like(p) for p in self._parameters]
        self._second = [torch.zeros_like(p) for p in self._parameters]
        self._num_steps = 0

    def step(self, gradients: Sequence[torch.Tensor], learning_rate: float) -> None:
        recipe = self._recipe
        self._num_steps += 1
        torch._foreach_lerp_(self._first, gradients, 1 - recipe.beta1)
        torch._foreach_mul_(self._second, recipe.beta2)
        torch._foreach_addcmul_(self._second, gradients, gradients, 1 - recipe.beta2)
        unbiased_first = torch._foreach_div(self._first, 1 - recipe.beta1**self._num_steps)
        denominator = torch._foreach_div(self._second, 1 - recipe.beta2**self._num_steps)
        torch._foreach_add_(denominator, recipe.eps_root)
        torch._foreach_sqrt_(denominator)
        torch._foreach_add_(denominator, recipe.eps)
        data = [p.data for p in self._parameters]
        torch._foreach_addcdiv_(data, unbiased_first, denominator, -learning_rate)

    def state_dict(self) -> dict[str, Any]:
        return {"first": self._first, "second": self._second, "num_steps": self._num_steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for mine, theirs in zip(self._first + self._second, state["first"] + state["second"], strict=True):
            mine.copy_(theirs)
        self._num_steps = state["num_steps"]
