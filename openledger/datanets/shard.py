"""One shard's part of a Datanet: rows in a Lance dataset on a local disk.

Owns the files under one folder; one process writes there at a time. Knows nothing of signatures, verdicts or other
shards.

    rows.lance/      the Lance dataset, in exactly one version
    files.json       that version's files and their digests

Lance syncs nothing on a local disk, and takes the same commit twice. So each change here is four steps: write files,
sync them and their folders, replace the list of files durably, remove every file that isn't on the new list. What is
not listed was not acknowledged, and opening removes it; what is listed and has another digest is damage. An append's
key is a column of its rows, so that a retry is found also after compaction. As no file outlasts the list that leaves it
out, no old version keeps a row that was removed.
"""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from openledger.core.errors import Conflict, Corrupt, NotFound, Unavailable
from openledger.core.files import sync_folder
from openledger.core.hashing import digest_file
from openledger.core.ids import check_name
from openledger.core.values import Row
from openledger.datanets import segments
from openledger.datanets.filelist import read_list, write_list
from openledger.datanets.folders import make_folder
from openledger.datanets.rows import FORMAT, SCHEMA, rows_of, table_of, upgraded

DATASET = "rows.lance"
MAX_SMALL_FRAGMENTS = 128  # many small appends become few large files
_FRAGMENT_ROWS = 100_000
_KEY = "append_key"
_STORED = SCHEMA.append(pa.field(_KEY, pa.string(), nullable=False))
_FIRST = _STORED.remove(_STORED.get_field_index("extra"))  # rows/1
_DATA_VERSION = "2.1"


