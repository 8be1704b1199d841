"""The attributable recipe: everything that decides what a fine-tuning run computes.

A run can be replayed from its recipe, its rows and its base model. So nothing is random that could be public: the
initial A and the order of rows come from one public constant, there is no dropout, arithmetic is fp32, attention is
mathematical, and AdamW has `eps_root` inside its square root (without it LoRA's first batch gets influence scores
hundreds of times the others'; docs/concepts/attribution.md).

A run that goes on from another adapter begins with that adapter's A and B: the constant then decides the order of rows
alone, and where the run began is named by the adapter's digest (`from_adapter`). All else is as in a run of its own.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from openledger.core.constant import public_constant as public_constant
from openledger.core.constant import row_root_constant as row_root_constant
from openledger.core.errors import InvalidInput
from openledger.core.hashing import digest_json

_FROM_ADAPTER = "adapter:"
WHERE = frozenset({"num_gpus"})  # settings that say where a run computes, not what: it is found again without them


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """`target_modules` as PEFT takes them; `all-linear` is every linear layer but the output embedding.

    `length_pool` batches are drawn at once and their rows grouped by length, which pads less; with 1 a row that is left
    out changes the batches around it least.
    """

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
    length_pool: int = 1
    threads: int = 1
    num_gpus: float = 0.0

    def __post_init__(self) -> None:
        counts = {
            "rank": self.rank,
            "batch_rows": self.batch_rows,
            "num_epochs": self.num_epochs,
            "length_pool": self.length_pool,
            "threads": self.threads,
        }
        for name, value in counts.items():
            if value < 1:
                raise InvalidInput(f"{name} is {value}: at least 1 is needed", code="invalid_recipe", param=name)
        if not 0 < self.learning_rate < 1:
            raise InvalidInput(f"learning_rate is {self.learning_rate}", code="invalid_recipe", param="learning_rate")
        check_gpu_share(self.num_gpus)
        object.__setattr__(self, "num_gpus", float(self.num_gpus))  # YAML's 1 and 1.0 are one recipe in JSON too

    @property
    def middle_epoch(self) -> int:
        return max(1, self.num_epochs // 2)

    def to_dict(self) -> dict[str, Any]:
        """Without `num_gpus` where it is 0: digests over a recipe stay those of before there was any."""
        values = asdict(self)
        return values if self.num_gpus else {name: value for name, value in values.items() if name != "num_gpus"}


def recipe_from(values: dict[str, Any]) -> Recipe:
    """The recipe that `values` (from YAML or a card) describe. Raises InvalidInput for an unknown setting."""
    unknown = set(values) - set(Recipe.__dataclass_fields__)
    if unknown:
        raise InvalidInput(
            f"no such recipe setting: {', '.join(sorted(unknown))}", code="invalid_recipe", param="recipe"
        )
    modules = values.get("target_modules", "all-linear")
    return Recipe(**{**values, "target_modules": modules if isinstance(modules, str) else tuple(modules)})


def check_gpu_share(num_gpus: float) -> None:
    """Raises InvalidInput (`invalid_gpus`) for more than one GPU, which no task computes on, for less than none, and
    for what is no number."""
    if isinstance(num_gpus, bool) or not isinstance(num_gpus, int | float) or not 0 <= num_gpus <= 1:
        raise InvalidInput(
            f"num_gpus is {num_gpus}: a task computes on one GPU",
            code="invalid_gpus",
            param="num_gpus",
            fix="give 1, a fraction of it that tasks share one by, or 0",
        )


def gpus_for(recipe: Recipe | None, asked: float | None = None) -> float:
    """What each task that computes for an adapter takes: `asked`, else what its recipe says; none without either. So
    that nobody waits for one that isn't there, whoever begins calls `trainer.check_gpus` first."""
    if asked is not None:
        return asked
    return recipe.num_gpus if recipe is not None else 0.0


def device_of(num_gpus: float) -> str:
    """Where a task with so much of a GPU computes. It is told, not looked for: without one Ray doesn't hide the
    node's."""
    return "cuda" if num_gpus else "cpu"


def from_adapter(digest: str) -> str:
    """What a run says it began from where that was another adapter's matrices, and no constant."""
    return _FROM_ADAPTER + digest


def parent_digest(initial: str) -> str:
    """The digest of the adapter that a run under `initial` goes on from; empty where `initial` is a constant."""
    return initial.removeprefix(_FROM_ADAPTER) if initial.startswith(_FROM_ADAPTER) else ""


def generator(constant: str, purpose: str) -> np.random.Generator:
    """A stream of random numbers that `constant` and `purpose` determine on every machine (Philox, counter-based)."""
    return np.random.Generator(np.random.Philox(key=int(digest_json([constant, purpose])[:32], 16)))


def epoch_batches(
    lengths: Sequence[int], recipe: Recipe, constant: str, epoch: int, rows: Sequence[int] | None = None
) -> list[list[int]]:
    """Row numbers of each step of an epoch, over `rows` (by default all that have a length).

    Every row has a random key of its own, so that the others keep their order when one is left out.
    """
    random = generator(constant, f"order-{epoch}")
    key = random.random(len(lengths))
    order = sorted(range(len(lengths)) if rows is None else rows, key=lambda row: key[row])
    size = recipe.batch_rows
    if recipe.length_pool == 1:
        return [order[start : start + size] for start in range(0, len(order), size)]
    batches: list[list[int]] = []
    for start in range(0, len(order), size * recipe.length_pool):
        pool = sorted(order[start : start + size * recipe.length_pool], key=lambda row: lengths[row])
        batches += [pool[at : at + size] for at in range(0, len(pool), size)]
    return [batches[index] for index in random.permutation(len(batches)).tolist()]


def learning_rate_at(step: int, num_steps: int, recipe: Recipe) -> float:
    """Linear warm-up, then linear decay to zero. Steps count from 0."""
    warmup = max(1, round(recipe.warmup_fraction * num_steps))
    if step < warmup:
        return recipe.learning_rate * (step + 1) / warmup
    return recipe.learning_rate * (num_steps - step) / max(1, num_steps - warmup)
