"""Contributions on their way to the Datanets: of a large one, whether it may come at all is asked before it is sent.

Large ones wait here for one of a number of places, dry runs for one of their own, so that those who want a verdict
alone keep nobody from contributing.
"""

import asyncio
from typing import Any

from openledger.core.values import Contribution, ContributionReceipt, Verdict
from openledger.datanets.ingest import is_small
from openledger.datanets.preparing import announced
from openledger.platform.calls import answered

MAX_AT_ONCE = 16  # large contributions: what the shards store at once
MAX_PREVIEWS_AT_ONCE = 2  # large ones: one is prepared, the next is on its way


class Contributing:
    """`datanets` is the actor's handle."""

    def __init__(self, datanets: Any):
        self._datanets = datanets
        self._places = asyncio.Semaphore(MAX_AT_ONCE)
        self._previews = asyncio.Semaphore(MAX_PREVIEWS_AT_ONCE)

    async def send(self, contribution: Contribution) -> ContributionReceipt:
        """Raises as `Datanets.contribute`."""
        receipt: ContributionReceipt = await self._sent(contribution, self._datanets.contribute, self._places)
        return receipt

    async def preview(self, contribution: Contribution) -> tuple[Verdict, ...]:
        """Raises as `Datanets.preview`."""
        verdicts: tuple[Verdict, ...] = await self._sent(contribution, self._datanets.preview, self._previews)
        return verdicts

    async def _sent(self, contribution: Contribution, to: Any, places: asyncio.Semaphore) -> Any:
        if is_small(contribution):
            return await answered(to.remote(contribution))
        await answered(self._datanets.admit.remote(announced(contribution)))
        async with places:
            return await answered(to.remote(contribution))
