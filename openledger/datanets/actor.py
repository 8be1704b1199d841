"""Ray actors around `ShardHost`, `Datanets` and `Ingest`: names, placement and restarts, no logic.

The Datanets' methods run on one event loop, one after the other, but for contributions, which wait there for workers
and shards, and manifests, which a thread reads; so nothing else of it needs a lock. A shard has threads, and stores
what they bring together. What waits is bounded by how many calls an actor takes at a time.

The actors are detached and hold state alone, so they take no CPU. They are pinned to the node that has the folder's
disk: elsewhere a restarted actor would find an empty one. Shards in an object store may be anywhere, and start anew
elsewhere when their node is lost. Every call may be repeated, so Ray may retry.
"""

import asyncio
import logging
import os
import threading
from collections.abc import Collection, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from openledger.core.clock import SystemClock
from openledger.core.errors import OpenLedgerError, Unavailable
from openledger.core.values import Contribution, ContributionReceipt, Row, Verdict
from openledger.datanets.bulk import Part
from openledger.datanets.datanets import Datanets
from openledger.datanets.dedupe import Order
from openledger.datanets.detectors import installed_detectors
from openledger.datanets.gate import Rules
from openledger.datanets.ingest import STORED_AT_ONCE, Ingest, prepare_here
from openledger.datanets.keyed import KeyedBatch
from openledger.datanets.owner import Found
from openledger.datanets.preparing import Prepared
from openledger.datanets.rows import packed
from openledger.datanets.shard import ShardHost
from openledger.datanets.storage import check_forgets, shard_places
from openledger.datanets.versions import ManifestRow

NAMESPACE = "openledger"
RETRY_S = 30
DATANETS_ACTOR = "openledger-datanets"
GATE_WORKERS = 2
_WORKERS = "gate_workers"  # among the registry's properties
CALLS_AT_ONCE = 64  # of the Datanets: so many contributions are in memory, of at most 16 MB each
SHARD_CALLS_AT_ONCE = 2 * STORED_AT_ONCE  # or reads would wait for as many appends
_LOST = (  # of a task: its process, its node, or what it found
    ray.exceptions.WorkerCrashedError,
    ray.exceptions.OutOfMemoryError,
    ray.exceptions.NodeDiedError,
    ray.exceptions.LocalRayletDiedError,
    ray.exceptions.ObjectLostError,
)
_log = logging.getLogger(__name__)


def start_datanets(
    folder: Path,
    num_shards: int,
    namespace: str = NAMESPACE,
    storage: str = "",
    gate_workers: int | None = None,
    duplicates_by_shard: bool | None = None,
) -> Any:
    """The handle of the Datanets actor over `num_shards` shard actors, found by name or started: on this node, or with
    an object store's URI as `storage` on any. Rows that lie in more shards, or in fewer, are moved while it answers.

    `gate_workers` processes prepare large contributions beside it, from now on; none with 0. Without it they stay as
    many as they are, or are `GATE_WORKERS`. `duplicates_by_shard` divides the duplicate index over the shards, or
    takes it back into one process with False; without it, it stays where it is.

    Needs an initialised Ray. Raises Unavailable, with the reason, where the folder can't be opened, Conflict
    (`storage_changed`) where the rows lie elsewhere, and as `check_forgets`.
    """
    check_forgets(storage, os.environ)
    shards = [
        _get_or_create(
            ShardHost,
            f"openledger-shard-{number}",
            namespace,
            place,
            at_once=SHARD_CALLS_AT_ONCE,
            anywhere=bool(storage),
        )
        for number, place in enumerate(shard_places(folder.absolute(), num_shards, storage))
    ]
    datanets = _get_or_create(
        DatanetsActor,
        DATANETS_ACTOR,
        namespace,
        folder.absolute(),
        shards,
        num_shards,
        duplicates_by_shard,
        at_once=CALLS_AT_ONCE,
    )
    _result(datanets.names.remote() if gate_workers is None else datanets.use_gate_workers.remote(gate_workers))
    if duplicates_by_shard is not None:
        _result(datanets.divide_duplicates.remote(by_shard=duplicates_by_shard))
    return datanets


