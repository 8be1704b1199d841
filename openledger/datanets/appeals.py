"""Rows whose verdict is appealed: kept from the appeal until it is closed, and what a decision does to them.

Owns the appeals' table in the registry's file. Knows nothing of deposits, reviewers and deadlines: the log has those,
and what it says of a row is done here. The text of a rejected row isn't kept by the gate, so the appeal brings it
again; it is compared with what was signed, and deleted when the appeal is closed, also from the write-ahead log.

An overturned row is accepted with its contribution's place in the order of credit, as if the gate had accepted it then.
Where the verdict was that it repeats another row, it also counts as no copy from now on (`cleared`), whatever the
evidence clusters find.
"""

import json
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import apsw

from openledger.core.appealing import Appeal, AppealState, Judged, check_appeal_signature, sign_appeal
from openledger.core.database import truncate_log
from openledger.core.errors import Conflict, Forbidden, InvalidInput, NotFound
from openledger.core.signed import contribution_id
from openledger.core.signing import Holder, SigningKey
from openledger.core.values import Contribution, RowDraft
from openledger.datanets.contribution import draft_json, leads_to, row_ids, row_path
from openledger.datanets.tombstones import REMOVED

SCHEMA = """
CREATE TABLE IF NOT EXISTS appeals (
    number INTEGER PRIMARY KEY, row_id TEXT NOT NULL UNIQUE, sequence INTEGER NOT NULL, ordinal INTEGER NOT NULL,
    held_ms INTEGER NOT NULL, draft TEXT,
    outcome TEXT NOT NULL, reasons TEXT NOT NULL, duplicate_of TEXT,
    state TEXT NOT NULL DEFAULT 'open' CHECK (state IN ('open', 'overturned', 'upheld', 'lapsed')),
    FOREIGN KEY (sequence, ordinal) REFERENCES verdicts (sequence, ordinal)
) STRICT;
"""
_DUPLICATES = {"exact_duplicate", "near_duplicate"}


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldRow:
    """A row whose verdict is, or was, appealed; `outcome` is what the gate said. Closed, it has no `draft`."""

    row_id: str
    datanet: str
    contributor_id: str
    contribution_id: str
    sequence: int
    ordinal: int
    outcome: str
    draft: RowDraft | None


def appeal_of(key: SigningKey, contribution: Contribution, ordinal: int, reason: str) -> Appeal:
    """An appeal against the verdict on one row of a contribution, counted from 0. Raises InvalidInput
    (`unknown_ordinal`)."""
    if not 0 <= ordinal < len(contribution.drafts):
        raise InvalidInput(
            f"the contribution has the rows 0 to {len(contribution.drafts) - 1}",
            code="unknown_ordinal",
            param="ordinal",
            fix="rows are counted from 0, as in the verdicts",
        )
    return sign_appeal(
        key,
        contribution.datanet,
        contribution_id(contribution),
        row_ids(contribution)[ordinal],
        ordinal,
        contribution.drafts[ordinal],
        row_path(contribution.drafts, ordinal),
        reason,
    )


