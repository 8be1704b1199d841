"""Bulk reads of rows straight from storage, beside the process that owns their shard: for training and statistics.

Owns how a part of a shard is read by whoever was given it; who may is decided before (`Datanets.bulk_parts`,
`export_parts`). A part names files and the rows that are wanted of them. The owner may write its files anew meanwhile
(it compacts, or rows are taken back); then what is left of the part is looked for in the files of now. A row that isn't
there any more is never left out in silence, but for a reader that counts them (`is_whole`).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from openledger.core.errors import Unavailable
from openledger.datanets.rows import SCHEMA

PART_ROWS = 50_000
_ID = "row_id"


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Some files of one shard, a Lance dataset at `uri` (with Lance's storage `options`): `row_ids` are wanted of the
    `num_rows` rows in them, in their order."""

    uri: str
    options: Mapping[str, str] | None
    files: tuple[str, ...]
    num_rows: int
    row_ids: tuple[str, ...]


def read_part(part: Part, columns: Sequence[str] = tuple(SCHEMA.names), *, is_whole: bool = True) -> Iterator[pa.Table]:
    """Its rows as tables with `columns` of `rows.SCHEMA`.

    Raises Unavailable (`rows_changed`) where some of them were taken back or moved to another shard since the part was
    made, `storage_unavailable` where the shard can't be read. Unless it has to be whole: then the rest comes alone.
    """
    left = dict.fromkeys(part.row_ids)  # as ids and no count: nothing says which rows a file has lost
    reason: Exception | None = None
    try:
        for table in _read_files(part, columns):
            for row_id in table.column(_ID).to_pylist():
                left.pop(row_id, None)
            yield table.select(list(columns))
    except (OSError, ValueError) as error:  # Lance says both of a file that is gone
        reason = error
    if not left:
        return
    try:
        found = list(_read_rows(part, list(left), columns))
    except (OSError, ValueError) as error:
        if is_whole:
            raise _unreadable(part, reason or error) from error
        found = []
    if is_whole and sum(map(len, found)) < len(left):
        raise Unavailable(
            f"rows of {part.uri} were taken back or moved while they were read",
            code="rows_changed",
            param=part.uri,
            fix="read the version again from its beginning",
        )
    yield from found or [SCHEMA.empty_table().select(list(columns))]  # a reader of Ray's has to bring something


def _read_files(part: Part, columns: Sequence[str]) -> Iterator[pa.Table]:
    """With the rows' ids, also where `columns` has none."""
    dataset = _open(part)
    by_file = {fragment.metadata.files[0].path: fragment for fragment in dataset.get_fragments()}
    if not all(name in by_file for name in part.files):
        raise OSError(f"{part.uri} has other files by now")
    fragments = [by_file[name] for name in part.files]
    tables = _tables(dataset.scanner(columns=[*columns, *_unless_in(columns)], fragments=fragments), columns)
    if len(part.row_ids) == part.num_rows:
        yield from tables
        return
    wanted = pa.array(part.row_ids, pa.string())
    for table in tables:
        yield table.filter(pc.is_in(table.column(_ID), value_set=wanted))


def _read_rows(part: Part, row_ids: Sequence[str], columns: Sequence[str]) -> Iterator[pa.Table]:
    wanted = pa.array(row_ids, pa.string())
    for table in _tables(_open(part).scanner(columns=[*columns, *_unless_in(columns)]), columns):
        if len(found := table.filter(pc.is_in(table.column(_ID), value_set=wanted))):
            yield found.select(list(columns))


def _tables(scanner: Any, columns: Sequence[str]) -> Iterator[pa.Table]:
    schema = pa.schema([SCHEMA.field(name) for name in (*columns, *_unless_in(columns))], SCHEMA.metadata)
    for batch in scanner.to_batches():
        fields = pa.schema([schema.field(name) for name in batch.schema.names], SCHEMA.metadata)
        yield pa.Table.from_batches([pa.RecordBatch.from_arrays(batch.columns, schema=fields)])


def _unless_in(columns: Sequence[str]) -> tuple[str, ...]:
    return () if _ID in columns else (_ID,)


def _open(part: Part) -> Any:
    import lance

    return lance.dataset(part.uri, storage_options=None if part.options is None else dict(part.options))


def _unreadable(part: Part, error: Exception) -> Unavailable:
    return Unavailable(
        f"{part.uri} can't be read: {error}",
        code="storage_unavailable",
        param=part.uri,
        fix="check the disk or the store, and that this process runs where it is; then read again",
    )
