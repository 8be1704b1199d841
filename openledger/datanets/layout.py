"""Which shard has a row, also while rows move because there are more shards now, or fewer.

Owns the way from a row id to its shard (`placement`), and the move from one number of shards to another. Rows that live
elsewhere now are first appended there, a thousand at a time, and removed from where they were when all of their shard's
have arrived. Until then a row may stand in both: it is looked for in its new shard, then in its old one. New rows go to
their new shard at once. A move is known by two properties, kept durably: the number of shards that all rows lie in, and
the number that they move to. It may be cut off anywhere; what has arrived is not sent again.

Whoever owns it begins no move, and takes no step of one, while rows are missing: those of a folder that is put back
later would stand where nobody looks for them. `settle` sends such rows on.
"""

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Protocol

import pyarrow as pa

from openledger.core.errors import Conflict, Corrupt
from openledger.core.hashing import digest_json
from openledger.core.values import Row
from openledger.datanets.bulk import Part
from openledger.datanets.owner import OwnerPort
from openledger.datanets.placement import shard_of
from openledger.datanets.rows import rows_of

MOVED_AT_ONCE = 1_000
_FROM, _TO = "num_shards", "num_shards_next"


class ShardPort(OwnerPort, Protocol):
    """One shard's part of every Datanet, and of the duplicate index. `append` and `remove` are durable when they
    return, and no-ops for a key they have seen and for rows that are gone."""

    def append(self, datanet: str, rows: Sequence[Row], key: str) -> None: ...
    def remove(self, datanet: str, row_ids: Sequence[str]) -> int: ...
    def rows(self, datanet: str, row_ids: Sequence[str]) -> list[Row]: ...
    def parts(self, datanet: str, row_ids: Sequence[str]) -> list[Part]: ...
    def held(self, datanet: str, row_ids: Sequence[str]) -> list[str]: ...
    def row_ids(self, datanet: str) -> list[str]: ...
    def scan(self, datanet: str) -> list[pa.RecordBatch]: ...
    def count(self, datanet: str) -> int: ...


class Properties(Protocol):
    def fix_property(self, name: str, value: str) -> str: ...
    def set_property(self, name: str, value: str) -> None: ...
    def names(self) -> list[str]: ...


