"""Fine-tuning under Ray Train. Holds no mathematics: `worker` runs `loop.train` for each job and reports.

With at least as many jobs as workers, each worker trains whole adapters (jobs[rank::workers]) and the arithmetic of a
run doesn't depend on how many others there are. With fewer, all workers share each job, rows of a batch split among
them and gradients summed by gloo.
"""

import json
import logging
import os
import pickle
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from queue import Queue
from threading import Thread
from typing import TYPE_CHECKING, Any

from openledger import __version__
from openledger.adapters.base_model import BaseModel
from openledger.adapters.card import AdapterCard, adapter_digest, save_card
from openledger.core.errors import InvalidInput, Unavailable
from openledger.core.files import sync_folder, write_json_durably
from openledger.core.hashing import digest_json
from openledger.core.values import DatanetVersion, Row
from openledger.training.recipe import WHERE, Recipe, check_gpu_share, from_adapter, public_constant, row_root_constant
from openledger.training.start import Parent, check_parent, keep_start, start_folder

if TYPE_CHECKING:
    from openledger.training.examples import Example

_NODE_WAIT_S = 600  # for an autoscaler to start a node with a GPU
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingJob:
    """One adapter to train. `rows` are in source order; the adapter, its card and its curve go to `output`.
    `held_out` rows are not trained on: the adapter is measured on them, and keeps them beside its card.

    `nonces` are those of the version's owner and witnesses, where its round of nonces was drawn for this base and
    recipe; without them the constant comes from the row root, and the card says so. With a `parent` the adapter goes on
    from that one's matrices, and the constant decides the order of rows alone. `credit` is each row's place in the
    version's order of credit; it goes into the record and decides nothing of the training.
    """

    name: str
    base: BaseModel
    version: DatanetVersion
    rows: tuple[Row, ...]
    recipe: Recipe
    output: str
    nonces: tuple[str, ...] = ()
    held_out: tuple[Row, ...] = ()
    parent: Parent | None = None
    credit: tuple[int, ...] = ()

    @property
    def credit_root(self) -> str:
        """The version's, where the job has its rows' places."""
        return self.version.credit_root if self.credit else ""

    @property
    def constant(self) -> str:
        version = self.version
        if self.nonces:
            return public_constant(self.base.digest, version.datanet, version.number, self.nonces)
        return row_root_constant(self.base.digest, version.datanet, version.number, version.row_root)

    @property
    def initial(self) -> str:
        """Where LoRA's matrices begin: at the constant, or at the parent."""
        return from_adapter(self.parent.digest) if self.parent else self.constant

    @property
    def initial_from(self) -> str:
        """What `initial` is derived from."""
        if self.parent:
            return "parent"
        return "nonces" if self.nonces else "row_root"

    @property
    def key(self) -> str:
        """Digest of base, version, rows (held-out ones too), recipe and parent. Code, libraries, the device and (for a
        shared job) the number of workers also decide the last bits of what is computed; the card records them."""
        rows = [[row.row_id for row in own] for own in (self.rows, self.held_out)]
        settings = {name: value for name, value in self.recipe.to_dict().items() if name not in WHERE}
        parts = [self.constant, json.dumps(settings, sort_keys=True), rows]
        return digest_json([*parts, self.parent.digest] if self.parent else parts)

    def at(self, adapters: Path) -> "TrainingJob":
        """This job with its adapter under the folder `adapters`."""
        return replace(self, output=str(adapters / f"{self.name}-{self.key[:12]}"))


