"""Rows as Arrow tables: the one schema in which they are stored and handed on."""

from collections.abc import Iterator, Sequence
from dataclasses import fields

import pyarrow as pa

from openledger.core.values import Row

FORMAT = "rows/2"
SCHEMA = pa.schema(
    [
        pa.field("row_id", pa.string(), nullable=False),
        pa.field("datanet", pa.string(), nullable=False),
        pa.field("contributor_id", pa.string(), nullable=False),
        pa.field("contribution_id", pa.string(), nullable=False),
        pa.field("ordinal", pa.int32(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("prompt", pa.string(), nullable=False),
        pa.field("completion", pa.string(), nullable=False),
        pa.field("extra", pa.string(), nullable=False),
    ],
    metadata={"openledger.format": FORMAT},
)
_NAMES = tuple(field.name for field in fields(Row))


def upgraded(rows: pa.Table | pa.RecordBatch) -> pa.Table | pa.RecordBatch:
    """Rows as `rows/1` had them, without `extra`, in SCHEMA's columns; columns that stand after them stay."""
    if "extra" in rows.schema.names:
        return rows
    place, empty = SCHEMA.get_field_index("extra"), pa.array([""] * rows.num_rows, pa.string())
    return rows.add_column(place, SCHEMA.field("extra"), empty)


def packed(rows: Sequence[Row]) -> bytes:
    """Rows on their way to another process, which `table_of` takes as they come: an Arrow IPC stream."""
    table, sink = table_of(rows), pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, SCHEMA) as stream:
        stream.write_table(table)
    return bytes(sink.getvalue())


def table_of(rows: Sequence[Row] | bytes) -> pa.Table:
    """Of rows, or of what `packed` made of them."""
    if isinstance(rows, bytes):
        return pa.ipc.open_stream(rows).read_all()
    return pa.table({name: [getattr(row, name) for row in rows] for name in _NAMES}, schema=SCHEMA)


def rows_of(table: pa.Table | pa.RecordBatch) -> Iterator[Row]:
    """The rows of a table or batch in SCHEMA, in its order."""
    for value in table.to_pylist():
        yield Row(**value)
