"""Whose key is whose, as the Datanets know it: the changes of contributors' keys (`core.rekeying`) that the log has.

Owns a table in the registry's file. The log is what is true: a change is held here first, so that the replaced key
signs nothing more, then it is put into the log, then adopted here; one that the log refused is dropped. Whoever is cut
off in between finds it among the held ones, and goes by what the log says.
"""

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import apsw

from openledger.core.errors import Conflict
from openledger.core.rekeying import KeyChange, Keys, change_json, change_of, check_change, keys_before, replaced
from openledger.core.signing import contributor_id

SCHEMA = """
CREATE TABLE IF NOT EXISTS key_changes (
    contributor_id TEXT NOT NULL, number INTEGER NOT NULL, said TEXT NOT NULL, held_ms INTEGER NOT NULL,
    logged INTEGER NOT NULL DEFAULT 0, PRIMARY KEY (contributor_id, number)
) STRICT, WITHOUT ROWID;
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldChange:
    """One that isn't known to be in the log, for `age_ms` by now."""

    change: KeyChange
    age_ms: int


class HolderStore:
    """`writing` is the registry's durable transaction."""

    def __init__(self, connection: apsw.Connection, writing: Callable[[], AbstractContextManager[None]]):
        self._connection = connection
        self._writing = writing
        self._read()

    def held_by(self, public_key: str) -> str:
        """The contributor for whom a key signs, or signed."""
        return self._owners.get(public_key) or contributor_id(public_key)

    def check(self, public_key: str) -> None:
        """Raises Forbidden (`key_replaced`) for a key that signs for nobody any more, or never did."""
        if not self.signs(public_key):
            raise replaced(public_key, self.held_by(public_key))

    def signs(self, public_key: str) -> bool:
        return self.keys(self.held_by(public_key), public_key).public_key == public_key

    def keys(self, contributor: str, first_key: str) -> Keys:
        """As they are now; `first_key` alone where they were never changed."""
        return self._now.get(contributor) or Keys(contributor_id=contributor, public_key=first_key)

    def hold(self, change: KeyChange, is_contributor: Callable[[str], bool], now_ms: int) -> None:
        """Let the change count from here on, until it is dropped; the same again changes nothing. `is_contributor` says
        of an id whether somebody contributed under it: his key is taken.

        Raises what `keys_before` and `check_change` do.
        """
        if change in self._changes:
            return
        before = keys_before(change, self._now.get(change.contributor_id))
        new = {key for key in change.signatures if key != change.by}
        taken = {key for key in new if key in self._owners or is_contributor(contributor_id(key))}
        check_change(before, change, taken)
        said = json.dumps(change_json(change), sort_keys=True)
        with self._writing():
            self._connection.execute(
                "INSERT INTO key_changes (contributor_id, number, said, held_ms) VALUES (?, ?, ?, ?)",
                (change.contributor_id, change.number, said, now_ms),
            )
        self._read()

    def adopt(self, change: KeyChange) -> None:
        """The log has this change: whatever was held in its place."""
        said = json.dumps(change_json(change), sort_keys=True)
        with self._writing():
            self._connection.execute(
                "INSERT OR REPLACE INTO key_changes VALUES (?, ?, ?, 0, 1)",
                (change.contributor_id, change.number, said),
            )
            self._connection.execute(
                "UPDATE contributors SET public_key = ? WHERE contributor_id = ?",
                (change.public_key, change.contributor_id),
            )
        self._read()

    def drop(self, change: KeyChange) -> None:
        """The log refused it. What it has is never dropped."""
        with self._writing():
            self._connection.execute(
                "DELETE FROM key_changes WHERE contributor_id = ? AND number >= ? AND NOT logged",
                (change.contributor_id, change.number),
            )
        self._read()

    def held(self, now_ms: int) -> list[HeldChange]:
        """In the order in which they were made."""
        rows = self._connection.execute(
            "SELECT said, held_ms FROM key_changes WHERE NOT logged ORDER BY held_ms, contributor_id, number"
        )
        return [HeldChange(change=change_of(json.loads(said)), age_ms=max(0, now_ms - held)) for said, held in rows]

    def _read(self) -> None:
        rows = self._connection.execute("SELECT said FROM key_changes ORDER BY contributor_id, number")
        self._changes = [change_of(json.loads(said)) for (said,) in rows]
        self._now: dict[str, Keys] = {change.contributor_id: change.keys() for change in self._changes}
        self._owners: dict[str, str] = {}
        for change in self._changes:
            for key in (change.replaces, change.public_key, change.recovery_key):
                if key and self._owners.setdefault(key, change.contributor_id) != change.contributor_id:
                    raise Conflict(f"the key {key} belongs to two contributors", code="key_in_use", param="public_key")
