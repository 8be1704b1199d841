"""Which rows of a version are trained on, which serve as decoys, and which are asked about."""

from collections import defaultdict
from collections.abc import Sequence

from openledger.core.errors import InvalidInput
from openledger.core.hashing import digest_json
from openledger.core.money import split
from openledger.core.values import Row


def choose_rows(rows: Sequence[Row], max_rows: int, row_root: str, max_decoys: int = 64) -> tuple[list[Row], list[Row]]:
    """(rows to train on, decoys). Each contributor gives in proportion to his rows; which ones is drawn by a hash of
    the version's `row_root` and the row's id, so that nobody knows before the version is published (who contributes
    last can still try out nonces). Decoys are the next rows in that order, never trained on: what is held back of a
    small version is a tenth of it, and nothing of fewer than ten rows.

    Raises InvalidInput for a version without rows.
    """
    if not rows:
        raise InvalidInput("this Datanet version has no rows to train on", code="empty_version", param="datanet")
    held_back = min(max_decoys, len(rows) // 10)
    max_rows = min(max_rows, len(rows) - held_back)
    by_contributor: defaultdict[str, list[Row]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: _lot(row_root, row)):
        by_contributor[row.contributor_id].append(row)
    counts = {contributor: len(own) for contributor, own in by_contributor.items()}
    quotas = split(max_rows, counts)
    trained = [row for contributor, own in by_contributor.items() for row in own[: quotas[contributor]]]
    left = [row for contributor, own in by_contributor.items() for row in own[quotas[contributor] :]]
    decoys = sorted(left, key=lambda row: _lot(row_root, row))[:max_decoys]
    return sorted(trained, key=lambda row: row.row_id), decoys


def _lot(row_root: str, row: Row) -> str:
    """What decides a row's turn, the same for everyone who computes it."""
    return digest_json(["openledger.lot/2", row_root, row.row_id])