class Shard:
    """Opening checks every file against the list. Raises Corrupt (`corrupt_shard_file`) that names shard and file.

    A folder of Parquet segments, as they were written before, is taken over once, and its segments removed.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._lock = threading.RLock()
        make_folder(folder)
        self._files = read_list(folder)
        self._remove_unlisted()
        self._check_files()
        self._dataset: Any = self._open()
        self._take_over_columns()
        self._read_places()
        self._take_over_segments()

    @property
    def count(self) -> int:
        return len(self._places)

    def append(self, rows: Sequence[Row], key: str) -> None:
        """Store `rows` durably under `key`; the same again changes nothing.

        Raises Conflict when `key` holds other rows or a row id is taken, Unavailable when the disk refuses.
        """
        with self._lock:
            if key in self._keys:
                self._check_repeated(rows, key)
            elif rows:
                self._check_new(rows, key)
                self._write(table_of(rows), key)

    def remove(self, row_ids: Sequence[str]) -> int:
        """Forget rows: when this returns, no file holds a byte of them. How many of them were there; the others are
        gone already. Raises Unavailable when the disk refuses; then nothing is removed."""
        with self._lock:
            found = [row_id for row_id in row_ids if row_id in self._places]
            if found:
                self._change(lambda: self._delete(found))
                self._read_places()
            return len(found)

    def rows(self, row_ids: Sequence[str]) -> list[Row]:
        """Rows in the order of `row_ids`. Raises NotFound (`unknown_row`) for an id that isn't here."""
        return list(rows_of(self.table(row_ids)))

    def table(self, row_ids: Sequence[str]) -> pa.Table:
        """As `rows`, in `rows.SCHEMA`."""
        with self._lock:
            places = [self._place(row_id) for row_id in row_ids]
            if not places:
                return SCHEMA.empty_table()
            order = sorted(set(places))
            found = self._dataset.take(order, columns=SCHEMA.names)
        at = {place: number for number, place in enumerate(order)}
        return found.take([at[place] for place in places]).cast(SCHEMA)

    def scan(self) -> Iterator[pa.RecordBatch]:
        """All rows, in the order in which they were appended, as batches in `rows.SCHEMA`."""
        with self._lock:
            dataset = self._dataset
            batches = [] if dataset is None else list(dataset.to_batches(columns=SCHEMA.names))
        yield from (pa.RecordBatch.from_arrays(batch.columns, schema=SCHEMA) for batch in batches)

    def _write(self, table: pa.Table, key: str) -> None:
        stored = table.append_column(_STORED.field(_KEY), pa.array([key] * len(table), pa.string())).cast(_STORED)
        start = len(self._places)
        self._change(lambda: self._append(stored))
        self._places.update((row_id, start + n) for n, row_id in enumerate(table.column("row_id").to_pylist()))
        self._keys.add(key)
        small = [one for one in self._dataset.get_fragments() if one.metadata.num_rows < _FRAGMENT_ROWS]
        if len(small) >= MAX_SMALL_FRAGMENTS:
            self._change(self._compact)
            self._read_places()

    def _append(self, table: pa.Table) -> None:
        if self._dataset is None:
            self._dataset = _lance().write_dataset(table, self._uri, data_storage_version=_DATA_VERSION)
            return
        lance = _lance()
        fragments = lance.fragment.write_fragments(table, self._dataset)
        operation = lance.LanceOperation.Append(fragments)
        self._dataset = lance.LanceDataset.commit(self._dataset, operation, read_version=self._dataset.version)

    def _delete(self, row_ids: Sequence[str]) -> None:
        if len(row_ids) == len(self._places):
            self._dataset = None
            return
        quoted = ", ".join("'" + row_id.replace("'", "''") + "'" for row_id in row_ids)
        self._dataset.delete(f"row_id IN ({quoted})")
        self._compact()

    def _compact(self) -> None:
        self._dataset.optimize.compact_files(
            target_rows_per_fragment=_FRAGMENT_ROWS, materialize_deletions=True, materialize_deletions_threshold=0.0
        )
        self._dataset = _lance().dataset(self._uri)

    def _change(self, step: Callable[[], None]) -> None:
        """Take one step durably, or none at all."""
        try:
            step()
            self._settle()
        except OSError as error:
            self._roll_back()
            raise Unavailable(
                f"shard {self._folder} can't be written: {error.strerror or error}",
                code="storage_unavailable",
                param=str(self._folder),
                fix="free space or restore access, then send the same again",
            ) from error

    def _settle(self) -> None:
        """Sync what is new, list it, and remove what is no longer listed."""
        names = [] if self._dataset is None else _files_of(self._dataset)
        new = [name for name in names if name not in self._files]
        digests = {name: self._synced(name) for name in new}
        for folder in {(self._folder / name).parent for name in new}:
            sync_folder(folder)
        if names and not self._files:
            sync_folder(Path(self._uri))
            sync_folder(self._folder)
        files = {name: digests.get(name) or self._files[name] for name in names}
        write_list(self._folder, files)
        self._files = files
        self._remove_unlisted()

    def _synced(self, name: str) -> str:
        path = self._folder / name
        with path.open("rb") as stream:
            os.fsync(stream.fileno())
        return digest_file(path)

    def _roll_back(self) -> None:
        """To what the list on disk says: the change may have been listed before it failed."""
        self._files = read_list(self._folder)
        self._remove_unlisted()
        self._dataset = self._open()
        self._read_places()

    def _remove_unlisted(self) -> None:
        for path in [path for path in Path(self._uri).rglob("*") if path.is_file()]:
            if str(path.relative_to(self._folder)) not in self._files:
                path.unlink(missing_ok=True)

    def _check_files(self) -> None:
        for name, digest in self._files.items():
            path = self._folder / name
            try:
                found = digest_file(path)
            except OSError as error:
                raise self._corrupt(path, f"can't be read ({error.strerror})") from error
            if found != digest:
                raise self._corrupt(path, "its bytes are not the ones that were written")

    def _open(self) -> Any:
        """The Lance dataset; None where the shard has no row."""
        if not self._files:
            return None
        dataset = _lance().dataset(self._uri)
        if not dataset.schema.equals(_STORED) and not dataset.schema.equals(_FIRST):
            raise self._corrupt(Path(self._uri), f"its columns are not those of {FORMAT}")
        return dataset

    def _read_places(self) -> None:
        self._places: dict[str, int] = {}
        self._keys: set[str] = set()
        if self._dataset is not None:
            for batch in self._dataset.to_batches(columns=["row_id", _KEY]):
                start = len(self._places)
                self._places.update((row_id, start + n) for n, row_id in enumerate(batch.column(0).to_pylist()))
                self._keys.update(batch.column(1).unique().to_pylist())

    def _take_over_columns(self) -> None:
        """Rows that were written before rows had `extra` are written again with it, a batch at a time."""
        if self._dataset is not None and self._dataset.schema.equals(_FIRST):
            self._change(self._rewrite)

    def _rewrite(self) -> None:
        batches = (upgraded(batch).cast(_STORED) for batch in self._dataset.to_batches())
        reader = pa.RecordBatchReader.from_batches(_STORED, batches)
        self._dataset = _lance().write_dataset(reader, self._uri, mode="overwrite", data_storage_version=_DATA_VERSION)

    def _take_over_segments(self) -> None:
        for path in segments.list_segments(self._folder):
            table, key = segments.read_segment(path)
            if key not in self._keys:
                self._write(table, key)
            path.unlink()

    def _check_new(self, rows: Sequence[Row], key: str) -> None:
        taken = [row.row_id for row in rows if row.row_id in self._places]
        if taken or len({row.row_id for row in rows}) < len(rows):
            raise Conflict(f"a row id stands twice: {(taken or [rows[0].row_id])[0]}", code="row_id_taken", param=key)

    def _check_repeated(self, rows: Sequence[Row], key: str) -> None:
        sync_folder(self._folder)  # the first answer may have failed between the list's name and its sync
        quoted = key.replace("'", "''")
        stored = self._dataset.to_table(columns=["row_id"], filter=f"{_KEY} = '{quoted}'")
        if not set(stored.column(0).to_pylist()) <= {row.row_id for row in rows}:
            raise Conflict(f"the key {key!r} already holds other rows", code="key_reused", param="key")

    def _place(self, row_id: str) -> int:
        place = self._places.get(row_id)
        if place is None:
            raise NotFound(f"shard {self._folder} has no row {row_id}", code="unknown_row", param=row_id)
        return place

    @property
    def _uri(self) -> str:
        return str(self._folder / DATASET)

    def _corrupt(self, path: Path, problem: str) -> Corrupt:
        return Corrupt(
            f"shard {self._folder}, file {path.relative_to(self._folder)}: {problem}",
            code="corrupt_shard_file",
            param=str(path),
            fix="restore the shard's folder from a backup; the other shards are not affected",
        )


