"""The index actors: `IndexHost` builds adapters' indexes and scores answers against them, `IndexShardHost` holds a part
of one index in memory and answers queries; and `index_task`, which builds as the first does. No logic of their own.

An index of more than `HELD_BYTES` is read by shard hosts, spread over the nodes, each of which holds about as much: the
first host makes the queries and puts together what they say, and they end with the call.
"""

import asyncio
from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import ray
import torch

from openledger.adapters.base_model import BaseModel, load_tokenizer
from openledger.attribution.bank_folder import KeptBank, bank_outcomes
from openledger.attribution.index import GradientIndex, IndexEntry, build_index
from openledger.attribution.index_folder import is_finished, read_index
from openledger.attribution.likeness import build_repeats, lacks_repeats
from openledger.attribution.merges import Factors, Merge, merge_gains
from openledger.attribution.replay import Replay, replay_run
from openledger.attribution.shards import Batcher, Top, merge_tops
from openledger.attribution.views import load_views
from openledger.core.errors import Unavailable
from openledger.core.values import Answer, Row
from openledger.training.examples import check_lengths, encode_answer, encode_row
from openledger.training.recipe import device_of, gpus_for
from openledger.training.record import load_run, load_weights, run_start
from openledger.training.trainer import check_gpus

Float = npt.NDArray[np.float32]
HELD_BYTES = 8 << 30
GPU_WAIT_S = 300  # for a place on a GPU, and to begin there


