"""Rows as Arrow tables: the one schema in which they are stored and handed on."""

from collections.abc import Iterator, Sequence
from dataclasses import fields

import pyarrow as pa

from openledger.core.values import Row

FORMAT = "rows/1"
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
    ],
    metadata={"openledger.format": FORMAT},
)
_NAMES = tuple(field.name for field in fields(Row))


def table_of(rows: Sequence[Row]) -> pa.Table:
    return pa.table({name: [getattr(row, name) for row in rows] for name in _NAMES}, schema=SCHEMA)


def rows_of(table: pa.Table | pa.RecordBatch) -> Iterator[Row]:
    """The rows of a table or batch in SCHEMA, in its order."""
    for value in table.to_pylist():
        yield Row(**value)
