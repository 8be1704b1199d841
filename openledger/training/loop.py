"""The fine-tuning loop: short enough to be read, exact enough to be replayed.

    loss = 1/B sum over the batch's rows i of w_i * (mean cross-entropy over row i's completion tokens)

Row weights w_i are 1 in a real run. A counterfactual run sets some to 0 and leaves every batch as it was.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from openledger.core.errors import Corrupt
from openledger.training.optimizer import AdamWEpsRoot
from openledger.training.recipe import Recipe, epoch_batches, learning_rate_at
from openledger.training.task import LANGUAGE, Task, Trainable, trainable_parameters

Reduce = Callable[[list[torch.Tensor]], None]


@dataclass(slots=True)
class Progress:
    """Where a run stands; what a checkpoint holds. `curve` is the mean training loss of each finished epoch."""

    epoch: int = 0
    curve: list[float] = field(default_factory=list)
    lora: dict[str, torch.Tensor] = field(default_factory=dict)
    optimizer: dict[str, Any] = field(default_factory=dict)


def train(
    module: Any,
    examples: Sequence[Trainable],
    recipe: Recipe,
    constant: str,
    *,
    task: Task = LANGUAGE,
    row_weights: Sequence[float] | None = None,
    progress: Progress | None = None,
    until_epoch: int | None = None,
    on_epoch: Callable[[Progress], None] | None = None,
    rank: int = 0,
    world_size: int = 1,
    reduce: Reduce | None = None,
) -> Progress:
    """Train `module` in place, going on from `progress` where one is given, to the recipe's last epoch or to
    `until_epoch`.

    With `world_size` > 1 each rank takes every world_size-th row of a batch, and `reduce` sums gradients and loss in
    place over the ranks. Raises Corrupt (code `diverged`) when the loss is not finite.
    """
    parameters = trainable_parameters(module)
    optimizer = AdamWEpsRoot(list(parameters.values()), recipe)
    progress = progress or Progress()
    if progress.lora:
        _restore(parameters, optimizer, progress)
    weights = [1.0] * len(examples) if row_weights is None else list(row_weights)
    lengths = [example.num_tokens for example in examples]
    steps_per_epoch = math.ceil(len(examples) / recipe.batch_rows)
    for epoch in range(progress.epoch, min(until_epoch or recipe.num_epochs, recipe.num_epochs)):
        total = 0.0
        for index, rows in enumerate(epoch_batches(lengths, recipe, constant, epoch)):
            loss, gradients = _gradients(task, module, parameters, examples, weights, rows, rank, world_size)
            if reduce is not None:
                reduce([*gradients, loss])
            step = epoch * steps_per_epoch + index
            optimizer.step(gradients, learning_rate_at(step, recipe.num_epochs * steps_per_epoch, recipe))
            total += loss.item() * len(rows)
        _check_finite(total, epoch)
        progress.epoch, progress.curve = epoch + 1, [*progress.curve, total / len(examples)]
        progress.lora = {name: parameter.detach() for name, parameter in parameters.items()}
        progress.optimizer = optimizer.state_dict()
        if on_epoch is not None:
            on_epoch(progress)
    return progress


def _gradients(
    task: Task,
    module: Any,
    parameters: dict[str, torch.nn.Parameter],
    examples: Sequence[Trainable],
    weights: Sequence[float],
    rows: Sequence[int],
    rank: int,
    world_size: int,
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """This rank's part of the batch's loss and gradients; both are sums over its rows, divided by the whole batch."""
    own = rows[rank::world_size]
    device = next(iter(parameters.values())).device
    if not own:
        return torch.zeros((), device=device), [torch.zeros_like(p) for p in parameters.values()]
    weight_B = torch.tensor([weights[row] for row in own], device=device)
    loss = (task.losses(module, [examples[row] for row in own]) * weight_B).sum() / len(rows)
    gradients = torch.autograd.grad(loss, list(parameters.values()))
    return loss.detach(), list(gradients)


def _restore(parameters: dict[str, torch.nn.Parameter], optimizer: AdamWEpsRoot, progress: Progress) -> None:
    for name, parameter in parameters.items():
        parameter.data.copy_(progress.lora[name])
    optimizer.load_state_dict(progress.optimizer)


def _check_finite(total: float, epoch: int) -> None:
    if not math.isfinite(total):
        raise Corrupt(
            f"the training loss is not finite in epoch {epoch + 1}",
            code="diverged",
            param="learning_rate",
            fix="lower the learning rate, and look for extreme rows",
        )
