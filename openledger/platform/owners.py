"""What owners of Datanets do, on a running cluster: create them, set their terms, let people in and out.

An owner is an account, and speaks by its API key. A contributor's request is signed with his key instead.
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from openledger.core.errors import Conflict, InsufficientFunds
from openledger.core.permitting import requester
from openledger.datanets.registry import DEFAULT_DISPLAY, Datanet, Display, check_display
from openledger.datanets.row_schema import RowSchema
from openledger.datanets.terms import Action, Permission, changed_terms
from openledger.platform.calls import answered
from openledger.platform.claims import Claims


class Owners(Claims):
    """The part of `LiveService` that answers for them."""

    async def create_datanet(
        self,
        account: str,
        name: str,
        summary: str,
        row_schema: RowSchema,
        terms: Mapping[str, Any],
        display: Display = DEFAULT_DISPLAY,
    ) -> dict[str, Any]:
        """Takes the fee for a Datanet once everything else is found right, and the name is kept for who pays."""
        first = changed_terms(None, terms)
        check_display(display)
        await answered(self._datanets.reserve.remote(name, summary, account, row_schema))
        try:
            await answered(self._economy.charge_datanet.remote(account, name))
        except (Conflict, InsufficientFunds):
            await answered(self._datanets.release.remote(name, account))
            raise
        given = name, summary, account, row_schema, first, display
        made: Datanet = await answered(self._datanets.open_datanet.remote(*given))
        return {**asdict(made), "row_schema": made.row_schema.to_json(), "terms": await self.terms(name)}

    async def terms(self, name: str) -> dict[str, Any]:
        return asdict(await answered(self._datanets.terms.remote(name)))

    async def set_terms(self, account: str, name: str, changes: Mapping[str, Any]) -> dict[str, Any]:
        """One call: two changes at a time would undo each other if they were read and written in two."""
        return asdict(await answered(self._datanets.change_terms.remote(name, changes, account)))

    async def versions(self, name: str) -> list[dict[str, Any]]:
        return [asdict(one) for one in await answered(self._datanets.versions.remote(name))]

    async def manifest(self, name: str, number: int) -> dict[str, Any]:
        return dict(await answered(self._datanets.manifest.remote(name, number)))

    async def manifest_rows(self, name: str, number: int, after: str, limit: int) -> list[dict[str, Any]]:
        found = await answered(self._datanets.manifest_rows.remote(name, number, after, limit))
        return [asdict(one) for one in found]

    async def permissions(self, account: str, name: str) -> list[dict[str, Any]]:
        found: list[Permission] = await answered(self._datanets.permissions.remote(name))
        is_owner = (await answered(self._datanets.datanet.remote(name))).owner == account
        own = (account, account.removeprefix("contributor:"))
        return [asdict(one) for one in found if is_owner or one.party in own]

    async def request_training(self, account: str, name: str) -> dict[str, Any]:
        return asdict(await answered(self._datanets.request.remote(name, account, "train")))

    async def request_contributing(self, name: str, public_key: str, signature: str) -> dict[str, Any]:
        held = await self.key_holder(public_key)
        contributor = requester(public_key, signature, name, lambda _: held)
        return asdict(await answered(self._datanets.request.remote(name, contributor, "contribute")))

    async def approve(self, account: str, name: str, party: str, action: Action, expires_ms: int) -> dict[str, Any]:
        return asdict(await answered(self._datanets.approve.remote(name, party, action, account, expires_ms)))

    async def revoke(self, account: str, name: str, party: str, action: Action) -> dict[str, Any]:
        return asdict(await answered(self._datanets.revoke.remote(name, party, action, account)))

    async def set_display(self, account: str, name: str, display: Any) -> dict[str, Any]:
        await self._check_owner(account, name)
        return {"name": name, "display": (await answered(self._datanets.set_display.remote(name, display))).display}
