"""What a merge gained, and what it would have gained with its parents at smaller weights.

A merge was trained on nothing; its gain is divided over its parents along the path on which all are scaled up together
(`adapters.lineage.parent_gains`). Every point of that path is a merge of its own: it is made (`merge_lora`) in a folder
that is removed afterwards, and answers are asked of it by plain forward passes.

Shapes: N points of the path, Q answers.
"""

import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open

from openledger.adapters.base_model import BaseModel, load_model
from openledger.adapters.checks import WEIGHTS_FILE, AdapterLimits, BaseShapes, read_adapter, read_shapes
from openledger.adapters.lineage import merge_lora
from openledger.core.errors import Corrupt
from openledger.training.examples import Example, collate, row_losses
from openledger.training.lora import load_lora

Array = npt.NDArray[np.float64]
Factors = Mapping[str, Fraction]

_PASS_ROWS = 16
_LORA_A = ".lora_A.weight"
_ANY_RANK = AdapterLimits(max_rank=1 << 20)  # what is merged here is not served


@dataclass(frozen=True, slots=True, kw_only=True)
class Merge:
    """A merge's folder and digest; its parents' folders and exact weights (in text), by digest in the card's order."""

    folder: str
    digest: str
    parents: Mapping[str, str]
    weights: Mapping[str, str]


def merge_gains(base: BaseModel, merge: Merge, points: Sequence[Factors], answers: Sequence[Example]) -> Array:
    """Mean log-likelihood per token of each answer, less that under the base, in nats, under the merge in which each
    parent's weight is multiplied by its factor, for the factors of each of `points`: [N, Q].

    Raises Corrupt (`wrong_merge`) where the parents at their full weights don't make the merge, and what
    `checks.read_adapter` raises.
    """
    shapes, model = read_shapes(base), load_model(base)
    _check_merge(merge, shapes)
    base_Q = _likelihoods(model, answers)
    gains = [_likelihoods_at(model, merge, factors, shapes, answers, base_Q) - base_Q for factors in points]
    return np.stack(gains) if gains else np.zeros((0, len(answers)))


def _likelihoods_at(
    model: Any, merge: Merge, factors: Factors, shapes: BaseShapes, answers: Sequence[Example], base_Q: Array
) -> Array:
    if not any(factors.values()):
        return base_Q
    with tempfile.TemporaryDirectory() as folder:
        _merge_at(merge, factors, Path(folder) / "merge", shapes)
        lora_model = load_lora(model, Path(folder) / "merge")
        found = _likelihoods(lora_model, answers)
        lora_model.unload()
        return found


def _merge_at(merge: Merge, factors: Factors, out: Path, shapes: BaseShapes) -> None:
    kept = [digest for digest in merge.parents if factors[digest]]
    weights = [Fraction(merge.weights[digest]) * factors[digest] for digest in kept]
    merge_lora([Path(merge.parents[digest]) for digest in kept], weights, out, base=shapes, limits=_ANY_RANK)


def is_made_of_parents(merge: Merge, shapes: BaseShapes) -> bool:
    """Whether the parents at their weights make the merge, bit for bit. Raises as `merge_lora`.

    A merge's rank is the sum of its parents' in each module. Where it isn't, no weight is read: so the parents, of
    which a card may name any number, are no larger together than the adapter that is said to be made of them.
    """
    of_parents = Counter[str]()
    for folder in merge.parents.values():
        of_parents.update(_ranks(Path(folder)))
    if of_parents != _ranks(Path(merge.folder)):
        return False
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "merge"
        _merge_at(merge, dict.fromkeys(merge.parents, Fraction(1)), out, shapes)
        ours, theirs = (read_adapter(each, shapes, _ANY_RANK).factors for each in (out, Path(merge.folder)))
    return ours.keys() == theirs.keys() and all(_equal(ours[module], theirs[module]) for module in ours)


def _ranks(folder: Path) -> Counter[str]:
    """By module, out of the weights' header."""
    path = folder / WEIGHTS_FILE
    try:
        with safe_open(path, "pt") as weights:
            shapes = {name: weights.get_slice(name).get_shape() for name in weights.keys()}  # noqa: SIM118 - it is no mapping
    except (OSError, SafetensorError) as error:
        raise Corrupt(f"{path} can't be read: {error}", code="corrupt_adapter", param=WEIGHTS_FILE) from error
    return Counter({name.removesuffix(_LORA_A): shape[0] for name, shape in shapes.items() if name.endswith(_LORA_A)})


def _check_merge(merge: Merge, shapes: BaseShapes) -> None:
    """A card says what it likes: whoever is paid for a merge must have made it."""
    if not is_made_of_parents(merge, shapes):
        raise Corrupt(
            f"the adapter {merge.digest} is not the merge of the parents that its card names",
            code="wrong_merge",
            param="adapter",
            fix="merge its parents again, and offer that adapter",
        )


def _equal(one: tuple[torch.Tensor, torch.Tensor, float], other: tuple[torch.Tensor, torch.Tensor, float]) -> bool:
    return torch.equal(one[0], other[0]) and torch.equal(one[1], other[1]) and one[2] == other[2]


@torch.no_grad()  # type: ignore[untyped-decorator]
def _likelihoods(model: Any, answers: Sequence[Example]) -> Array:
    """[Q]"""
    parts = [
        -row_losses(model, collate(answers[start : start + _PASS_ROWS])).double().numpy()
        for start in range(0, len(answers), _PASS_ROWS)
    ]
    return np.concatenate(parts)
