"""likeness/1: rows that repeat an earlier row of their own contributor's. Published, and not changed any more:
`shares/3` settles by it, and so does every run that knows no order of credit.

    row i repeats row j: j is the likest of its contributor's own earlier rows, and the likeness is above theta_c

    theta_cpq    the likeness that no more than 2 alpha / n_c of the pairs of a row of p's and one of q's exceed, for
                 each pair (p, q) of other contributors; n_c are the contributor's rows
    theta_c      the lesser of two medians of theta_cpq, each pair counted once, and by its pairs of rows; from
                 LEAST_MILLI to MOST_MILLI

"Earlier" is by row id: of one's own rows that repeat each other one is paid, and which one makes no difference to him.
Nobody's own rows move his theta, nor does one name more, of however many rows; with fewer than FEWEST others theta_c is
the least. Pairs of strangers' rows are compared between STRANGERS rows at most.

Shapes: R rows, S of them that are compared with strangers', C contributors of these, P pairs of contributors, K the
sketch.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from openledger.attribution.likest import Float, Found, Integers, likest_earlier, products_of

RULE = "likeness/1"
LEAST_MILLI = 800
MOST_MILLI = 950
FEWEST = 3
ALPHA_PPM = 20_000
STRANGERS = 2048


def repeats_of_own(contributors: Sequence[str], sketches_RK: npt.NDArray[Any]) -> Iterator[Found]:
    """Of rows in the order of their ids."""
    strangers = _strangers(contributors, sketches_RK)
    by_contributor: defaultdict[str, list[int]] = defaultdict(list)
    for number, name in enumerate(contributors):
        by_contributor[name].append(number)
    for name, numbers in by_contributor.items():
        theta_milli = strangers.theta_milli(name, len(numbers))
        for place, (earlier, milli) in enumerate(likest_earlier(sketches_RK[numbers])):
            if milli > theta_milli:
                yield numbers[place], numbers[earlier], milli


@dataclass(frozen=True, slots=True, kw_only=True)
class _Strangers:
    """Of rows that are evenly spaced: whose they are, and how many each contributor has. Of pairs of contributors with
    rows that are more alike than LEAST_MILLI: who they are, and where in `likenesses` theirs are, falling."""

    names: Sequence[str]
    sizes_C: Integers
    one_P: Integers
    other_P: Integers
    start_P: Integers
    number_P: Integers
    likenesses: Float

    def theta_milli(self, name: str, num_rows: int) -> int:
        """theta_c of the contributor, in thousandths, `num_rows` being n_c."""
        sizes = self._others(name)
        theta_P, fewer_P, more_P = self._above(name, num_rows)
        once = _median(theta_P, np.ones_like(fewer_P), len(sizes) * (len(sizes) - 1) // 2)
        by_rows = _median(theta_P, fewer_P * more_P, int(sizes.sum() ** 2 - (sizes**2).sum()) // 2)
        return _bounded(min(once, by_rows), sizes)

    def _others(self, name: str) -> Integers:
        """How many rows each has, the most first."""
        return np.sort(self.sizes_C[[other != name for other in self.names]])[::-1]

    def _above(self, name: str, num_rows: int) -> tuple[Float, Integers, Integers]:
        """theta_cpq of the pairs of others of which it is above LEAST_MILLI, and the rows of either's, the fewer
        first."""
        one_P, other_P = self.sizes_C[self.one_P], self.sizes_C[self.other_P]
        allowed_P = 2 * ALPHA_PPM * one_P * other_P // (10**6 * num_rows)
        others_C = np.array([other != name for other in self.names])
        above_P = others_C[self.one_P] & others_C[self.other_P] & (allowed_P < self.number_P)
        theta_P = self.likenesses[(self.start_P + allowed_P)[above_P]]
        return theta_P, np.minimum(one_P, other_P)[above_P], np.maximum(one_P, other_P)[above_P]


def _bounded(median: float, sizes: Integers) -> int:
    if len(sizes) < FEWEST:
        return LEAST_MILLI
    return min(MOST_MILLI, max(LEAST_MILLI, round(1000 * median)))


def _median(values: Float, weights: Integers, total: int) -> float:
    """Of numbers that weigh `total`, of which those not among `values` are less; 0 where it is one of them."""
    falling = np.argsort(-values, kind="stable")
    place = int(np.searchsorted(2 * np.cumsum(weights[falling]), total, side="right"))
    return float(values[falling[place]]) if place < len(falling) else 0.0


def _strangers(contributors: Sequence[str], sketches_RK: npt.NDArray[Any]) -> _Strangers:
    chosen = np.arange(0, len(contributors), -(-max(1, len(contributors)) // STRANGERS))
    whose = [contributors[row] for row in chosen.tolist()]
    names = sorted(set(whose))
    number = {name: place for place, name in enumerate(names)}
    name_S = np.array([number[name] for name in whose], dtype=np.int64)
    codes, found = [np.zeros(0, np.int64)], [np.zeros(0, np.float32)]
    for rows, others, products in products_of(sketches_RK[chosen]):
        one, other = name_S[rows][:, None], name_S[others][None, :]
        pairs = (one != other) & (products > LEAST_MILLI / 1000)
        if rows == others:
            pairs &= np.tri(len(products), k=-1, dtype=bool)
        codes.append((np.minimum(one, other) * len(names) + np.maximum(one, other))[pairs])
        found.append(products[pairs])
    code, likeness = np.concatenate(codes), np.concatenate(found)
    order = np.lexsort((-likeness, code))
    code_P, start_P, number_P = np.unique(code[order], return_index=True, return_counts=True)
    return _Strangers(
        names=names,
        sizes_C=np.bincount(name_S, minlength=len(names)),
        one_P=code_P // len(names),
        other_P=code_P % len(names),
        start_P=start_P,
        number_P=number_P,
        likenesses=likeness[order],
    )