class AppealStore:
    """`writing` is the registry's durable transaction; `holder` tells whose key is whose."""

    def __init__(
        self, connection: apsw.Connection, writing: Callable[[], AbstractContextManager[None]], holder: Holder
    ):
        self._connection = connection
        self._writing = writing
        self._holder = holder

    def hold(self, appeal: Appeal, now_ms: int) -> Judged:
        """See `Datanets.hold_appeal`; what the gate said is told whole."""
        check_appeal_signature({name: getattr(appeal, name) for name in Appeal.__dataclass_fields__}, self._holder)
        sequence, judged = self._judged(appeal)
        if self._connection.execute(f"SELECT 1 WHERE ? IN ({REMOVED})", (appeal.row_id,)).fetchone():
            raise Conflict(f"{appeal.row_id} was taken back", code="row_removed", param="row_id")
        held = self.find(appeal.row_id)
        if held is not None and held.draft is None:
            raise Conflict(f"the verdict on {appeal.row_id} was appealed before", code="appeal_exists", param="row_id")
        if judged.outcome == "accept":
            raise Conflict(f"{appeal.row_id} was accepted", code="row_accepted", param="row_id")
        draft = json.dumps(draft_json(appeal.draft), ensure_ascii=False)
        said = judged.outcome, json.dumps(judged.reasons), judged.duplicate_of or None
        with self._writing():
            self._connection.execute(
                "INSERT OR IGNORE INTO appeals (row_id, sequence, ordinal, held_ms, draft, outcome, reasons,"
                " duplicate_of) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (appeal.row_id, sequence, appeal.ordinal, now_ms, draft, *said),
            )
        return judged

    def find(self, row_id: str) -> HeldRow | None:
        row = self._connection.execute(
            "SELECT row_id, datanet, contributor_id, contribution_id, sequence, ordinal, outcome, draft"
            " FROM appeals JOIN contributions USING (sequence) WHERE row_id = ?",
            (row_id,),
        ).fetchone()
        if row is None:
            return None
        draft = RowDraft(**json.loads(row[-1])) if row[-1] else None
        names = [name for name in HeldRow.__dataclass_fields__ if name != "draft"]
        return HeldRow(**dict(zip(names, row, strict=False)), draft=draft)

    def check_decider(self, row_id: str, account: str, public_key: str) -> None:
        """See `Datanets.check_decider`."""
        row = self._connection.execute("SELECT duplicate_of FROM appeals WHERE row_id = ?", (row_id,)).fetchone()
        rival = self._contributor_of(row[0]) if row else ""
        if rival and (self._holder(public_key) == rival or account == f"contributor:{rival}"):
            raise Forbidden(
                f"{account} contributed the row that this one is said to repeat",
                code="not_a_second_party",
                param="account",
                fix="let another reviewer decide",
            )

    def drop(self, row_id: str) -> None:
        with self._writing():
            self._connection.execute("DELETE FROM appeals WHERE row_id = ? AND state = 'open'", (row_id,))
        self._forget()

    def close(self, row_id: str, state: AppealState) -> None:
        with self._writing():
            self._close(row_id, state)
        self._forget()

    def close_removed(self) -> None:
        """Rows that were taken back are not kept for an appeal either; the log lets it lapse."""
        with self._writing():
            self._connection.execute(
                f"UPDATE appeals SET state = 'lapsed', draft = NULL WHERE draft IS NOT NULL AND row_id IN ({REMOVED})"
            )
        self._forget()

    def accept(self, row_id: str, repeating: Mapping[str, str]) -> None:
        """The row stands in its shard: the verdict is accept. `repeating` are rows of later places that it displaces:
        id to its id."""
        with self._writing():
            self._connection.execute(
                "UPDATE verdicts SET outcome = 'accept', reasons = '[]', duplicate_of = NULL WHERE (sequence, ordinal)"
                " = (SELECT sequence, ordinal FROM appeals WHERE row_id = ?)",
                (row_id,),
            )
            self._connection.execute("UPDATE decisions SET forgotten = 1 WHERE row_id = ?", (row_id,))
            self._connection.executemany("INSERT OR IGNORE INTO displaced VALUES (?, ?)", sorted(repeating.items()))
            self._close(row_id, "overturned")
        self._forget()

    def rows_of(self, datanet: str) -> list[str]:
        query = "SELECT row_id FROM appeals JOIN contributions USING (sequence) WHERE datanet = ? ORDER BY number"
        return [str(row_id) for (row_id,) in self._connection.execute(query, (datanet,))]

    def held(self, now_ms: int) -> dict[str, int]:
        rows = self._connection.execute("SELECT row_id, held_ms FROM appeals WHERE draft IS NOT NULL ORDER BY number")
        return {str(row_id): max(0, now_ms - int(held_ms)) for row_id, held_ms in rows}

    def cleared(self) -> set[str]:
        """Rows of which it was decided that they repeat no other."""
        rows = self._connection.execute("SELECT row_id, reasons FROM appeals WHERE state = 'overturned'")
        return {str(row_id) for row_id, reasons in rows if _DUPLICATES & set(json.loads(reasons))}

    def _judged(self, appeal: Appeal) -> tuple[int, Judged]:
        """The contribution's sequence and what the gate said, once the row is shown to be the one that was judged."""
        row = self._connection.execute(
            "SELECT sequence, datanet, contributor_id, content_root, received_ms,"
            " (SELECT count(*) FROM verdicts v WHERE v.sequence = c.sequence)"
            " FROM contributions c WHERE contribution_id = ?",
            (appeal.contribution_id,),
        ).fetchone()
        if row is None or row[1] != appeal.datanet:
            raise NotFound(
                f"the Datanet {appeal.datanet!r} has no contribution {appeal.contribution_id}",
                code="unknown_contribution",
                param="contribution_id",
                fix="use the rows, key and nonce of the contribution that was judged",
            )
        sequence, _, contributor, root, received_ms, num_rows = row
        if contributor != appeal.contributor_id:
            raise Forbidden(
                "the contribution is another contributor's", code="not_the_contributor", param="contributor_id"
            )
        found = self._verdict(sequence, appeal.ordinal)
        if (
            found is None
            or found[0] != appeal.row_id
            or not leads_to(appeal.draft, appeal.ordinal, num_rows, appeal.path, root)
        ):
            raise InvalidInput(
                f"row {appeal.ordinal} of {appeal.contribution_id} was another one",
                code="wrong_row",
                param="draft",
                fix="send the row as it was contributed, with its place and its path",
            )
        _, outcome, reasons, duplicate_of = found
        return int(sequence), Judged(
            outcome=outcome,
            reasons=tuple(json.loads(reasons)),
            duplicate_of=duplicate_of or "",
            rival=self._contributor_of(duplicate_of),
            received_ms=int(received_ms),
        )

    def _verdict(self, sequence: int, ordinal: int) -> tuple[Any, ...] | None:
        """What the gate said, whatever a decision made of it."""
        query = "SELECT row_id, outcome, reasons, duplicate_of FROM {} WHERE sequence = ? AND ordinal = ?"
        for table in ("appeals", "verdicts"):
            found = self._connection.execute(query.format(table), (sequence, ordinal)).fetchone()
            if found is not None:
                return tuple(found)
        return None

    def _contributor_of(self, row_id: str | None) -> str:
        query = "SELECT contributor_id FROM verdicts JOIN contributions USING (sequence) WHERE row_id = ?"
        found = self._connection.execute(query, (row_id,)).fetchone() if row_id else None
        return str(found[0]) if found else ""

    def _close(self, row_id: str, state: AppealState) -> None:
        self._connection.execute("UPDATE appeals SET state = ?, draft = NULL WHERE row_id = ?", (state, row_id))

    def _forget(self) -> None:
        """Also from the write-ahead log."""
        truncate_log(self._connection)