class IndexHost:
    """Knows a base model, and computes on `device`. An adapter comes as paths, one for each point of its run that is
    measured: the views of its index, named after them. A path is a checkpoint in the adapter's folder, or a PEFT
    folder."""

    def __init__(self, base: BaseModel, threads: int = 1, device: str = "cpu", held_bytes: int = HELD_BYTES):
        torch.set_num_threads(threads)
        self._base, self._threads, self._device, self._held_bytes = base, threads, device, held_bytes
        self._tokenizer = load_tokenizer(base)

    def build(
        self,
        views: Sequence[str],
        adapter_digest: str,
        trained: Sequence[Row],
        decoys: Sequence[Row],
        folder: str,
        run: str = "",
    ) -> int:
        """Build the adapter's index at `folder` (or find it there); the number of rows in it. With `run`, the folder of
        the recorded run that made it, the rows that repeat others are found too, and lists of before are completed
        (`likeness`); `trained` are the run's rows that are left."""
        place = Path(folder)
        lacks = bool(run) and lacks_repeats(place, Path(run))
        if is_finished(place) and not lacks:
            return len(self._open(folder, adapter_digest).entries)
        encoded, spare = ([encode_row(self._tokenizer, row) for row in rows] for rows in (trained, decoys))
        check_lengths([*encoded, *spare], self._base)
        if lacks:
            build_repeats(self._base, Path(run), encoded, place, device=self._device)
        if is_finished(place):
            return len(self._open(folder, adapter_digest).entries)
        module, found = load_views(self._base, views, self._device)
        index = build_index(module, encoded, spare, place, adapter_digest, views=found, base_digest=self._base.digest)
        return len(index.entries)

    def score(
        self,
        views: Sequence[str],
        adapter_digest: str,
        folder: str,
        answers: Sequence[Answer],
        withdrawn: Collection[str] = (),
    ) -> tuple[list[IndexEntry], Float]:
        """Influence of every indexed row on every answer: (entries, [num_rows, num_answers]). Raises InvalidInput for
        an answer that is empty or longer than the base's context."""
        index, examples = self._open(folder, adapter_digest, withdrawn), [encode_answer(answer) for answer in answers]
        check_lengths(examples, self._base)
        module, found = load_views(self._base, views, self._device)
        vectors_VQP = index.query_vectors(module, examples, views=found)
        num_hosts = -(-index.plan.num_bytes // self._held_bytes)
        if num_hosts <= 1:
            return index.entries, index.score(vectors_VQP)
        return index.entries, _spread_scores(index, num_hosts, vectors_VQP)

    def _open(self, folder: str, adapter_digest: str, withdrawn: Collection[str] = ()) -> GradientIndex:
        return GradientIndex.open(Path(folder), adapter_digest, base_digest=self._base.digest, withdrawn=withdrawn)

    def bank_outcomes(self, adapter_folder: str, bank: KeptBank, answers: Sequence[Answer]) -> npt.NDArray[np.float64]:
        """Every answer's log-likelihood per token under each coalition of the adapter's bank, [num_coalitions,
        num_answers]."""
        examples = [encode_answer(answer) for answer in answers]
        return bank_outcomes(Path(adapter_folder), bank, self._base, examples, device=self._device)

    def replay(
        self, adapter_folder: str, rows: Sequence[Row], targets: Sequence[Sequence[tuple[Answer, float]]], folder: str
    ) -> Replay:
        """The settlement's replay of the run at `adapter_folder`, whose rows are `rows` in its record's order. What is
        done lies in `folder`: a call that is made again, by Ray after this actor died or by another settlement, goes on
        from there. Raises as `replay.replay_run`; Conflict (`run_deviates`) where a weight of the run repeated ends
        further from its record's than one step moves it."""
        run = Path(adapter_folder)
        record = load_run(run)
        try:
            return replay_run(
                self._base,
                record,
                [encode_row(self._tokenizer, row) for row in rows],
                [[(encode_answer(answer), weight) for answer, weight in target] for target in targets],
                start=run_start(run, record),
                final=load_weights(run / "adapter_model.safetensors"),
                checkpoints=Path(folder),
                device=self._device,
                within=record.recipe.learning_rate,
            )
        finally:
            torch.set_num_threads(self._threads)

    def merge_gains(
        self, merge: Merge, points: Sequence[Factors], answers: Sequence[Answer]
    ) -> npt.NDArray[np.float64]:
        """As `merges.merge_gains`, [num_points, num_answers]; on the CPU, however the host was started."""
        return merge_gains(self._base, merge, points, [encode_answer(answer) for answer in answers])


class IndexShardHost:
    """Some shards of an index, mapped into memory from a folder that its node sees. Queries that come while others are
    answered are answered next, by one product."""

    def __init__(
        self,
        folder: str,
        adapter_digest: str,
        shards: Sequence[int],
        withdrawn: Collection[str] = (),
        threads: int = 1,
    ):
        torch.set_num_threads(threads)
        self._index = GradientIndex.open(Path(folder), adapter_digest, withdrawn=withdrawn)
        self._shards = tuple(shards)
        self._batcher = Batcher(partial(self._index.top, shards=self._shards))

    async def top(self, queries_VQP: Float, k: int) -> Top:
        """The best `k` trained rows of these shards for each query. Raises InvalidInput as `GradientIndex.top`."""
        self._index.check_query(queries_VQP, k)  # before it is batched with others'
        return await self._batcher.top(queries_VQP, k)

    async def scores(self, queries_VQP: Float) -> dict[int, Float]:
        """By shard, each of its entries' influence on every query, [R, Q]. Raises InvalidInput as
        `GradientIndex.score`."""
        return await asyncio.to_thread(
            lambda: {shard: self._index.shard_scores(queries_VQP, shard) for shard in self._shards}
        )


def index_task(base: BaseModel, *, num_gpus: float | None = None) -> Callable[..., Any]:
    """As `IndexHost.build.remote`, each call by a task. Ray gives it a worker that earlier tasks ran in, such as a
    bank's: what takes seconds to import is there. An actor has a new process. A task takes of a GPU what the recipe of
    the recorded run says, where `num_gpus` doesn't say otherwise. Raises as `check_gpus`."""
    return partial(_begin_build, base, num_gpus)


def _begin_build(
    base: BaseModel,
    num_gpus: float | None,
    views: Sequence[str],
    adapter_digest: str,
    trained: Sequence[Row],
    decoys: Sequence[Row],
    folder: str,
    run: str = "",
) -> Any:
    num_gpus = index_gpus(run, num_gpus)
    task = ray.remote(_build).options(num_cpus=1, num_gpus=num_gpus, max_retries=2, name="index")
    return task.remote(base, device_of(num_gpus), views, adapter_digest, trained, decoys, folder, run)


def index_gpus(run: str, asked: float | None) -> float:
    """What of a GPU a task of an index takes: what `asked` says, else the recipe of the recorded run at `run`, where
    there is one. Raises as `check_gpus`."""
    num_gpus = gpus_for(load_run(Path(run)).recipe if run else None, asked)
    check_gpus(num_gpus)
    return num_gpus


def _build(base: BaseModel, device: str, *arguments: Any) -> int:
    return IndexHost(base, device=device).build(*arguments)


def start_index_host(
    base: BaseModel,
    num_cpus: float = 1,
    num_gpus: float = 0,
    *,
    held_bytes: int = HELD_BYTES,
    wait_s: float = GPU_WAIT_S,
) -> Any:
    """One with a part of a GPU has begun when it is returned. Raises as `check_gpus`; Unavailable (`gpu_busy`) where
    that hasn't begun within `wait_s`: other actors may keep a GPU for good."""
    check_gpus(num_gpus)
    options = {"num_cpus": num_cpus, "num_gpus": num_gpus, "max_restarts": 2, "max_task_retries": 2}
    host = ray.remote(IndexHost).options(**options).remote(base, device=device_of(num_gpus), held_bytes=held_bytes)
    if num_gpus:
        try:
            ray.get(host.__ray_ready__.remote(), timeout=wait_s)
        except ray.exceptions.GetTimeoutError:
            ray.kill(host)
            raise Unavailable(
                f"no {num_gpus:g} of a GPU was free within {wait_s:g} s; GPUs are held by {_gpu_holders()}",
                code="gpu_busy",
                param="num_gpus",
                fix="run it again when that has ended, or without a GPU: --gpus 0",
            ) from None
    return host


def _gpu_holders() -> str:
    """The actors and tasks that have a part of a GPU, with how much, as far as Ray can tell."""
    from ray.util.state import list_actors, list_tasks  # heavy, and each worker imports this module

    options: Any = {"detail": True, "limit": 1000, "timeout": 10, "raise_on_missing_output": False}
    try:
        actors = list_actors(filters=[("state", "=", "ALIVE")], **options)
        tasks = list_tasks(filters=[("state", "=", "RUNNING")], **options)
    except Exception:  # noqa: BLE001 - it is the dashboard that tells, and there may be none
        return "other work (ray status tells how many)"
    asked = [(one.class_name, one.required_resources) for one in actors]
    asked += [(one.name, one.required_resources) for one in tasks]
    held = sorted(f"{name} ({own['GPU']:g})" for name, own in asked if own and own.get("GPU"))
    return ", ".join(held) or "other work"


def start_shard_hosts(
    folder: Path,
    adapter_digest: str,
    num_hosts: int,
    *,
    withdrawn: Collection[str] = (),
    num_cpus: float = 1,
) -> list[Any]:
    """Actors that hold the finished index at `folder` between them, spread over the nodes; at most one for each shard.
    A host that dies is restarted, and calls that it took with it are asked again."""
    num_shards = len(read_index(folder)[0].shards)
    host = ray.remote(IndexShardHost).options(
        num_cpus=num_cpus, max_restarts=-1, max_task_retries=-1, scheduling_strategy="SPREAD"
    )
    parts = [range(first, num_shards, num_hosts) for first in range(min(num_hosts, num_shards))]
    return [host.remote(str(folder), adapter_digest, part, tuple(withdrawn)) for part in parts]


def top_of_hosts(hosts: Sequence[Any], queries_VQP: Float, k: int) -> Top:
    """The best `k` rows of all hosts' shards: what `GradientIndex.top` says of the whole index."""
    queries = ray.put(queries_VQP)
    return merge_tops(ray.get([host.top.remote(queries, k) for host in hosts]), k)


def scores_of_hosts(hosts: Sequence[Any], queries_VQP: Float) -> Float:
    """Every entry's influence on every query, [R, Q]: what `GradientIndex.score` says of the whole index."""
    queries, found = ray.put(queries_VQP), dict[int, Float]()
    for part in ray.get([host.scores.remote(queries) for host in hosts]):
        found |= part
    return np.concatenate([found[shard] for shard in sorted(found)])


def _spread_scores(index: GradientIndex, num_hosts: int, queries_VQP: Float) -> Float:
    # they hold state: with processors of their own they would wait for those that engines have
    hosts = start_shard_hosts(index.folder, index.plan.adapter_digest, num_hosts, withdrawn=index.withdrawn, num_cpus=0)
    try:
        return scores_of_hosts(hosts, queries_VQP)
    finally:
        for host in hosts:
            ray.kill(host)
