"""Vouched reputation: how a contributor's rows have done in one Datanet, an exponential average of measured outcomes.

    r <- r + step x (outcome - r)        outcome 1: accepted, or measured to help; 0: duplicate, spam, or to harm

It starts low, and stake doesn't enter. It decides how many rows a day are taken and how many of them are reviewed,
and nothing else: no share, no price and no vote is multiplied by it, so that it can't compound. A new key starts low,
but above a spoiled one: whoever spoiled his can come back as somebody new. What keeps that from paying is elsewhere:
rows are paid by what they are measured to do, and spam loses its deposit.

All in parts per million, rounded towards 0 both ways, so that it never creeps up by rounding.
"""

from collections.abc import Mapping
from typing import Any

import apsw

from openledger.core.database import writing
from openledger.core.errors import InvalidInput
from openledger.core.ids import check_name
from openledger.economy.parameters import Parameters
from openledger.ledger.accounts import check_account_id

GOOD = frozenset({"accepted", "helps"})
BAD = frozenset({"duplicate", "spam", "harms"})
MAX_OUTCOMES = 100_000
SCHEMA = """
CREATE TABLE IF NOT EXISTS reputations(
  contributor TEXT NOT NULL, datanet TEXT NOT NULL, ppm INTEGER NOT NULL, PRIMARY KEY (contributor, datanet)
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS reputation_events(event TEXT PRIMARY KEY) STRICT, WITHOUT ROWID;
"""
_WHOLE_PPM = 10**6


class ReputationBook:
    def __init__(self, connection: apsw.Connection):
        self._db = connection

    def of(self, contributor: str, datanet: str, parameters: Parameters) -> int:
        """In parts per million; where a new key starts, for one that isn't known."""
        query = "SELECT ppm FROM reputations WHERE contributor = ? AND datanet = ?"
        row = self._db.execute(query, (contributor, datanet)).fetchone()
        return parameters.reputation_start_ppm if row is None else int(str(row[0]))

    def record(
        self, contributor: str, datanet: str, outcomes: Mapping[str, int], event: str, parameters: Parameters
    ) -> int:
        """Take counted outcomes in, the good ones first, once for each `event` (a contribution, a settlement); what
        the reputation is now. Raises InvalidInput for outcomes that aren't any."""
        check_account_id(contributor, "contributor")
        check_name(datanet, "datanet")
        numbers = outcomes.values()
        if not set(outcomes) <= GOOD | BAD or any(type(n) is not int or not 0 <= n <= MAX_OUTCOMES for n in numbers):
            raise InvalidInput(
                f"outcomes are counts of {', '.join(sorted(GOOD | BAD))}", code="invalid_outcomes", param="outcomes"
            )
        with writing(self._db):
            name = f"{contributor}\n{datanet}\n{event}"
            self._db.execute("INSERT OR IGNORE INTO reputation_events VALUES (?)", (name,))
            if not self._db.changes():
                return self.of(contributor, datanet, parameters)
            ppm = averaged(self.of(contributor, datanet, parameters), outcomes, parameters.reputation_step_ppm)
            self._db.execute("INSERT OR REPLACE INTO reputations VALUES (?, ?, ?)", (contributor, datanet, ppm))
        return ppm

    def record_settlement(self, settlement: Mapping[str, Any], parameters: Parameters) -> None:
        """Take in what a settlement measured, once. Where its adapter came from several Datanets, it counts in those
        in which the contributor has a reputation: which of his rows did it isn't known."""
        datanets = sorted({line["datanet"] for line in settlement["lineage"]})
        event = f"settlement:{settlement['adapter']}:{settlement['period']}"
        for contributor, outcomes in measured_outcomes(settlement).items():
            for datanet in datanets:
                if len(datanets) == 1 or self._knows(contributor, datanet):
                    self.record(contributor, datanet, outcomes, event, parameters)

    def _knows(self, contributor: str, datanet: str) -> bool:
        query = "SELECT 1 FROM reputations WHERE contributor = ? AND datanet = ?"
        return self._db.execute(query, (contributor, datanet)).fetchone() is not None


def measured_outcomes(settlement: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    """By contributor: `helps` or `harms` for each measured part whose score lies beyond twice its error."""
    found: dict[str, dict[str, int]] = {}
    parts = settlement.get("parts", {"use": settlement})  # one part, in settlements of the first format
    for part in parts.values():
        for contributor, score in part.get("scores_nano", {}).items():
            if abs(score) > 2 * part["errors_nano"][contributor]:
                outcomes = found.setdefault(contributor, {"helps": 0, "harms": 0})
                outcomes["helps" if score > 0 else "harms"] += 1
    return found


def averaged(ppm: int, outcomes: Mapping[str, int], step_ppm: int) -> int:
    """`ppm` after the outcomes; the good ones first, so that what was bad weighs most."""
    for name in sorted(outcomes, key=lambda name: (name in BAD, name)):
        target = _WHOLE_PPM if name in GOOD else 0
        for _ in range(outcomes[name]):
            ppm = (ppm * (_WHOLE_PPM - step_ppm) + target * step_ppm) // _WHOLE_PPM
    return ppm


def quota_rows(ppm: int, parameters: Parameters) -> int:
    """Rows a day that are taken at reputation `ppm`."""
    low, high = parameters.quota_low_rows, parameters.quota_high_rows
    return low + (high - low) * ppm // _WHOLE_PPM


def review_ppm(ppm: int, parameters: Parameters) -> int:
    """Which part of the rows is reviewed at reputation `ppm`."""
    high, low = parameters.review_high_ppm, parameters.review_low_ppm
    return high - (high - low) * ppm // _WHOLE_PPM
