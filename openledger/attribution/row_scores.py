"""Row scores of a settled period: what the settlement's replay says of each row, brought to what is paid.

    r_i    this run: the exact derivative of the period's weighted sum in the weight of row i (`replay`)
    x_i    expected: what the bank's estimate of a block gives the row (`period.BankRows`)
    e_i  = r_i + (sum over the cell of x - sum over the cell of r) u_i / sum over the cell of u
    u_i  = half of (r_i - x_i)^2 + half of its mean over all rows

A cell is one contributor's rows in one block. So a block's rows sum to the bank's estimate of it, and a contributor's
to the score that he is paid by: which row of his brought it is told by the replay, how much all of them brought by the
bank. The correction is added, in proportion to how unsure a row is, never a factor: a signed sum may be near zero. How
unsure it is says how far its two measurements lie apart. One row's difference is a poor measure of a variance, so that
half of it is the mean's. The error of e_i follows as that of the correction:

    error_i^2 = u_i (1 - p_i) + (the cell's part of its block's rows) SE_g^2 p_i^2          p_i = u_i / sum of u

Without a bank there is nothing to correct to: r_i alone is told. Nobody is paid by a row's score.

They are kept in a document that is read page by page (`row_pages`). Documents of the first format have all rows in one
JSON object, named by the digest of the whole file, and are read whole.

Shapes: R trained rows, G blocks, C cells.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from openledger.attribution.estimate import corrected_rows, group_sums
from openledger.attribution.period import BankRows
from openledger.attribution.row_pages import MOST_ROOT, Json, Key, RowPages, corrupt, order_key, paged
from openledger.core.hashing import digest_bytes

ROWS_FORMAT_1 = "openledger.row-scores/1"
ROWS_FORMAT = "openledger.row-scores/2"
_NANO = 10**9
Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class RowScores:
    """Of one part of a pool, each [R], in OPEN x nats: the replay's, and where there is a bank what it is brought to
    with its error (a standard deviation)."""

    this_run_R: Array
    expected_R: Array | None = None
    error_R: Array | None = None


def brought_to_bank(this_run_R: Array, bank: BankRows, contributors: Sequence[str]) -> RowScores:
    """e of the module's formula. `contributors` has each row's, as `bank` has the rows."""
    cells, cell_R = np.unique(
        [f"{group}\n{name}" for group, name in zip(bank.group_R.tolist(), contributors, strict=True)],
        return_inverse=True,
    )
    apart_R = (this_run_R - bank.influence_R) ** 2
    variance_R1 = ((apart_R + apart_R.mean()) / 2 + np.finfo(np.float64).tiny)[:, None]
    target_C1 = group_sums(bank.influence_R[:, None], cell_R, len(cells))
    part_R = variance_R1[:, 0] / group_sums(variance_R1, cell_R, len(cells))[cell_R, 0]
    held_R = np.bincount(cell_R)[cell_R] / np.bincount(bank.group_R)[bank.group_R]  # the cell's part of its block
    spread_R = held_R * bank.error_G[bank.group_R] ** 2 * part_R**2
    return RowScores(
        this_run_R=this_run_R,
        expected_R=corrected_rows(this_run_R[:, None], variance_R1, cell_R, target_C1, 1.0)[:, 0],
        error_R=np.sqrt(variance_R1[:, 0] * (1 - part_R) + spread_R),
    )


def document(
    adapter: str,
    period: str,
    adapter_digest: str,
    rows: Sequence[tuple[str, str]],
    parts: Mapping[str, RowScores],
    stated: Mapping[str, Any],
) -> tuple[bytes, str]:
    """What is kept of a period's row scores, in billionths, and its digest. `rows` are (row id, contributor)."""
    lines = [
        {
            "row_id": row_id,
            "contributor_id": contributor,
            **{name: _numbers(scores, number) for name, scores in parts.items()},
        }
        for number, (row_id, contributor) in enumerate(rows)
    ]
    told = {"adapter": adapter, "period": period, "adapter_digest": adapter_digest, **stated}
    return paged({"format": ROWS_FORMAT, **told}, lines)


def open_document(path: Path, digest: str) -> "RowPages | WholeRows":
    """The document of this digest, of either format; of the second only the root is read. Raises Corrupt
    (`corrupt_row_scores`) where there is another, or none."""
    try:
        with path.open("rb") as stream:
            root = stream.readline(MOST_ROOT + 1)
            if root.endswith(b"\n") and digest_bytes(root[:-1]) == digest:
                return _checked(RowPages(path, root[:-1]), ROWS_FORMAT)
            whole = root + stream.read()
        if digest_bytes(whole) != digest:
            raise ValueError("it isn't what the settlement names")
        return _checked(WholeRows(whole), ROWS_FORMAT_1)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise corrupt(path, error) from error


class WholeRows:
    """A document of the first format, in memory."""

    def __init__(self, data: bytes):
        self.stated: Json = json.loads(data)
        self._rows = sorted(self.stated.pop("rows"), key=order_key)
        if not all(row["contributor_id"] for row in self._rows):
            raise ValueError("a row is nobody's")

    def rows(self, contributor: str = "", begin: Key | None = None) -> Iterator[Json]:
        """See `RowPages.rows`."""
        own = (row for row in self._rows if contributor in ("", row["contributor_id"]))
        return (row for row in own if order_key(row) >= (begin or []))


def _checked(document: RowPages | WholeRows, form: str) -> RowPages | WholeRows:
    if document.stated["format"] != form:
        raise ValueError("it is of another format")
    return document


def _numbers(scores: RowScores, number: int) -> dict[str, int]:
    found = {"this_run_nano": scores.this_run_R, "expected_nano": scores.expected_R, "error_nano": scores.error_R}
    return {name: round(float(values[number]) * _NANO) for name, values in found.items() if values is not None}
