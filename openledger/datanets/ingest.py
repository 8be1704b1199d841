"""Contributions of many at once: other processes prepare large ones, one thread judges all, one after the other, other
threads wait for the shards.

Owns the order of the work: verdicts, reasons and receipts are those of one contribution after the other. Small ones are
judged as they come. Large ones are judged in the order in which they came, whichever is ready first, and no small one
waits for them: rows have their place from their verdict on, or from their seal (`seals`), where one came before.

Three things go on at a time: workers prepare large contributions (`preparing`), this thread, the event loop's, looks
for duplicates and fixes verdicts, others wait for the shards, which store together what comes together. What was stored
while this thread was at something else is finished by one write. A worker that is lost costs time alone: what it didn't
bring is found here. Of dry runs one at a time has a worker: they cost their sender nothing.
"""

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

from openledger.core.values import Contribution, ContributionReceipt
from openledger.datanets.datanets import Datanets
from openledger.datanets.detectors import installed_detectors
from openledger.datanets.gate import Detectors, Rules
from openledger.datanets.preparing import Prepared, announced, prepare
from openledger.datanets.registry import PendingContribution

PREPARED_ROWS = 200  # of fewer, the way to a worker costs more than it saves
STORED_AT_ONCE = 16
Prepare = Callable[[Contribution, tuple[str, ...], Rules], Awaitable[Prepared | None]]


class Ingest:
    """`prepare` has another process call `prepare_here`; None where that one is lost. `num_workers` of them at a time,
    0 for none. To be called from one event loop, and nothing else may change `datanets` in another thread."""

    def __init__(self, datanets: Datanets, prepare: Prepare, num_workers: int):
        self._datanets = datanets
        self._prepare = prepare
        self._judging = asyncio.Lock()  # of large ones: first come, first served
        self._previewing = asyncio.Lock()
        self._storing = ThreadPoolExecutor(STORED_AT_ONCE)
        self._stored: list[PendingContribution] = []
        self.use_workers(num_workers)

    def use_workers(self, number: int) -> None:
        """From the next contribution on."""
        self._workers = asyncio.Semaphore(number) if number else None

    async def contribute(self, contribution: Contribution) -> ContributionReceipt:
        """As `Datanets.contribute`, with others at the same time."""
        begun = await self._begun(contribution)
        if isinstance(begun, ContributionReceipt):
            return self._datanets.told(begun)
        await asyncio.get_running_loop().run_in_executor(self._storing, self._datanets.store, begun)
        await self._finish(begun)
        return self._datanets.told(begun.receipt)

    async def prepared_dry_run(self, contribution: Contribution) -> Prepared | None:
        """What a worker found; None where it isn't worth one, or was judged before. Raises what `Datanets.admit` does
        of a dry run, and `preparing.prepare`."""
        if is_small(contribution):
            return None
        async with self._previewing:
            return await self._prepared(contribution, is_dry_run=True)

    def close(self) -> None:
        self._storing.shutdown()

    async def _begun(self, contribution: Contribution) -> PendingContribution | ContributionReceipt:
        if is_small(contribution):
            return self._datanets.begin(contribution)
        preparing = asyncio.ensure_future(self._prepared(contribution))
        async with self._judging:
            return self._datanets.begin(contribution, await preparing)

    async def _prepared(self, contribution: Contribution, *, is_dry_run: bool = False) -> Prepared | None:
        rules = self._datanets.admit(announced(contribution), is_dry_run=is_dry_run)
        workers = self._workers
        if rules is None or workers is None:
            return None
        async with workers:
            return await self._prepare(contribution, tuple(sorted(self._datanets.detectors)), rules)

    async def _finish(self, stored: PendingContribution) -> None:
        self._stored.append(stored)
        await asyncio.sleep(0)  # whoever else was stored meanwhile comes first
        if not self._datanets.is_finished(stored):
            together, self._stored = self._stored, []
            self._datanets.finish(*together, stored)


def is_small(contribution: Contribution) -> bool:
    """Whether it is judged at once, without a worker."""
    return len(contribution.drafts) < PREPARED_ROWS


def prepare_here(contribution: Contribution, detectors: tuple[str, ...], rules: Rules) -> Prepared:
    """`prepare` with those of the installation's detectors that are named. For another process: detectors may hold
    models, and stay where they were loaded."""
    own = _installed()
    return prepare(contribution, {name: own[name] for name in detectors if name in own}, rules)


@cache
def _installed() -> Detectors:
    return installed_detectors()
