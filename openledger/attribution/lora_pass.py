"""A LoRA layer as one step of a gradient pass: what hooks on its two matrices would see, for less.

    y = W x + B' (A x)                    B' = s B, s LoRA's scale
    dx = W^T dy + A^T (B'^T dy)           A's gradient is made of x and B'^T dy, B's of s A x and dy

PEFT computes the two terms of y apart, scales one of them and adds it, and autograd goes back the same way: five more
tensors of a layer's size, read and written. Here a small product is added into the large one where that lies. What it
gives differs from hooks' in the last bits of fp32 alone, and no weight is changed or copied.

A layer is taken only where that is all it does: PEFT's plain LoRA around a linear layer, one adapter, no dropout,
everything of one precision. Any other is hooked matrix by matrix (`gradients`).

Shapes: N tokens of all rows, I inputs, O outputs, K LoRA's rank.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from peft.tuners.lora.layer import Linear

See = Callable[[torch.Tensor, torch.Tensor], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraLayer:
    """`down` and `up` are the names of its matrices' parameters."""

    layer: Any
    adapter: str
    down: str
    up: str

    @property
    def matrices(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """W and A, [O, I] and [K, I], and B' [O, K]."""
        up_OK = self.layer.lora_B[self.adapter].weight.detach() * self.layer.scaling[self.adapter]
        return self.layer.base_layer.weight.detach(), self.layer.lora_A[self.adapter].weight.detach(), up_OK


def lora_layers(module: Any) -> list[LoraLayer]:
    """The layers of `module` that can be taken in one step."""
    found = []
    for path, layer in module.named_modules():
        if type(layer) is Linear and (adapter := _only_adapter(layer)):
            down, up = (f"{path}.lora_{side}.{adapter}.weight" for side in "AB")
            found.append(LoraLayer(layer=layer, adapter=adapter, down=down, up=up))
    return found


@contextmanager
def in_one_step(
    layers: Sequence[tuple[LoraLayer, See | None, See | None]],
    check: Callable[[str, torch.Tensor], None],
    roots: list[torch.Tensor],
) -> Iterator[None]:
    """While open, each layer's passes are one step; backward passes call see(inputs, output gradients) for its A and
    for its B, where they are given. `check` sees a layer's name and input. What the graph of a forward pass begins
    with is added to `roots`."""
    for own, see_down, see_up in layers:
        own.layer.forward = partial(_forward, own, see_down, see_up, check, roots)
    try:
        yield
    finally:
        for own, _, _ in layers:
            del own.layer.forward


def _forward(
    own: LoraLayer,
    see_down: See | None,
    see_up: See | None,
    check: Callable[[str, torch.Tensor], None],
    roots: list[torch.Tensor],
    x: torch.Tensor,
) -> torch.Tensor:
    check(own.down, x)
    root = None
    if not x.requires_grad:
        roots.append(root := torch.zeros((), requires_grad=True))
    found: torch.Tensor = _Step.apply(x, root, own, see_down, see_up)
    return found


class _Step(torch.autograd.Function):
    """`root` takes no part: where the input needs no gradient it makes the step one that gradients are asked of."""

    @staticmethod
    def forward(
        context: Any,
        x: torch.Tensor,
        _root: torch.Tensor | None,
        own: LoraLayer,
        see_down: See | None,
        see_up: See | None,
    ) -> torch.Tensor:
        weight_OI, down_KI, up_OK = own.matrices
        small_NK = x.flatten(0, -2) @ down_KI.T
        y = torch.nn.functional.linear(x, weight_OI, own.layer.base_layer.bias)
        y.flatten(0, -2).addmm_(small_NK, up_OK.T)  # y itself is no view: what follows may work in place
        context.save_for_backward(x, small_NK, up_OK)
        context.own, context.see_down, context.see_up = own, see_down, see_up
        return y

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (dy,), own = gradients, context.own
        x, small_NK, up_OK = context.saved_tensors
        weight_OI, down_KI, _ = own.matrices
        dy_NO = dy.flatten(0, -2)
        back_NK = dy_NO @ up_OK
        if context.see_down is not None:
            context.see_down(x, back_NK.view(*dy.shape[:-1], -1))
        if context.see_up is not None:
            # the scale belongs to dy; put to the smaller side it changes neither their product nor what K-FAC makes of
            context.see_up((small_NK * own.layer.scaling[own.adapter]).view(*dy.shape[:-1], -1), dy)
        dx = None
        if context.needs_input_grad[0]:
            dx = (dy_NO @ weight_OI).addmm_(back_NK, down_KI).view(x.shape)
        return dx, None, None, None, None


def _only_adapter(layer: Any) -> str:
    """The name of the layer's adapter; empty where it does more than the module's formula, or in several precisions."""
    if len(layer.active_adapters) != 1 or layer.merged or layer.disable_adapters:
        return ""
    (adapter,) = layer.active_adapters
    if adapter not in layer.lora_A or adapter in layer.lora_variant:
        return ""
    base, down, up = layer.base_layer, layer.lora_A[adapter], layer.lora_B[adapter]
    dropout = layer.lora_dropout[adapter]
    plain = all(type(part) is torch.nn.Linear for part in (base, down, up)) and down.bias is None and up.bias is None
    idle = isinstance(dropout, torch.nn.Identity) or not dropout.training
    return str(adapter) if plain and idle and len({part.weight.dtype for part in (base, down, up)}) == 1 else ""
