"""Where a run begins that goes on from another adapter, its parent: checked before training, kept beside the run.

    RUN/start/adapter_config.json, adapter_model.safetensors    the parent, as it was when training began

With it bank, replay and audit begin where the run did, wherever the parent's own folder is by then. The copy's digest
is the parent's, which `run.json` names. Doesn't know the parent's own ancestors (`adapters.lineage`).
"""

from dataclasses import dataclass
from pathlib import Path

from openledger.adapters.base_model import BaseModel
from openledger.adapters.card import adapter_digest, load_card
from openledger.core.errors import Conflict, InvalidInput, NotFound
from openledger.core.files import write_durably
from openledger.training.recipe import Recipe

_FILES = ("adapter_config.json", "adapter_model.safetensors")


@dataclass(frozen=True, slots=True, kw_only=True)
class Parent:
    """The adapter that a run goes on from: its PEFT folder, and the digest that it must have."""

    folder: str
    digest: str


def start_folder(run: Path) -> Path:
    return run / "start"


def check_parent(parent: Parent, base: BaseModel, recipe: Recipe) -> None:
    """Raises NotFound (`missing_parent`) where the folder or its card is gone, Conflict (`parent_changed`) where it
    holds another adapter, InvalidInput for one of another base (`lineage_base`) or other matrices (`parent_shape`)."""
    folder = Path(parent.folder)
    if not all((folder / name).exists() for name in (*_FILES, "card.json")):
        raise NotFound(
            f"the parent adapter {parent.digest} isn't at {folder}, or has no card",
            code="missing_parent",
            param="parent",
            fix="restore its folder: without its card, those whose data made it can't be paid",
        )
    _check_digest(parent)
    card = load_card(folder)
    if card.base_digest != base.digest:
        raise InvalidInput(
            f"the parent {card.name} is an adapter of {card.base_model}, another base than {base.name}",
            code="lineage_base",
            param="parent",
            fix="train from an adapter of the same base",
        )
    _check_shape(folder, card.name, base, recipe)


def keep_start(run: Path, parent: Parent) -> None:
    """Copy the parent to where the run looks for its beginning. Raises Conflict (`parent_changed`)."""
    _check_digest(parent)
    kept = start_folder(run)
    for name in _FILES:
        write_durably(kept / name, (Path(parent.folder) / name).read_bytes())
    _check_digest(Parent(folder=str(kept), digest=parent.digest))  # the parent may have changed meanwhile


def _check_digest(parent: Parent) -> None:
    if adapter_digest(Path(parent.folder)) != parent.digest:
        raise Conflict(
            f"{parent.folder} no longer holds the adapter {parent.digest}",
            code="parent_changed",
            param="parent",
            fix="name the parent again, by what it is now",
        )


def _check_shape(folder: Path, name: str, base: BaseModel, recipe: Recipe) -> None:
    from openledger.adapters.checks import read_adapter, read_shapes
    from openledger.training.lora import lora_shapes

    factors = read_adapter(folder, read_shapes(base)).factors
    theirs = {(module, a_RI.shape[0], scale) for module, (a_RI, _, scale) in factors.items()}
    wanted = {_module(matrix) for matrix in lora_shapes(base, recipe)}
    ours = {(module, recipe.rank, recipe.alpha / recipe.rank) for module in wanted}
    if theirs == ours:
        return
    ranks = {rank for _, rank, _ in theirs}
    fits = len(ranks) == 1 and len({scale for _, _, scale in theirs}) == 1
    rank, scale = next(iter((rank, scale) for _, rank, scale in theirs))
    raise InvalidInput(
        f"the parent {name} adapts {len(theirs)} matrices with rank {', '.join(map(str, sorted(ranks)))}, the recipe"
        f" {len(ours)} with rank {recipe.rank} and alpha {recipe.alpha}",
        code="parent_shape",
        param="recipe",
        fix=f"set rank: {rank}, alpha: {rank * scale:g} and the parent's target_modules in the recipe"
        if fits
        else "train from an adapter that has one rank in all its matrices",
    )


def _module(matrix: str) -> str:
    """The base's name of the layer that PEFT's `matrix` adapts."""
    return matrix.removeprefix("base_model.model.").partition(".lora_")[0]
