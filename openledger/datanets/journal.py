"""Small appends of a shard that aren't in its dataset yet: one file, written at its end, one sync for each change.

A commit of the dataset costs eight syncs and milliseconds of CPU, whatever it holds; so small ones are written here
first, and come into the dataset together. Owns the file and what makes a record of it whole; knows nothing of rows.

    record = mark, length of the content, SHA-256 of the content, the content (an Arrow IPC stream)

A record is durable when `add` returns. One that a crash has cut off ends the file, was not acknowledged, and goes when
it is opened: of it there is the beginning alone, or pages that were never written are zeros. Whatever else isn't as it
was written is damage, and told.
"""

import os
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pyarrow as pa

from openledger.core.errors import Corrupt
from openledger.core.files import sync_folder
from openledger.core.hashing import digest_bytes

_MARK = b"OLROWS1\n"
_HEADER = struct.Struct("<8sQ32s")
_PAGE = 4096  # of the file, which a crash leaves written or not
_END = 5  # an Arrow stream's last bytes, 0xFF and four zeros


class Journal:
    """The file at `path`, which need not be there. One process writes it at a time.

    Raises Corrupt (`corrupt_shard_journal`) as above. Every method may raise OSError; then it can be called again.
    """

    def __init__(self, path: Path):
        self._path = path
        self.num_records = 0
        self._size = 0  # of these
        self._is_sure = False  # that the disk has the file by its name, and no more of it: nothing since has failed

    @property
    def num_bytes(self) -> int:
        return self._size

    @property
    def is_empty(self) -> bool:
        return self._size == 0 and (self._is_sure or not self._path.exists())

    def read(self) -> list[pa.Table]:
        """Everything that was added, in its order; durable, also where a process was killed before it had synced it."""
        data = self._read_durably() if self._path.exists() else b""
        tables, self._size = [], 0
        for end, content in _records(data):
            tables.append(pa.ipc.open_stream(content).read_all())
            self._size = end
        if self._size < len(data):
            self._check_cut_off(data)
            self._put()
        self._is_sure, self.num_records = self._path.exists(), len(tables)
        return tables

    def add(self, table: pa.Table) -> None:
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(table)
        content = sink.getvalue().to_pybytes()
        record = _HEADER.pack(_MARK, len(content), bytes.fromhex(digest_bytes(content))) + content
        try:
            self._put(record)
        except OSError:
            with suppress(OSError):
                self._put()
            raise
        self._size += len(record)
        self.num_records += 1

    def clear(self) -> None:
        """Everything is in the dataset: no byte of it stays here."""
        if self._path.exists():
            self._size = self.num_records = 0
            self._put()

    def _read_durably(self) -> bytes:
        with self._path.open("rb") as file:
            os.fsync(file.fileno())
            sync_folder(self._path.parent)
            return file.read()

    def _put(self, record: bytes = b"") -> None:
        """Behind what was added stands `record`, and nothing else."""
        was_sure, self._is_sure = self._is_sure, False
        with self._path.open("r+b" if self._path.exists() else "wb") as file:
            file.truncate(self._size)
            file.seek(self._size)
            file.write(record)
            file.flush()
            os.fsync(file.fileno())
        if not was_sure:
            sync_folder(self._path.parent)
        self._is_sure = True

    def _check_cut_off(self, data: bytes) -> None:
        if _has_record(data, self._size + 1) or not _is_cut_off(data, self._size):
            raise Corrupt(
                f"file {self._path}: a record at byte {self._size} isn't the one that was written",
                code="corrupt_shard_journal",
                param=str(self._path),
                fix="restore the shard's folder from a backup, then start again; other Datanets go on meanwhile",
            )


def _has_record(data: bytes, start: int) -> bool:
    while (start := data.find(_MARK, start)) >= 0:
        if any(True for _ in _records(data[start:])):
            return True
        start += 1
    return False


def _is_cut_off(data: bytes, start: int) -> bool:
    """Whether a write that began at `start` may have come this far, and no more has happened to it."""
    if _has_unwritten_page(data, start):
        return True
    head, content = data[start : start + _HEADER.size], data[start + _HEADER.size :]
    if len(head) < _HEADER.size:
        return _MARK.startswith(head[: len(_MARK)])
    mark, length, digest = _HEADER.unpack(head)
    return mark == _MARK and len(content) < length and digest_bytes(content) != digest.hex()


def _has_unwritten_page(data: bytes, start: int) -> bool:
    ends = range((start // _PAGE + 1) * _PAGE, len(data), _PAGE)
    parts = [(max(start, end - _PAGE), end) for end in ends] + [(max(start, len(data) - _END), len(data))]
    return any(not data[begin:end].strip(b"\0") for begin, end in parts)


def _records(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The whole ones from the beginning on: where each ends, and its content."""
    start = 0
    while len(data) - start >= _HEADER.size:
        mark, length, digest = _HEADER.unpack_from(data, start)
        begin = start + _HEADER.size
        content = data[begin : begin + length]
        if mark != _MARK or len(content) < length or digest_bytes(content) != digest.hex():
            return
        start = begin + length
        yield start, content
