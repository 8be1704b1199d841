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
        if is_small(contribution):
            return await self._contributed(contribution)
        await answered(self._datanets.admit.remote(announced(contribution)))
        async with self._places:
            return await self._contributed(contribution)

    async def preview(self, contribution: Contribution) -> tuple[Verdict, ...]:
        """Raises as `Datanets.preview`."""
        if is_small(contribution):
            return await self._previewed(contribution)
        await answered(self._datanets.admit.remote(announced(contribution), is_dry_run=True))
        async with self._previews:
            return await self._previewed(contribution)

    async def _contributed(self, contribution: Contribution) -> ContributionReceipt:
        receipt: ContributionReceipt = await answered(self._datanets.contribute.remote(contribution))
        return receipt

    async def _previewed(self, contribution: Contribution) -> tuple[Verdict, ...]:
        verdicts: tuple[Verdict, ...] = await answered(self._datanets.preview.remote(contribution))
        return verdicts
