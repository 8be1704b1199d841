"""Contributions on their way to the Datanets: of a large one, whether it may come at all is asked before it is sent."""

import asyncio
from typing import Any

from openledger.core.values import Contribution, ContributionReceipt
from openledger.datanets.ingest import PREPARED_ROWS
from openledger.datanets.preparing import announced
from openledger.platform.calls import answered

MAX_AT_ONCE = 16  # large contributions: what the shards store at once


class Contributing:
    """`datanets` is the actor's handle."""

    def __init__(self, datanets: Any):
        self._datanets = datanets
        self._places = asyncio.Semaphore(MAX_AT_ONCE)

    async def send(self, contribution: Contribution) -> ContributionReceipt:
        """Raises as `Datanets.contribute`."""
        if len(contribution.drafts) < PREPARED_ROWS:
            return await self._sent(contribution)
        await answered(self._datanets.admit.remote(announced(contribution)))
        async with self._places:
            return await self._sent(contribution)

    async def _sent(self, contribution: Contribution) -> ContributionReceipt:
        receipt: ContributionReceipt = await answered(self._datanets.contribute.remote(contribution))
        return receipt
