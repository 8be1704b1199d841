"""Exact values of a game whose every coalition has been played.

Shapes: G players, Q queries.
"""

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Game = Mapping[frozenset[str], Array]


def banzhaf(value: Game, names: Sequence[str]) -> Array:
    """[G, Q]: the mean of a contributor's marginal contribution over all coalitions of the others."""
    return np.stack([np.mean([m for _, m in _marginals(value, names, name)], axis=0) for name in names])


def shapley(value: Game, names: Sequence[str]) -> Array:
    """[G, Q]: marginal contributions weighted by |S|! (n - |S| - 1)! / n!."""
    count = len(names)
    weight = [math.factorial(s) * math.factorial(count - s - 1) / math.factorial(count) for s in range(count)]
    return np.stack([np.sum([weight[s] * m for s, m in _marginals(value, names, name)], axis=0) for name in names])


def _marginals(value: Game, names: Sequence[str], name: str) -> list[tuple[int, Array]]:
    others = [other for other in names if other != name]
    subsets = [frozenset(c) for size in range(len(names)) for c in itertools.combinations(others, size)]
    return [(len(subset), value[subset | {name}] - value[subset]) for subset in subsets]
