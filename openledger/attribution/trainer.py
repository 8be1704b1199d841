"""Banks, indexes and replays by Ray tasks, on whatever nodes there are.

What a task makes is a file (a member of a bank, an index's basis or shard, a replay's segment) that is written whole or
not at all, in a folder that every node sees. So a task that died with its worker or its node is run again and passes
over what is there, nothing is missing or made twice, and work that was stopped goes on. Base model and adapter are read
by their paths, which every node must see too. A task takes what the adapter's recipe says of a GPU, where `num_gpus`
doesn't say otherwise; Unavailable (`no_gpu`) is raised where the cluster has none.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import ray
import torch

from openledger.adapters.base_model import BaseModel, load_model, load_tokenizer
from openledger.attribution.actor import index_gpus, index_task
from openledger.attribution.bank import Bank, BankPlan, member_without, plan_bank, run_bank
from openledger.attribution.bank_folder import finish_bank
from openledger.attribution.ekfac import FIT_ROWS
from openledger.attribution.gradients import Site, sites
from openledger.attribution.index import GradientIndex, build_shards, digests, fit_view, loaded, standing
from openledger.attribution.index_folder import IndexFolder, IndexPlan, View, is_finished, method_at, plan_index
from openledger.attribution.instruments import index_place, index_views
from openledger.attribution.likeness import build_repeats
from openledger.attribution.replay import KEEP_BYTES, Replay, Target, replay_run
from openledger.attribution.subject import Subject
from openledger.attribution.views import adapter_folder, load_views
from openledger.core.errors import OpenLedgerError, Unavailable
from openledger.core.values import Row
from openledger.training.examples import Example, check_lengths, encode_row
from openledger.training.lora import load_lora
from openledger.training.members import Member, Weights
from openledger.training.recipe import device_of, gpus_for
from openledger.training.record import RunRecord, load_run, run_start
from openledger.training.trainer import check_gpus

_RETRIES = 3
_SHARDS_PER_TASK = 4  # at most: a task reads base and adapter before its first
SPREAD_FROM = 1_000  # rows times views: of fewer, one task is done before others have begun (docs/attribution/cost.md)

Work = TypeVar("Work")


def prepare(
    subject: Subject,
    plan: BankPlan | None = None,
    *,
    num_gpus: float | None = None,
    on_member: Callable[[Member], None] | None = None,
) -> GradientIndex:
    """What the instruments score with: the members of `plan`'s bank, then the index of the run's checkpoints and the
    bank's twins, where `instruments` look for them. With both there, scoring trains and indexes nothing more."""
    if plan is not None:
        record = subject.needed_record()
        train_bank(
            subject.folder / "bank",
            record,
            subject.base,
            subject.examples,
            plan.members,
            start=subject.start,
            num_gpus=num_gpus,
            on_member=on_member,
        )
    views = index_views(subject, plan)
    folder, others = index_place(subject, views)
    return build_index_distributed(
        folder,
        subject.base,
        subject.folder,
        subject.examples,
        (),
        subject.digest,
        views=views,
        others=others,
        num_gpus=gpus_for(subject.record.recipe if subject.record else None, num_gpus),
    )


def train_bank(
    folder: Path,
    record: RunRecord,
    base: BaseModel,
    examples: Sequence[Example],
    members: Sequence[Member],
    *,
    start: Path | None = None,
    num_gpus: float | None = None,
    on_member: Callable[[Member], None] | None = None,
) -> Bank:
    """Train what is missing of `members` into `folder`, a task for each; the bank. `start` holds the adapter that the
    run went on from, where it did. Those with the most rows come first: a long one that begins last keeps one processor
    busy, and all others waiting.

    Raises Unavailable (`task_failed`) where a member's task failed more often than it is retried.
    """
    bank, num_gpus = run_bank(folder, record, base, examples), gpus_for(record.recipe, num_gpus)
    missing = bank.missing(members)
    if missing:
        check_gpus(num_gpus)
    shared = ray.put((str(folder), record, base, tuple(examples), start, device_of(num_gpus)))
    train = _remote(_train_member, "bank-member", 1, num_gpus)
    longest_first = sorted(missing, key=lambda member: len(member.rows), reverse=True)
    tasks = {train.remote(shared, member): member for member in longest_first}
    _finish(tasks, lambda member: f"the bank's {member.name}", on_member)
    return bank


