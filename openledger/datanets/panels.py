"""Review panels: several reviewers commit to what they think of a row, and only then tell it.

    commit     a digest of the verdict (`core.paneling`); `min_reviews` of them fill the panel, and nobody joins it then
    reveal     the verdict behind the digest, once the panel is full, within `REVEAL_MS` of that
    decide     by the majority of what was revealed, when all have, or when the time is up

Nobody can say what another said, for he has committed before anybody tells. Whoever keeps his verdict to himself isn't
counted, and stands in his record as `num_withheld`. Where the panel comes to nothing (nobody revealed, those who did
are heard no more, or they are split in two) the Datanet's owner decides, who may at any time.

Known answers go the same way, and are revealed as rows are: the reviewer's record counts them (`reviews`). Nobody else
has to sit on their panels, or they would fill later than rows do and be told by that: to its reviewer a known answer
stands as the row does that he committed to before it, or after it where there is none.

Owns two tables in the registry's file.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal

import apsw

from openledger.core.errors import Conflict, InvalidInput, NotFound
from openledger.core.paneling import check_commitment, panel_digest

SCHEMA = """
CREATE TABLE IF NOT EXISTS commitments (
    item TEXT NOT NULL, reviewer TEXT NOT NULL, datanet TEXT NOT NULL, digest TEXT NOT NULL,
    committed_ms INTEGER NOT NULL, revealed INTEGER NOT NULL DEFAULT 0, PRIMARY KEY (item, reviewer)
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS full_panels (
    item TEXT PRIMARY KEY, datanet TEXT NOT NULL, full_ms INTEGER NOT NULL, done INTEGER NOT NULL DEFAULT 0
) STRICT, WITHOUT ROWID;
"""
REVEAL_MS = 3 * 24 * 60 * 60 * 1000
TAKEN = "SELECT item FROM full_panels UNION SELECT item FROM commitments WHERE reviewer = ?2"
PanelState = Literal["committing", "revealing", "done"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PanelSeat:
    """A reviewer's place on the panel of one item. `reveal_by_ms` is 0 while it is `committing`."""

    row_id: str
    digest: str
    state: PanelState
    is_revealed: bool
    reveal_by_ms: int


class PanelStore:
    """`writing` is the registry's durable transaction."""

    def __init__(self, connection: apsw.Connection, writing: Callable[[], AbstractContextManager[None]]):
        self._connection = connection
        self._writing = writing

    def commit(self, datanet: str, item: str, reviewer: str, digest: str, size: int, now_ms: int) -> None:
        """Take one of `size` seats. The same again changes nothing.

        Raises InvalidInput, Conflict (`already_reviewed` for another digest, `panel_full`)."""
        check_commitment(digest, "digest")
        known = self._digest(item, reviewer)
        if known is not None and known != digest:
            raise Conflict(f"{reviewer} committed otherwise on {item} before", code="already_reviewed", param="digest")
        if known is None:
            if self._is_full(item):
                raise Conflict(
                    f"the panel of {item} is full", code="panel_full", param="row_id",
                    fix="take the next item of your queue",
                )  # fmt: skip
            with self._writing():
                values = (item, reviewer, datanet, digest, now_ms)
                self._connection.execute("INSERT INTO commitments VALUES (?, ?, ?, ?, ?, 0)", values)
                if not self._is_known(item) and self._count("commitments WHERE item = ?", item) >= size:
                    self._connection.execute("INSERT INTO full_panels VALUES (?, ?, ?, 0)", (item, datanet, now_ms))

    def check_reveal(self, datanet: str, item: str, reviewer: str, nonce: str, now_ms: int, *, accept: bool) -> None:
        """Raises NotFound (`no_commitment`), InvalidInput (`wrong_reveal`), Conflict (`panel_open` before it is full,
        `panel_done` after its time)."""
        seat = next((one for one in self.seats(datanet, reviewer, now_ms) if one.row_id == item), None)
        if seat is None:
            raise NotFound(f"{reviewer} has committed to nothing on {item}", code="no_commitment", param="row_id")
        if panel_digest(datanet, item, reviewer, nonce, accept=accept) != seat.digest:
            raise InvalidInput(
                "this isn't what was committed to", code="wrong_reveal", param="nonce",
                fix="reveal with the key, and the verdict, of the commitment",
            )  # fmt: skip
        if seat.state == "committing":
            raise Conflict(
                f"the panel of {item} isn't full yet", code="panel_open", param="row_id",
                fix="reveal once all have committed: 'openledger reviews panels' tells",
            )  # fmt: skip
        if not seat.is_revealed and (seat.state == "done" or now_ms > seat.reveal_by_ms):
            raise Conflict(f"the panel of {item} is over", code="panel_done", param="row_id")

    def mark_revealed(self, item: str, reviewer: str) -> None:
        with self._writing():
            values = (item, reviewer)
            self._connection.execute("UPDATE commitments SET revealed = 1 WHERE item = ? AND reviewer = ?", values)

    def due(self, now_ms: int) -> list[tuple[str, str]]:
        """(Datanet, item) of panels that all have revealed on, or whose time is up."""
        query = (
            "SELECT datanet, item FROM full_panels f WHERE NOT done AND (full_ms < ? OR NOT EXISTS"
            " (SELECT 1 FROM commitments c WHERE c.item = f.item AND NOT revealed)) ORDER BY full_ms, item"
        )
        return [(str(datanet), str(item)) for datanet, item in self._connection.execute(query, (now_ms - REVEAL_MS,))]

    def mark_done(self, item: str) -> None:
        with self._writing():
            self._connection.execute("UPDATE full_panels SET done = 1 WHERE item = ?", (item,))

    def seats(self, datanet: str, reviewer: str, now_ms: int) -> list[PanelSeat]:
        """In the order in which they were taken."""
        query = (
            "SELECT item, digest, revealed, item IN (SELECT item FROM known_answers) FROM commitments"
            " WHERE datanet = ? AND reviewer = ? ORDER BY committed_ms, item"
        )
        taken = self._connection.execute(query, (datanet, reviewer)).fetchall()
        rows = [str(item) for item, _, _, is_known in taken if not is_known]
        full = {item: self._panel(item) for item in rows}
        seats, num_rows = list[PanelSeat](), 0
        for item, digest, revealed, is_known in taken:
            num_rows += 0 if is_known else 1
            beside = rows[max(0, num_rows - 1)] if rows else ""
            full_ms, done = full.get(beside, (None, False))
            if is_known and full_ms is not None:
                done = now_ms > full_ms + REVEAL_MS or (done and bool(revealed))
            seats.append(
                PanelSeat(
                    row_id=str(item),
                    digest=str(digest),
                    state="committing" if full_ms is None else "done" if done else "revealing",
                    is_revealed=bool(revealed),
                    reveal_by_ms=0 if full_ms is None else full_ms + REVEAL_MS,
                )
            )
        return seats

    def withheld(self, datanet: str) -> dict[str, int]:
        """How many verdicts each reviewer kept to himself until the panel was over."""
        query = (
            "SELECT reviewer, count(*) FROM commitments JOIN full_panels f USING (item)"
            " WHERE f.datanet = ? AND done AND NOT revealed GROUP BY reviewer"
        )
        return {str(reviewer): int(number) for reviewer, number in self._connection.execute(query, (datanet,))}

    def _digest(self, item: str, reviewer: str) -> str | None:
        query = "SELECT digest FROM commitments WHERE item = ? AND reviewer = ?"
        row = self._connection.execute(query, (item, reviewer)).fetchone()
        return None if row is None else str(row[0])

    def _panel(self, item: str) -> tuple[int | None, bool]:
        """When it was full, and whether it is over."""
        row = self._connection.execute("SELECT full_ms, done FROM full_panels WHERE item = ?", (item,)).fetchone()
        return (None, False) if row is None else (int(row[0]), bool(row[1]))

    def _is_full(self, item: str) -> bool:
        return self._count("full_panels WHERE item = ?", item) > 0

    def _is_known(self, item: str) -> bool:
        return self._count("known_answers WHERE item = ?", item) > 0

    def _count(self, what: str, value: str) -> int:
        return int(self._connection.execute(f"SELECT count(*) FROM {what}", (value,)).get)
