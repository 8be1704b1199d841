"""Per-row gradients of linear layers' weights, at the cost of one batched forward and backward pass.

For a linear layer y = W x the gradient of row b's loss is sum over tokens t of (dL/dy_bt) x_bt^T: hooks take x on the
way in and dL/dy on the way out, so that no row needs a pass of its own. A trained bias is one more column of W, whose
input is 1. While hooks are in place the parameters themselves take no gradients: the batch's sum, which training needs,
is not computed. A LoRA layer's two matrices are taken together (`lora_pass`). One row alone is cheaper by plain
autograd: there is no batch to save a pass for.

Shapes: B rows, T tokens (1 where the layer takes [B, I]), I inputs (with the bias's) and O outputs of one matrix.
Gradients lie with their longer side last, which is how a product with that side's eigenvectors is cheapest: [B, S, L],
where S, L is O, I, or I, O for a `tall` matrix.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from openledger.attribution.lora_pass import See, in_one_step, lora_layers
from openledger.core.errors import Corrupt, InvalidInput
from openledger.training.task import LANGUAGE, Task, Trainable, trainable_parameters

Layer = torch.nn.Linear


@dataclass(frozen=True, slots=True)
class Site:
    """One matrix: its parameter's name and its shape [outputs, inputs]; with `bias` the last input is the constant."""

    name: str
    outputs: int
    inputs: int
    bias: bool = False

    @property
    def tall(self) -> bool:
        return self.outputs > self.inputs

    @property
    def size(self) -> int:
        return self.outputs * self.inputs

    def outer(self, input_BTI: torch.Tensor, gradient_BTO: torch.Tensor) -> torch.Tensor:
        """The rows' gradients, [B, S, L]."""
        short_BTS, long_BTL = (input_BTI, gradient_BTO) if self.tall else (gradient_BTO, input_BTI)
        return torch.bmm(short_BTS.transpose(1, 2), long_BTL)


Visit = Callable[[Site, torch.Tensor, torch.Tensor], None]


def sites(module: Any) -> list[Site]:
    """The trained matrices in the order in which their gradients stand in an index.

    Raises InvalidInput (`not_indexable`) for a trained parameter that belongs to no linear layer: leaving it out would
    leave out part of every influence without a word.
    """
    parameters = trainable_parameters(module)
    found = []
    for name in parameters:
        path, _, kind = name.rpartition(".")
        weight = f"{path}.weight" if path else "weight"
        if not isinstance(module.get_submodule(path), Layer) or weight not in parameters:
            raise _not_indexable(f"{name} is not the weight of a linear layer")
        if kind == "weight":
            outputs, inputs = parameters[name].shape
            bias = f"{name.removesuffix('weight')}bias" in parameters
            found.append(Site(name, outputs, inputs + bias, bias))
    return found


def row_gradients(
    module: Any, examples: Sequence[Trainable], task: Task = LANGUAGE, all_sites: Sequence[Site] = ()
) -> dict[str, torch.Tensor]:
    """Gradients of each example's loss by site, [B, S, L] in fp32; `all_sites` are the module's where they are at
    hand. Raises Corrupt (`not_finite`) naming a row."""
    all_sites = all_sites or sites(module)
    if len(examples) == 1 and all(p.dtype == torch.float32 for p in trainable_parameters(module).values()):
        return _one_rows_gradients(module, all_sites, examples, task)
    found: dict[str, torch.Tensor] = {}

    def visit(site: Site, input_BTI: torch.Tensor, gradient_BTO: torch.Tensor) -> None:
        gradient_BSL = site.outer(input_BTI, gradient_BTO)
        found[site.name] = found[site.name] + gradient_BSL if site.name in found else gradient_BSL

    losses_B = _passes(module, all_sites, len(examples), visit, lambda: task.losses(module, examples))
    _check_finite(losses_B, examples)
    unused = [site for site in all_sites if site.name not in found]
    return found | {site.name: losses_B.new_zeros(len(examples), *_sides(site)) for site in unused}


def _one_rows_gradients(
    module: Any, all_sites: Sequence[Site], examples: Sequence[Trainable], task: Task
) -> dict[str, torch.Tensor]:
    losses_1 = task.losses(module, examples)
    _check_finite(losses_1, examples)
    parameters = trainable_parameters(module)
    if not losses_1.requires_grad:
        raise _not_indexable("no trained matrix was used in the forward pass")
    gradients = torch.autograd.grad(losses_1.sum(), list(parameters.values()), materialize_grads=True)
    by_name = dict(zip(parameters, gradients, strict=True))
    found = {}
    for site in all_sites:
        own_OI = by_name[site.name]
        if site.bias:
            own_OI = torch.cat([own_OI, by_name[f"{site.name.removesuffix('weight')}bias"][:, None]], dim=1)
        found[site.name] = (own_OI.T if site.tall else own_OI)[None]
    return found


