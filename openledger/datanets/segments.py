"""Parquet segments: how a shard stored its rows before it was a Lance dataset. Read to take old folders over.

A segment's name holds two digests, of its append's key and of its bytes: `<key>.<content>.parquet`.
"""

import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from openledger.core.errors import Corrupt
from openledger.core.hashing import digest_bytes
from openledger.datanets.rows import FORMAT, SCHEMA, upgraded

_DIGEST_CHARS = 32
_SUFFIX = ".parquet"


def list_segments(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"*{_SUFFIX}"))


def read_segment(path: Path) -> tuple[pa.Table, str]:
    """Its rows in `rows.SCHEMA` and the key under which they were appended. Raises Corrupt (`corrupt_segment`) where
    its bytes aren't those of its name."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise _corrupt(path, f"can't be read ({error.strerror})") from error
    if f".{digest_bytes(data)[:_DIGEST_CHARS]}." not in path.name:
        raise _corrupt(path, "its bytes are not the ones that were written")
    table = upgraded(pq.read_table(io.BytesIO(data)))
    if not table.schema.equals(SCHEMA):
        raise _corrupt(path, f"its columns are not those of {FORMAT}")
    return table, pq.read_schema(io.BytesIO(data)).metadata[b"openledger.key"].decode()


def _corrupt(path: Path, problem: str) -> Corrupt:
    return Corrupt(
        f"shard {path.parent}, segment {path.name}: {problem}",
        code="corrupt_segment",
        param=str(path),
        fix="restore this file from a backup, then start again; other Datanets go on meanwhile",
    )
