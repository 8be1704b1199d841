"""Which rows of a version are trained on, which serve as decoys, and which are asked about."""

from collections import defaultdict
from collections.abc import Sequence

from openledger.core.errors import InvalidInput
from openledger.core.hashing import digest_json
from openledger.core.money import split
from openledger.core.values import Row


def choose_rows(rows: Sequence[Row], max_rows: int, max_decoys: int = 64) -> tuple[list[Row], list[Row]]:
    """(rows to train on, decoys). With more than `max_rows` rows each contributor gives in proportion to his rows,
    and which ones is decided by a hash: nobody can choose the rows that are paid. Decoys are the next rows in that
    order, never trained on; there are none where every row is trained.

    Raises InvalidInput for a version without rows.
    """
    if not rows:
        raise InvalidInput("this Datanet version has no rows to train on", code="empty_version", param="datanet")
    by_contributor: defaultdict[str, list[Row]] = defaultdict(list)
    for row in sorted(rows, key=_lot):
        by_contributor[row.contributor_id].append(row)
    counts = {contributor: len(own) for contributor, own in by_contributor.items()}
    quotas = counts if len(rows) <= max_rows else split(max_rows, counts)
    trained = [row for contributor, own in by_contributor.items() for row in own[: quotas[contributor]]]
    left = [row for contributor, own in by_contributor.items() for row in own[quotas[contributor] :]]
    return sorted(trained, key=lambda row: row.row_id), sorted(left, key=_lot)[:max_decoys]


def _lot(row: Row) -> str:
    """What decides a row's turn: known only once the row is, and the same for everyone who computes it."""
    return digest_json(["openledger.lot/1", row.row_id])