class ShardHost:
    """One shard number's part of every Datanet, a `Shard` in a folder for each; opened when first asked for."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._shards: dict[str, Shard] = {}

    def append(self, datanet: str, rows: Sequence[Row], key: str) -> None:
        self._shard(datanet).append(rows, key)

    def remove(self, datanet: str, row_ids: Sequence[str]) -> int:
        return self._shard(datanet).remove(row_ids)

    def rows(self, datanet: str, row_ids: Sequence[str]) -> list[Row]:
        return self._shard(datanet).rows(row_ids)

    def scan(self, datanet: str) -> list[pa.RecordBatch]:
        return list(self._shard(datanet).scan())

    def count(self, datanet: str) -> int:
        return self._shard(datanet).count

    def _shard(self, datanet: str) -> Shard:
        if datanet not in self._shards:
            self._shards[datanet] = Shard(self._folder / check_name(datanet, "datanet"))
        return self._shards[datanet]


def _files_of(dataset: Any) -> list[str]:
    """What the dataset's one version is made of, as paths below the shard's folder."""
    names = [f"_versions/{2**64 - 1 - dataset.version}.manifest"]  # Lance names the newest so that it sorts first
    for fragment in dataset.get_fragments():
        names += [f"data/{file.path}" for file in fragment.metadata.files]
        names += [deleted] if (deleted := fragment.deletion_file()) else []
    return [f"{DATASET}/{name}" for name in names]


def _lance() -> Any:
    """Imported by the process that holds a shard alone: it takes half a second, and warns in a process that forks, as
    whoever starts Ray does."""
    import lance

    return lance
