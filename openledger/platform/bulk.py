"""A version's rows as a Ray Dataset: read by Ray's tasks straight from storage, not through the shard actors.

Ray Data's own reader of Lance takes whole datasets; here a version's rows alone are read, and permission is asked for
first.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import ray
import ray.data
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from openledger.core.errors import OpenLedgerError
from openledger.datanets.bulk import Part, read_part
from openledger.datanets.rows import SCHEMA

MAX_AT_ONCE = 4  # tasks that read at the node of the Datanets


def version_dataset(
    datanets: Any, name: str, number: int, party: str, columns: Sequence[str] = tuple(SCHEMA.names)
) -> "ray.data.Dataset":
    """The rows of a version but for those removed since, in no order, for `party` to train on. `datanets` is the handle
    of the Datanets actor. Where shards stand on its node's disk, they are read there.

    Raises as `Datanets.check_training`, NotFound for another version, Corrupt where rows are missing. Reading raises
    Unavailable (`rows_changed`) where rows are taken back meanwhile.
    """
    parts = _answered(datanets.bulk_parts.remote(name, number, party))
    options, at_once = dict[str, Any](), None
    if any(part.options is None for part in parts):  # its node may have no CPU to give, and no other can do it
        node = ray.get(datanets.__ray_call__.remote(_node_of))
        strategy = NodeAffinitySchedulingStrategy(node_id=node, soft=False)
        options, at_once = {"scheduling_strategy": strategy, "num_cpus": 0}, min(MAX_AT_ONCE, len(parts))
    return ray.data.read_datasource(PartsDatasource(parts, columns), ray_remote_args=options, concurrency=at_once)


class PartsDatasource(Datasource):
    """One read task for each part."""

    def __init__(self, parts: Sequence[Part], columns: Sequence[str]):
        super().__init__()
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
                _reader(part, self._columns),
                BlockMetadata(
                    num_rows=len(part.row_ids), size_bytes=None, input_files=list(part.files), exec_stats=None
                ),
                schema=schema,
                per_task_row_limit=per_task_row_limit,
            )
            for part in self._parts
        ]


def _reader(part: Part, columns: tuple[str, ...]) -> Callable[[], Iterator[pa.Table]]:
    """A function of its own, as Ray names tasks by it."""

    def read() -> Iterator[pa.Table]:
        return read_part(part, columns)

    return read


def _node_of(datanets: Any) -> str:
    return str(ray.get_runtime_context().get_node_id())


def _answered(reference: Any) -> Any:
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, OpenLedgerError):
            raise error.cause from None
        raise
