"""Spot checks: which accepted rows somebody looks at again, and what that says of their contributor's reputation.

Each accepted row is drawn with the chance that its contributor's reputation gives (`reputation.review_ppm`), once for
each contribution, by a die that nobody foresees: whoever could compute it would send rows until none is drawn. Knows no
row's text; whoever reviews reads it in the Datanet. A row that was found bad stays until the owner removes it.

A contributor who never took anything out waits with it while checks of his rows are open, and at most `FIRST_LOOK_MS`
after the first of them was drawn: reviewers who don't look keep nobody's money. What he waits for lies in his own
account, where refunds and deposits find it.
"""

import random
from collections.abc import Callable, Sequence
from typing import Any

import apsw

from openledger.core.database import writing
from openledger.core.errors import Conflict, InvalidInput, NotFound
from openledger.core.ids import check_name

GOOD = "good"
FINDINGS = (GOOD, "spam", "duplicate")
FIRST_LOOK_MS = 3 * 86_400_000
SCHEMA = """
CREATE TABLE IF NOT EXISTS spot_checks(
  row_id TEXT PRIMARY KEY, datanet TEXT NOT NULL, contributor TEXT NOT NULL, contribution_id TEXT NOT NULL,
  drawn_ms INTEGER NOT NULL, finding TEXT NOT NULL DEFAULT ''
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS spot_checks_due ON spot_checks(datanet, drawn_ms) WHERE finding = '';
CREATE INDEX IF NOT EXISTS spot_checks_whose ON spot_checks(contributor, drawn_ms);
CREATE TABLE IF NOT EXISTS spot_check_draws(contribution_id TEXT PRIMARY KEY) STRICT, WITHOUT ROWID;
"""
_COLUMNS = ("row_id", "datanet", "contributor", "contribution_id", "drawn_ms", "finding")
_WHOLE_PPM = 10**6
_MOST_DUE = 1000
Chance = Callable[[int], int]  # an even draw from 0 to below


class SpotCheckBook:
    def __init__(self, connection: apsw.Connection, chance: Chance | None = None):
        self._db = connection
        self._chance = chance or random.SystemRandom().randrange

    def draw(
        self, contributor: str, datanet: str, contribution_id: str, row_ids: Sequence[str], review_ppm: int, now_ms: int
    ) -> None:
        """Draw of a contribution's accepted rows, once."""
        check_name(datanet, "datanet")
        with writing(self._db):
            self._db.execute("INSERT OR IGNORE INTO spot_check_draws VALUES (?)", (contribution_id,))
            if not self._db.changes():
                return
            drawn = [row_id for row_id in row_ids if self._chance(_WHOLE_PPM) < review_ppm]
            self._db.executemany(
                "INSERT OR IGNORE INTO spot_checks VALUES (?, ?, ?, ?, ?, '')",
                [(check_name(row_id, "row_id"), datanet, contributor, contribution_id, now_ms) for row_id in drawn],
            )

    def due(self, datanet: str) -> list[dict[str, Any]]:
        """Rows that wait to be reviewed, the oldest first, at most 1,000."""
        query = (
            f"SELECT {', '.join(_COLUMNS)} FROM spot_checks WHERE datanet = ? AND finding = '' ORDER BY 5, 1 LIMIT ?"
        )
        return [dict(zip(_COLUMNS, row, strict=True)) for row in self._db.execute(query, (datanet, _MOST_DUE))]

    def find(self, datanet: str, row_id: str) -> dict[str, Any]:
        """Raises NotFound (`spot_check_not_found`)."""
        query = f"SELECT {', '.join(_COLUMNS)} FROM spot_checks WHERE datanet = ? AND row_id = ?"
        row = self._db.execute(query, (datanet, row_id)).fetchone()
        if row is None:
            raise NotFound(
                f"{row_id} of {datanet!r} wasn't drawn for a spot check", code="spot_check_not_found", param="row_id"
            )
        return dict(zip(_COLUMNS, row, strict=True))

    def look_ends_ms(self, contributor: str) -> int:
        """Until when open checks of the contributor's rows are waited for; 0 where none is open."""
        whose = "FROM spot_checks WHERE contributor = ?"
        if self._db.execute(f"SELECT 1 {whose} AND finding = '' LIMIT 1", (contributor,)).get is None:
            return 0
        return int(self._db.execute(f"SELECT min(drawn_ms) {whose}", (contributor,)).get) + FIRST_LOOK_MS

    def close(self, row_id: str, finding: str) -> None:
        with writing(self._db):
            self._db.execute("UPDATE spot_checks SET finding = ? WHERE row_id = ?", (finding, row_id))


def check_finding(check: dict[str, Any], finding: str) -> None:
    """Raises InvalidInput for a finding that is none, Conflict where the row was found to be something else."""
    if finding not in FINDINGS:
        raise InvalidInput(
            f"{finding!r} is no finding", code="invalid_finding", param="finding", fix=f"one of {', '.join(FINDINGS)}"
        )
    if check["finding"] not in ("", finding):
        raise Conflict(
            f"{check['row_id']} was checked before: {check['finding']}", code="spot_check_closed", param="finding"
        )
