"""Adapters that come and go while others are being answered: fetched, checked against the base, tied to their lineage,
registered.

Owns who may: an adapter is sold by the owner of the Datanet that its card names, for a part of each fee goes to that
Datanet's contributors; and only who added it may replace or remove it. Files lie below the registry's folder, by
digest, so that attribution finds them; where they came from is kept for replicas on other nodes.
"""

import asyncio
import shutil
import tempfile
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

from openledger.adapters.base_model import BaseModel
from openledger.adapters.card import AdapterCard
from openledger.adapters.checks import BaseShapes, check_adapter, read_shapes
from openledger.adapters.registry import AdapterRegistry, RegisteredAdapter
from openledger.adapters.sources import SourceRules, check_source, fetch
from openledger.core.errors import Conflict, Forbidden, InvalidInput, NotFound
from openledger.core.values import AdapterTerms
from openledger.platform.calls import answered
from openledger.platform.service import NewAdapter


class Intake:
    """`datanets` is an actor's handle."""

    def __init__(self, base: BaseModel, registry: AdapterRegistry, datanets: Any, rules: SourceRules):
        self._base, self._registry, self._datanets, self._rules = base, registry, datanets, rules
        self._changing = asyncio.Lock()

    async def add(self, account: str, new: NewAdapter) -> RegisteredAdapter:
        """See `Service.add_adapter`."""
        self._check_owner(account, new.name)
        uri = check_source(new.source, self._rules)
        folder, card = await asyncio.to_thread(self._take_in, uri)
        await self._check_lineage(account, card)
        terms = AdapterTerms(
            adapter=new.name,
            adapter_digest=card.digest,
            datanet=card.datanet,
            datanet_version=card.datanet_version,
            row_root=card.row_root,
            owner_account=account,
            prompt_price_nano=new.prompt_price_nano,
            completion_price_nano=new.completion_price_nano,
        )
        source = "" if uri.startswith("file://") else uri
        async with self._changing:
            self._check_owner(account, new.name)
            enter = self._registry.switch if self._replaces(new, card.digest) else self._registry.register
            return await asyncio.to_thread(
                lambda: enter(new.name, folder, card.digest, terms, source=source, shared_with=new.shared_with)
            )

    async def remove(self, account: str, name: str) -> None:
        """See `Service.remove_adapter`."""
        async with self._changing:
            known = self._registry.get(name)
            if known.terms is None or not known.may_be_asked_by(account):
                raise NotFound(f"there is no model {name!r}", code="unknown_model", param="model")
            self._check_owner(account, name)
            await asyncio.to_thread(self._registry.remove, name)

    @cached_property
    def _shapes(self) -> BaseShapes:
        return read_shapes(self._base)

    def _take_in(self, uri: str) -> tuple[Path, AdapterCard]:
        """Fetch beside, check, and rename to where it stays. What is wrong leaves nothing."""
        served = self._registry.root / "served"
        served.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".new-", dir=served) as name:
            new = Path(name) / "adapter"
            new.mkdir()
            digest = fetch(uri, new, self._rules)
            description = check_adapter(new, self._shapes, self._rules.limits)
            if description.card is None:
                raise InvalidInput(
                    "the adapter has no lineage card: nobody could be paid for its answers",
                    code="adapter_without_card",
                    param="source",
                    fix="train it with OpenLedger, which writes card.json, and send that along",
                )
            return _keep(new, served / digest), description.card

    async def _check_lineage(self, account: str, card: AdapterCard) -> None:
        """The Datanet is the account's own, and the version is one that was published."""
        datanet = await answered(self._datanets.datanet.remote(card.datanet))
        if datanet.owner != account:
            raise Forbidden(
                f"{card.datanet} belongs to {datanet.owner}: an adapter trained on it is theirs to sell",
                code="not_the_owner",
                param="source",
            )
        versions = await answered(self._datanets.versions.remote(card.datanet))
        if not any((one.number, one.row_root) == (card.datanet_version, card.row_root) for one in versions):
            raise InvalidInput(
                f"{card.datanet} has no version {card.datanet_version} with the rows that the card names",
                code="unknown_datanet_version",
                param="source",
            )

    def _replaces(self, new: NewAdapter, digest: str) -> bool:
        known = _known(lambda: self._registry.get(new.name))
        if known is None or known.digest == digest:
            return False
        if new.replace:
            return True
        raise Conflict(
            f"{new.name!r} is registered with the digest {known.digest}",
            code="adapter_exists",
            param="name",
            fix="send replace, remove it first, or take another name",
        )

    def _check_owner(self, account: str, name: str) -> None:
        known = _known(lambda: self._registry.get(name))
        if known is not None and (known.terms is None or known.terms.owner_account != account):
            raise Forbidden(
                f"{name!r} belongs to somebody else", code="not_the_owner", param="name", fix="take another name"
            )


def _keep(new: Path, folder: Path) -> Path:
    """The same digest may be here already, with another card: the newest card counts, the weights are the same."""
    if folder.exists():
        shutil.copyfile(new / "card.json", folder / ".card.json.new")
        (folder / ".card.json.new").replace(folder / "card.json")
    else:
        new.rename(folder)
    return folder


def _known(find: Callable[[], RegisteredAdapter]) -> RegisteredAdapter | None:
    try:
        return find()
    except NotFound:
        return None
