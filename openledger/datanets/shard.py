"""One shard's part of a Datanet: rows in a Lance dataset, on a local disk (`disk`) or in an object store (`objects`).

Owns which rows are there, under which key they came and where they stand. Knows nothing of signatures, verdicts or
other shards, and nothing of what makes a change durable. An append's key is a column of its rows, so that a retry is
found also after compaction.

Appends that come from several threads while a change is being made durable wait together, and the next change stores
all of them: one file, one commit, one sync for as many as there are. Each is answered when that change is durable, and
none is acknowledged where it isn't. A crash leaves all of a change or nothing.

On a local disk small changes stand in a journal first, behind the dataset's rows and in their order, and come into the
dataset together: before the journal is large, before a row is removed, and before files with some of them are read
past this process.
"""

import threading
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from openledger.core.errors import Conflict, NotFound, Unavailable
from openledger.core.ids import check_name
from openledger.core.values import Row
from openledger.datanets import segments
from openledger.datanets.bulk import PART_ROWS, Part
from openledger.datanets.dedupe import Order
from openledger.datanets.disk import DiskFiles
from openledger.datanets.keyed import KeyedBatch
from openledger.datanets.objects import ObjectFiles, is_conflict, is_refusal
from openledger.datanets.owner import DuplicateOwner, Found
from openledger.datanets.rows import FORMAT, SCHEMA, rows_of, table_of, upgraded

MAX_BYTES_TOGETHER = 64 * 1024 * 1024  # of the appends that one change stores
MAX_SMALL_BYTES = 1024 * 1024  # of a change for the journal
MAX_JOURNAL_BYTES = 8 * 1024 * 1024  # of its file; its rows, which are in memory too, are less
MAX_JOURNAL_RECORDS = 256  # of which the smallest are 2 KB, nearly all of it their columns' names
MAX_SMALL_FRAGMENTS = 128  # many small appends become few large files
_FRAGMENT_ROWS = 100_000
_TRIES = 3  # of a change that other processes' come before
_KEY = "append_key"
_STORED = SCHEMA.append(pa.field(_KEY, pa.string(), nullable=False))
_FIRST = _STORED.remove(_STORED.get_field_index("extra"))  # rows/1
_DATA_VERSION = "2.1"
_COMPRESSION = b"lance-encoding:compression"


