"""Contributions on their way to the Datanets: what depends on a large one alone is found beside the Datanets actor, by
a task of Ray's, while the actor judges and stores others. Whether they may come at all is asked before.

Small ones go straight to the actor: a task costs more than it saves. So does a large one whose task is lost.
"""

import asyncio
from collections.abc import Callable
from typing import Any

from openledger.core.values import Contribution, ContributionReceipt
from openledger.datanets.gate import Rules
from openledger.datanets.preparing import announced
from openledger.platform.calls import answered

MIN_ROWS = 200
MAX_AT_ONCE = 4  # large contributions: the actor judges and stores one at a time, the others are prepared meanwhile


class Contributing:
    """`datanets` is the actor's handle; `prepare` starts `preparing.prepare` elsewhere, and gives what the actor takes
    in its place."""

    def __init__(self, datanets: Any, prepare: Callable[[Contribution, Rules], Any] | None = None):
        self._datanets = datanets
        self._prepare = prepare or _prepared_by_ray
        self._places = asyncio.Semaphore(MAX_AT_ONCE)

    async def send(self, contribution: Contribution) -> ContributionReceipt:
        """Raises as `Datanets.contribute`."""
        if len(contribution.drafts) < MIN_ROWS:
            return await self._sent(contribution)
        rules: Rules | None = await answered(self._datanets.admit.remote(announced(contribution)))
        if rules is None:
            return await self._sent(contribution)
        async with self._places:
            try:
                return await self._sent(contribution, self._prepare(contribution, rules))
            except _lost_task():
                return await self._sent(contribution)

    async def _sent(self, *contribution: Any) -> ContributionReceipt:
        receipt: ContributionReceipt = await answered(self._datanets.contribute.remote(*contribution))
        return receipt


def _prepared_by_ray(contribution: Contribution, rules: Rules) -> Any:
    """A reference. The task takes no CPU of Ray's: all may be engaged for as long as the platform runs."""
    import ray

    return ray.remote(_prepare_installed).options(num_cpus=0, max_retries=1).remote(contribution, rules)


def _prepare_installed(contribution: Contribution, rules: Rules) -> Any:
    from openledger.datanets.detectors import installed_detectors
    from openledger.datanets.ingest import prepare_here

    return prepare_here(contribution, tuple(installed_detectors()), rules)


def _lost_task() -> tuple[type[Exception], ...]:
    import ray.exceptions

    return ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError, ray.exceptions.ObjectLostError