class ShardHandle:
    """A shard actor's handle as a `ShardPort`. Errors arrive as they were raised."""

    def __init__(self, actor: Any):
        self._actor = actor

    def append(self, datanet: str, rows: Sequence[Row], key: str) -> None:
        _result(self._actor.append.remote(datanet, packed(rows), key))

    def remove(self, datanet: str, row_ids: Sequence[str]) -> int:
        return int(_result(self._actor.remove.remote(datanet, list(row_ids))))

    def rows(self, datanet: str, row_ids: Sequence[str]) -> list[Row]:
        found: list[Row] = _result(self._actor.rows.remote(datanet, list(row_ids)))
        return found

    def parts(self, datanet: str, row_ids: Sequence[str]) -> list[Part]:
        found: list[Part] = _result(self._actor.parts.remote(datanet, list(row_ids)))
        return found

    def held(self, datanet: str, row_ids: Sequence[str]) -> list[str]:
        found: list[str] = _result(self._actor.held.remote(datanet, list(row_ids)))
        return found

    def row_ids(self, datanet: str) -> list[str]:
        found: list[str] = _result(self._actor.row_ids.remote(datanet))
        return found

    def scan(self, datanet: str) -> list[pa.RecordBatch]:
        found: list[pa.RecordBatch] = _result(self._actor.scan.remote(datanet))
        return found

    def count(self, datanet: str) -> int:
        return int(_result(self._actor.count.remote(datanet)))

    def open_duplicates(self, key_name: str, session: int) -> dict[str, Order] | None:
        found: dict[str, Order] | None = _result(self._actor.open_duplicates.remote(key_name, session))
        return found

    def enter_duplicates(
        self, session: int, row_ids: Sequence[str], orders: Sequence[Order], features: KeyedBatch
    ) -> bool | None:
        entered: bool | None = _result(self._actor.enter_duplicates.remote(session, row_ids, orders, features))
        return entered

    def find_duplicates(self, session: int, features: KeyedBatch, place: tuple[int, int]) -> Found | None:
        found: Found | None = _result(self._actor.find_duplicates.remote(session, features, place))
        return found

    def find_repetitions(self, session: int, features: KeyedBatch, place: tuple[int, int]) -> Found | None:
        found: Found | None = _result(self._actor.find_repetitions.remote(session, features, place))
        return found

    def count_questions(self, session: int, words: Sequence[str]) -> list[int] | None:
        found: list[int] | None = _result(self._actor.count_questions.remote(session, words))
        return found

    def forget_duplicates(self, row_ids: Collection[str]) -> None:
        _result(self._actor.forget_duplicates.remote(list(row_ids)))


def _was_restarted() -> bool:
    """Whether this process is an actor's that Ray started anew."""
    if not ray.is_initialized():
        return False
    context = ray.get_runtime_context()
    return context.get_actor_id() is not None and bool(context.was_current_actor_reconstructed)


