"""What people claim of the house, on a running cluster: sealed rows and their places.

A seal is acknowledged once it is in the log; what a crash kept from there is put there by the next call.
"""

from dataclasses import asdict
from typing import Any

from openledger.core.sealing import Seal, SealReceipt
from openledger.datanets.seals import UnloggedSeal
from openledger.platform.calls import answered


class Claims:
    """The part of `LiveService` that answers for them. `datanets` and `economy` are actor handles."""

    def __init__(self, datanets: Any, economy: Any):
        self._datanets = datanets
        self._economy = economy

    async def seal(self, seal: Seal) -> SealReceipt:
        receipt: SealReceipt = await answered(self._datanets.seal.remote(seal))
        await self._log_seals()
        return receipt

    async def find_seal(self, datanet: str, contributor_id: str, digest: str) -> SealReceipt:
        found: SealReceipt = await answered(self._datanets.find_seal.remote(datanet, contributor_id, digest))
        return found

    async def _log_seals(self) -> None:
        """Put what the log lacks there, in its order; may be repeated, also by two at a time."""
        waiting: list[UnloggedSeal] = await answered(self._datanets.unlogged_seals.remote())
        for one in waiting:
            await answered(self._log(one))
            opened = one.signed is not None
            await answered(self._datanets.mark_seal_logged.remote(one.contributor_id, one.digest, opened=opened))

    def _log(self, one: UnloggedSeal) -> Any:
        own = one.datanet, one.contributor_id, one.digest
        if one.signed is None:
            return self._economy.log_seal.remote(*own, one.expires_ms)
        told = {name: value for name, value in asdict(one).items() if name in _OPENING}
        return self._economy.log_opening.remote(*own, **told)


_OPENING = ("public_key", "signed", "signature", "opened_ms")
