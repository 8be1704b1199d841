"""Many adapters trained, or asked, in one pass over one base model.

The base's weights are frozen and shared, so a batch can hold rows of several adapters ("members"): the base multiplies
them all at once, and each member's own LoRA matrices multiply its own rows. Losses are summed over the members; no
gradient crosses from one to another. The mathematics of each member is that of `loop.train` alone; the order of
additions, and so the last bits, differ.

Shapes: M members, B rows of one member, T tokens, I inputs, O outputs, R LoRA rank.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from openledger.adapters.base_model import BaseModel, load_model
from openledger.core.errors import Corrupt, InvalidInput
from openledger.training.examples import Example, collate, row_losses, token_losses
from openledger.training.lora import attach_lora, initial_matrices
from openledger.training.members import Member, OnEpoch, Weights
from openledger.training.optimizer import AdamWEpsRoot
from openledger.training.recipe import Recipe, epoch_batches, learning_rate_at, parent_digest
from openledger.training.task import trainable_parameters


class PackedLora(torch.nn.Module):
    """A linear layer with M adapters: input [M * B, T, I], the rows of member 0 first."""

    def __init__(self, base: Any, a_MRI: torch.nn.Parameter, b_MOR: torch.nn.Parameter, scale: float):
        super().__init__()
        self.base_layer, self.a_MRI, self.b_MOR, self.scale = base, a_MRI, b_MOR, scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        members = self.a_MRI.shape[0]
        x_MNI = x.reshape(members, -1, x.shape[-1])
        delta_MNO = torch.bmm(torch.bmm(x_MNI, self.a_MRI.transpose(1, 2)), self.b_MOR.transpose(1, 2))
        return self.base_layer(x) + self.scale * delta_MNO.reshape(*x.shape[:-1], -1)


class Pack:
    """A base model that carries `num_members` adapters of `recipe`'s shape."""

    def __init__(self, base: BaseModel, recipe: Recipe, num_members: int, device: torch.device | str = "cpu"):
        self.recipe, self.num_members = recipe, num_members
        self._single = attach_lora(load_model(base).to(device), recipe, "pack")
        self._names: dict[str, tuple[PackedLora, str]] = {}
        self._replace_layers()

    @property
    def device(self) -> torch.device:
        return next(iter(self._names.values()))[0].a_MRI.device

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """PEFT's name -> [M, ...], sorted by name."""
        return {name: getattr(layer, side) for name, (layer, side) in sorted(self._names.items())}

    def load(self, weights: Sequence[Weights]) -> None:
        """Put each member's matrices in place; there must be as many as members."""
        for name, parameter in self.parameters().items():
            parameter.data = torch.stack([own[name] for own in weights]).to(self.device)

    def weights(self) -> list[Weights]:
        """Each member's matrices by PEFT's names, on the CPU."""
        found = {name: p.detach().cpu() for name, p in self.parameters().items()}
        return [{name: tensor[number].clone() for name, tensor in found.items()} for number in range(self.num_members)]

    def losses(self, batches: Sequence[Sequence[Example]]) -> torch.Tensor:
        """Each row's mean loss, [M, B]; `batches` has one batch of B rows for each member."""
        flat = [example for batch in batches for example in batch]
        return row_losses(self._single, collate(flat, self.device)).view(self.num_members, -1)

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def token_log_likelihoods(self, example: Example) -> torch.Tensor:
        """Log-likelihood of each completion token under each member, [M, completion tokens]."""
        batch = collate([example] * self.num_members, self.device)
        return -token_losses(self._single, batch)[:, : len(example.ids) - example.num_prompt]

    def _replace_layers(self) -> None:
        names = set(trainable_parameters(self._single))
        for path, layer in list(self._single.named_modules()):
            name_A, name_B = (f"{path}.lora_{side}.default.weight" for side in "AB")
            if name_A not in names:
                continue
            a_MRI = _empty(self.num_members, layer.lora_A["default"].weight)
            b_MOR = _empty(self.num_members, layer.lora_B["default"].weight)
            packed = PackedLora(layer.base_layer, a_MRI, b_MOR, layer.scaling["default"])
            parent, _, child = path.rpartition(".")
            setattr(self._single.get_submodule(parent), child, packed)
            self._names[name_A], self._names[name_B] = (packed, "a_MRI"), (packed, "b_MOR")


