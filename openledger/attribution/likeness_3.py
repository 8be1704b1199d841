"""likeness/3: rows that repeat an earlier row of anybody's, in another basis than likeness/2 and above another theta.
Published, and not changed any more: `shares/5` settles by it.

    row i repeats row j: j is the likest of all earlier rows, and the likeness is above theta

    theta_g      the likeness to the likest earlier row of a stranger's that no more than alpha of the rows of group g
                 exceed, or one row of them where alpha of them is less
    theta        the median of theta_g, each group counted by its rows, but no more than the bound; from LEAST_MILLI to
                 MOST_MILLI
    bound        LEAST_MILLI + DOUBLING_MILLI log2(N / FEW)

"Earlier" is by the order of credit (`datanets.versions`), which the run's record has.

The median is likeness/2's: it follows what chance makes of that many rows. It can be raised by who divides many repeats
over names of few rows, because some of these then stand in most groups. The bound is of the number of rows alone, which
no division over names changes: among few rows chance makes few that are alike, and theta has no reason to be high. It
only lowers theta. Where rows are much alike by chance, honest ones go unpaid by it; and who sends more rows raises it.
N are all rows of the run, also those that were withdrawn since, so that nobody lowers theta by a withdrawal.

A group is a contributor of GROUP rows or more; who has fewer stands with others whom a hash puts beside him. The hash
takes the run's public constant (`RunRecord.order`), which is drawn once contributions are closed: else names could be
chosen that fall where two rows alike are enough. Names that are left over and too few for a group stand with the last
group of such names, or by themselves where there is none: put to a contributor's own group, a few rows of theirs would
decide theta for all.

EK-FAC is fitted on FIT_ROWS of the rows, at even distances in the order of their ids (`fit_places`), or on all where
they are fewer: fewer honest rows are alike in that basis than in the one before, and more repetitions.

Shapes: R rows that are compared, K the sketch.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from math import log2
from typing import Any

import numpy as np
import numpy.typing as npt

from openledger.attribution.likest import ByCredit, Found
from openledger.core.hashing import digest_json

RULE = "likeness/3"
LEAST_MILLI = 760
MOST_MILLI = 950
FEW = 500
DOUBLING_MILLI = 63
GROUP = 25
ALPHA_PPM = 20_000
FIT_ROWS = 256


def fit_places(num_rows: int) -> Sequence[int]:
    """Which of so many rows, in the order of their ids, EK-FAC is fitted on."""
    number = min(FIT_ROWS, num_rows)
    return [place * num_rows // number for place in range(number)]


def repeats_of_anybody(
    contributors: Sequence[str], sketches_RK: npt.NDArray[Any], places: Sequence[int], *, num_rows: int, salt: str
) -> Iterator[Found]:
    """`sketches_RK` are those in this rule's basis, `places` those in the order of credit. `num_rows` is N, `salt` the
    run's public constant."""
    rows = ByCredit.of(contributors, sketches_RK, places)
    return rows.above(theta_milli(rows.whose, rows.strangers_milli, num_rows=num_rows, salt=salt))


def theta_milli(contributors: Sequence[str], strangers_milli: Sequence[int], *, num_rows: int, salt: str) -> int:
    """Of rows' contributors and how alike each row is to the likest earlier one of a stranger's, in thousandths."""
    by_name: defaultdict[str, list[int]] = defaultdict(list)
    for name, milli in zip(contributors, strangers_milli, strict=True):
        by_name[name].append(milli)
    each = sorted((_theta_of(group), len(group)) for group in _groups(by_name, salt))
    weights = np.cumsum([weight for _, weight in each])
    median = each[int(np.searchsorted(2 * weights, len(contributors)))][0] if each else 0
    return max(LEAST_MILLI, min(median, bound_milli(num_rows)))


def bound_milli(num_rows: int) -> int:
    """What theta can be at most among so many rows."""
    doublings = log2(max(FEW, num_rows) / FEW)
    return min(MOST_MILLI, LEAST_MILLI + round(DOUBLING_MILLI * doublings))


def _groups(by_name: Mapping[str, list[int]], salt: str) -> list[list[int]]:
    large, small = [some for some in by_name.values() if len(some) >= GROUP], list[list[int]]()
    for name in sorted(by_name, key=lambda name: digest_json([salt, name])):
        if len(by_name[name]) < GROUP:
            if not small or len(small[-1]) >= GROUP:
                small.append([])
            small[-1] = small[-1] + by_name[name]
    if len(small) > 1 and len(small[-1]) < GROUP:
        *small, last, leftover = small
        small.append(last + leftover)
    return large + small


def _theta_of(group: Sequence[int]) -> int:
    falling, num_allowed = sorted(group, reverse=True), max(1, ALPHA_PPM * len(group) // 10**6)
    return falling[num_allowed] if num_allowed < len(group) else 0
