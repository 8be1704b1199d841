"""Rows that the gate sent to review: who looked at them, what came of it, and how well each reviewer looks.

Owns the reviews' tables in the registry's file. Knows neither shards nor who may review. A row is decided by the
Datanet's owner alone, or by a majority of `min_reviews` reviewers or more.

Among the rows that a reviewer is shown stand some of which the owner knows the answer (known-answer items, as in the
gold questions of crowdsourcing: Le et al., 2010). Nothing tells them apart: their ids look like rows' ids, every review
gets the same reply, and they are shown only while rows wait. They are nobody's rows, stored in no shard.

The next one comes once its reviewer has looked at g rows since his last; g, from 0 to 2 (`KNOWN_EVERY` - 1), each as
likely, is drawn from the item's id, which he hasn't seen yet. So one in `KNOWN_EVERY` items is known however few he
asks for at a time, and nobody knows which. Whoever got fewer than four in five right, of five or more, is heard no
more: his reviews count in no majority.
"""

import json
import secrets
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import apsw

from openledger.core.database import truncate_log
from openledger.core.errors import Conflict, Forbidden, NotFound
from openledger.core.hashing import digest_json
from openledger.core.ids import derived_id
from openledger.core.values import RowDraft
from openledger.datanets.contribution import draft_json
from openledger.datanets.panels import TAKEN
from openledger.datanets.tombstones import REMOVED

