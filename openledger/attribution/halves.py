"""Which halves of the contributors an audit trains on, and what an audit costs.

Only halves that the bank has no coalition of: what the bank was fitted on can't say how well it predicts. A half's
complement may be in the bank, which was trained on none of the half's rows.

Shapes: N halves, C contributors.
"""

from collections.abc import Mapping, Sequence
from math import comb

import numpy as np

from openledger.attribution.coalitions import Design, Membership, Row
from openledger.core.errors import InvalidInput
from openledger.training.recipe import generator

DEFAULT_HALVES, FEWEST_HALVES = 8, 4
ORDERS = 2


def unseen_halves(rows: Sequence[Row], bank: Design, num_halves: int, constant: str) -> Membership:
    """[N, C]: different halves of the contributors of `rows`, in the order of their names, none of them a coalition of
    the bank. N is `num_halves`, or as many as there are.

    Raises InvalidInput for fewer than four (`invalid_audit` where fewer were asked for, `too_few_halves` where no more
    remain): a rank correlation of three says nothing.
    """
    if num_halves < FEWEST_HALVES:
        raise InvalidInput(f"an audit needs at least {FEWEST_HALVES} halves", code="invalid_audit", param="audits")
    names = sorted({name for _, name in rows})
    size = len(names) // 2
    seen = {half for half in _coalitions(rows, names, bank) if len(half) == size}
    remaining = comb(len(names), size) - len(seen)
    if remaining < FEWEST_HALVES:
        raise InvalidInput(
            f"the bank has all but {remaining} halves of {len(names)} contributors, and an audit needs {FEWEST_HALVES}",
            code="too_few_halves",
            param="coalitions",
            fix="fewer --coalitions, or more contributors",
        )
    found, number = list[frozenset[int]](), 0
    while len(found) < min(num_halves, remaining):
        half = frozenset(generator(constant, f"audit-{number}").permutation(len(names))[:size].tolist())
        number += 1
        if half not in seen:
            seen.add(half)
            found.append(half)
    return np.array([[place in half for place in range(len(names))] for half in found])


def audit_cost(row_counts: Mapping[str, int], num_contributor_halves: int, num_row_halves: int) -> float:
    """What an audit trains, in trainings on all rows: halves of contributors and of rows in two orders each, and the
    run without each contributor. At most: as if each half had the contributors of the most rows."""
    counts = sorted(row_counts.values(), reverse=True)
    num_rows = sum(counts)
    of_contributors = num_contributor_halves * sum(counts[: len(counts) // 2]) / num_rows
    of_rows = num_row_halves * (num_rows // 2) / num_rows
    return ORDERS * (of_contributors + of_rows) + len(counts) - 1


def _coalitions(rows: Sequence[Row], names: Sequence[str], bank: Design) -> list[frozenset[int]]:
    """The bank's coalitions of whole contributors, as places in `names`; one with a part of somebody's rows is none."""
    parts_CG = bank.parts(rows, names) > 0
    found = []
    for present_G in bank.members_MG:
        there_C, missing_C = parts_CG[:, present_G].any(axis=1), parts_CG[:, ~present_G].any(axis=1)
        if not (there_C & missing_C).any():
            found.append(frozenset(np.flatnonzero(there_C).tolist()))
    return found
