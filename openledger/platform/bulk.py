"""A version's rows as a Ray Dataset: read by Ray's tasks straight from storage, not through the shard actors.

Ray Data's own reader of Lance takes whole datasets; here a version's rows alone are read, and permission is asked for
first. Tasks end in any order; what training is given is sorted by row id, so that a run can be repeated.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa
import ray
import ray.data
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask

from openledger.core.errors import OpenLedgerError
from openledger.core.values import Row
from openledger.datanets.bulk import Part, read_part
from openledger.datanets.rows import SCHEMA, rows_of

MAX_AT_ONCE = 4  # tasks that read at the node of the Datanets
_TRIES = 5
_NODE_LABEL = "ray.io/node-id"  # Ray gives it to each node


def version_dataset(
    datanets: Any, name: str, number: int, party: str, columns: Sequence[str] = tuple(SCHEMA.names)
) -> "ray.data.Dataset":
    """The rows of a version but for those removed since, in no order, for `party` to train on. `datanets` is the handle
    of the Datanets actor. Where shards stand on its node's disk, they are read there.

    Raises as `Datanets.check_training`, NotFound for another version, Corrupt where rows are missing. Reading raises
    Unavailable (`rows_changed`) where rows are taken back meanwhile.
    """
    return _dataset(datanets, _answered(datanets.bulk_parts.remote(name, number, party)), columns)


def version_rows(datanets: Any, name: str, number: int, party: str) -> list[Row]:
    """The rows of `version_dataset`, sorted by row id. Raises as it does, and as its reading."""
    return _standing_rows(datanets, lambda: _answered(datanets.bulk_parts.remote(name, number, party)))


def export_rows(datanets: Any, name: str, number: int, party: str) -> list[Row]:
    """As `version_rows`, for `party` to hand on, as `Datanets.check_export` lets it."""
    return _standing_rows(datanets, lambda: _answered(datanets.export_parts.remote(name, number, party)))


def _standing_rows(datanets: Any, ask: Callable[[], list[Part]]) -> list[Row]:
    """Where some weren't found, it asks again which rows stand, keeps those of them that it has, and reads the others:
    rows that are taken back one after the other make nothing be read twice."""
    rows = dict[str, Row]()
    for left in reversed(range(_TRIES)):
        parts = ask()
        standing = {row_id for part in parts for row_id in part.row_ids}
        rows = {row_id: row for row_id, row in rows.items() if row_id in standing}
        missing = [replace(part, row_ids=tuple(one for one in part.row_ids if one not in rows)) for part in parts]
        rows |= _read(datanets, [part for part in missing if part.row_ids], is_whole=not left)
        if len(rows) == len(standing):
            break
    return [rows[row_id] for row_id in sorted(rows)]


def _read(datanets: Any, parts: Sequence[Part], *, is_whole: bool) -> dict[str, Row]:
    if not parts:
        return {}
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # a job's output is its own, and its errors are raised
    try:
        dataset = _dataset(datanets, parts, SCHEMA.names, is_whole=is_whole)
        tables = list(dataset.iter_batches(batch_size=None, batch_format="pyarrow"))
    except Exception as error:  # noqa: BLE001 - Ray Data wraps ours in several kinds of its own
        raise _ours(error) or error from None
    return {row.row_id: row for table in tables for row in rows_of(table)}


def _dataset(
    datanets: Any, parts: Sequence[Part], columns: Sequence[str], *, is_whole: bool = True
) -> "ray.data.Dataset":
    source, options = PartsDatasource(parts, columns, is_whole=is_whole), dict[str, Any]()
    if any(part.options is None for part in parts):  # its node may have no CPU to give, and no other can do it
        node = ray.get(datanets.__ray_call__.remote(_node_of))
        options = {"label_selector": {_NODE_LABEL: node}, "num_cpus": 0, "concurrency": min(MAX_AT_ONCE, len(parts))}
    return ray.data.read_datasource(source, override_num_blocks=max(1, len(parts)), **options)


class PartsDatasource(Datasource):
    """One read task for each part, which brings what is there of it unless it `is_whole`."""

    def __init__(self, parts: Sequence[Part], columns: Sequence[str], *, is_whole: bool = True):
        super().__init__()
        self._is_whole = is_whole
        self._parts = parts
        self._columns = tuple(columns)

    def estimate_inmemory_data_size(self) -> int | None:
        return None

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        schema = SCHEMA.empty_table().select(list(self._columns)).schema
        return [
            ReadTask(
                _reader(part, self._columns, self._is_whole),
                BlockMetadata(
                    num_rows=len(part.row_ids) if self._is_whole else None,
                    size_bytes=None,
                    input_files=list(part.files),
                    exec_stats=None,
                ),
                schema=schema,
                per_task_row_limit=per_task_row_limit,
            )
            for part in self._parts
        ]


def _reader(part: Part, columns: tuple[str, ...], is_whole: bool) -> Callable[[], Iterator[pa.Table]]:
    """A function of its own, as Ray names tasks by it."""

    def read() -> Iterator[pa.Table]:
        return read_part(part, columns, is_whole=is_whole)

    return read


def _node_of(datanets: Any) -> str:
    return str(ray.get_runtime_context().get_node_id())


def _answered(reference: Any) -> Any:
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise _ours(error) or error from None


def _ours(error: BaseException | None) -> OpenLedgerError | None:
    """The error of ours that is at the bottom of one of Ray's, which wrap each other and pass for what they wrap."""
    while isinstance(error, ray.exceptions.RayError) or not isinstance(error, OpenLedgerError | None):
        error = getattr(error, "cause", None) or error.__cause__
    return error
