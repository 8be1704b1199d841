"""The likest earlier row of each, of sketches in an order, such as that of credit: by products of blocks, so that no
table of all pairs is made.

Shapes: R rows in their order, K the sketch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Float = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]
Found = tuple[int, int, int]  # a row's number, the earlier one's, their likeness in thousandths
_BLOCK = 1024


def likest_earlier(sketches_RK: npt.NDArray[Any]) -> list[tuple[int, int]]:
    """As `Likest.found`, of all earlier rows."""
    likest = Likest.of(len(sketches_RK))
    for rows, others, products in earlier_products(sketches_RK):
        likest.see(rows, others, products)
    return likest.found()


@dataclass(frozen=True, slots=True, kw_only=True)
class Likest:
    """For each row the likest earlier one of those that were seen: its number, and their likeness."""

    number_R: Integers
    likeness_R: Float

    @classmethod
    def of(cls, num_rows: int) -> "Likest":
        return cls(number_R=np.zeros(num_rows, np.int64), likeness_R=np.zeros(num_rows, np.float32))

    def see(self, rows: slice, others: slice, products: Float) -> None:
        """Of `others` those count whose product is above 0."""
        best_R = products.argmax(axis=1)
        most_R = products[np.arange(len(products)), best_R]
        better_R = most_R > self.likeness_R[rows]
        self.likeness_R[rows] = np.where(better_R, most_R, self.likeness_R[rows])
        self.number_R[rows] = np.where(better_R, best_R + others.start, self.number_R[rows])

    def found(self) -> list[tuple[int, int]]:
        """Likenesses in thousandths; (0, 0) where there is none."""
        milli = [min(1000, round(1000 * likeness)) for likeness in self.likeness_R.tolist()]
        return list(zip(self.number_R.tolist(), milli, strict=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class ByCredit:
    """Rows in the order of credit, which `order` has by their numbers: whose they are, the likest earlier one of
    anybody's, and how alike the likest of a stranger's is."""

    order: Sequence[int]
    whose: Sequence[str]
    likest: Sequence[tuple[int, int]]
    strangers_milli: Sequence[int]

    @classmethod
    def of(cls, contributors: Sequence[str], sketches_RK: npt.NDArray[Any], places: Sequence[int]) -> "ByCredit":
        order = np.argsort(np.asarray(places), kind="stable").tolist()
        whose = [contributors[row] for row in order]
        name_R = np.unique(whose, return_inverse=True)[1]
        anybodys, strangers = Likest.of(len(order)), Likest.of(len(order))
        for rows, others, products in earlier_products(sketches_RK[order]):
            anybodys.see(rows, others, products)
            strangers.see(rows, others, np.where(name_R[rows][:, None] == name_R[others], -1.0, products))
        return cls(
            order=order,
            whose=whose,
            likest=anybodys.found(),
            strangers_milli=[milli for _, milli in strangers.found()],
        )

    def above(self, theta_milli: int) -> Iterator[Found]:
        for row, (earlier, milli) in enumerate(self.likest):
            if milli > theta_milli:
                yield self.order[row], self.order[earlier], milli


def earlier_products(sketches_RK: npt.NDArray[Any]) -> Iterator[tuple[slice, slice, Float]]:
    """As `products_of`; -1 where the other row isn't earlier."""
    for rows, others, products in products_of(sketches_RK):
        if rows == others:
            products = np.where(np.tri(len(products), k=-1, dtype=bool), products, -1.0)
        yield rows, others, products


def products_of(sketches_RK: npt.NDArray[Any]) -> Iterator[tuple[slice, slice, Float]]:
    """(rows, the same or earlier rows, their products), block by block."""
    blocks = [slice(at, min(at + _BLOCK, len(sketches_RK))) for at in range(0, len(sketches_RK), _BLOCK)]
    for place, rows in enumerate(blocks):
        own = sketches_RK[rows].astype(np.float32)
        for others in blocks[: place + 1]:
            yield rows, others, own @ sketches_RK[others].astype(np.float32).T
