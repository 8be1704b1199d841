"""The classifier task of the attribution benchmark: handwritten digits, a small MLP, all of it retrained.

8x8 digits of scikit-learn's `load_digits` (UCI optical recognition, 1998), which the extra `bench` installs:
`pip install -c constraints.txt -e '.[bench]'`. Contributors differ in which digits they
bring; two of them bring a fifth of their labels wrong. A run takes about a third of a second, so that every coalition
of eight contributors can be trained.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from openledger.training.members import ModuleRuns
from openledger.training.recipe import Recipe, generator

SEED = "digits-20261123"
ROWS_EACH, NUM_QUERIES = 30, 100
RECIPE = Recipe(num_epochs=8, batch_rows=16, learning_rate=5e-3, max_rows=10**6)
HIDDEN = 32
MISLABELLED = ("c02", "c05")


@dataclass(frozen=True, slots=True)
class Digit:
    row_id: str
    contributor_id: str
    pixels: tuple[float, ...]
    label: int
    num_tokens: int = 1


class DigitTask:
    """One prediction for each example: its loss is the label's negative log-likelihood."""

    def losses(self, module: torch.nn.Module, examples: Sequence[Digit]) -> torch.Tensor:
        labels_B = torch.tensor([digit.label for digit in examples])
        return torch.nn.functional.cross_entropy(module(_pixels(examples)), labels_B, reduction="none")

    def sampled_losses(self, module: torch.nn.Module, examples: Sequence[Digit], seed: int) -> torch.Tensor:
        logits_BC = module(_pixels(examples))
        random = torch.Generator().manual_seed(seed)
        labels_B = torch.multinomial(logits_BC.detach().softmax(-1), 1, generator=random)[:, 0]
        return torch.nn.functional.cross_entropy(logits_BC, labels_B, reduction="none")


TASK = DigitTask()


def make_module(initial: str, smooth: bool = False) -> torch.nn.Module:
    """An MLP whose weights follow from the constant `initial`. Its units have a kink (ReLU), or `smooth` (SiLU)."""
    unit = torch.nn.SiLU() if smooth else torch.nn.ReLU()
    module = torch.nn.Sequential(torch.nn.Linear(64, HIDDEN), unit, torch.nn.Linear(HIDDEN, 10))
    for name, parameter in module.named_parameters():
        bound = 1 / np.sqrt(64 if name.startswith("0.") else HIDDEN)
        values = generator(initial, name).random(tuple(parameter.shape)) * 2 * bound - bound
        parameter.data.copy_(torch.from_numpy(values))
    return module


def make_examples(
    num_contributors: int, seed: str = SEED, mislabelled: Collection[str] = MISLABELLED
) -> tuple[list[Digit], list[Digit]]:
    """Rows of `num_contributors`, and queries that are in no row."""
    from sklearn.datasets import load_digits

    data = load_digits()
    pixels, labels = data.data / 16.0, data.target
    random = generator(seed, "contributors")
    order = random.permutation(len(labels)).tolist()
    queries = [_digit(f"query-{n}", "", pixels[n], int(labels[n])) for n in order[:NUM_QUERIES]]
    free = order[NUM_QUERIES:]
    rows: list[Digit] = []
    for number in range(num_contributors):
        name = f"c{number:02}"
        liking = random.dirichlet([0.5] * 10)
        weight = np.array([liking[labels[n]] for n in free]) + 1e-9
        chosen = random.choice(len(free), ROWS_EACH, replace=False, p=weight / weight.sum()).tolist()
        for place, at in enumerate(sorted(chosen)):
            wrong = name in mislabelled and place % 5 == 0
            label = (int(labels[free[at]]) + 1 + place) % 10 if wrong else int(labels[free[at]])
            rows.append(_digit(f"{name}-{free[at]}", name, pixels[free[at]], label))
        free = [n for at, n in enumerate(free) if at not in set(chosen)]
    return [rows[n] for n in random.permutation(len(rows)).tolist()], queries


def make_runs(examples: Sequence[Digit], smooth: bool = False) -> ModuleRuns:
    return ModuleRuns(partial(make_module, smooth=smooth), examples, RECIPE, TASK)


def _pixels(examples: Sequence[Digit]) -> torch.Tensor:
    return torch.tensor([digit.pixels for digit in examples], dtype=torch.float32)


def _digit(row_id: str, contributor: str, pixels: "np.ndarray[tuple[int], np.dtype[np.float64]]", label: int) -> Digit:
    return Digit(row_id, contributor, tuple(float(value) for value in pixels), label)
