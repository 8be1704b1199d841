"""The attributable recipe: everything that decides what a fine-tuning run computes.

A run can be replayed from its recipe, its rows and its base model. So nothing is random that could be public: the
initial A and the order of rows come from one public constant, there is no dropout, arithmetic is fp32, attention is
mathematical, and AdamW has `eps_root` inside its square root (without it LoRA's first batch gets influence scores
hundreds of times the others'; docs/concepts/attribution.md).
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from openledger.core.errors import InvalidInput
from openledger.core.hashing import digest_json

_POOLED_BATCHES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """`target_modules` as PEFT takes them; `all-linear` is every linear layer but the output embedding."""

    rank: int = 8
    alpha: int = 16
    target_modules: str | tuple[str, ...] = "all-linear"
    learning_rate: float = 3e-3
    beta1: float = 0.9
    beta2: float = 0.99
    eps: float = 1e-8
    eps_root: float = 1e-8
    warmup_fraction: float = 0.1
    batch_rows: int = 16
    num_epochs: int = 6
    max_rows: int = 256
    max_row_tokens: int = 128
    threads: int = 1

    def __post_init__(self) -> None:
        counts = {
            "rank": self.rank,
            "batch_rows": self.batch_rows,
            "num_epochs": self.num_epochs,
            "threads": self.threads,
        }
        for name, value in counts.items():
            if value < 1:
                raise InvalidInput(f"{name} is {value}: at least 1 is needed", code="invalid_recipe", param=name)
        if not 0 < self.learning_rate < 1:
            raise InvalidInput(f"learning_rate is {self.learning_rate}", code="invalid_recipe", param="learning_rate")

    @property
    def middle_epoch(self) -> int:
        return max(1, self.num_epochs // 2)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def recipe_from(values: dict[str, Any]) -> Recipe:
    """The recipe that `values` (from YAML or a card) describe. Raises InvalidInput for an unknown setting."""
    unknown = set(values) - set(Recipe.__dataclass_fields__)
    if unknown:
        raise InvalidInput(
            f"no such recipe setting: {', '.join(sorted(unknown))}", code="invalid_recipe", param="recipe"
        )
    modules = values.get("target_modules", "all-linear")
    return Recipe(**{**values, "target_modules": modules if isinstance(modules, str) else tuple(modules)})


def public_constant(base_digest: str, datanet: str, version: int, row_root: str) -> str:
    """The constant that initial A and row order are derived from: no party can choose it freely."""
    return digest_json(["openledger.initial/1", base_digest, datanet, version, row_root])


def generator(constant: str, purpose: str) -> np.random.Generator:
    """A stream of random numbers that `constant` and `purpose` determine on every machine (Philox, counter-based)."""
    return np.random.Generator(np.random.Philox(key=int(digest_json([constant, purpose])[:32], 16)))


def epoch_batches(lengths: Sequence[int], recipe: Recipe, constant: str, epoch: int) -> list[list[int]]:
    """Row numbers of each step of an epoch. Shuffled, then grouped by length within pools so that little is padded."""
    random = generator(constant, f"order-{epoch}")
    order = random.permutation(len(lengths)).tolist()
    size = recipe.batch_rows
    batches: list[list[int]] = []
    for start in range(0, len(order), size * _POOLED_BATCHES):
        pool = sorted(order[start : start + size * _POOLED_BATCHES], key=lambda row: lengths[row])
        batches += [pool[at : at + size] for at in range(0, len(pool), size)]
    return [batches[index] for index in random.permutation(len(batches)).tolist()]


def learning_rate_at(step: int, num_steps: int, recipe: Recipe) -> float:
    """Linear warm-up, then linear decay to zero. Steps count from 0."""
    warmup = max(1, round(recipe.warmup_fraction * num_steps))
    if step < warmup:
        return recipe.learning_rate * (step + 1) / warmup
    return recipe.learning_rate * (num_steps - step) / max(1, num_steps - warmup)
