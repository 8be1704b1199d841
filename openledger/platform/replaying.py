"""The settlement's replay: what the rows of an adapter did to the period's answers, beside what its contributors are
paid.

One exact derivative of the fee-weighted sum of the answers, and a second one of the held-out rows, by going backwards
through the adapter's own run (`attribution.replay`), in the index actor. It is made where the period's fees buy it
(`attribution.planner.plan_replay`), before the pool is paid, so that the settlement names the digest of the row scores.
Nobody's pay depends on it: where it isn't bought or can't be made, the settlement says so and the pool is paid.

    FOLDER/NAME/PERIOD-DIGEST.json                  row scores (`attribution.row_scores`), by their own digest
    FOLDER/.unfinished/NAME-PERIOD-ADAPTER-ANSWERS/ the replay's checkpoints, until the pool is settled
    FOLDER/.locks/NAME-PERIOD                       held by the job that settles the pool

A document is called by its content, so that no later replay overwrites what a settlement named. Only what one names is
told to anybody.

Checkpoints of a job that was killed are gone on from, as long as their pool waits. Once it was paid otherwise, nobody
will ask for them: the next run removes them. Whether a job lives its lock says, which ends with its process.

Shapes: R rows of the run, T targets.
"""

import fcntl
import logging
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import ray

from openledger.adapters.card import AdapterCard, load_card
from openledger.adapters.registry import AdapterRegistry, RegisteredAdapter
from openledger.attribution.period import BankRows, Measurement
from openledger.attribution.planner import ReplayPlan, plan_replay, replay_trainings
from openledger.attribution.replay import Replay
from openledger.attribution.row_pages import RowPages
from openledger.attribution.row_scores import RowScores, WholeRows, brought_to_bank, document, open_document
from openledger.core.errors import NotFound
from openledger.core.files import read_document, write_durably, write_json_durably
from openledger.core.hashing import digest_json
from openledger.core.ids import check_name
from openledger.core.money import NANO_PER_OPEN
from openledger.core.values import Answer, Row
from openledger.platform.calls import reason_of
from openledger.platform.hosts import HostOf
from openledger.training.record import load_run, rows_in_order

if TYPE_CHECKING:  # it settles with what is here
    from openledger.platform.pipeline import AdapterAttribution, PeriodAttribution