def train_bank_of(
    adapter_folder: Path,
    base: BaseModel,
    rows: Sequence[Row],
    num_coalitions: int,
    *,
    num_twins: int = 0,
    without: Sequence[str] = (),
    num_gpus: float | None = None,
    on_member: Callable[[Member], None] | None = None,
) -> int:
    """Train what is missing of the bank of a recorded adapter, and finish it; the number of members trained now.

    `without` are contributors for whom the adapter that never saw their rows is trained too. `rows` are those that the
    adapter was trained on, in its record's order. Raises as `train_bank`, and InvalidInput (`one_contributor`,
    `other_rows`).
    """
    tokenizer = load_tokenizer(base)
    examples = [encode_row(tokenizer, row) for row in rows]
    record, folder = load_run(adapter_folder), adapter_folder / "bank"
    plan = plan_bank(record, examples, num_coalitions=num_coalitions, num_twins=num_twins, without=without)
    bank = run_bank(folder, record, base, examples)
    missing = bank.missing(plan.members)
    start = run_start(adapter_folder, record)
    train_bank(folder, record, base, examples, missing, start=start, num_gpus=num_gpus, on_member=on_member)
    finish_bank(bank, plan, record.adapter_digest)
    return len(missing)


def train_without(
    adapter_folder: Path, base: BaseModel, rows: Sequence[Row], contributor: str, *, num_gpus: float | None = None
) -> tuple[Weights, dict[int, Weights]]:
    """The run of a recorded adapter without a contributor's rows, trained where it isn't there: its final matrices, and
    those after each epoch that was kept.

    `rows` are those that the adapter was trained on, in its record's order. Raises as `train_bank`, NotFound
    (`unknown_contributor`), InvalidInput (`other_rows`).
    """
    tokenizer = load_tokenizer(base)
    examples = [encode_row(tokenizer, row) for row in rows]
    record, folder = load_run(adapter_folder), adapter_folder / "bank"
    member = replace(member_without(record, examples, contributor), keeps_epochs=True)
    start = run_start(adapter_folder, record)
    bank = train_bank(folder, record, base, examples, [member], start=start, num_gpus=num_gpus)
    return bank.weights([member])[0], bank.epochs(member)


def index_tasks(
    base: BaseModel, *, spread_from: int = SPREAD_FROM, num_gpus: float | None = None
) -> Callable[..., Any]:
    """As `actor.index_task`, with the same arguments: an index of fewer than `spread_from` row vectors (rows times
    views) is one task's, any other is built by tasks over the nodes (`build_index_distributed`) before the call
    returns. The files are the same. Raises as both."""
    in_one = index_task(base, num_gpus=num_gpus)

    def build(
        views: Sequence[str], digest: str, trained: Sequence[Row], decoys: Sequence[Row], folder: str, run: str = ""
    ) -> Any:
        if len(views) * (len(trained) + len(decoys)) < spread_from:
            return in_one(views, digest, trained, decoys, folder, run)
        return _build_spread(base, views, digest, trained, decoys, folder, run, num_gpus)

    return build


def _build_spread(
    base: BaseModel,
    views: Sequence[str],
    digest: str,
    trained: Sequence[Row],
    decoys: Sequence[Row],
    folder: str,
    run: str,
    num_gpus: float | None,
) -> int:
    num_gpus = index_gpus(run, num_gpus)
    tokenizer, place = load_tokenizer(base), Path(folder)
    encoded, spare = ([encode_row(tokenizer, row) for row in rows] for rows in (trained, decoys))
    check_lengths([*encoded, *spare], base)
    needed = {}
    if run:
        repeats = _remote(_find_repeats, "index-repeats", 1, num_gpus)
        needed[repeats.remote(base, run, tuple(encoded), folder, device_of(num_gpus))] = "comparing the rows"
    points = _remote(_views, "index-views", 1, 0).remote(base, tuple(views))
    index = build_index_distributed(
        place, base, adapter_folder(views), encoded, spare, digest,
        views=_result(points, "reading the adapter's checkpoints"), num_gpus=num_gpus, needed=needed,
    )  # fmt: skip
    return len(index.entries)


