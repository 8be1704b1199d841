"""How good an attribution is, against what happened when the data was taken away.

    LDS = Spearman over subsets of (sum of the scores of a subset's players, log-likelihood after training on it)

for each query (Park et al., 2023), players being rows or contributors. The truth is itself noisy: two trainings on the
same subsets agree at some Spearman r, so the mean of both has reliability 2r / (1 + r) and no method can be expected
above its square root, the noise ceiling (Spearman, 1910; Brown, 1910).

Shapes: P players, N subsets, Q queries.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from openledger.core.errors import InvalidInput

Array = npt.NDArray[np.float64]


def spearman(first_NQ: npt.ArrayLike, second_NQ: npt.ArrayLike) -> Array:
    """Rank correlation of each column, [Q]; ties get their mean rank, a constant column gives 0."""
    first, second = _ranks(np.atleast_2d(np.asarray(first_NQ).T)), _ranks(np.atleast_2d(np.asarray(second_NQ).T))
    if first.shape != second.shape:
        raise InvalidInput("what is compared has two shapes", code="invalid_scores", param="scores")
    first -= first.mean(axis=1, keepdims=True)
    second -= second.mean(axis=1, keepdims=True)
    size = np.sqrt((first**2).sum(axis=1) * (second**2).sum(axis=1))
    return np.divide((first * second).sum(axis=1), size, out=np.zeros_like(size), where=size > 0)


def datamodeling_scores(scores_PQ: npt.ArrayLike, members_NP: npt.ArrayLike, outcomes_NQ: npt.ArrayLike) -> Array:
    """LDS of each query, [Q]. `members_NP` is the weight of each player in each subset."""
    return spearman(np.asarray(members_NP, dtype=np.float64) @ np.asarray(scores_PQ, dtype=np.float64), outcomes_NQ)


def noise_ceiling(first_NQ: npt.ArrayLike, second_NQ: npt.ArrayLike) -> Array:
    """The largest Spearman to be expected with the mean of two trainings on the same subsets, [Q]."""
    agreement = np.clip(spearman(first_NQ, second_NQ), 0.0, 1.0)
    return np.asarray(np.sqrt(2 * agreement / (1 + agreement)), dtype=np.float64)


def pooled_ceiling(first_NQ: npt.ArrayLike, second_NQ: npt.ArrayLike) -> float:
    """The ceiling of the mean LDS over queries: from the mean agreement, which is steadier than each query's own."""
    agreement = float(np.clip(spearman(first_NQ, second_NQ).mean(), 0.0, 1.0))
    return float(np.sqrt(2 * agreement / (1 + agreement)))


def coverage(lower: npt.ArrayLike, upper: npt.ArrayLike, truth: npt.ArrayLike) -> float:
    """The part of true values that lie within their intervals."""
    low, high, true = (np.asarray(values, dtype=np.float64) for values in (lower, upper, truth))
    return float(np.mean((low <= true) & (true <= high)))


def recall_of_planted(scores_PQ: npt.ArrayLike, planted: Sequence[int], k: int | None = None) -> Array:
    """For each query, which part of the planted players is among its `k` highest (by default as many as planted)."""
    scores = np.asarray(scores_PQ, dtype=np.float64)
    k = k or len(planted)
    top = np.argsort(-scores, axis=0, kind="stable")[:k]
    return np.isin(top, np.asarray(planted)).sum(axis=0) / len(planted)


def _ranks(values: npt.NDArray[np.generic]) -> Array:
    """Ranks along the last axis, ties by their mean."""
    order = np.argsort(values, axis=1, kind="stable")
    ranks = np.empty(values.shape, dtype=np.float64)
    for line, (own, places) in enumerate(zip(values, order, strict=True)):
        ordered = own[places]
        starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
        counts = np.diff(np.append(starts, len(ordered)))
        ranks[line, places] = np.repeat(starts + (counts - 1) / 2, counts)
    return ranks