_TARGETS = "openledger.replay-targets/1"
_logger = logging.getLogger(__name__)
Target = tuple[tuple[Answer, float], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Replays:
    """What settlements replay with: `share_ppm` of an adapter's fees of the period, where one training of it costs
    `training_cost_nano`. `rows_of` gives the rows of an adapter's Datanet version that are still there. `host_lost` is
    called where a replay ended the index actor that it ran in, so that the next pool is measured in another."""

    share_ppm: int
    training_cost_nano: int
    folder: Path
    rows_of: Callable[[AdapterCard], Sequence[Row]]
    host_lost: Callable[[], None] = lambda: None


def replayed(
    found: "PeriodAttribution", hosts: HostOf, registry: AdapterRegistry, replays: Replays
) -> "PeriodAttribution":
    """`found` with what is stated of each adapter's replay, whose row scores lie in the folder then."""
    stated = [_stated(found, part, hosts, registry, replays) for part in found.parts]
    whole = len(stated) == 1
    told = {name if whole else f"{n}.{name}": text for n, part in enumerate(stated) for name, text in part.items()}
    return replace(found, scores=replace(found.scores, quality={**found.scores.quality, **told}))


@contextmanager
def one_at_a_time(replays: Replays, adapter: str, period: str) -> Iterator[None]:
    """One job replays, settles and forgets a pool's checkpoints, and another one waits until it has: or each would
    remove what the other goes on from. Where the folder has no place for a lock the pool is paid all the same."""
    with ExitStack() as held:
        try:
            held.enter_context(_lock(replays.folder, _pool_name(adapter, period)))
        except OSError:
            _logger.exception("the pool of %s in %s can't be locked", adapter, period)
        yield


def forget_orphans(folder: Path, waiting: Collection[tuple[str, str]]) -> list[str]:
    """Remove the checkpoints of pools that don't wait (any more), and of which no job is at work; their names. Pools in
    `waiting` are called by adapter and period. What can't be removed is logged and stays."""
    pools, forgotten = {_pool_name(*pool) for pool in waiting}, []
    try:
        for own in sorted(_unfinished(folder).glob("*-*-*")):
            pool = own.name.rsplit("-", 2)[0]
            if pool in pools:
                continue
            with suppress(BlockingIOError), _lock(folder, pool, wait=False):
                shutil.rmtree(own, ignore_errors=True)
                forgotten.append(own.name)
    except OSError:  # a full disk, another user's folder: pools are to be paid
        _logger.exception("checkpoints that nobody needs stay in %s", folder)
    return forgotten


@contextmanager
def _lock(folder: Path, pool: str, *, wait: bool = True) -> Iterator[None]:
    """Raises BlockingIOError where another job has it, and isn't to be waited for."""
    path = folder / ".locks" / pool
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


def _pool_name(adapter: str, period: str) -> str:
    return f"{check_name(adapter, 'adapter')}-{check_name(period, 'period')}"


def forget_checkpoints(replays: Replays, found: "PeriodAttribution") -> None:
    """Once the pool is settled, they are of no more use."""
    for part in found.parts:
        for folder in _unfinished(replays.folder).glob(f"{_name(part, found)}-*"):
            shutil.rmtree(folder, ignore_errors=True)


def rows_path(folder: Path, name: str, period: str, digest: str) -> Path:
    """Where the row scores of `digest` are kept, of an adapter's answers in a period."""
    file = f"{check_name(period, 'period')}-{check_name(digest, 'digest')[:24]}.json"
    return folder / check_name(name, "adapter") / file


def open_rows(folder: Path, name: str, period: str, quality: Mapping[str, str]) -> dict[str, RowPages | WholeRows]:
    """What is kept of a settled pool's rows: a document for each adapter that was sold as `name`, by its digest.
    `quality` is what the settlement states, which names them. Raises NotFound (`no_row_scores`), Corrupt
    (`corrupt_row_scores`)."""
    digests = [digest for stated, digest in sorted(quality.items()) if stated.rpartition(".")[2] == "row_scores"]
    if not digests:
        raise no_row_scores(name, period)
    return {digest: open_document(rows_path(folder, name, period, digest), digest) for digest in digests}


def no_row_scores(name: str, period: str) -> NotFound:
    """The same where there are none, and where whoever asks may not know of the adapter."""
    return NotFound(
        f"no rows' scores of {name} in {period} are kept",
        code="no_row_scores",
        param="period",
        fix="they are made where the operator settles with jobs/settle.py --replay-share and the fees buy a replay;"
        " the settlement's quality says what became of it",
    )


def may_be_told(document: Mapping[str, Any], account: str) -> bool:
    """Whether `account` (empty: nobody's) could ask the adapter when it was settled. It may be registered no more by
    now, or another under its name."""
    shared_with = document.get("shared_with")
    return shared_with is not None and (not shared_with or account in shared_with)


def _shared_with(adapter: RegisteredAdapter) -> list[str]:
    """The accounts that may ask it; empty: everybody."""
    owner = [] if adapter.terms is None else [adapter.terms.owner_account]
    return sorted({*adapter.shared_with, *owner}) if adapter.shared_with else []


def targets_of(part: "AdapterAttribution", measured: Measurement) -> dict[str, Target]:
    """The sums that are replayed, by their part of the pool."""
    weights = [nano / NANO_PER_OPEN for nano in measured.counted_nano]
    use = tuple((answer, weight) for answer, weight in zip(part.answers, weights, strict=True) if weight)
    held_out = tuple((row, 1.0) for row in part.held_out)
    return {name: target for name, target in (("use", use), ("improvement", held_out)) if target}


def _stated(
    found: "PeriodAttribution", part: "AdapterAttribution", hosts: HostOf, registry: AdapterRegistry, replays: Replays
) -> dict[str, str]:
    measured = part.measured
    if measured is None:
        return {"replay": "none: a merge has no rows of its own"}
    targets = targets_of(part, measured)
    if not targets:
        return {"replay": "none: no answer counts, and no row is held out"}
    try:
        plan = _plan(part, targets, registry, replays)
        if not plan.buys:
            return {"replay": plan.says}
        return _replay(found, part, measured, targets, hosts, registry, replays)
    except Exception as error:  # whatever it was (a full disk, a damaged folder): the pool is to be paid
        _logger.exception("the replay of %s in %s failed", found.scores.adapter, found.scores.period)
        if isinstance(error, ray.exceptions.RayError) and not isinstance(error, ray.exceptions.RayTaskError):
            replays.host_lost()
        return {"replay": f"failed: {reason_of(error)}"}


def _plan(
    part: "AdapterAttribution", targets: Mapping[str, Target], registry: AdapterRegistry, replays: Replays
) -> ReplayPlan:
    """Training's rows are taken to be as long as the held-out ones of the same version; without these, as the answers.
    How long they are says only their text, which isn't read before it is known that a replay is bought."""
    run = load_run(Path(registry.find_digest(part.digest).folder))
    queried = sum(_num_tokens(query) for target in targets.values() for query, _ in target)
    alike = [_num_tokens(row) for row in part.held_out or part.answers]
    trained = len(run.row_ids) * run.recipe.num_epochs * sum(alike) / len(alike)
    fees_nano = sum(answer.fee_nano for answer in part.answers)
    cost = replay_trainings(queried, trained, len(targets))
    return plan_replay(fees_nano, replays.share_ppm, replays.training_cost_nano, cost)


def _num_tokens(answer: Answer) -> int:
    return len(answer.prompt_ids) + len(answer.completion_ids)


def _replay(
    found: "PeriodAttribution",
    part: "AdapterAttribution",
    measured: Measurement,
    targets: Mapping[str, Target],
    hosts: HostOf,
    registry: AdapterRegistry,
    replays: Replays,
) -> dict[str, str]:
    """Replay, keep the rows' scores, and say what the settlement states of them."""
    name, period = found.scores.adapter, found.scores.period
    served = registry.find_digest(part.digest)
    card = load_card(Path(served.folder))
    row_ids = load_run(Path(served.folder)).row_ids
    rows = rows_in_order(row_ids, replays.rows_of(card), "the run")
    folder = _begin(replays.folder, f"{_name(part, found)}-", part, found.left_out)
    targets = _first_targets(folder, part, targets)
    asked = hosts(part.needs).replay.remote(served.folder, rows, list(targets.values()), str(folder))
    told: Replay = ray.get(asked)
    whose = {entry.row_id: entry.contributor_id for entry in measured.entries}
    named = [(row.row_id, whose.get(row.row_id, row.contributor_id)) for row in rows]
    banks = {"use": measured.use_rows(), "improvement": measured.improvement_rows()}
    parts = {
        each: _scores(told.scores_RT[:, number].astype(np.float64), banks[each], measured, named)
        for number, each in enumerate(targets)
    }
    stated: dict[str, Any] = {
        "deviation": told.deviation,
        "steps": told.num_steps,
        "corrected": banks["use"] is not None,
    }
    stated |= {"datanet": card.datanet, "shared_with": _shared_with(served)}
    text, digest = document(name, period, part.digest, named, parts, stated)
    write_durably(rows_path(replays.folder, name, period, digest), text)
    exact = "exact" if told.deviation == 0 else f"off by up to {told.deviation:.2g} in a weight"
    return {"replay": exact, "row_scores": digest}


def _scores(
    this_run_R: npt.NDArray[np.float64],
    bank: BankRows | None,
    measured: Measurement,
    named: Sequence[tuple[str, str]],
) -> RowScores:
    if bank is None:
        return RowScores(this_run_R=this_run_R)
    trained = [entry.row_id for entry in measured.entries if entry.trained]
    places = {row_id: place for place, row_id in enumerate(trained)}
    order_R = [places[row_id] for row_id, _ in named]
    ordered = BankRows(influence_R=bank.influence_R[order_R], group_R=bank.group_R[order_R], error_G=bank.error_G)
    return brought_to_bank(this_run_R, ordered, [contributor for _, contributor in named])


def _begin(folder: Path, name: str, part: "AdapterAttribution", left_out: Sequence[str] | None) -> Path:
    """The folder of this replay's checkpoints, called by the answers; what is left of another one of the same pool is
    removed."""
    answers = [[answer.answer_id for answer in answers] for answers in (part.answers, part.held_out)]
    own = _unfinished(folder) / f"{name}{digest_json([*answers, sorted(left_out or ())])[:16]}"
    for other in own.parent.glob(f"{name}*"):
        if other != own:
            shutil.rmtree(other, ignore_errors=True)
    return own


def _first_targets(folder: Path, part: "AdapterAttribution", targets: Mapping[str, Target]) -> dict[str, Target]:
    """`targets`, or those that the replay in `folder` was begun with: an engine's last bits in an answer's gain are
    others when it is measured again, and must not make another replay of it."""
    path, answers = folder / "targets.json", {"use": part.answers, "improvement": part.held_out}
    if path.exists():
        try:
            return read_document(path, _TARGETS, partial(_targets_in, answers), _Damaged)
        except _Damaged as error:
            _logger.warning("%s can't be used, and its replay begins anew: %s", path, error)
            shutil.rmtree(folder)
    weights = {name: [[answer.answer_id, repr(weight)] for answer, weight in each] for name, each in targets.items()}
    write_json_durably(path, {"format": _TARGETS, "targets": weights, "digest": digest_json(weights)})
    return dict(targets)


class _Damaged(Exception):
    pass


def _targets_in(answers: Mapping[str, Sequence[Answer]], values: Mapping[str, Any]) -> dict[str, Target]:
    if digest_json(values["targets"]) != values["digest"]:
        raise ValueError("its content has changed")
    known = {name: {answer.answer_id: answer for answer in each} for name, each in answers.items()}
    kept = values["targets"]
    return {
        name: tuple((known[name][own], float(weight)) for own, weight in kept[name]) for name in known if name in kept
    }


def _unfinished(folder: Path) -> Path:
    return folder / ".unfinished"


def _name(part: "AdapterAttribution", found: "PeriodAttribution") -> str:
    return f"{_pool_name(found.scores.adapter, found.scores.period)}-{part.digest[:24]}"