def build_index_distributed(
    folder: Path,
    base: BaseModel,
    adapter: Path,
    trained: Sequence[Example],
    decoys: Sequence[Example],
    adapter_digest: str,
    *,
    views: Sequence[View] = (),
    fit_rows: int = FIT_ROWS,
    shard_rows: int | None = None,
    shards_per_task: int | None = None,
    others: Sequence[Path] = (),
    threads: int = 1,
    num_gpus: float = 0,
    method: str = "",
    needed: Mapping[Any, str] | None = None,
) -> GradientIndex:
    """`index.build_index` of the PEFT adapter at `adapter`: a task fits each view's eigenbasis, then tasks build its
    shards, and the driver sums them. Without `views` the adapter is indexed as it stands. A task builds so many shards
    that every processor has some, and at most four. The index is finished once other tasks that it needs are done too:
    `needed`, with what they are called. A settlement pays by an index that is finished, and once for all.

    On nodes of one kind the files are, byte for byte, those of one process with as many `threads`. Between kinds of
    processor scores agree to 1e-3 of the largest (docs/attribution/log.md has what was measured).

    Raises as `build_index`, and Unavailable (`task_failed`) where a task failed more often than it is retried.
    """
    if not is_finished(folder):
        check_gpus(num_gpus)
    look = _remote(_look, "index-plan", threads, 0)
    all_sites, as_it_stands = _result(look.remote(base, str(adapter), threads), "looking at the adapter")
    views = views or [as_it_stands]
    plan = plan_index(
        all_sites, digests(views), trained, decoys, adapter_digest,
        base_digest=base.digest, fit_rows=fit_rows, shard_rows=shard_rows, method=method or method_at(folder),
    )  # fmt: skip
    building = IndexFolder(folder, plan)
    for other in others:
        building.adopt(other)
    job = ray.put(
        _IndexJob(
            folder=str(folder), plan=plan, base=base, adapter=str(adapter), trained=tuple(trained),
            decoys=tuple(decoys), threads=threads, device=device_of(num_gpus),
        )
    )  # fmt: skip
    fit, build = (
        _remote(task, name, threads, num_gpus)
        for task, name in ((_fit_view, "index-basis"), (_build_shards, "index-shards"))
    )
    tasks, all_missing = dict(needed or {}), building.missing()
    shards_per_task = shards_per_task or _shards_per_task(sum(map(len, all_missing.values())), threads)
    for number, missing in all_missing.items():
        view = ray.put(views[number])
        fitted = fit.remote(job, view, number)
        tasks[fitted] = f"the basis of {views[number].name}"
        for start in range(0, len(missing), shards_per_task):
            shards = missing[start : start + shards_per_task]
            # `fitted` is handed over only so that the basis is there first
            tasks[build.remote(job, view, number, shards, fitted)] = f"shards {shards} of {views[number].name}"
    _finish(tasks, str)
    building.finish()
    return GradientIndex.open(folder, adapter_digest, base_digest=base.digest)