def sampled_fisher_pass(
    module: Any, examples: Sequence[Trainable], visit: Visit, seed: int, task: Task = LANGUAGE
) -> None:
    """A backward pass with labels drawn from the model, as the Fisher matrix needs (Martens and Grosse, 2015).

    Calls visit(site, input_BTI, output_gradient_BTO) for every use of every site. Raises Corrupt (`not_finite`) naming
    a row whose loss is not finite.
    """
    try:
        losses_B = _passes(
            module, sites(module), len(examples), visit, lambda: task.sampled_losses(module, examples, seed)
        )
    except RuntimeError:  # no label can be drawn from probabilities that are not finite
        with torch.no_grad():
            _check_finite(task.losses(module, examples), examples)
        raise
    _check_finite(losses_B, examples)


def _passes(
    module: Any, all_sites: Sequence[Site], num_rows: int, visit: Visit, losses: Callable[[], torch.Tensor]
) -> torch.Tensor:
    with _visiting(module, all_sites, num_rows, visit) as roots:
        losses_B = losses()
        if not roots:
            raise _not_indexable("no trained matrix was used in the forward pass")
        torch.autograd.grad(losses_B.sum(), roots, allow_unused=True)
    return losses_B.detach()


@contextmanager
def _visiting(module: Any, all_sites: Sequence[Site], num_rows: int, visit: Visit) -> Iterator[list[torch.Tensor]]:
    """While open, backward passes call `visit`. Yields the outputs that the graph of a forward pass begins with."""
    parameters, roots = list(trainable_parameters(module).values()), list[torch.Tensor]()
    by_name = {site.name: site for site in all_sites}
    together = [own for own in lora_layers(module) if own.down in by_name or own.up in by_name]
    alone = by_name.keys() - {name for own in together for name in (own.down, own.up)}

    def see(name: str) -> See | None:
        return partial(_see, by_name[name], visit) if name in by_name else None

    def check(name: str, inputs: torch.Tensor) -> None:
        _check_by_rows(name, inputs, num_rows)

    handles = []
    for site in all_sites:
        if site.name in alone:
            layer = module.get_submodule(site.name.rpartition(".")[0])
            handles.append(layer.register_forward_hook(_forward_hook(site, num_rows, visit, roots)))
    try:
        for parameter in parameters:
            parameter.requires_grad_(False)
        with in_one_step([(own, see(own.down), see(own.up)) for own in together], check, roots):
            yield roots
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)
        for handle in handles:
            handle.remove()


def _forward_hook(
    site: Site, num_rows: int, visit: Visit, roots: list[torch.Tensor]
) -> Callable[[Any, Any, torch.Tensor], torch.Tensor]:
    def hook(_layer: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        _check_by_rows(site.name, inputs[0], num_rows)
        if not output.requires_grad:
            roots.append(output.requires_grad_())
            output = output.clone()  # what follows may work in place, which a root doesn't allow
        input_BTI = inputs[0].detach()
        output.register_hook(lambda gradient: _see(site, visit, input_BTI, gradient.detach()))
        return output

    return hook


def _see(site: Site, visit: Visit, inputs: torch.Tensor, gradients: torch.Tensor) -> None:
    input_BTI = _by_token(inputs)
    if site.bias:
        input_BTI = torch.cat([input_BTI, torch.ones_like(input_BTI[..., :1])], dim=-1)
    visit(site, input_BTI, _by_token(gradients))


def _check_by_rows(name: str, inputs: torch.Tensor, num_rows: int) -> None:
    if inputs.shape[0] != num_rows or inputs.dim() > 3:
        raise _not_indexable(f"{name} takes {list(inputs.shape)} for {num_rows} rows, not [rows, tokens]")


def _by_token(values: torch.Tensor) -> torch.Tensor:
    return (values if values.dim() == 3 else values.unsqueeze(1)).float()


def _sides(site: Site) -> tuple[int, int]:
    return (site.inputs, site.outputs) if site.tall else (site.outputs, site.inputs)


def _check_finite(losses_B: torch.Tensor, examples: Sequence[Trainable]) -> None:
    for finite, example in zip(losses_B.isfinite().tolist(), examples, strict=True):
        if not finite:
            raise not_finite(f"the loss of row {example.row_id}")


def not_finite(what: str) -> Corrupt:
    return Corrupt(
        f"{what} is not finite",
        code="not_finite",
        param="rows",
        fix="leave the row out, or train with a lower learning rate",
    )


def _not_indexable(reason: str) -> InvalidInput:
    return InvalidInput(
        f"this module can't be indexed: {reason}",
        code="not_indexable",
        param="adapter",
        fix="train weights of linear layers only (LoRA's matrices are such)",
    )
