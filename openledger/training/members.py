"""Counterfactual runs: a recipe on some of the rows, or with some rows at weight 0.

Shapes: M members, Q queries.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from openledger.core.errors import InvalidInput
from openledger.training.loop import train
from openledger.training.recipe import Recipe
from openledger.training.task import Task, Trainable, trainable_parameters

Weights = dict[str, torch.Tensor]
OnEpoch = Callable[[int, list[Weights]], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One run of a recipe: on `rows` (row numbers), from the public constants of its initial A and of its order.
    `initial` may name an adapter instead, that the run goes on from (`recipe.from_adapter`).

    `row_weights` (one for each of `rows`) are 1 in a real run; a counterfactual that keeps every batch as it was sets
    some to 0. With `keeps_epochs` where it stood after each epoch is of use too.
    """

    name: str
    rows: tuple[int, ...]
    initial: str
    order: str
    row_weights: tuple[float, ...] = ()
    keeps_epochs: bool = False

    def __post_init__(self) -> None:
        if not self.rows:
            raise InvalidInput(f"the run {self.name} has no rows", code="empty_run", param="rows")
        if self.row_weights and len(self.row_weights) != len(self.rows):
            raise InvalidInput(f"the run {self.name} has as many weights as rows", code="invalid_run", param="weights")


class Runs(Protocol):
    """Something that can be trained as a member says, and asked."""

    @property
    def pack_members(self) -> int:
        """How many are best trained at once."""

    def train(self, members: Sequence[Member], on_epoch: OnEpoch | None = None) -> list[Weights]:
        """Each member's final trainable parameters by name; `on_epoch(epoch, weights)` sees all members after each
        epoch of the longest."""

    def score(self, weights: Sequence[Weights], queries: Sequence[Any]) -> npt.NDArray[np.float64]:
        """Mean log-likelihood per predicted token of each query under each member, [M, Q], in nats."""


class ModuleRuns:
    """Runs of any torch module, one at a time. `make(initial)` builds it as a run under that constant begins."""

    pack_members = 1

    def __init__(self, make: Callable[[str], Any], examples: Sequence[Trainable], recipe: Recipe, task: Task):
        self._make, self._examples, self._recipe, self._task = make, examples, recipe, task

    def train(self, members: Sequence[Member], on_epoch: OnEpoch | None = None) -> list[Weights]:
        if on_epoch is not None and len(members) > 1:
            raise InvalidInput("one member at a time has epochs of its own", code="invalid_run", param="members")
        return [self._train(member, on_epoch) for member in members]

    def score(self, weights: Sequence[Weights], queries: Sequence[Any]) -> npt.NDArray[np.float64]:
        rows = []
        module = self._make("")
        for own in weights:
            for name, parameter in trainable_parameters(module).items():
                parameter.data.copy_(own[name])
            with torch.no_grad():
                rows.append(-self._task.losses(module, queries).double().cpu().numpy())
        return np.stack(rows)

    def _train(self, member: Member, on_epoch: OnEpoch | None) -> Weights:
        module = self._make(member.initial)
        train(
            module,
            [self._examples[row] for row in member.rows],
            self._recipe,
            member.order,
            task=self._task,
            row_weights=member.row_weights or None,
            on_epoch=None if on_epoch is None else lambda progress: on_epoch(progress.epoch, [progress.lora]),
        )
        return {name: parameter.detach().cpu().clone() for name, parameter in trainable_parameters(module).items()}