def train_members(
    base: BaseModel,
    examples: Sequence[Example],
    members: Sequence[Member],
    recipe: Recipe,
    *,
    start: Path | None = None,
    device: torch.device | str = "cpu",
    on_epoch: OnEpoch | None = None,
) -> list[Weights]:
    """Train all `members` side by side; each one's final matrices by PEFT's names. `start` holds the adapter from which
    they go on, where their `initial` names one.

    Members may have different numbers of rows: one that has taken its last step stands still. `on_epoch(number,
    weights)` sees all members after each of the longest member's epochs. Raises Corrupt (`diverged`) naming the member.
    """
    pack = Pack(base, recipe, len(members), device)
    pack.load([initial_weights(pack, member.initial, start) for member in members])
    parameters = list(pack.parameters().values())
    optimizer = AdamWEpsRoot(parameters, recipe)
    plans = [_plan(examples, member, recipe) for member in members]
    num_steps = max(len(plan) for plan in plans)
    per_epoch = num_steps // recipe.num_epochs
    for step in range(num_steps):
        batches = [plan[step] if step < len(plan) else [] for plan in plans]
        loss = _summed_loss(pack, examples, members, batches)
        _check_finite(loss, members)
        gradients = torch.autograd.grad(loss.sum(), parameters)
        rates = [learning_rate_at(step, len(plan), recipe) if step < len(plan) else 0.0 for plan in plans]
        optimizer.step(list(gradients), torch.tensor(rates, device=pack.device)[:, None, None])
        if on_epoch is not None and (step + 1) % per_epoch == 0:
            on_epoch((step + 1) // per_epoch, pack.weights())
    return pack.weights()


def score_members(
    base: BaseModel,
    recipe: Recipe,
    weights: Sequence[Weights],
    queries: Sequence[Example],
    *,
    pack_members: int = 16,
    device: torch.device | str = "cpu",
) -> torch.Tensor:
    """Mean log-likelihood per completion token of every query under every member, [M, num_queries], in nats."""
    rows, pack = [], None
    for start in range(0, len(weights), pack_members):
        chunk = list(weights[start : start + pack_members])
        if pack is None or pack.num_members != len(chunk):  # the last chunk may be smaller
            pack = Pack(base, recipe, len(chunk), device)
        pack.load(chunk)
        rows.append(torch.stack([pack.token_log_likelihoods(query).mean(dim=1) for query in queries], dim=1).cpu())
    return torch.cat(rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedRuns:
    """Counterfactual runs (`members.Runs`) of a language model's adapters, `pack_members` at a time. With `start`, the
    folder of the adapter that the run went on from, all of them go on from it: a run from elsewhere is another's."""

    base: BaseModel
    examples: Sequence[Example]
    recipe: Recipe
    pack_members: int = 1
    device: str = "cpu"
    start: Path | None = None

    def train(self, members: Sequence[Member], on_epoch: OnEpoch | None = None) -> list[Weights]:
        for member in members:
            self._check_start(member)
        return train_members(
            self.base, self.examples, members, self.recipe, start=self.start, device=self.device, on_epoch=on_epoch
        )

    def score(self, weights: Sequence[Weights], queries: Sequence[Example]) -> npt.NDArray[np.float64]:
        found = score_members(self.base, self.recipe, weights, queries, device=self.device)
        return np.asarray(found.numpy(), dtype=np.float64)

    def _check_start(self, member: Member) -> None:
        if self.start is not None and not parent_digest(member.initial):
            raise InvalidInput(
                f"{member.name} doesn't begin where the run does, at its parent adapter",
                code="invalid_run",
                param="initial",
                fix="a run that went on from another adapter has no second initial A: audit it without one",
            )


def initial_weights(pack: Pack, initial: str, start: Path | None = None) -> Weights:
    """Where LoRA begins under `initial`, a public constant or the adapter in `start`."""
    return initial_matrices({name: tuple(p.shape[1:]) for name, p in pack.parameters().items()}, initial, start)


def _plan(examples: Sequence[Example], member: Member, recipe: Recipe) -> list[list[int]]:
    """The member's batches over all epochs, as row numbers."""
    lengths = [example.num_tokens for example in examples]
    epochs = range(recipe.num_epochs)
    return [batch for epoch in epochs for batch in epoch_batches(lengths, recipe, member.order, epoch, member.rows)]


def _summed_loss(
    pack: Pack, examples: Sequence[Example], members: Sequence[Member], batches: Sequence[Sequence[int]]
) -> torch.Tensor:
    """Each member's weighted mean loss over its batch, [M]; shorter batches are filled up with rows of weight 0."""
    width = max(len(batch) for batch in batches)
    weight_MB = torch.zeros(len(members), width)
    rows: list[list[Example]] = []
    for number, (member, batch) in enumerate(zip(members, batches, strict=True)):
        filled = [*batch, *[member.rows[0]] * (width - len(batch))]
        rows.append([examples[row] for row in filled])
        weights = dict(zip(member.rows, member.row_weights, strict=True)) if member.row_weights else {}
        for column, row in enumerate(batch):
            weight_MB[number, column] = weights.get(row, 1.0) / len(batch)
    return (pack.losses(rows) * weight_MB.to(pack.device)).sum(dim=1)


def _check_finite(loss_M: torch.Tensor, members: Sequence[Member]) -> None:
    if not bool(loss_M.isfinite().all()):
        name = members[int((~loss_M.isfinite()).nonzero()[0])].name
        raise Corrupt(
            f"the training loss of {name} is not finite",
            code="diverged",
            param="learning_rate",
            fix="lower the learning rate, and look for extreme rows",
        )


def _empty(num_members: int, like: torch.Tensor) -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.zeros(num_members, *like.shape, device=like.device))
