"""Many contributions in a row, on more than one core: other processes prepare what comes next while this one judges and
stores what came before.

Owns the order of the work, which is that of the contributions: verdicts, reasons and receipts are those of one
contribution after the other. Three things go on at a time: workers prepare contributions to come (`preparing`), this
thread looks for duplicates and fixes verdicts, others wait for the shards, which store small contributions together.
Memory is bounded by `ahead` contributions that are prepared and as many that are stored.

    with gate_workers(2) as workers:
        for outcome in ingest(datanets, contributions, workers):
            ...

A worker that dies costs time alone: what it didn't bring is done here.
"""

import multiprocessing
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from functools import cache, partial
from typing import TypeVar

from openledger.core.errors import OpenLedgerError
from openledger.core.values import Contribution, ContributionReceipt
from openledger.datanets.datanets import Datanets
from openledger.datanets.detectors import installed_detectors
from openledger.datanets.gate import Detectors, Rules
from openledger.datanets.preparing import Prepared, prepare
from openledger.datanets.registry import PendingContribution

AHEAD = 4
Outcome = ContributionReceipt | OpenLedgerError
Found = TypeVar("Found")


def gate_workers(num_workers: int) -> ProcessPoolExecutor:
    """Processes that prepare contributions; close them when all is sent. One beside this process fills two cores."""
    return ProcessPoolExecutor(num_workers, mp_context=multiprocessing.get_context("spawn"))


def ingest(
    datanets: Datanets, contributions: Iterable[Contribution], workers: Executor, ahead: int = AHEAD
) -> Iterator[Outcome]:
    """For each contribution, in order, its receipt, or the error of ours that refused it: the others go on. An outcome
    comes when its contribution is durable; a contribution without one may or may not be stored, and can be sent again.
    """
    due = deque[Callable[[], Outcome]]()
    with ThreadPoolExecutor(ahead) as storing:
        for contribution, prepared in _prepared(datanets, contributions, workers, ahead):
            begun = _told(partial(_begun, datanets, contribution, prepared))
            if isinstance(begun, PendingContribution):
                due.append(partial(_told, partial(_finished, datanets, begun, storing.submit(datanets.store, begun))))
            else:
                due.append(partial(_same, begun))
            if len(due) >= ahead:
                yield due.popleft()()
        while due:
            yield due.popleft()()


def prepare_here(contribution: Contribution, detectors: tuple[str, ...], rules: Rules) -> Prepared:
    """`prepare` with those of the installation's detectors that are named. For another process: detectors may hold
    models, and stay where they were loaded."""
    own = _installed()
    return prepare(contribution, {name: own[name] for name in detectors if name in own}, rules)


def _prepared(
    datanets: Datanets, contributions: Iterable[Contribution], workers: Executor, ahead: int
) -> Iterator[tuple[Contribution, Future[Prepared] | None]]:
    waiting = deque[tuple[Contribution, Future[Prepared] | None]]()
    for contribution in contributions:
        waiting.append((contribution, _submitted(datanets, contribution, workers)))
        if len(waiting) >= ahead:
            yield waiting.popleft()
    yield from waiting


def _submitted(datanets: Datanets, contribution: Contribution, workers: Executor) -> Future[Prepared] | None:
    """None where there is nothing to prepare by, or nobody to do it: `begin` says what is wrong, or does it itself."""
    try:
        rules = datanets.rules(contribution.datanet)
        return workers.submit(prepare_here, contribution, tuple(sorted(datanets.detectors)), rules)
    except (OpenLedgerError, BrokenExecutor):
        return None


def _begun(
    datanets: Datanets, contribution: Contribution, prepared: Future[Prepared] | None
) -> PendingContribution | ContributionReceipt:
    try:
        found = prepared.result() if prepared is not None else None
    except BrokenExecutor:
        found = None
    return datanets.begin(contribution, found)


def _finished(datanets: Datanets, pending: PendingContribution, stored: Future[None]) -> ContributionReceipt:
    stored.result()
    return datanets.finish(pending)


def _told(step: Callable[[], Found]) -> Found | OpenLedgerError:
    try:
        return step()
    except OpenLedgerError as error:
        return error


def _same(outcome: Outcome) -> Outcome:
    return outcome


@cache
def _installed() -> Detectors:
    return installed_detectors()