class Shard:
    """`place` is a folder, or the URI of an object store with Lance's `options` for it. Raises Corrupt
    (`corrupt_shard_file`) that names shard and file, Unavailable where the store can't be reached.

    A folder of Parquet segments, as they were written before, is taken over once, and its segments removed.
    """

    def __init__(self, place: Path | str, options: Mapping[str, str] | None = None):
        self._lock = threading.RLock()
        self._arriving = threading.Lock()  # of `_waiting` alone, and never held for long
        self._waiting = deque[_Append]()
        self._files = DiskFiles(place) if isinstance(place, Path) else ObjectFiles(place, options)
        self._schema = _encoded(_STORED, self._files.compression)
        self._recent = self._read_journal()
        self._is_stale = True  # `_dataset` may not be what `_places` tells of: nothing is to be told of either
        self._dataset: Any = None
        self._catch_up()
        self._take_over_columns()
        if self._dataset is not None and any(one.deletion_file() for one in self._dataset.get_fragments()):
            self._clean_up()
        if isinstance(place, Path):
            self._take_over_segments(place)

    @property
    def count(self) -> int:
        with self._still():
            return len(self._places)

    def row_ids(self) -> list[str]:
        """Of all rows, in the order in which they were appended."""
        with self._still():
            return list(self._places)

    def held(self, row_ids: Collection[str]) -> list[str]:
        """Those of `row_ids` that are here."""
        with self._still():
            return [row_id for row_id in row_ids if row_id in self._places]

    def append(self, rows: Sequence[Row] | bytes, key: str) -> None:
        """Store `rows` (or what `rows.packed` made of them) durably under `key`; the same again changes nothing. Raises
        Conflict when `key` holds other rows or a row id is taken, Unavailable when the storage refuses."""
        append = _Append(key, table_of(rows))
        with self._arriving:
            self._waiting.append(append)
        with self._lock:
            while not append.is_answered:  # or another thread has stored it meanwhile
                self._store_waiting()
        if append.error is not None:
            raise append.error

    def remove(self, row_ids: Sequence[str]) -> int:
        """Forget rows: when this returns, no file holds a byte of them. How many of them were there; the others are
        gone already. Raises Unavailable when the storage refuses: the same again removes what is left of them, also
        where none of them can be read any more."""
        with self._still():
            self._fold()
            found = self.held(row_ids)
            if found:
                self._change(lambda: self._delete(found))
            elif self._dataset is not None and not self._files.keeps_one_version:
                self._clean_up()
            return len(found)

    def rows(self, row_ids: Sequence[str]) -> list[Row]:
        """Rows in the order of `row_ids`. Raises NotFound (`unknown_row`) for an id that isn't here."""
        return list(rows_of(self.table(row_ids)))

    def table(self, row_ids: Sequence[str]) -> pa.Table:
        """As `rows`, in `rows.SCHEMA`."""
        with self._still():
            if not all(row_id in self._places for row_id in row_ids):
                self._see_others()
            places = [self._place(row_id) for row_id in row_ids]
            if not places:
                return SCHEMA.empty_table()
            order = sorted(set(places))
            found = self._take(order)
        at = {place: number for number, place in enumerate(order)}
        table = found.take([at[place] for place in places])
        if table.column("row_id").to_pylist() != list(row_ids):
            raise self._files.corrupt("", "its rows stand elsewhere than when it was read")
        return table

    def scan(self) -> Iterator[pa.RecordBatch]:
        """All rows, in the order in which they were appended, as batches in `rows.SCHEMA`."""
        with self._still():
            dataset = self._dataset
            batches = [] if dataset is None else list(dataset.to_batches(columns=SCHEMA.names))
            batches += [batch for table in self._recent for batch in table.select(SCHEMA.names).to_batches()]
        yield from (pa.RecordBatch.from_arrays(batch.columns, schema=SCHEMA) for batch in batches)

    def parts(self, row_ids: Collection[str]) -> list[Part]:
        """The files in which these rows stand, for whoever reads many of them at once (`bulk`). Raises NotFound
        (`unknown_row`) for an id that isn't here."""
        with self._still():
            if not all(row_id in self._places for row_id in row_ids):
                self._see_others()
            if max((self._place(row_id) for row_id in row_ids), default=-1) >= self._num_stored:
                self._fold()
            fragments = [] if self._dataset is None else self._dataset.get_fragments()
            ordered, wanted = iter(self._places), set(row_ids)  # in the order in which they stand
            held = [(one.metadata.files[0].path, list(islice(ordered, one.count_rows()))) for one in fragments]
        return [self._part(group, wanted) for group in _grouped(held) if not wanted.isdisjoint(chain(*group.values()))]

    def _part(self, held: Mapping[str, list[str]], wanted: set[str]) -> Part:
        return Part(
            uri=self._files.uri,
            options=self._options,
            files=tuple(held),
            num_rows=sum(map(len, held.values())),
            row_ids=tuple(row_id for ids in held.values() for row_id in ids if row_id in wanted),
        )

    @contextmanager
    def _still(self) -> Iterator[None]:
        """Nothing is changed meanwhile, and what is known of the rows is how they stand."""
        with self._lock:
            self._catch_up()
            yield

    def _see_others(self) -> None:
        """What another process may have stored since."""
        if not self._files.keeps_one_version and self._dataset is not None:
            self._is_stale = True
            self._catch_up()

    def _catch_up(self) -> None:
        """Read anew what a change or a reading that broke off may have left. Until that has worked, it is tried again
        each time."""
        if not self._is_stale:
            return
        try:
            self._dataset = self._open()
            self._read_places()
        except (OSError, ValueError) as error:
            raise self._refused("read", error) if is_refusal(error) else self._files.corrupt("", str(error)) from error
        self._is_stale = False

    def _store_waiting(self) -> None:
        """Answer the appends that wait by one change, but for those that `_next_appends` leaves to the next."""
        appends = self._next_appends()
        try:
            self._store(appends)
        except BaseException as error:  # whatever it is, none of them is acknowledged
            for one in appends:
                one.error = one.error or error
            if not isinstance(error, Exception):
                raise
        finally:
            for one in appends:
                one.is_answered = True

    def _store(self, appends: Sequence["_Append"]) -> None:
        """Where another process's change came first, what is new is judged and written again: its files may be gone."""
        for _ in range(_TRIES - 1):
            with suppress(_Overtaken):
                return self._store_once(appends)
        return self._store_once(appends)

    def _store_once(self, appends: Sequence["_Append"]) -> None:
        self._catch_up()
        new = [one for one in appends if self._is_new(one)]
        if new:
            self._write([(one.table, one.key) for one in new])

    def _next_appends(self) -> list["_Append"]:
        """The first that waits, and what fits beside it: another with one of its rows, or under its key, is judged once
        it is known what became of that."""
        taken, left = list[_Append](), deque[_Append]()
        keys, row_ids, size = set[str](), set[str](), 0
        with self._arriving:
            for one in self._waiting:
                is_apart = one.key not in keys and row_ids.isdisjoint(one.row_ids)
                if taken and not (is_apart and size + one.table.nbytes <= MAX_BYTES_TOGETHER):
                    left.append(one)
                    continue
                taken.append(one)
                keys.add(one.key)
                row_ids.update(one.row_ids)
                size += one.table.nbytes
            self._waiting = left
        return taken

    def _is_new(self, append: "_Append") -> bool:
        """Whether it has to be written. What it conflicts with stands in its `error`."""
        try:
            if append.key in self._keys:
                self._check_repeated(append)
                return False
            self._check_new(append)
        except Conflict as error:
            append.error = error
            return False
        return len(append.row_ids) > 0

    def _write(self, appends: Sequence[tuple[pa.Table, str]]) -> None:
        tables = [_keyed(table, key).cast(self._schema) for table, key in appends]
        if self._is_for_journal(tables):
            self._write_recent(pa.concat_tables(tables), appends)
            return
        if self._files.keeps_one_version:
            tables = [pa.concat_tables([*self._recent, *tables])]
        before = self._version()
        self._change(lambda: self._append(tables), lambda: self._note(appends, before))
        self._forget_recent()
        self._num_small += len(tables)
        if self._num_small >= MAX_SMALL_FRAGMENTS:
            self._change(lambda: self._compact(everything=False))

    def _is_for_journal(self, tables: Sequence[pa.Table]) -> bool:
        journal, num_bytes = self._files.journal, sum(table.nbytes for table in tables)
        if journal is None or num_bytes > MAX_SMALL_BYTES or self._num_small >= MAX_SMALL_FRAGMENTS:
            return False
        return journal.num_bytes + num_bytes <= MAX_JOURNAL_BYTES and journal.num_records < MAX_JOURNAL_RECORDS

    def _write_recent(self, table: pa.Table, appends: Sequence[tuple[pa.Table, str]]) -> None:
        """The journal holds what is recent, and nothing else."""
        journal = self._files.journal
        assert journal is not None
        if not self._recent and not journal.is_empty:
            self._forget_recent()
        try:
            journal.add(table)
        except OSError as error:
            raise self._refused("written", error) from error
        self._recent.append(table)
        self._note(appends, self._version() - 1)

    def _fold(self) -> None:
        """What the journal holds stands in the dataset, and in no other file."""
        if self._recent:
            together = self._recent_rows()
            self._change(lambda: self._append([together]), lambda: None)
            self._num_small += 1  # the next append sees to it: this may be on behalf of a reader
            self._forget_recent()
        elif self._files.journal is not None and not self._files.journal.is_empty:
            self._forget_recent()

    def _forget_recent(self) -> None:
        self._recent = []
        if self._files.journal is not None:
            try:
                self._files.journal.clear()
            except OSError as error:
                raise self._refused("written", error) from error

    def _read_journal(self) -> list[pa.Table]:
        """What the journal holds, in `_schema`."""
        if self._files.journal is None:
            return []
        try:
            return [table.cast(self._schema) for table in self._files.journal.read()]
        except OSError as error:
            raise self._refused("read", error) from error

    @property
    def _num_stored(self) -> int:
        """Rows in the dataset; the recent ones stand behind them."""
        return len(self._places) - sum(map(len, self._recent))

    def _recent_rows(self) -> pa.Table:
        """Of all records, put together once for all that read them."""
        if len(self._recent) > 1:
            self._recent = [pa.concat_tables(self._recent).combine_chunks()]
        return self._recent[0]

    def _take(self, places: Sequence[int]) -> pa.Table:
        """Rows in the order in which they stand."""
        num_stored = self._num_stored
        stored = [place for place in places if place < num_stored]
        found = [self._dataset.take(stored, columns=SCHEMA.names).cast(SCHEMA)] if stored else []
        if len(stored) < len(places):
            recent = self._recent_rows().select(SCHEMA.names).cast(SCHEMA)
            found.append(recent.take([place - num_stored for place in places[len(stored) :]]))
        return pa.concat_tables(found)

    def _note(self, appends: Sequence[tuple[pa.Table, str]], before: int) -> None:
        """Where they stand, now that they were written to what was version `before`."""
        written = [(table.column("row_id").to_pylist(), key) for table, key in appends]
        if self._version() == before + 1:
            for row_ids, key in written:
                self._enter_all(row_ids, key)
            return
        self._read_places()  # another process wrote as well, perhaps the same
        if not all(row_id in self._places for row_ids, _ in written for row_id in row_ids):
            kind = _Overtaken if self._has_void else Unavailable  # rows that were taken back must not come again
            raise self._refused("written", OSError("another process has removed what was written"), kind)

    def _append(self, tables: Sequence[pa.Table]) -> None:
        """A fragment for each table. In an object store each append has its own, for where another process has stored
        the same one, its fragment is dropped (`_read_fragment`), and no other append may be in it."""
        lance, options, rest = _lance(), self._options, list(tables)
        if self._dataset is None:
            self._dataset = lance.write_dataset(
                rest.pop(0), self._files.uri, data_storage_version=_DATA_VERSION, storage_options=options
            )
        if rest:
            written = [lance.fragment.write_fragments(table, self._dataset, storage_options=options) for table in rest]
            operation = lance.LanceOperation.Append([fragment for fragments in written for fragment in fragments])
            self._dataset = lance.LanceDataset.commit(
                self._dataset, operation, read_version=self._dataset.version, storage_options=options
            )

    def _delete(self, row_ids: Sequence[str]) -> None:
        if len(row_ids) == len(self._places) and self._files.keeps_one_version:
            self._dataset = None
            return
        quoted = ", ".join("'" + row_id.replace("'", "''") + "'" for row_id in row_ids)
        self._dataset.delete(f"row_id IN ({quoted})")
        self._compact()
        if self._files.keeps_one_version:  # an object store's fence does the same
            self._drop_fragments([])  # a version's manifest has the predicate that made it, ids and all

    def _compact(self, *, everything: bool = True) -> None:
        """`everything` that no version names goes too, also what another process has written and not committed, which
        it is told of (`objects`)."""
        self._dataset.optimize.compact_files(
            target_rows_per_fragment=_FRAGMENT_ROWS, materialize_deletions=True, materialize_deletions_threshold=0.0
        )
        self._dataset = _lance().dataset(self._files.uri, storage_options=self._options)
        if isinstance(self._files, ObjectFiles):
            self._dataset = self._files.forget_old_versions(self._dataset, everything=everything)

    def _clean_up(self) -> None:
        """An object store may have taken the removal and refused what came after it: the old files are still there."""
        self._change(self._compact)

    def _change(self, step: Callable[[], None], note: Callable[[], None] | None = None) -> None:
        """Take one step durably, or none at all; `note` then tells where rows stand, by reading all without it."""
        self._is_stale = True
        try:
            step()
            self._files.settle(self._dataset)
            (note or self._read_places)()
        except Exception as error:  # Lance has no kind of its own for most of them
            if is_conflict(error):
                raise self._refused("written", OSError("another process changes it"), _Overtaken) from error
            if not (isinstance(error, OSError | ValueError) and is_refusal(error)):
                raise
            with suppress(Unavailable):  # whatever refused the step may refuse the way back: the next call takes it
                self._catch_up()
            raise self._refused("written", error) from error
        self._is_stale = False

    def _refused(self, verb: str, error: Exception, kind: type[Unavailable] = Unavailable) -> Unavailable:
        return kind(
            f"shard {self._files.name} can't be {verb}: {getattr(error, 'strerror', None) or error}",
            code="storage_unavailable",
            param=self._files.name,
            fix="free space or restore access, then send the same again",
        )

    def _open(self) -> Any:
        dataset = self._files.roll_back()
        if dataset is not None and not any(dataset.schema.equals(schema) for schema in (_STORED, _FIRST)):
            raise self._files.corrupt("", f"its columns are not those of {FORMAT}")
        return dataset

    def _read_places(self) -> None:
        """What the dataset holds under a key isn't recent, whatever came between its change and the journal's end."""
        self._read_stored()
        if self._recent:
            rows = self._recent_rows()
            rows = rows.filter(pa.array([key not in self._keys for key in rows.column(_KEY).to_pylist()]))
            self._recent = [rows] if len(rows) else []
            for row_id, key in zip(rows.column(0).to_pylist(), rows.column(_KEY).to_pylist(), strict=True):
                self._enter(row_id, key)

    def _read_stored(self) -> None:
        self._places: dict[str, int] = {}
        self._keys: dict[str, list[str]] = {}  # what came under each
        self._num_small = 0
        self._has_void = False
        if self._dataset is None:
            return
        dropped = [
            fragment.fragment_id for fragment in self._dataset.get_fragments() if not self._read_fragment(fragment)
        ]
        if dropped:
            self._drop_fragments(dropped)

    def _drop_fragments(self, fragment_ids: Sequence[int]) -> None:
        operation = _lance().LanceOperation.Delete([], list(fragment_ids), "true")
        self._dataset = _lance().LanceDataset.commit(
            self._dataset, operation, read_version=self._dataset.version, storage_options=self._options
        )

    def _take_over_columns(self) -> None:
        """Rows that were written before rows had `extra` are written again with it, a batch at a time."""
        if self._dataset is not None and self._dataset.schema.equals(_FIRST):
            self._change(self._rewrite)

    def _rewrite(self) -> None:
        batches = (upgraded(batch).cast(self._schema) for batch in self._dataset.to_batches())
        self._dataset = _lance().write_dataset(
            pa.RecordBatchReader.from_batches(self._schema, batches),
            self._files.uri,
            mode="overwrite",
            data_storage_version=_DATA_VERSION,
            storage_options=self._options,
        )

    def _read_fragment(self, fragment: Any) -> bool:
        """Whether its rows count. They don't where two processes have stored the same append: the first one does; nor
        where their file was gone before it was committed (`_is_void`)."""
        try:
            found = fragment.to_table(columns=["row_id", _KEY])
        except (OSError, ValueError) as error:
            path = fragment.metadata.files[0].path
            if "not found" not in str(error).lower():
                raise
            if self._is_void(path):
                self._has_void = True
                return False
            raise self._files.corrupt(f"data/{path}", "is not there") from error
        row_ids = found.column(0).to_pylist()
        if any(row_id in self._places for row_id in row_ids):
            return False
        self._num_small += fragment.metadata.num_rows < _FRAGMENT_ROWS
        for row_id, key in zip(row_ids, found.column(1).to_pylist(), strict=True):
            self._enter(row_id, key)
        return True

    def _is_void(self, path: str) -> bool:
        """Whether a file that isn't there was committed behind another process's change, which has removed it: then its
        writer has read the shard anew, missed it, and acknowledged nothing (`_note`)."""
        if self._files.keeps_one_version:
            return False
        for number in (one["version"] for one in self._dataset.versions()):
            done = self._dataset.read_transaction(number)
            is_append = done is not None and isinstance(done.operation, _lance().LanceOperation.Append)
            if is_append and any(file.path == path for one in done.operation.fragments for file in one.files):
                return bool(done.read_version < number - 1)
        return False

    def _enter(self, row_id: str, key: str) -> None:
        self._places[row_id] = len(self._places)
        self._keys.setdefault(key, []).append(row_id)

    def _enter_all(self, row_ids: Sequence[str], key: str) -> None:
        """`_enter` of each; none of them stands here."""
        first = len(self._places)
        self._places.update(zip(row_ids, range(first, first + len(row_ids)), strict=True))
        self._keys.setdefault(key, []).extend(row_ids)

    def _take_over_segments(self, folder: Path) -> None:
        for path in segments.list_segments(folder):
            table, key = segments.read_segment(path)
            if key not in self._keys:
                self._write([(table, key)])
            path.unlink()

    def _check_new(self, append: "_Append") -> None:
        taken = [row_id for row_id in append.row_ids if row_id in self._places]
        if taken or len(set(append.row_ids)) < len(append.row_ids):
            twice = (taken or append.row_ids)[0]
            raise Conflict(f"a row id stands twice: {twice}", code="row_id_taken", param=append.key)

    def _check_repeated(self, append: "_Append") -> None:
        if not set(self._keys[append.key]).issubset(append.row_ids):
            raise Conflict(f"the key {append.key!r} already holds other rows", code="key_reused", param="key")

    def _place(self, row_id: str) -> int:
        place = self._places.get(row_id)
        if place is None:
            raise NotFound(f"shard {self._files.name} has no row {row_id}", code="unknown_row", param=row_id)
        return place

    def _version(self) -> int:
        return 0 if self._dataset is None else int(self._dataset.version)

    @property
    def _options(self) -> dict[str, str] | None:
        return self._files.options if isinstance(self._files, ObjectFiles) else None


