"""Licences: which ones a Datanet may have, what each asks, and under which one rows were given.

Owns the table of what they ask, the comparison by it, and what the registry keeps of a Datanet's former licences. The
comparison says less than the licences do: rows given under A may be handed on under B where

    A = B, or B is withdrawn, or B asks all that A asks, and A asks for neither the same licence nor no derivatives

so a Datanet's licence never asks less of whoever uses the rows than their contributors did. A row was given under the
licence that its Datanet had when it was judged: a change that wouldn't keep what that asks is refused.
"""

from collections.abc import Mapping
from typing import Any, Literal

import apsw

from openledger.core.errors import Conflict
from openledger.datanets.tombstones import REMOVED

Ask = Literal["notice", "same licence", "not commercial", "no derivatives", "training alone"]
SCHEMA = """
CREATE TABLE IF NOT EXISTS former_licences (
    datanet TEXT NOT NULL REFERENCES datanets (name), until_sequence INTEGER NOT NULL, licence TEXT NOT NULL,
    PRIMARY KEY (datanet, until_sequence)
) STRICT, WITHOUT ROWID;
"""
WITHDRAWN = "withdrawn"
LICENCES: Mapping[str, frozenset[Ask]] = {  # by SPDX id
    "CC0-1.0": frozenset(),
    "PDDL-1.0": frozenset(),
    "CC-BY-4.0": frozenset({"notice"}),
    "CC-BY-SA-4.0": frozenset({"notice", "same licence"}),
    "CC-BY-NC-4.0": frozenset({"notice", "not commercial"}),
    "CC-BY-NC-SA-4.0": frozenset({"notice", "not commercial", "same licence"}),
    "CC-BY-ND-4.0": frozenset({"notice", "no derivatives"}),
    "CC-BY-NC-ND-4.0": frozenset({"notice", "not commercial", "no derivatives"}),
    "CDLA-Permissive-2.0": frozenset({"notice"}),
    "CDLA-Sharing-1.0": frozenset({"notice", "same licence"}),
    "ODC-By-1.0": frozenset({"notice"}),
    "ODbL-1.0": frozenset({"notice", "same licence"}),
    "Apache-2.0": frozenset({"notice"}),
    "BSD-3-Clause": frozenset({"notice"}),
    "MIT": frozenset({"notice"}),
    "PSF-2.0": frozenset({"notice"}),
    # use in training alone, against the shares that the ledger pays
    "LicenseRef-openledger-training": frozenset({"notice", "training alone"}),
}
HUB_NAMES = {"ODC-By-1.0": "odc-by", "ODbL-1.0": "odbl", "PDDL-1.0": "pddl"}  # the others in lower case
BOTH = " AND "  # between two licences that both hold
_KNOWN = {name.lower(): name for name in LICENCES} | {hub: name for name, hub in HUB_NAMES.items()}


def may_train(licence: str) -> bool:
    """Whether it lets a model be trained on the rows and sold."""
    return licence in LICENCES and not LICENCES[licence] & {"not commercial", "no derivatives"}


def keeps(given: str, licence: str) -> bool:
    """Whether what was given under `given` may be handed on under `licence`; both are known ones."""
    if given == licence or licence == WITHDRAWN:
        return True
    if given == WITHDRAWN or LICENCES[given] & {"same licence", "no derivatives"}:
        return False
    return LICENCES[given] <= LICENCES[licence]


def row_keeps(own: str, licence: str) -> bool | None:
    """Whether a row that names its `own` licence (or several, with `BOTH`), as SPDX or the Hub writes it, may be given
    under `licence`; None where one of them isn't known here."""
    named = [_KNOWN.get(name.strip().lower()) for name in own.split(BOTH)]
    known = [keeps(name, licence) for name in named if name is not None]
    if not all(known):
        return False
    return None if None in named else True


def check_kept(given: Mapping[str, int], licence: str) -> None:
    """`given` has how many rows were given under which licence. Raises Conflict (`licence_not_kept`)."""
    for former, number in given.items():
        if not keeps(former, licence):
            raise not_kept(number, former, licence)


def not_kept(number: int, former: str, licence: str) -> Conflict:
    return Conflict(
        f"{number} rows were given under {former}, and {licence} doesn't keep what that asks",
        code="licence_not_kept",
        param="licence",
        fix="open another Datanet under the new licence, to which their contributors send the rows themselves;"
        " rows that were taken back don't count",
    )


class FormerLicences:
    """What a Datanet's contributions were given under, by their sequence: up to `until_sequence` a former licence, from
    there the next one, and in the end the present one. Shares the registry's connection; `end` is called within its
    durable transaction."""

    def __init__(self, connection: apsw.Connection):
        self._connection = connection

    def end(self, datanet: str, licence: str) -> None:
        """`licence` is none of the contributions' that are yet to come."""
        self._connection.execute(
            "INSERT OR IGNORE INTO former_licences"
            " SELECT ?, max(sequence), ? FROM contributions WHERE datanet = ? HAVING max(sequence) IS NOT NULL",
            (datanet, licence, datanet),
        )

    def given(self, datanet: str, present: str, owner: str) -> dict[str, int]:
        """How many rows of others than `owner` stand, wait or are appealed, by the licence they were given under."""
        query = (
            "SELECT coalesce((SELECT licence FROM former_licences f WHERE f.datanet = c.datanet"
            "  AND f.until_sequence >= c.sequence ORDER BY f.until_sequence LIMIT 1), ?) AS given, sum(rows) FROM ("
            "  SELECT sequence, datanet, count(*) AS rows FROM contributions JOIN verdicts USING (sequence)"
            "  WHERE datanet = ? AND ? NOT IN (contributor_id, 'contributor:' || contributor_id)"
            "  AND (outcome != 'reject' OR row_id IN (SELECT row_id FROM appeals WHERE draft IS NOT NULL))"
            f" AND row_id NOT IN ({REMOVED}) GROUP BY sequence) c GROUP BY given"
        )
        rows: list[Any] = self._connection.execute(query, (present, datanet, owner)).fetchall()
        return {str(licence): int(number) for licence, number in rows}

    def of_contribution(self, identifier: str, present: str) -> str:
        """The licence that it was given under; `present` where that never changed since."""
        query = (
            "SELECT licence FROM former_licences JOIN contributions USING (datanet)"
            " WHERE contribution_id = ? AND until_sequence >= sequence ORDER BY until_sequence LIMIT 1"
        )
        row = self._connection.execute(query, (identifier,)).fetchone()
        return present if row is None else str(row[0])