def train_adapters(jobs: Sequence[TrainingJob], *, folder: Path, num_workers: int = 2) -> None:
    """Train every job in one Ray Train run; each leaves a PEFT folder with card.json at its `output`. Where a recipe
    asks for a part of a GPU, each worker takes a whole one.

    The run is named by its jobs and workers: with the same, and the same `folder`, it goes on where it was stopped.
    Raises Unavailable when the run fails more often than Ray Train is told to try, and as `check_parent` and
    `check_workers`.
    """
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.config import LoggingConfig
    from ray.train.v2.api.exceptions import TrainingFailedError

    use_gpu = any(job.recipe.num_gpus for job in jobs)
    check_workers(float(use_gpu), num_workers)
    for job in jobs:
        if job.parent is not None:
            check_parent(job.parent, job.base, job.recipe)
            keep_start(Path(job.output), job.parent)
    folder.mkdir(parents=True, exist_ok=True)
    run_name = "train-" + digest_json([num_workers, [job.key for job in jobs]])[:12]
    jobs_file = folder / f"{run_name}.jobs"
    jobs_file.write_bytes(pickle.dumps(tuple(jobs)))
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    trainer = TorchTrainer(
        worker,
        train_loop_config={"jobs_file": str(jobs_file)},
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
        scaling_config=ScalingConfig(num_workers=num_workers, use_gpu=use_gpu),
        run_config=RunConfig(
            name=run_name,
            storage_path=str(folder),
            failure_config=FailureConfig(max_failures=2),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    )
    try:
        _fit(trainer)
    except TrainingFailedError as error:
        raise Unavailable(
            f"training failed: {error}", code="training_failed", fix="the worker's traceback is in the Ray dashboard"
        ) from error
    # a finished run of this name would be restored, and an adapter that was removed since never trained again
    shutil.rmtree(folder / run_name, ignore_errors=True)
    jobs_file.unlink(missing_ok=True)


def check_workers(num_gpus: float, num_workers: int) -> None:
    """As `check_gpus`, of a training under a recipe with `num_gpus`: each of its workers takes a whole one, all at
    once. Ray Train would try again without an end."""
    check_gpu_share(num_gpus)
    if num_gpus and not _has_places(1.0, num_workers):
        raise Unavailable(
            f"a training by {num_workers} workers takes {num_workers} whole GPUs, and the cluster hasn't as many",
            code="too_few_gpus",
            param="num_workers",
            fix="fewer workers: --workers 1, num_workers: 1 in a quickstart's config.yaml;"
            " or train on the CPU: num_gpus: 0 in the recipe, and no --gpu",
        )


def check_gpus(num_gpus: float) -> None:
    """Raises Unavailable (`no_gpu`) where no node of the cluster has so much of a GPU, and none comes: Ray would queue
    the work without an end. InvalidInput (`invalid_gpus`) for what no task can take.

    Where an autoscaler may start such a node, it is asked to, and waited for `_NODE_WAIT_S` at most.
    """
    check_gpu_share(num_gpus)
    if num_gpus and not _has_places(num_gpus, 1):
        raise Unavailable(
            f"{num_gpus:g} GPUs for each task were asked for, and no node of the cluster has one",
            code="no_gpu",
            param="num_gpus",
            fix="add a node with a GPU (a worker group, where the cluster scales itself), or go on without: --gpus 0;"
            " in jobs/train.py and a quickstart num_gpus: 0 in the recipe, and no --gpu",
        )


def _has_places(num_gpus: float, number: int) -> bool:
    """Whether `number` tasks with so much of a GPU each fit on the nodes, or on those to come: on their whole, not on
    what is free now, but a word is said where nothing is."""
    import ray

    places = sum(int(gpus / num_gpus) for gpus in _gpus_of_nodes())
    if places < number:
        return _may_come(num_gpus) and _come(num_gpus, number)
    if ray.available_resources().get("GPU", 0.0) < num_gpus:
        _logger.warning("every GPU of the cluster is taken at this moment: waiting until one is free")
    return True


def _gpus_of_nodes() -> list[float]:
    import ray

    return [float(node["Resources"].get("GPU", 0.0)) for node in ray.nodes() if node["Alive"]]


def _may_come(num_gpus: float) -> bool:
    """False only where it is known that no such node comes: the cluster was started by this process, or its autoscaler
    has told all that it may start. Those of open-source Ray tell nobody (2.60)."""
    try:  # no public call tells
        from ray._private import worker
        from ray._private.state import state

        node: Any = worker._global_node
        if node is not None and node.is_head():
            return False
        config: Any = state.get_cluster_config()
    except Exception:  # noqa: BLE001 - a client's connection, or another Ray: nothing is known
        return True
    if config is None:
        return True
    groups = [group for group in config.node_group_configs if group.max_count != 0]
    return any(group.resources.get("GPU", 0.0) >= num_gpus for group in groups)


def _come(num_gpus: float, number: int) -> bool:
    """Ask the autoscaler for room for `number` such tasks, and wait: pending work is what makes it start a node."""
    from ray.util.placement_group import placement_group, remove_placement_group

    _logger.warning(
        "no node of the cluster has the GPUs that are asked for (%g, %d times): waiting up to %d s for one to start",
        num_gpus, number, _NODE_WAIT_S,
    )  # fmt: skip
    room = placement_group([{"GPU": num_gpus}] * number)
    try:
        return bool(room.wait(_NODE_WAIT_S))
    finally:
        remove_placement_group(room)


def _fit(trainer: Any) -> None:
    """`trainer.fit()` in a thread. In the main thread it would take over SIGINT for good: Ctrl-C would then end the
    process with exit code 0 and no word (Ray 2.60)."""
    outcome: Queue[BaseException | None] = Queue()

    def run() -> None:
        try:
            trainer.fit()
        except BaseException as error:  # noqa: BLE001  handed to the waiting thread, whatever it is
            outcome.put(error)
        else:
            outcome.put(None)

    Thread(target=run, daemon=True, name="ray-train-fit").start()
    error = outcome.get()
    if error is not None:
        raise error


def worker(config: dict[str, Any]) -> None:
    """What each Ray Train worker runs: its jobs, one after another, with a checkpoint after every half."""
    import ray.train

    jobs: tuple[TrainingJob, ...] = pickle.loads(Path(config["jobs_file"]).read_bytes())
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    shared = len(jobs) < world
    own = jobs if shared else jobs[rank::world]
    num_halves = 2 * (len(jobs) if shared else -(-len(jobs) // world))
    state = _load_state(ray.train.get_checkpoint(), rank)
    for number in range(state["next"], num_halves):  # report() is a barrier: every rank makes the same number
        job = own[number // 2] if number // 2 < len(own) else None
        progress = state["progress"] if number % 2 else None
        if job is not None and not (Path(job.output) / "card.json").exists():
            until = job.recipe.num_epochs if number % 2 else job.recipe.middle_epoch
            progress = _train_until(job, until, progress, *((rank, world) if shared else (0, 1)))
        state = {"next": number + 1, "progress": progress}
        _report(state, job.name if job else "", rank)


def _train_until(job: TrainingJob, epoch: int, progress: Any, rank: int, world: int) -> Any:
    """Take `job` from `progress` (or its beginning) to `epoch`; at its last epoch the adapter is written."""
    import torch

    from openledger.adapters.base_model import load_model, load_tokenizer
    from openledger.training.examples import encode_row
    from openledger.training.loop import Progress, train
    from openledger.training.lora import attach_lora
    from openledger.training.record import save_checkpoint, save_held_out

    torch.set_num_threads(job.recipe.threads)
    tokenizer = load_tokenizer(job.base)
    examples = [encode_row(tokenizer, row) for row in job.rows]
    model = attach_lora(_to_device(load_model(job.base)), job.recipe, job.initial, start_folder(Path(job.output)))

    def keep(progress: Progress) -> None:
        if rank == 0:
            save_checkpoint(Path(job.output), progress.epoch, progress.lora)

    progress = train(
        model,
        examples,
        job.recipe,
        job.constant,
        progress=progress,
        until_epoch=epoch,
        on_epoch=keep,
        rank=rank,
        world_size=world,
        reduce=_all_reduce if world > 1 else None,
    )
    if epoch == job.recipe.num_epochs and rank == 0:
        save_held_out(Path(job.output), [encode_row(tokenizer, row) for row in job.held_out])
        write_adapter(model, job, examples, progress.curve, world)
    return progress


def middle_folder(adapter_folder: str) -> str:
    """Where an adapter without checkpoints lies as it was in the middle of its training, for its index."""
    return str(Path(adapter_folder) / "middle")


def write_adapter(
    model: Any, job: TrainingJob, examples: "Sequence[Example]", curve: list[float], world_size: int
) -> AdapterCard:
    """The PEFT folder, `curve.json`, the run's record, and last of all `card.json`, which marks the adapter as
    complete. `examples` are the job's rows, encoded."""
    from openledger.training.lora import save_adapter
    from openledger.training.record import RunRecord, examples_digest, run_environment, save_run

    output = Path(job.output)
    output.mkdir(parents=True, exist_ok=True)
    save_adapter(model, output)
    write_json_durably(output / "curve.json", [round(loss, 5) for loss in curve])
    digest, device = adapter_digest(output), next(model.parameters()).device
    if job.parent and digest == job.parent.digest:
        raise InvalidInput(
            f"training {job.name} changed nothing: it is its own parent", code="lineage_cycle", param="recipe"
        )
    environment = run_environment(job.recipe.threads, world_size, device=device)
    record = RunRecord(
        adapter_digest=digest,
        base_digest=job.base.digest,
        recipe=job.recipe,
        initial=job.initial,
        order=job.constant,
        row_ids=tuple(row.row_id for row in job.rows),
        examples_digest=examples_digest(examples),
        environment=environment,
        curve=tuple(round(loss, 6) for loss in curve),
        credit=job.credit,
        credit_root=job.credit_root,
    )
    card = AdapterCard(
        name=job.name,
        digest=digest,
        base_model=job.base.name,
        base_digest=job.base.digest,
        datanet=job.version.datanet,
        datanet_version=job.version.number,
        row_root=job.version.row_root,
        rows_trained=record.row_ids,
        contributors=dict(Counter(row.contributor_id for row in job.rows)),
        recipe=json.loads(json.dumps(job.recipe.to_dict())),
        environment=environment,
        code_version=__version__,
        initial_a=job.initial,
        initial_from=job.initial_from,
        order=job.constant,
        final_loss=round(curve[-1], 5),
        parents=((job.parent.digest, "1"),) if job.parent else (),
        credit_root=job.version.credit_root,
    )
    _sync(output)
    save_run(output, record)
    save_card(output, card)
    return card


def _sync(folder: Path) -> None:
    """Put all that is in the folder on disk: the card that says it is complete must not outlive it in a power cut."""
    for path in folder.rglob("*"):
        if path.is_dir():
            sync_folder(path)
        else:
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
    sync_folder(folder)


def _all_reduce(tensors: list[Any]) -> None:
    import torch.distributed

    for tensor in tensors:
        torch.distributed.all_reduce(tensor)


def _to_device(model: Any) -> Any:
    from ray.train.torch import get_device

    return model.to(get_device())


def _load_state(checkpoint: Any, rank: int) -> dict[str, Any]:
    import torch

    if checkpoint is None:
        return {"next": 0, "progress": None}
    with checkpoint.as_directory() as folder:
        # written by this module a moment ago, in this run's own folder: pickle is safe here
        return torch.load(Path(folder) / f"rank{rank}.pt", map_location="cpu", weights_only=False)


def _report(state: dict[str, Any], name: str, rank: int) -> None:
    """Every rank adds its own file to the checkpoint; Ray Train merges them in one folder."""
    import tempfile

    import ray.train
    import torch

    progress = state["progress"]
    metrics = {
        "adapter": name,
        "epoch": progress.epoch if progress else 0,
        "loss": progress.curve[-1] if progress else 0.0,
    }
    with tempfile.TemporaryDirectory() as folder:
        torch.save(state, Path(folder) / f"rank{rank}.pt")
        ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))
