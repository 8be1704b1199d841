"""Expected influence of rows: the index for what stands inside a group, the bank for what the group adds up to.

    r_iq = lambda s_iq                                          the index's score of row i in the bank's unit
    e_iq = r_iq + (beta_gq - sum over g of r_jq) u_iq / sum over g of u_jq              i in group g

beta is the bank's expected influence of group g, lambda the scale that its fit gave the index, u the variance of the
row's score over the index's views (checkpoints and twins). The correction is additive: a group's signed sum may be
near zero, and a factor would then be anything.

Shapes: R rows, G groups, Q queries, V views.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from openledger.core.errors import InvalidInput

Array = npt.NDArray[np.float64]


def group_numbers(row_contributors: Sequence[str], groups: Sequence[Sequence[str]]) -> npt.NDArray[np.int64]:
    """Each row's group, [R]. Raises InvalidInput where a contributor is in no group."""
    number_of = {name: number for number, group in enumerate(groups) for name in group}
    missing = sorted(set(row_contributors) - set(number_of))
    if missing:
        raise InvalidInput(
            f"the bank doesn't know {missing[0]!r}: it is another run's", code="wrong_bank", param="bank"
        )
    return np.array([number_of[name] for name in row_contributors], dtype=np.int64)


def group_sums(scores_RQ: Array, group_R: npt.NDArray[np.int64], num_groups: int) -> Array:
    """[G, Q]"""
    sums = np.zeros((num_groups, scores_RQ.shape[1]))
    np.add.at(sums, group_R, scores_RQ)
    return sums


def row_variance(views_VRQ: Array) -> Array:
    """Variance of the mean over views, [R, Q]. From one view nothing is known but the score's size, whose square it
    then is; a floor keeps rows that no view moved from being held certain."""
    views = len(views_VRQ)
    variance = views_VRQ.var(axis=0, ddof=1) / views if views > 1 else views_VRQ[0] ** 2
    return np.asarray(variance + 0.01 * variance.mean(axis=0, keepdims=True) + np.finfo(np.float64).tiny)


def corrected_rows(
    scores_RQ: Array, variance_RQ: Array, group_R: npt.NDArray[np.int64], target_GQ: Array, scale: float
) -> Array:
    """e of the module's formula, [R, Q]: sums over each group to `target_GQ`."""
    rows = scale * scores_RQ
    num_groups = len(target_GQ)
    gap_GQ = target_GQ - group_sums(rows, group_R, num_groups)
    part = variance_RQ / group_sums(variance_RQ, group_R, num_groups)[group_R]
    return np.asarray(rows + gap_GQ[group_R] * part, dtype=np.float64)


def contributor_sums(scores_RQ: Array, row_contributors: Sequence[str], contributors: Sequence[str]) -> Array:
    """[contributors, Q]: row scores summed for each of `contributors`."""
    numbers = group_numbers(row_contributors, [(name,) for name in contributors])
    return group_sums(scores_RQ, numbers, len(contributors))
