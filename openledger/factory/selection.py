"""Which rows of a version are trained on, which serve as decoys, and which are held out for evaluation."""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from openledger.core.errors import InvalidInput
from openledger.core.hashing import digest_json
from openledger.core.money import split
from openledger.core.values import Row


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """No row is in two of them. `decoys` were never trained on: what influence they seem to have is error. On
    `held_out` the adapter is measured, for the improvement part of its pools."""

    trained: tuple[Row, ...]
    decoys: tuple[Row, ...]
    held_out: tuple[Row, ...]


def choose_rows(
    rows: Sequence[Row],
    max_rows: int,
    lot: str,
    *,
    copies: Collection[str] = (),
    seen: Collection[str] = (),
    alike: Mapping[str, str] | None = None,
    max_decoys: int = 64,
    max_held_out: int = 32,
) -> Selection:
    """Each contributor gives in proportion to his rows, in all three; which ones is drawn by a hash of `lot` (the
    version's public constant) and the row's id, so that nobody knows before the version is published. Rows in `copies`
    (ids) are left out of everything. `alike` names for a row the earliest one that says the same, whoever wrote them:
    no row is held out whose like is trained on or held out already. Rows in `seen` (ids) were trained on in an adapter
    that this one comes from: they may be trained on again, and are neither decoys nor held out. What is held back of a
    small version is a tenth of it for each of decoys and held-out rows, and nothing of fewer than ten rows.

    Raises InvalidInput (`empty_version`) where no row is left.
    """
    rows = [row for row in rows if row.row_id not in copies]
    if not rows:
        raise InvalidInput(
            "this Datanet version has no rows to train on",
            code="empty_version",
            param="datanet",
            fix=f"{len(copies)} of its rows say what earlier rows say; contribute others" if copies else None,
        )
    num_decoys, num_held_out = min(max_decoys, len(rows) // 10), min(max_held_out, len(rows) // 10)
    drawn = sorted(rows, key=lambda row: _lot(lot, row))
    trained, left = _quotas(drawn, min(max_rows, len(rows) - num_decoys - num_held_out))
    left = [row for row in left if row.row_id not in seen]
    unlike = _unlike(left, [*trained, *(row for row in rows if row.row_id in seen)], alike or {})
    held_out, _ = _quotas(unlike, min(num_held_out, len(unlike)))
    left = [row for row in left if row not in held_out]
    return Selection(
        trained=tuple(sorted(trained, key=lambda row: row.row_id)),
        decoys=tuple(left[:max_decoys]),
        held_out=tuple(held_out),
    )


def _quotas(rows: Sequence[Row], number: int) -> tuple[list[Row], list[Row]]:
    """(the first `number` rows, each contributor's in proportion to how many are his; the others), in their order."""
    by_contributor: defaultdict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_contributor[row.contributor_id].append(row)
    quotas = split(number, {contributor: len(own) for contributor, own in by_contributor.items()}) if number else {}
    chosen = {row.row_id for name, own in by_contributor.items() for row in own[: quotas.get(name, 0)]}
    return [row for row in rows if row.row_id in chosen], [row for row in rows if row.row_id not in chosen]


def _unlike(rows: Sequence[Row], trained: Sequence[Row], alike: Mapping[str, str]) -> list[Row]:
    """The first of `rows` for each thing said, of what no trained row says."""
    said = {alike.get(row.row_id, row.row_id) for row in trained}
    found = []
    for row in rows:
        what = alike.get(row.row_id, row.row_id)
        if what not in said:
            said.add(what)
            found.append(row)
    return found


def _lot(lot: str, row: Row) -> str:
    """What decides a row's turn, the same for everyone who computes it."""
    return digest_json(["openledger.lot/2", lot, row.row_id])