class _Overtaken(Unavailable):
    """Another process's change came first; this one isn't there."""


class _Append:
    """Rows that wait for the next change of their shard, and what became of them."""

    def __init__(self, key: str, table: pa.Table):
        self.key = key
        self.table = table
        self.row_ids: list[str] = table.column("row_id").to_pylist()
        self.error: BaseException | None = None
        self.is_answered = False


class ShardHost:
    """One shard number's part of every Datanet, a `Shard` for each, in a folder below `place` or at a URI below it;
    opened when first asked for. Beside them its part of the duplicate index, where that is divided."""

    def __init__(self, place: Path | str, options: Mapping[str, str] | None = None):
        self._place = place
        self._options = options
        self._shards: dict[str, Shard] = {}
        self._opening = threading.Lock()
        self._duplicates = DuplicateOwner()

    def append(self, datanet: str, rows: Sequence[Row] | bytes, key: str) -> None:
        self._shard(datanet).append(rows, key)

    def remove(self, datanet: str, row_ids: Sequence[str]) -> int:
        self._duplicates.forget(row_ids)
        return self._shard(datanet).remove(row_ids)

    def rows(self, datanet: str, row_ids: Sequence[str]) -> list[Row]:
        return self._shard(datanet).rows(row_ids)

    def scan(self, datanet: str) -> list[pa.RecordBatch]:
        return list(self._shard(datanet).scan())

    def row_ids(self, datanet: str) -> list[str]:
        return self._shard(datanet).row_ids()

    def parts(self, datanet: str, row_ids: Sequence[str]) -> list[Part]:
        return self._shard(datanet).parts(row_ids)

    def held(self, datanet: str, row_ids: Sequence[str]) -> list[str]:
        return self._shard(datanet).held(row_ids)

    def count(self, datanet: str) -> int:
        return self._shard(datanet).count

    def open_duplicates(self, key_name: str, session: int) -> dict[str, Order] | None:
        return self._duplicates.open(key_name, session)

    def enter_duplicates(
        self, session: int, row_ids: Sequence[str], orders: Sequence[Order], features: KeyedBatch
    ) -> bool | None:
        return self._duplicates.enter(session, row_ids, orders, features)

    def find_duplicates(self, session: int, features: KeyedBatch, place: tuple[int, int]) -> Found | None:
        return self._duplicates.find(session, features, place)

    def find_repetitions(self, session: int, features: KeyedBatch, place: tuple[int, int]) -> Found | None:
        return self._duplicates.find_behind(session, features, place)

    def count_questions(self, session: int, words: Sequence[str]) -> list[int] | None:
        return self._duplicates.question_counts(session, words)

    def forget_duplicates(self, row_ids: Collection[str]) -> None:
        self._duplicates.forget(row_ids)

    def _shard(self, datanet: str) -> Shard:
        with self._opening:
            if datanet not in self._shards:
                name = check_name(datanet, "datanet")
                place = self._place / name if isinstance(self._place, Path) else f"{self._place}/{name}.lance"
                self._shards[datanet] = Shard(place, self._options)
            return self._shards[datanet]


def _grouped(held: Sequence[tuple[str, list[str]]]) -> Iterator[dict[str, list[str]]]:
    """Files with their rows, small ones together."""
    group: dict[str, list[str]] = {}
    for name, row_ids in held:
        if group and sum(map(len, group.values())) + len(row_ids) > PART_ROWS:
            yield group
            group = {}
        group[name] = row_ids
    if group:
        yield group


def _keyed(table: pa.Table, key: str) -> pa.Table:
    return table.append_column(_STORED.field(_KEY), pa.repeat(pa.scalar(key), len(table)))


def _encoded(schema: pa.Schema, compression: str | None) -> pa.Schema:
    """`schema` with what Lance is to do about compression; None leaves it to Lance."""
    if compression is None:
        return schema
    return pa.schema([field.with_metadata({_COMPRESSION: compression}) for field in schema], metadata=schema.metadata)


def _lance() -> Any:
    """Imported by the process that holds a shard alone: it takes half a second, and warns in a process that forks, as
    whoever starts Ray does."""
    import lance

    return lance