SCHEMA = """
CREATE TABLE IF NOT EXISTS reviews (
    item TEXT NOT NULL, reviewer TEXT NOT NULL, datanet TEXT NOT NULL, accept INTEGER NOT NULL,
    reviewed_ms INTEGER NOT NULL, PRIMARY KEY (item, reviewer)
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS known_answers (
    item TEXT PRIMARY KEY, datanet TEXT NOT NULL REFERENCES datanets (name), draft TEXT NOT NULL,
    accept INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS decisions (
    row_id TEXT PRIMARY KEY, datanet TEXT NOT NULL, outcome TEXT NOT NULL, decided_ms INTEGER NOT NULL,
    forgotten INTEGER NOT NULL, told INTEGER NOT NULL DEFAULT 0
) STRICT, WITHOUT ROWID;
"""
REASON = "reviewed"
MIN_KNOWN = 5
MIN_RIGHT = 0.8
KNOWN_EVERY = 5  # of so many items, one is known on average
_WAITING = (  # not what is yet to be stored: no shard can show it
    "FROM verdicts JOIN contributions USING (sequence) WHERE datanet = ?1 AND outcome = 'review'"
    f" AND pending_drafts IS NULL AND row_id NOT IN ({REMOVED})"
    " AND row_id NOT IN (SELECT row_id FROM appeals WHERE state = 'open')"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReviewerRecord:
    """`num_known` items of known answer were shown, and `num_right` of them answered rightly; of `num_decided` rows the
    reviewer looked at that were decided since, `num_agreed` were decided as he said."""

    reviewer: str
    num_reviews: int
    num_known: int
    num_right: int
    num_decided: int
    num_agreed: int

    @property
    def is_heard(self) -> bool:
        return self.num_known < MIN_KNOWN or self.num_right >= MIN_RIGHT * self.num_known


@dataclass(frozen=True, slots=True, kw_only=True)
class ReviewOutcome:
    """What reviewers made of a contributor's row: `accept` or `reject`."""

    row_id: str
    datanet: str
    contributor_id: str
    outcome: str


class ReviewStore:
    """`writing` is the registry's durable transaction."""

    def __init__(self, connection: apsw.Connection, writing: Callable[[], AbstractContextManager[None]]):
        self._connection = connection
        self._writing = writing

    def add_known(self, datanet: str, draft: RowDraft, *, accept: bool) -> str:
        """The item's id. The same text again is the same item, with the answer that was given last."""
        told = json.dumps(draft_json(draft), ensure_ascii=False)
        query = "SELECT item FROM known_answers WHERE datanet = ? AND draft = ?"
        known = self._connection.execute(query, (datanet, told)).fetchone()
        item = str(known[0]) if known else derived_id("row", secrets.token_hex(32))
        with self._writing():
            values = (item, datanet, told, int(accept))
            self._connection.execute("INSERT OR REPLACE INTO known_answers VALUES (?, ?, ?, ?)", values)
        return item

    def num_undecided(self, contribution_id: str) -> int:
        """Rows of a contribution that are in review, those under appeal among them."""
        query = (
            "SELECT count(*) FROM verdicts JOIN contributions USING (sequence) WHERE contribution_id = ?"
            f" AND outcome = 'review' AND row_id NOT IN ({REMOVED})"
        )
        return int(self._connection.execute(query, (contribution_id,)).get)

    def queue(
        self, datanet: str, reviewer: str, limit: int, *, is_owner: bool = False
    ) -> tuple[list[str], dict[str, RowDraft]]:
        """Ids of what `reviewer` hasn't looked at, in an order of his own, and the text of those of them that are no
        rows. None where no row waits for him. The owner sees also what a panel has."""
        own = "SELECT item FROM reviews WHERE reviewer = ?2" + ("" if is_owner else f" UNION {TAKEN}")
        query = f"SELECT row_id {_WAITING} AND row_id NOT IN ({own}) ORDER BY sequence, ordinal LIMIT ?3"
        rows = [str(row_id) for (row_id,) in self._connection.execute(query, (datanet, reviewer, limit))]
        query = (
            f"SELECT item, draft FROM known_answers WHERE datanet = ?1 AND item NOT IN ({own}) ORDER BY item LIMIT ?3"
        )
        found = self._connection.execute(query, (datanet, reviewer, limit))
        known = {str(item): RowDraft(**json.loads(draft)) for item, draft in found}
        items = _mixed(rows, list(known), reviewer, self._num_since_known(datanet, reviewer))[:limit]
        shown = {item: draft for item, draft in known.items() if item in items}
        return sorted(items, key=lambda item: digest_json([reviewer, item])), shown

    def add(self, datanet: str, item: str, reviewer: str, *, accept: bool, now_ms: int) -> bool:
        """Whether `item` is a row that waits. The same review again changes nothing.

        Raises NotFound (`not_in_review`), Conflict (`already_reviewed`), Forbidden (`own_row`)."""
        query = "SELECT accept FROM reviews WHERE item = ? AND reviewer = ?"
        said = self._connection.execute(query, (item, reviewer)).fetchone()
        if said is not None and bool(said[0]) != accept:
            raise Conflict(f"{reviewer} said otherwise of {item} before", code="already_reviewed", param="row_id")
        waits = self._waits(datanet, item, reviewer)
        if said is None:
            if not waits and not self._is_known(datanet, item):
                raise NotFound(f"{item} doesn't wait for a review in {datanet!r}", code="not_in_review", param="row_id")
            with self._writing():
                values = (item, reviewer, datanet, int(accept), now_ms)
                self._connection.execute("INSERT INTO reviews VALUES (?, ?, ?, ?, ?)", values)
        return waits

    def check_waits(self, datanet: str, item: str, reviewer: str) -> None:
        """Raises NotFound (`not_in_review`) for what is neither a row that waits nor a known answer, Forbidden
        (`own_row`), Conflict (`already_reviewed`)."""
        query = "SELECT 1 FROM reviews WHERE item = ? AND reviewer = ?"
        if self._connection.execute(query, (item, reviewer)).fetchone() is not None:
            raise Conflict(f"{reviewer} said what he thinks of {item} before", code="already_reviewed", param="row_id")
        if not self._waits(datanet, item, reviewer) and not self._is_known(datanet, item):
            raise NotFound(f"{item} doesn't wait for a review in {datanet!r}", code="not_in_review", param="row_id")

    def majority(self, datanet: str, row_id: str, owner: str, min_reviews: int) -> bool | None:
        """What was decided of a row: to accept it, not to, or nothing yet."""
        query = "SELECT reviewer, accept FROM reviews WHERE item = ?"
        said = {str(reviewer): bool(accept) for reviewer, accept in self._connection.execute(query, (row_id,))}
        if owner in said:
            return said[owner]
        heard = {one.reviewer for one in self.records(datanet) if one.is_heard}
        votes = [accept for reviewer, accept in said.items() if reviewer in heard]
        if len(votes) < min_reviews or 2 * sum(votes) == len(votes):
            return None
        return 2 * sum(votes) > len(votes)

    def decide(self, datanet: str, row_id: str, now_ms: int, *, accept: bool) -> None:
        """Fix the outcome. A row that isn't accepted is still to be forgotten."""
        outcome, reasons = ("accept", []) if accept else ("reject", [REASON])
        with self._writing():
            self._connection.execute(
                "UPDATE verdicts SET outcome = ?, reasons = ? WHERE row_id = ? AND outcome = 'review'",
                (outcome, json.dumps(reasons), row_id),
            )
            values = (row_id, datanet, outcome, now_ms, int(accept))
            self._connection.execute("INSERT OR IGNORE INTO decisions VALUES (?, ?, ?, ?, ?, 0)", values)

    def untold(self) -> list[ReviewOutcome]:
        """What came of rows and whoever keeps reputations hasn't been told yet, oldest first."""
        query = (
            "SELECT row_id, d.datanet, contributor_id, d.outcome FROM decisions d JOIN verdicts USING (row_id)"
            " JOIN contributions c USING (sequence) WHERE NOT told AND c.datanet = d.datanet"
            " ORDER BY decided_ms, row_id"
        )
        names = ReviewOutcome.__dataclass_fields__
        return [ReviewOutcome(**dict(zip(names, row, strict=True))) for row in self._connection.execute(query)]

    def mark_told(self, row_id: str) -> None:
        with self._writing():
            self._connection.execute("UPDATE decisions SET told = 1 WHERE row_id = ?", (row_id,))

    def unforgotten(self) -> list[tuple[str, str]]:
        """(Datanet, row id) of rows that were not accepted and may still stand in a shard. What an appeal decides
        anew is left alone."""
        query = (
            "SELECT datanet, row_id FROM decisions WHERE NOT forgotten AND EXISTS (SELECT 1 FROM verdicts v WHERE"
            " v.row_id = decisions.row_id AND v.outcome = 'reject') AND row_id NOT IN"
            " (SELECT row_id FROM appeals WHERE state = 'open') ORDER BY decided_ms, row_id"
        )
        return [(str(datanet), str(row_id)) for datanet, row_id in self._connection.execute(query)]

    def mark_forgotten(self, row_ids: Sequence[str]) -> None:
        """No shard holds them any more; nor does the write-ahead log, where their drafts had been."""
        truncate_log(self._connection)
        with self._writing():
            self._connection.executemany("UPDATE decisions SET forgotten = 1 WHERE row_id = ?", [(i,) for i in row_ids])

    def records(self, datanet: str) -> list[ReviewerRecord]:
        """Of everybody who reviewed there, by name."""
        query = (
            "SELECT reviewer, count(*), count(k.item), coalesce(sum(k.accept = r.accept), 0), count(d.row_id),"
            " coalesce(sum((d.outcome = 'accept') = r.accept), 0) FROM reviews r LEFT JOIN known_answers k USING (item)"
            " LEFT JOIN decisions d ON d.row_id = r.item WHERE r.datanet = ? GROUP BY reviewer ORDER BY reviewer"
        )
        names = ReviewerRecord.__dataclass_fields__
        rows = self._connection.execute(query, (datanet,))
        return [ReviewerRecord(**dict(zip(names, row, strict=True))) for row in rows]

    def is_waiting(self, datanet: str, row_id: str) -> bool:
        query = f"SELECT 1 {_WAITING} AND row_id = ?2"
        return self._connection.execute(query, (datanet, row_id)).fetchone() is not None

    def _num_since_known(self, datanet: str, reviewer: str) -> int:
        """How many rows `reviewer` has looked at since he was last shown a known answer."""
        query = (
            "WITH looked (item, ms) AS (SELECT item, reviewed_ms FROM reviews WHERE datanet = ?1 AND reviewer = ?2"
            " AND item NOT IN (SELECT item FROM commitments WHERE reviewer = ?2)"
            " UNION ALL SELECT item, committed_ms FROM commitments WHERE datanet = ?1 AND reviewer = ?2)"
            " SELECT count(*) FROM looked WHERE item NOT IN (SELECT item FROM known_answers)"
            " AND ms >= (SELECT coalesce(max(ms), 0) FROM looked JOIN known_answers USING (item))"
        )
        return int(self._connection.execute(query, (datanet, reviewer)).get)

    def _is_known(self, datanet: str, item: str) -> bool:
        query = "SELECT 1 FROM known_answers WHERE datanet = ? AND item = ?"
        return self._connection.execute(query, (datanet, item)).fetchone() is not None

    def _waits(self, datanet: str, row_id: str, reviewer: str) -> bool:
        query = f"SELECT contributor_id {_WAITING} AND row_id = ?2"
        row = self._connection.execute(query, (datanet, row_id)).fetchone()
        if row is not None and reviewer in (row[0], f"contributor:{row[0]}"):
            raise Forbidden("nobody reviews his own row", code="own_row", param="row_id")
        return row is not None


def _mixed(rows: Sequence[str], known: Sequence[str], reviewer: str, num_since: int) -> list[str]:
    """`rows` with known answers among them, each at its turn; `num_since` rows came after the last one."""
    mixed: list[str] = []
    left = iter(known)
    following = next(left, None)
    for row in rows:
        if following is not None and num_since >= _gap(reviewer, following):
            mixed.append(following)
            following, num_since = next(left, None), 0
        mixed.append(row)
        num_since += 1
    return mixed


def _gap(reviewer: str, item: str) -> int:
    """How many rows come before a known answer."""
    return int(digest_json(["gap", reviewer, item])[:16], 16) % (2 * KNOWN_EVERY - 1)