class DatanetsActor(Datanets):
    """`Datanets` over shard actors. While rows move, each step calls for the next one, behind whoever waits already. A
    step that fails is logged, told in `move_state` and tried again after `RETRY_S`: storage comes back."""

    def __init__(self, folder: Path, shards: Sequence[Any], num_shards: int, duplicates_by_shard: bool | None = None):
        handles = [ShardHandle(shard) for shard in shards]
        if _was_restarted():
            duplicates_by_shard = None  # it was asked for at the first start, and perhaps otherwise since
        os.environ.setdefault("RAY_WARN_BLOCKING_GET_INSIDE_ASYNC", "0")  # that nothing else goes on is what is wanted
        super().__init__(
            folder,
            handles,
            SystemClock(),
            installed_detectors(),
            num_shards,
            moves_later=True,
            duplicates_by_shard=duplicates_by_shard,
        )
        self._reading = asyncio.Lock()  # of a version's manifest
        self._ingest = Ingest(self, _prepared_by_ray, int(self._registry.find_property(_WORKERS) or GATE_WORKERS))
        self._call_for_next_step()

    async def contribute(  # type: ignore[override]  # Ray's callers wait for either
        self, contribution: Contribution, prepared: Prepared | None = None
    ) -> ContributionReceipt:
        return await self._ingest.contribute(contribution)

    async def preview(  # type: ignore[override]
        self, contribution: Contribution, prepared: Prepared | None = None
    ) -> tuple[Verdict, ...]:
        return super().preview(contribution, await self._ingest.prepared_dry_run(contribution))

    async def manifest(self, name: str, number: int) -> dict[str, Any]:  # type: ignore[override]
        await self._read_ahead(name, number)
        return super().manifest(name, number)

    async def manifest_rows(  # type: ignore[override]
        self, name: str, number: int, after: str, limit: int
    ) -> list[ManifestRow]:
        await self._read_ahead(name, number)
        return super().manifest_rows(name, number, after, limit)

    async def _read_ahead(self, name: str, number: int) -> None:
        """Anybody may ask for a version, and a large one takes a while to be read and checked: in a thread, while
        others are answered, one at a time."""
        version = self.version(name, number)
        if self._manifests.find(version) is not None:
            return
        async with self._reading:
            if self._manifests.find(version) is None:
                self._manifests.keep(version, await asyncio.to_thread(self._manifest_reader(version)))

    def use_gate_workers(self, number: int) -> None:
        """From now on, also after a restart of this actor, of which nobody is told."""
        self._registry.set_property(_WORKERS, str(number))
        self._ingest.use_workers(number)

    def move_rows(self) -> bool:
        try:
            more = super().move_rows()
        except (OpenLedgerError, OSError, ray.exceptions.RayError) as error:  # no next step: it would stand for ever
            _log.warning("rows couldn't be moved, again in %d s: %s", RETRY_S, error)
            self._call_for_next_step(RETRY_S)
            return True
        if more:
            self._call_for_next_step()
        return more

    def _call_for_next_step(self, delay_s: float = 0) -> None:
        actor = ray.get_runtime_context().current_actor
        if not delay_s:
            actor.move_rows.remote()
            return
        timer = threading.Timer(delay_s, actor.move_rows.remote)
        timer.daemon = True
        timer.start()


def _get_or_create(cls: type, name: str, namespace: str, *arguments: Any, at_once: int, anywhere: bool = False) -> Any:
    here = NodeAffinitySchedulingStrategy(node_id=ray.get_runtime_context().get_node_id(), soft=False)
    options = ray.remote(cls).options(
        name=name,
        namespace=namespace,
        lifetime="detached",
        get_if_exists=True,
        num_cpus=0,
        max_concurrency=at_once,
        max_restarts=-1,
        max_task_retries=-1,
        scheduling_strategy="SPREAD" if anywhere else here,
    )
    return options.remote(*arguments)


async def _prepared_by_ray(contribution: Contribution, detectors: tuple[str, ...], rules: Rules) -> Prepared | None:
    """By a task that takes no CPU of Ray's: all may be engaged for as long as the platform runs."""
    try:
        found: Prepared = await _prepare_task().remote(contribution, detectors, rules)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, OpenLedgerError):
            raise error.cause from None
        raise
    except _LOST:
        return None
    return found


@cache
def _prepare_task() -> Any:
    return ray.remote(prepare_here).options(num_cpus=0, max_retries=1)


def _result(reference: Any) -> Any:
    """What the call returned, or the error of ours that it raised, without Ray's wrapping."""
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, OpenLedgerError):
            raise error.cause from None
        raise
    except ray.exceptions.RayActorError as error:
        reason = str(error).strip().splitlines()[-1]  # of a failed start Ray keeps the traceback's text alone
        raise Unavailable(f"an actor of the Datanets is gone: {reason}", code="actor_unavailable") from error
