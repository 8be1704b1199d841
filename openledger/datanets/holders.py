"""Whose key is whose, as the Datanets know it: the changes of contributors' keys (`core.rekeying`) that the log has.

Owns a table in the registry's file. The log is what is true: a change is held here first, then put into the log, then
adopted here; one that the log refused is dropped. Whoever is cut off in between finds it among the held ones, and goes
by what the log says.

    held       the key that it replaces signs nothing more, and the keys that it names sign nothing yet, in nobody's
               name: whatever was signed with either is in the log before the change, or never
    adopted    the new keys are the contributor's

A contributor has one held change at a time. One that doesn't fit what the log has (as in a registry that was restored
from before) counts for nothing until it is adopted or dropped.

Each change is an entry of the public log and needs no account, so there is a number a day for each contributor, and one
for all strangers together. A stranger has no row, no seal, no change in the log, and no role by which he decides: of
his changes the first one counts. That binds one key, and keys are free: what it costs to become a contributor (a row,
and its deposit where a Datanet asks for one) is what another day's changes cost. So strangers can use up the number of
strangers and nobody else's, and a newcomer who finds it used up sends a row first.
"""

import json
import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import apsw

from openledger.core.errors import Conflict, Forbidden, OpenLedgerError, TooManyRequests
from openledger.core.rekeying import KeyChange, Keys, change_json, change_of, check_change, keys_before, replaced
from openledger.core.signing import contributor_id