def _shards_per_task(num_missing: int, threads: int) -> int:
    at_once = max(1, int(ray.cluster_resources().get("CPU", 1) // threads))
    return max(1, min(_SHARDS_PER_TASK, num_missing // at_once))


def replay_distributed(
    base: BaseModel,
    record: RunRecord,
    examples: Sequence[Example],
    targets: Sequence[Target],
    checkpoints: Path,
    *,
    member: Member | None = None,
    start: Path | None = None,
    final: Weights | None = None,
    keep_bytes: int = KEEP_BYTES,
    num_gpus: float | None = None,
) -> Replay:
    """`replay.replay_run` as one task: a replay is a chain of steps and has no parts. The retry after a killed worker
    or node goes on from the last segment in `checkpoints`, to the same numbers.

    Raises as `replay_run`, and Unavailable (`task_failed`) where the task failed more often than it is retried.
    """
    options = {"member": member, "start": start, "final": final, "checkpoints": checkpoints, "keep_bytes": keep_bytes}
    num_gpus = gpus_for(record.recipe, num_gpus)
    check_gpus(num_gpus)
    run = _remote(_replay, "replay", record.recipe.threads, num_gpus)
    found: Replay = _result(
        run.remote((base, record, tuple(examples), targets), {**options, "device": device_of(num_gpus)}), "the replay"
    )
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class _IndexJob:
    """What all tasks of an index have in common."""

    folder: str
    plan: IndexPlan
    base: BaseModel
    adapter: str
    trained: tuple[Example, ...]
    decoys: tuple[Example, ...]
    threads: int
    device: str

    def open(self) -> tuple[Any, IndexFolder]:
        return _load(self.base, self.adapter, self.threads, self.device), IndexFolder(Path(self.folder), self.plan)


def _views(base: BaseModel, paths: Sequence[str]) -> list[View]:
    return load_views(base, paths)[1]


def _find_repeats(base: BaseModel, run: str, trained: Sequence[Example], folder: str, device: str) -> None:
    torch.set_num_threads(1)
    build_repeats(base, Path(run), trained, Path(folder), device=device)


def _look(base: BaseModel, adapter: str, threads: int) -> tuple[list[Site], View]:
    module = _load(base, adapter, threads, "cpu")
    return sites(module), standing(module)


def _fit_view(job: _IndexJob, view: View, number: int) -> None:
    module, building = job.open()
    with loaded(module, view):
        fit_view(module, building, number, job.trained)


def _build_shards(job: _IndexJob, view: View, number: int, shards: Sequence[int], _fitted: None) -> None:
    module, building = job.open()
    missing = set(building.missing_of(number))  # a task before this one may have died on its way
    with loaded(module, view):
        chosen = [shard for shard in shards if shard in missing]
        build_shards(module, building, number, chosen, [*job.trained, *job.decoys])


def _replay(positional: tuple[Any, ...], options: Mapping[str, Any]) -> Replay:
    return replay_run(*positional, **options)


def _train_member(
    shared: tuple[str, RunRecord, BaseModel, tuple[Example, ...], Path | None, str], member: Member
) -> None:
    folder, record, base, examples, start, device = shared
    torch.set_num_threads(record.recipe.threads)
    run_bank(Path(folder), record, base, examples, device=device, start=start).train([member])


def _load(base: BaseModel, adapter: str, threads: int, device: str) -> Any:
    torch.set_num_threads(threads)
    return load_lora(load_model(base).to(device), Path(adapter))


def _remote(function: Callable[..., Any], name: str, num_cpus: int, num_gpus: float) -> Any:
    options = {"num_cpus": num_cpus, "num_gpus": num_gpus, "max_retries": _RETRIES, "name": name}
    return ray.remote(function).options(**options, scheduling_strategy="SPREAD")


def _finish(
    tasks: Mapping[Any, Work], called: Callable[[Work], str], on_done: Callable[[Work], None] | None = None
) -> None:
    """Until all tasks are done; the first that fails ends the others."""
    pending = dict(tasks)
    while pending:
        (done,), _ = ray.wait(list(pending), num_returns=1)
        work = pending.pop(done)
        try:
            _result(done, called(work))
        except OpenLedgerError:
            for task in pending:
                ray.cancel(task, force=True)
            raise
        if on_done is not None:
            on_done(work)


def _result(task: Any, called: str) -> Any:
    """What the task returned. Errors of ours come out as themselves, Ray's as Unavailable."""
    try:
        return ray.get(task)
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None)
        if isinstance(cause, OpenLedgerError):
            raise cause from None
        raise Unavailable(
            f"{called} failed on the cluster: {error}", code="task_failed", fix="run again: what is finished is kept"
        ) from error
