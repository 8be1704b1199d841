"""likeness/2: rows that repeat an earlier row of anybody's. Published, and not changed any more: `shares/4` settles by
it.

    row i repeats row j: j is the likest of all earlier rows, and the likeness is above theta

    theta_g      the likeness to the likest earlier row of a stranger's that no more than alpha of the rows of group g
                 exceed, or one row of them where alpha of them is less
    theta        the median of theta_g, each group counted by its rows; from LEAST_MILLI to MOST_MILLI

"Earlier" is by the order of credit (`datanets.versions`), which the run's record has.

The more rows, the nearer is each one's likest by chance. Theta follows: half of the rows belong to groups of which
alpha are named, whatever the number of rows and of contributors. A group is a contributor of GROUP rows or more; who
has fewer stands with others whom a hash puts beside him. Of fewer than SMALL rows theta is the least: chance is rare.

What later rows are like moves no theta_g of earlier ones. To move theta one needs weight: half of all rows to have it
wherever one wants, and less than that moves it no further than from one honest group's to another's. But names are
free: who divides many repeats over names of fewer than GROUP rows puts some in most groups, theta rises until the
median group has no more of them than alpha, and those below it are paid. So rows that are more alike than MOST_MILLI
are never paid, however they are divided, and others up to the point where honest rows would be taken for them.

Shapes: R rows in the order of credit, K the sketch.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from openledger.attribution.likest import ByCredit, Found
from openledger.core.hashing import digest_json

RULE = "likeness/2"
LEAST_MILLI = 800
MOST_MILLI = 950
GROUP = 25
SMALL = 100
ALPHA_PPM = 20_000


def repeats_of_anybody(
    contributors: Sequence[str], sketches_RK: npt.NDArray[Any], places: Sequence[int]
) -> Iterator[Found]:
    """`places` are those in the order of credit."""
    rows = ByCredit.of(contributors, sketches_RK, places)
    return rows.above(theta_milli(rows.whose, rows.strangers_milli))


def theta_milli(contributors: Sequence[str], strangers_milli: Sequence[int]) -> int:
    """Of rows' contributors and how alike each row is to the likest earlier one of a stranger's,
    in thousandths."""
    if len(contributors) < SMALL:
        return LEAST_MILLI
    by_name: defaultdict[str, list[int]] = defaultdict(list)
    for name, milli in zip(contributors, strangers_milli, strict=True):
        by_name[name].append(milli)
    each = sorted((_theta_of(group), len(group)) for group in _groups(by_name))
    weights = np.cumsum([weight for _, weight in each])
    median = each[int(np.searchsorted(2 * weights, len(contributors)))][0]
    return min(MOST_MILLI, max(LEAST_MILLI, median))


def _groups(by_name: Mapping[str, list[int]]) -> list[list[int]]:
    groups, small = [some for some in by_name.values() if len(some) >= GROUP], list[int]()
    for name in sorted(by_name, key=digest_json):
        if len(by_name[name]) < GROUP:
            small = small + by_name[name]
            if len(small) >= GROUP:
                groups.append(small)
                small = []
    if groups:
        groups[-1] = groups[-1] + small  # too few for a group of their own
    return groups


def _theta_of(group: Sequence[int]) -> int:
    falling, num_allowed = sorted(group, reverse=True), max(1, ALPHA_PPM * len(group) // 10**6)
    return falling[num_allowed] if num_allowed < len(group) else 0
