"""One shard's part of a Datanet: rows in immutable Parquet segments on a local disk.

Owns the files under one folder; one process writes there at a time. Knows nothing of signatures, verdicts or other
shards. A segment is one `append`. Its name holds two digests, of the append's key (so a retry finds it) and of its own
bytes (so a changed byte is found): `<key>.<content>.parquet`. What `append` returned for is synced to disk, file and
name.
"""

import io
import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from openledger.core.errors import Conflict, Corrupt, NotFound, Unavailable
from openledger.core.files import write_durably
from openledger.core.hashing import digest_bytes
from openledger.core.ids import check_name
from openledger.core.values import Row
from openledger.datanets.folders import make_folder
from openledger.datanets.rows import FORMAT, SCHEMA, rows_of, table_of

_DIGEST_CHARS = 32
_SUFFIX = ".parquet"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    segment: Path
    position: int


class Shard:
    """Opening reads and checks every segment. Raises Corrupt (`corrupt_segment`) that names shard and file."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._lock = threading.Lock()
        self._segments: dict[str, Path] = {}
        self._places: dict[str, _Place] = {}
        make_folder(folder)
        _remove_leftovers(folder)
        for path in sorted(folder.glob(f"*{_SUFFIX}")):
            self._admit(path, self._read(path))

    @property
    def count(self) -> int:
        return len(self._places)

    def append(self, rows: Sequence[Row], key: str) -> None:
        """Store `rows` durably under `key`; the same again changes nothing.

        Raises Conflict when `key` holds other rows or a row id is taken, Unavailable when the disk refuses.
        """
        with self._lock:
            name = _key_digest(key)
            if name in self._segments:
                self._check_repeated(rows, name, key)
            elif rows:
                self._write(rows, name, key)

    def rows(self, row_ids: Sequence[str]) -> list[Row]:
        """Rows in the order of `row_ids`. Raises NotFound (`unknown_row`) for an id that isn't here."""
        found = self._take(row_ids)
        return [found[row_id] for row_id in row_ids]

    def scan(self) -> Iterator[pa.RecordBatch]:
        """All rows, segment after segment, as batches in `rows.SCHEMA`."""
        for path in list(self._segments.values()):
            yield from self._read(path).to_batches()

    def _write(self, rows: Sequence[Row], name: str, key: str) -> None:
        taken = [row.row_id for row in rows if row.row_id in self._places]
        if taken or len({row.row_id for row in rows}) < len(rows):
            raise Conflict(f"a row id stands twice: {(taken or [rows[0].row_id])[0]}", code="row_id_taken", param=key)
        table = table_of(rows)
        data = _parquet_bytes(table, key)
        path = self._folder / f"{name}.{digest_bytes(data)[:_DIGEST_CHARS]}{_SUFFIX}"
        try:
            write_durably(path, data)
        except OSError as error:
            raise Unavailable(
                f"shard {self._folder} can't write {path.name}: {error.strerror}",
                code="storage_unavailable",
                param=str(path),
                fix="free space or restore access, then send the same again",
            ) from error
        self._admit(path, table)

    def _check_repeated(self, rows: Sequence[Row], name: str, key: str) -> None:
        stored = {row_id for row_id, place in self._places.items() if place.segment == self._segments[name]}
        if stored != {row.row_id for row in rows}:
            raise Conflict(f"the key {key!r} already holds other rows", code="key_reused", param="key")

    def _admit(self, path: Path, table: pa.Table) -> None:
        self._segments[path.name.split(".")[0]] = path
        for position, row_id in enumerate(table.column("row_id").to_pylist()):
            self._places[row_id] = _Place(segment=path, position=position)

    def _take(self, row_ids: Iterable[str]) -> dict[str, Row]:
        positions: dict[Path, list[int]] = defaultdict(list)
        for row_id in row_ids:
            place = self._places.get(row_id)
            if place is None:
                raise NotFound(f"shard {self._folder} has no row {row_id}", code="unknown_row", param=row_id)
            positions[place.segment].append(place.position)
        return {row.row_id: row for path, wanted in positions.items() for row in rows_of(self._read(path).take(wanted))}

    def _read(self, path: Path) -> pa.Table:
        """The segment's table; its bytes are checked against the digest in its name each time."""
        try:
            data = path.read_bytes()
        except OSError as error:
            raise self._corrupt(path, f"can't be read ({error.strerror})") from error
        if f".{digest_bytes(data)[:_DIGEST_CHARS]}." not in path.name:
            raise self._corrupt(path, "its bytes are not the ones that were written")
        table = pq.read_table(io.BytesIO(data))
        if not table.schema.equals(SCHEMA):
            raise self._corrupt(path, f"its columns are not those of {FORMAT}")
        return table

    def _corrupt(self, path: Path, problem: str) -> Corrupt:
        return Corrupt(
            f"shard {self._folder}, segment {path.name}: {problem}",
            code="corrupt_segment",
            param=str(path),
            fix="restore this file from a backup; the other shards are not affected",
        )


class ShardHost:
    """One shard number's part of every Datanet, a `Shard` in a folder for each; opened when first asked for."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._shards: dict[str, Shard] = {}

    def append(self, datanet: str, rows: Sequence[Row], key: str) -> None:
        self._shard(datanet).append(rows, key)

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


def _parquet_bytes(table: pa.Table, key: str) -> bytes:
    stream = io.BytesIO()
    stamped = table.replace_schema_metadata({**(table.schema.metadata or {}), b"openledger.key": key.encode()})
    pq.write_table(stamped, stream, compression="zstd")
    return stream.getvalue()


def _key_digest(key: str) -> str:
    return digest_bytes(key.encode())[:_DIGEST_CHARS]


def _remove_leftovers(folder: Path) -> None:
    """Files whose writing was cut off before they got their name; nobody was told that they are stored."""
    for path in folder.glob(".*.new"):
        path.unlink()