class Layout:
    """Raises Conflict (`num_shards_changed`) where rows lie in more shards than are given."""

    def __init__(self, shards: Sequence[ShardPort], properties: Properties):
        self._shards = tuple(shards)
        self._properties = properties
        self._before = int(properties.fix_property(_FROM, str(len(self._shards))))
        self._after = int(properties.fix_property(_TO, str(self._before)))
        self._steps = self._moves()
        self._damaged = dict[tuple[int, str], Corrupt]()  # shard and Datanet
        self.problem = ""  # why the last step of a move failed: a code, as messages name folders
        most = max(self._before, self._after)
        if most > len(self._shards):
            raise Conflict(
                f"the rows lie in {most} shards, and {len(self._shards)} are given",
                code="num_shards_changed",
                param="num_shards",
                fix=f"open it with {most} shards; rows can be moved to fewer once it is open",
            )

    def begin_move(self, num_shards: int) -> None:
        """From now on rows live in the first `num_shards` shards; `move_some` brings them there. What was begun before
        is ended first. No append may be half done: its key would stand for other rows in each shard."""
        if self._after != num_shards:
            while self.move_some():
                pass
            self._properties.set_property(_TO, str(num_shards))
            self._after, self._steps = num_shards, self._moves()

    @property
    def num_shards(self) -> int:
        """In which new rows live."""
        return self._after

    @property
    def is_moving(self) -> bool:
        return self._before != self._after

    def append(self, name: str, rows: Sequence[Row], key: str) -> None:
        """To all shards at once: each waits for its disk. Raises as the first of them does; the same again is safe."""
        placed: dict[int, list[Row]] = defaultdict(list)
        for row in rows:
            placed[shard_of(row.row_id, self._after)].append(row)
        with ThreadPoolExecutor(max(1, len(placed))) as pool:
            sent = [pool.submit(self._shards[number].append, name, placed[number], key) for number in sorted(placed)]
        for one in sent:
            one.result()

    def take(self, name: str, row_ids: Sequence[str]) -> Iterator[Row]:
        """Rows in no order. Raises NotFound (`unknown_row`) for an id that is nowhere."""
        for number, wanted in sorted(self._where(name, row_ids).items()):
            yield from self._shards[number].rows(name, wanted)

    def parts(self, name: str, row_ids: Sequence[str]) -> list[Part]:
        """Where these rows stand in storage. Raises NotFound (`unknown_row`) for an id that is nowhere."""
        where = sorted(self._where(name, row_ids).items())
        return [part for number, wanted in where for part in self._shards[number].parts(name, wanted)]

    def holds(self, name: str, row_id: str) -> bool:
        return any(self._shards[number].held(name, [row_id]) for number in self._homes(row_id))

    def remove(self, name: str, row_ids: Sequence[str]) -> None:
        for num_shards in {self._before, self._after}:
            for number, ids in sorted(_placed(row_ids, num_shards).items()):
                self._shards[number].remove(name, ids)

    def row_ids(self, name: str) -> set[str]:
        return {row_id for shard in self._shards for row_id in shard.row_ids(name)}

    def count(self, name: str) -> int:
        return len(self.row_ids(name)) if self.is_moving else sum(shard.count(name) for shard in self._shards)

    def sound(self, name: str) -> tuple[dict[int, list[str]], list[Corrupt]]:
        """The rows of each shard that can be read, and what the others raise."""
        standing, damages = dict[int, list[str]](), list[Corrupt]()
        for number, shard in enumerate(self._shards):
            try:
                standing[number] = shard.row_ids(name)
            except Corrupt as error:
                damages.append(error)
        return standing, damages

    def settle(self, name: str, standing: Mapping[int, Sequence[str]], gone: Collection[str]) -> None:
        """Of the rows that stand in each shard, remove those that are `gone`, and send on those that nobody looks for
        there: the shard's folder was put back as it was before a move. May be repeated."""
        for number, row_ids in sorted(standing.items()):
            if late := [row_id for row_id in row_ids if row_id in gone]:
                self._shards[number].remove(name, late)
            if astray := [i for i in row_ids if i not in gone and number not in self._homes(i)]:
                for _ in self._leave(name, number, astray):
                    pass

    def take_sound(self, name: str, row_ids: Sequence[str]) -> tuple[list[Row], list[Corrupt]]:
        """Those rows that stand in shards that can be read, in no order, and what the others raise."""
        rows, damages = dict[str, Row](), list[Corrupt]()
        for num_shards in dict.fromkeys((self._after, self._before)):
            missing = [row_id for row_id in row_ids if row_id not in rows]
            for number, ids in sorted(_placed(missing, num_shards).items()):
                try:
                    rows.update((row.row_id, row) for row in self._held_rows(number, name, ids))
                except Corrupt as error:
                    damages.append(error)
        return list(rows.values()), damages

    def scan(self, name: str) -> Iterator[Row]:
        """Every row; one that is moving perhaps twice."""
        for shard in self._shards:
            for batch in shard.scan(name):
                yield from rows_of(batch)

    def shard_numbers(self, row_ids: Sequence[str]) -> list[int]:
        """Of the shards that have these rows, or are about to."""
        return sorted({number for row_id in row_ids for number in self._homes(row_id)})

    def move_some(self) -> bool:
        """Move up to a thousand rows durably. Whether there may be more to move. Raises as the shards do; then the same
        rows are tried again the next time."""
        try:
            more = next(self._steps, None) is not None
        except BaseException as error:
            self._steps, self.problem = self._moves(), getattr(error, "code", type(error).__name__)
            raise
        self.problem = ""
        return more

    def _moves(self) -> Iterator[int]:
        """A step each time it is asked; how many rows it has sent."""
        if not self.is_moving:
            return
        for name in self._properties.names():
            for old in range(self._before):
                leaving = [i for i in self._shards[old].row_ids(name) if shard_of(i, self._after) != old]
                yield from self._leave(name, old, leaving)
        self._properties.set_property(_FROM, str(self._after))
        self._before = self._after

    def _leave(self, name: str, old: int, leaving: Sequence[str]) -> Iterator[int]:
        """How many rows each step has sent; they are removed when all have arrived."""
        ids = iter(leaving)
        while part := list(islice(ids, MOVED_AT_ONCE)):
            yield self._send(name, old, part)
        self._shards[old].remove(name, leaving)

    def _homes(self, row_id: str) -> set[int]:
        return {shard_of(row_id, num_shards) for num_shards in (self._before, self._after)}

    def _send(self, name: str, old: int, row_ids: Sequence[str]) -> int:
        num_sent = 0
        kept = self._shards[old].held(name, row_ids)  # others were taken back in the meantime
        for new, ids in sorted(_placed(kept, self._after).items()):
            arrived = set(self._shards[new].held(name, ids))
            missing = [row_id for row_id in ids if row_id not in arrived]
            rows = self._shards[old].rows(name, missing)
            self._shards[new].append(name, rows, f"moved/{digest_json(missing)}")
            num_sent += len(rows)
        return num_sent

    def _held_rows(self, number: int, name: str, row_ids: Sequence[str]) -> list[Row]:
        """Of one shard. It is read through to find damage, so one that has some is not tried again."""
        if (known := self._damaged.get((number, name))) is not None:
            raise known.with_traceback(None)
        try:
            return self._shards[number].rows(name, self._shards[number].held(name, row_ids))
        except Corrupt as error:
            self._damaged[number, name] = error
            raise

    def _where(self, name: str, row_ids: Sequence[str]) -> Mapping[int, list[str]]:
        placed = _placed(row_ids, self._after)
        if not self.is_moving:
            return placed
        found: dict[int, list[str]] = defaultdict(list)
        for number, ids in placed.items():
            arrived = set(self._shards[number].held(name, ids))
            for row_id in ids:
                found[number if row_id in arrived else shard_of(row_id, self._before)].append(row_id)
        return found


def _placed(row_ids: Sequence[str], num_shards: int) -> dict[int, list[str]]:
    placed: dict[int, list[str]] = defaultdict(list)
    for row_id in row_ids:
        placed[shard_of(row_id, num_shards)].append(row_id)
    return placed
