"""Feedback on answers that were sold: which rows are, whose they are, and how the answers were rated.

Owns one table in the registry's file. It holds ids of answers and contributors, and numbers: no word of what was asked.
The rows themselves are contributions as all others, through the same gate.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import apsw

from openledger.core.errors import Conflict, TooLarge

SCHEMA = """
CREATE TABLE IF NOT EXISTS feedback (
    answer_id TEXT NOT NULL, contributor_id TEXT NOT NULL, kind TEXT NOT NULL, subject TEXT NOT NULL,
    datanet TEXT NOT NULL REFERENCES datanets (name), rating INTEGER, public_key TEXT NOT NULL, signature TEXT NOT NULL,
    given_ms INTEGER NOT NULL, PRIMARY KEY (answer_id, contributor_id, kind, subject)
) STRICT, WITHOUT ROWID;
"""
RATING = "rating"
MAX_RATERS = 20  # for each answer: its customer's key alone may bring them, and each is a row for good


@dataclass(frozen=True, slots=True, kw_only=True)
class Feedback:
    """Of `kind` correction or edge_case, the contribution `subject`; or a `rating`, whose subject is empty."""

    answer_id: str
    contributor_id: str
    kind: str
    datanet: str
    public_key: str
    signature: str
    subject: str = ""
    rating: int | None = None


class FeedbackStore:
    """`writing` is the registry's durable transaction."""

    def __init__(self, connection: apsw.Connection, writing: Callable[[], AbstractContextManager[None]]):
        self._connection = connection
        self._writing = writing

    def check(self, one: Feedback) -> bool:
        """Whether it is new. Raises Conflict (`already_rated`) for another rating of the same answer, TooLarge
        (`too_many_ratings`) for one contributor more than may rate it."""
        query = "SELECT rating FROM feedback WHERE answer_id = ? AND contributor_id = ? AND kind = ? AND subject = ?"
        known = self._connection.execute(query, (one.answer_id, one.contributor_id, one.kind, one.subject)).fetchone()
        if known is not None and known[0] != one.rating:
            raise Conflict(f"{one.contributor_id} rated {one.answer_id} before", code="already_rated", param="rating")
        if known is None and one.kind == RATING and self._num_raters(one.answer_id) >= MAX_RATERS:
            raise TooLarge(
                f"{one.answer_id} was rated by {MAX_RATERS} contributors",
                code="too_many_ratings",
                param="answer_id",
                fix="rate another answer",
            )
        return known is None

    def add(self, one: Feedback, now_ms: int) -> None:
        """The same again changes nothing. Raises as `check`."""
        if self.check(one):
            with self._writing():
                self._connection.execute(
                    "INSERT INTO feedback VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    (one.answer_id, one.contributor_id, one.kind, one.subject, one.datanet, one.rating, one.public_key,
                     one.signature, now_ms),
                )  # fmt: skip

    def _num_raters(self, answer_id: str) -> int:
        query = "SELECT count(*) FROM feedback WHERE answer_id = ? AND kind = ?"
        row: Any = self._connection.execute(query, (answer_id, RATING)).fetchone()
        return int(row[0])

    def counts(self, datanet: str) -> dict[str, dict[str, int]]:
        """How many corrections, edge cases and ratings each contributor gave."""
        query = "SELECT contributor_id, kind, count(*) FROM feedback WHERE datanet = ? GROUP BY 1, 2"
        found: dict[str, dict[str, int]] = {}
        for contributor, kind, number in self._connection.execute(query, (datanet,)):
            found.setdefault(str(contributor), {})[str(kind)] = int(str(number))
        return found

    def of_answer(self, answer_id: str) -> list[Feedback]:
        query = (
            "SELECT answer_id, contributor_id, kind, datanet, public_key, signature, subject, rating FROM feedback"
            " WHERE answer_id = ? ORDER BY given_ms, contributor_id"
        )
        names = Feedback.__dataclass_fields__
        return [Feedback(**dict(zip(names, row, strict=True))) for row in self._connection.execute(query, (answer_id,))]
