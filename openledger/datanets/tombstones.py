"""Removals and their tombstones, in the registry's SQLite file.

A removal is `pending` from the moment its tombstones are fixed until the shards have forgotten its rows. From that
moment on its rows are out: of every list of rows, of the next version, and of the order of credit. It is `logged` once
whoever put it into the log has said so.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import apsw

from openledger.core.values import Removal, Tombstone

REMOVED = "SELECT row_id FROM removed_rows"  # for queries that leave removed rows out
SCHEMA = """
CREATE TABLE IF NOT EXISTS removals (
    sequence INTEGER PRIMARY KEY, removal_id TEXT NOT NULL UNIQUE, datanet TEXT NOT NULL REFERENCES datanets (name),
    kind TEXT NOT NULL CHECK (kind IN ('withdrawn', 'removed')), by TEXT NOT NULL, reason TEXT NOT NULL,
    row_ids TEXT NOT NULL, rows_root TEXT NOT NULL, signed TEXT NOT NULL, removed_ms INTEGER NOT NULL,
    pending INTEGER NOT NULL, logged INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE TABLE IF NOT EXISTS removed_rows (
    row_id TEXT PRIMARY KEY, sequence INTEGER NOT NULL REFERENCES removals (sequence),
    salt TEXT NOT NULL, digest TEXT NOT NULL
) STRICT, WITHOUT ROWID;
"""
_COLUMNS = "removal_id, datanet, kind, by, reason, row_ids, rows_root, signed, removed_ms"


class Tombstones:
    """Shares the registry's connection; `writing` is its durable transaction."""

    def __init__(self, connection: apsw.Connection, writing: Callable[[], AbstractContextManager[None]]):
        self._connection = connection
        self._writing = writing
        self._add_logged()

    def begin(self, removal: Removal, tombstones: Iterable[Tombstone]) -> None:
        """Durable. From here on the rows will be forgotten, by this process or the next."""
        with self._writing():
            self._connection.execute(
                f"INSERT INTO removals ({_COLUMNS}, pending) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, 1)",
                (removal.removal_id, removal.datanet, removal.kind, removal.by, removal.reason,
                 json.dumps(removal.row_ids), removal.rows_root, json.dumps(removal.signed), removal.removed_ms),
            )  # fmt: skip
            sequence = self._connection.last_insert_rowid()
            self._connection.executemany(
                "INSERT INTO removed_rows VALUES (?, ?, ?, ?)",
                [(one.row_id, sequence, one.salt, one.digest) for one in tombstones],
            )

    def finish(self, removal_id: str) -> None:
        """The shards have forgotten its rows. What SQLite still had of their text goes with its write-ahead log."""
        with self._writing():
            self._connection.execute("UPDATE removals SET pending = 0 WHERE removal_id = ?", (removal_id,))
        self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def find(self, removal_id: str) -> Removal | None:
        found = self._select("WHERE removal_id = ?", (removal_id,))
        return found[0] if found else None

    def that_took(self, row_ids: Sequence[str]) -> Removal:
        """The removal that took the last of these rows, all of which are gone."""
        query = f"SELECT max(sequence) FROM removed_rows WHERE row_id IN ({','.join('?' * len(row_ids))})"
        return self._select("WHERE sequence = (" + query + ")", tuple(row_ids))[0]

    def pending(self) -> list[Removal]:
        return self._select("WHERE pending = 1 ORDER BY sequence", ())

    def unlogged(self) -> list[Removal]:
        """What the shards have forgotten and the log lacks, oldest first."""
        return self._select("WHERE pending = 0 AND logged = 0 ORDER BY sequence", ())

    def mark_logged(self, removal_id: str) -> None:
        with self._writing():
            self._connection.execute("UPDATE removals SET logged = 1 WHERE removal_id = ?", (removal_id,))

    def of_datanet(self, datanet: str) -> list[Removal]:
        """Oldest first."""
        return self._select("WHERE datanet = ? ORDER BY sequence", (datanet,))

    def row_ids(self) -> set[str]:
        return {str(row_id) for (row_id,) in self._connection.execute(REMOVED)}

    def among(self, row_ids: Iterable[str]) -> set[str]:
        """Those that were removed."""
        query = f"{REMOVED} WHERE row_id IN (SELECT value FROM json_each(?))"
        return {str(row_id) for (row_id,) in self._connection.execute(query, (json.dumps(list(row_ids)),))}

    def of_rows(self, row_ids: Sequence[str]) -> list[Tombstone]:
        """Of those that were removed, in the order of `row_ids`."""
        query = "SELECT row_id, salt, digest FROM removed_rows WHERE row_id = ?"
        found: list[Any] = [self._connection.execute(query, (row_id,)).fetchone() for row_id in row_ids]
        return [Tombstone(row_id=row[0], salt=row[1], digest=row[2]) for row in found if row is not None]

    def _add_logged(self) -> None:
        """Registries of before had no such column; theirs go into the log again, which changes nothing there."""
        columns = {name for _, name, *_ in self._connection.execute("PRAGMA table_info(removals)")}
        if "logged" not in columns:
            self._connection.execute("ALTER TABLE removals ADD COLUMN logged INTEGER NOT NULL DEFAULT 0")

    def _select(self, where: str, values: tuple[str, ...]) -> list[Removal]:
        rows: list[Any] = self._connection.execute(f"SELECT {_COLUMNS} FROM removals {where}", values).fetchall()
        return [_removal(*row) for row in rows]


def _removal(
    removal_id: str, datanet: str, kind: Any, by: str, reason: str, row_ids: str, root: str, signed: str, time_ms: int
) -> Removal:
    return Removal(
        removal_id=removal_id,
        datanet=datanet,
        kind=kind,
        by=by,
        reason=reason,
        row_ids=tuple(json.loads(row_ids)),
        rows_root=root,
        signed=json.loads(signed),
        removed_ms=time_ms,
    )