DAY_MS = 24 * 60 * 60 * 1000
MAX_CHANGES_A_DAY = 8
MAX_OF_STRANGERS_A_DAY = 100
_TOLD = 2  # what `logged` says of a change that was read in the log: 1, that it was adopted; 0, that it is held
SCHEMA = """
CREATE TABLE IF NOT EXISTS key_changes (
    contributor_id TEXT NOT NULL, number INTEGER NOT NULL, said TEXT NOT NULL, held_ms INTEGER NOT NULL,
    logged INTEGER NOT NULL DEFAULT 0, PRIMARY KEY (contributor_id, number)
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS key_changes_told (
    one INTEGER PRIMARY KEY CHECK (one = 0), seq INTEGER NOT NULL, said TEXT NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS key_changes_untold ON key_changes (contributor_id, number) WHERE logged = 1;
CREATE INDEX IF NOT EXISTS key_changes_by_time ON key_changes (held_ms);
"""
_IS_STRANGERS = (
    "number = 1"
    " AND NOT EXISTS (SELECT 1 FROM contributors AS known WHERE known.contributor_id = key_changes.contributor_id)"
    " AND NOT EXISTS (SELECT 1 FROM seals WHERE seals.contributor_id = key_changes.contributor_id)"
)
_logger = logging.getLogger(__name__)


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
        self._now: dict[str, Keys] = {}
        self._owners: dict[str, str] = {}
        self._held: dict[str, KeyChange] = {}
        self._awaited: set[str] = set()  # the keys that held changes name
        self._read()

    def held_by(self, public_key: str) -> str:
        """The contributor for whom a key signs, or signed."""
        return self._owners.get(public_key) or contributor_id(public_key)

    def check(self, public_key: str) -> None:
        """Raises Forbidden for a key that signs for nobody any more, or never did (`key_replaced`), or not yet
        (`key_awaited`)."""
        self.check_awaited(public_key)
        if not self.signs(public_key):
            raise replaced(public_key, self.held_by(public_key))

    def check_awaited(self, public_key: str) -> None:
        """Raises Forbidden (`key_awaited`) for a key that only a held change names."""
        if public_key in self._awaited:
            raise Forbidden(
                f"the change that names the key {public_key} isn't in the log yet: it signs nothing",
                code="key_awaited",
                param="public_key",
                fix="send the change of keys again, the same, until it is answered",
            )

    def signs(self, public_key: str) -> bool:
        contributor = self.held_by(public_key)
        if public_key in self._awaited or self.keys(contributor, public_key).public_key != public_key:
            return False
        held = self._held.get(contributor)
        return held is None or held.public_key == public_key

    def keys(self, contributor: str, first_key: str) -> Keys:
        """As the log has them; `first_key` alone where they were never changed."""
        return self._now.get(contributor) or Keys(contributor_id=contributor, public_key=first_key)

    def hold(
        self, change: KeyChange, is_contributor: Callable[[str], bool], now_ms: int, decides: bool = False
    ) -> None:
        """Let the replaced key sign no more from here on, until the change is dropped; the same again is held anew.
        `is_contributor` says of an id whether somebody signed anything under it: his key is taken, and he is no
        stranger, nor is who `decides`.

        Raises what `keys_before` and `check_change` do, Conflict (`key_change_underway`), TooManyRequests
        (`too_many_key_changes`), and then holds nothing.
        """
        if self._is_logged(change):
            return
        if change != self._held.get(change.contributor_id):
            self._check(change, is_contributor)
            is_known = decides or change.number > 1 or is_contributor(change.contributor_id)
            self._check_number(change.contributor_id, now_ms, is_known=is_known)
        with self._writing():
            self._connection.execute(
                "INSERT OR REPLACE INTO key_changes (contributor_id, number, said, held_ms) VALUES (?, ?, ?, ?)",
                (change.contributor_id, change.number, _said(change), now_ms),
            )
        self._await(change)

    def adopt(self, change: KeyChange) -> None:
        """The log has this change: whatever was held in its place."""
        known = self._now.get(change.contributor_id)
        after = known if known is not None and known.number > change.number else change.keys()
        with self._writing():
            self._connection.execute(
                "INSERT INTO key_changes VALUES (?, ?, ?, 0, 1)"
                " ON CONFLICT (contributor_id, number) DO UPDATE"
                " SET logged = iif(logged = ? AND said = excluded.said, logged, 1), said = excluded.said",
                (change.contributor_id, change.number, _said(change), _TOLD),
            )
            self._connection.execute(
                "UPDATE contributors SET public_key = ? WHERE contributor_id = ?",
                (after.public_key, change.contributor_id),
            )
        held = self._held.get(change.contributor_id)
        if held is not None and held.number <= change.number:
            self._release(held)
        self._take(change)

    def restore(self, changes: Sequence[tuple[int, KeyChange]]) -> int:
        """Adopt those that aren't here, in their order; how many. From then on they count as told, up to the last."""
        missing = [change for _, change in changes if not self._is_logged(change)]
        for change in missing:
            self.adopt(change)
        if missing:
            self._read()  # what stood in their place is nobody's
        with self._writing():
            self._connection.executemany(
                "UPDATE key_changes SET logged = ? WHERE contributor_id = ? AND number = ?",
                [(_TOLD, change.contributor_id, change.number) for _, change in changes],
            )
            self._connection.executemany(
                "INSERT OR REPLACE INTO key_changes_told VALUES (0, ?, ?)",
                [(seq, _said(change)) for seq, change in changes[-1:]],
            )
        return len(missing)

    def told(self) -> tuple[int, KeyChange] | None:
        """The last one of the log that `restore` took, and its entry."""
        row = self._connection.execute("SELECT seq, said FROM key_changes_told").fetchone()
        return None if row is None else (int(row[0]), _change(row[1]))

    def forget_told(self) -> None:
        with self._writing():
            self._connection.execute("UPDATE key_changes SET logged = 1 WHERE logged")
            self._connection.execute("DELETE FROM key_changes_told")

    def untold(self) -> list[KeyChange]:
        """Those that were adopted and `restore` didn't take, each contributor's in their order."""
        query = "SELECT said FROM key_changes WHERE logged = 1 ORDER BY contributor_id, number"
        return [_change(said) for (said,) in self._connection.execute(query)]

    def unlog(self, changes: Iterable[KeyChange], now_ms: int) -> None:
        """Hold these from now on, for the log hasn't got them. The key that they replaced signs again once they are
        dropped."""
        with self._writing():
            for change in sorted(changes, key=lambda one: one.number, reverse=True):
                own = change.contributor_id, change.number, _said(change)
                self._connection.execute(
                    "UPDATE key_changes SET logged = 0, held_ms = ?"
                    " WHERE contributor_id = ? AND number = ? AND said = ?",
                    (now_ms, *own),
                )
                self._connection.execute(
                    "UPDATE contributors SET public_key = ? WHERE contributor_id = ?",
                    (change.replaces, change.contributor_id),
                )
        self._read()

    def drop(self, change: KeyChange, held_until_ms: int) -> None:
        """The log refused it, or never saw it. What the log has is never dropped, nor what was held after that time."""
        with self._writing():
            self._connection.execute(
                "DELETE FROM key_changes"
                " WHERE contributor_id = ? AND number = ? AND said = ? AND held_ms <= ? AND NOT logged",
                (change.contributor_id, change.number, _said(change), held_until_ms),
            )
            dropped = self._connection.changes() > 0
        if dropped and change == self._held.get(change.contributor_id):
            self._release(change)

    def held(self, now_ms: int) -> list[HeldChange]:
        """In the order in which they were made."""
        rows = self._connection.execute(
            "SELECT said, held_ms FROM key_changes WHERE NOT logged ORDER BY held_ms, contributor_id, number"
        )
        return [HeldChange(change=_change(said), age_ms=max(0, now_ms - held)) for said, held in rows]

    def _check(self, change: KeyChange, is_contributor: Callable[[str], bool]) -> None:
        if change.contributor_id in self._held:
            raise Conflict(
                f"another change of the keys of {change.contributor_id} is on its way into the log",
                code="key_change_underway",
                param="number",
                fix="send that one again, or wait an hour: one that never came to the log is forgotten then",
            )
        before = keys_before(change, self._now.get(change.contributor_id), self.held_by(change.replaces))
        taken = {key for key in _new_keys(change) if self._is_named(key) or is_contributor(contributor_id(key))}
        check_change(before, change, taken)

    def _check_number(self, contributor: str, now_ms: int, *, is_known: bool) -> None:
        whose = f"the keys of {contributor}"
        self._check_day(MAX_CHANGES_A_DAY, whose, "", "contributor_id = ?", (contributor,), now_ms)
        if not is_known:
            whose, first = (
                "the keys of all who are new here",
                "contribute a row first, which gives your keys a number of their own, or ",
            )
            self._check_day(MAX_OF_STRANGERS_A_DAY, whose, first, _IS_STRANGERS, (), now_ms)

    def _check_day(self, most: int, whose: str, first: str, where: str, values: tuple[str, ...], now_ms: int) -> None:
        query = f"SELECT count(*), min(held_ms) FROM key_changes WHERE held_ms > ? AND {where}"
        ((number, first_ms),) = self._connection.execute(query, (now_ms - DAY_MS, *values))
        if number >= most:
            raise TooManyRequests(
                f"{whose} were changed {most} times within a day",
                code="too_many_key_changes",
                param="contributor_id",
                fix=f"{first}send the change again later, as Retry-After says",
                retry_after_s=-(-(first_ms + DAY_MS - now_ms) // 1000),
            )

    def _is_named(self, public_key: str) -> bool:
        return public_key in self._owners or public_key in self._awaited

    def _is_logged(self, change: KeyChange) -> bool:
        row = self._connection.execute(
            "SELECT said FROM key_changes WHERE contributor_id = ? AND number = ? AND logged",
            (change.contributor_id, change.number),
        ).fetchone()
        return row is not None and _change(row[0]) == change

    def _read(self) -> None:
        self._now, self._owners, self._held, self._awaited = {}, {}, {}, set()
        rows = self._connection.execute("SELECT said, logged FROM key_changes ORDER BY contributor_id, number")
        changes = [(_change(said), bool(logged)) for said, logged in rows]
        for change, logged in changes:
            if logged:
                self._take(change)
        for change, logged in changes:
            if not logged:
                self._read_held(change)

    def _read_held(self, change: KeyChange) -> None:
        try:
            self._check(change, lambda _: False)
        except OpenLedgerError:
            _logger.warning("the held change of keys %s of %s doesn't fit", change.number, change.contributor_id)
            return
        self._await(change)

    def _take(self, change: KeyChange) -> None:
        for key in {change.replaces, change.public_key, change.recovery_key, change.by} - {""}:
            self._owners[key] = change.contributor_id
        known = self._now.get(change.contributor_id)
        if known is None or known.number < change.number:
            self._now[change.contributor_id] = change.keys()

    def _await(self, change: KeyChange) -> None:
        self._held[change.contributor_id] = change
        self._awaited |= _new_keys(change)

    def _release(self, change: KeyChange) -> None:
        del self._held[change.contributor_id]
        self._awaited -= _new_keys(change)


def _new_keys(change: KeyChange) -> set[str]:
    return {key for key in change.signatures if key != change.by}


def _said(change: KeyChange) -> str:
    return json.dumps(change_json(change), sort_keys=True)


def _change(said: str) -> KeyChange:
    return change_of(json.loads(said))
