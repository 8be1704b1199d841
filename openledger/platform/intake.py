"""Adapters that come and go while others are being answered: fetched, checked against the base, tied to their lineage,
registered.

Owns who may: an adapter is sold by the owner of the Datanet that its card names, for a part of each fee goes to that
Datanet's contributors; and only who added it may replace or remove it. Files lie below the registry's folder, by
digest, so that attribution finds them; where they came from is kept for replicas on other nodes.
"""

import asyncio
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from openledger.adapters.base_model import BaseModel
from openledger.adapters.card import AdapterCard, load_card
from openledger.adapters.checks import BaseShapes, check_adapter, read_shapes
from openledger.adapters.lineage import Lineage
from openledger.adapters.registry import AdapterRegistry, RegisteredAdapter
from openledger.adapters.sources import SourceRules, check_source, fetch
from openledger.attribution.merges import Merge, is_made_of_parents
from openledger.core.errors import Conflict, Forbidden, InvalidInput, NotFound
from openledger.core.ids import check_name
from openledger.core.values import AdapterTerms
from openledger.ledger.offers import lot_of
from openledger.platform.calls import answered
from openledger.platform.generations import find_ancestry, is_merge
from openledger.platform.point_of_sale import is_sold, offer_of, terms_on_sale, trainings
from openledger.platform.service import NewAdapter

Found = TypeVar("Found")


class Intake:
    """Takes adapters of `bases`. `datanets` and `economy` are actors' handles."""

    def __init__(
        self,
        bases: Sequence[BaseModel],
        registry: AdapterRegistry,
        datanets: Any,
        economy: Any,
        rules: SourceRules,
    ):
        self._bases, self._registry, self._datanets, self._economy, self._rules = (
            tuple(bases),
            registry,
            datanets,
            economy,
            rules,
        )
        self._shapes: dict[str, BaseShapes] = {}
        self._changing = asyncio.Lock()
        self._checking = asyncio.Lock()  # parents are read into memory, in which streams of answers are cut off

    async def add(self, account: str, new: NewAdapter) -> RegisteredAdapter:
        """See `Service.add_adapter`. Takes the fee for an adapter last, once everything else is found right."""
        check_name(new.name, "name")
        self._check_owner(account, new.name)
        uri = check_source(new.source, self._rules)
        served = self._registry.root / "served"
        served.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".new-", dir=served) as beside:
            fetched = Path(beside) / "adapter"
            card = await asyncio.to_thread(self._take_in, uri, fetched)
            await self._check_lineage(account, card)
            async with self._checking:
                await asyncio.to_thread(self._check_parents, card, fetched)
            async with self._changing:
                self._check_owner(account, new.name)
                enter = self._registry.switch if self._replaces(new, card.digest) else self._registry.register
                folder = await asyncio.to_thread(self._place_of, card)
                if not is_sold(self._registry, new.name, card.digest):
                    runs = await asyncio.to_thread(trainings, self._registry, card, account)
                    await answered(self._economy.check_sale.remote(runs))
                await answered(self._economy.charge_adapter.remote(account, card.digest))
                if not folder.exists():
                    fetched.rename(folder)
                terms, source = _terms(account, new, card), "" if uri.startswith("file://") else uri
                await self._log_offer(terms, card)
                return await asyncio.to_thread(
                    lambda: enter(
                        new.name,
                        folder,
                        card.digest,
                        terms,
                        source=source,
                        shared_with=new.shared_with,
                        base_digest=card.base_digest,
                    )
                )

    async def _log_offer(self, terms: AdapterTerms, card: AdapterCard) -> None:
        """In the log before the registry has it (`point_of_sale.log_offer`)."""
        if not await answered(self._economy.has_offers.remote()):
            await answered(self._economy.begin_offers.remote(terms_on_sale(self._registry)))
        lot = lot_of(terms)
        if await answered(self._economy.missing_offers.remote([lot])):
            runs = await asyncio.to_thread(trainings, self._registry, card, lot.seller)
            await answered(self._economy.offer.remote(offer_of(lot, runs)))

    async def remove(self, account: str, name: str) -> None:
        """See `Service.remove_adapter`."""
        async with self._changing:
            known = self._registry.get(name)
            if known.terms is None or not known.may_be_asked_by(account):
                raise NotFound(f"there is no model {name!r}", code="unknown_model", param="model")
            self._check_owner(account, name)
            await asyncio.to_thread(self._registry.retire, name)

    def _shapes_for(self, folder: Path) -> BaseShapes:
        """Of the base that the card in `folder` names; of the first where it names none of ours, which the check then
        refuses."""
        named = load_card(folder).base_digest if (folder / "card.json").exists() else ""
        base = next((each for each in self._bases if each.digest == named), self._bases[0])
        if base.digest not in self._shapes:
            self._shapes[base.digest] = read_shapes(base)
        return self._shapes[base.digest]

    def _take_in(self, uri: str, folder: Path) -> AdapterCard:
        """Fetch into `folder` and check what came."""
        folder.mkdir()
        fetch(uri, folder, self._rules)
        description = check_adapter(folder, self._shapes_for(folder), self._rules.limits)
        if description.card is None:
            raise InvalidInput(
                "the adapter has no lineage card: nobody could be paid for its answers",
                code="adapter_without_card",
                param="source",
                fix="train it with OpenLedger, which writes card.json, and send that along",
            )
        return description.card

    def _place_of(self, card: AdapterCard) -> Path:
        """Where the adapter stays: what is here under its digest is used as it is, for checkpoints and index lie with
        it, and its card says who is paid. Raises Conflict (`card_conflict`) where that one says something else."""
        folder = self._folder_of(card.digest)
        if folder.exists() and not _same_card(folder, card):
            raise Conflict(
                f"the adapter {card.digest} is here already, and its card isn't this one",
                code="card_conflict",
                param="source",
                fix="send the card that was written when it was trained",
            )
        return folder

    def _folder_of(self, digest: str) -> Path:
        known = _known(lambda: self._registry.find_digest(digest))
        if known is not None and known.folder and Path(known.folder).is_dir():
            return Path(known.folder)
        return self._registry.root / "served" / digest

    def _check_parents(self, card: AdapterCard, folder: Path) -> None:
        """Everything that it says it came from is here, with cards; and it is a merge where it says so. Raises as
        `find_ancestry`, `Lineage` and `merge_lora`."""
        ancestors, folders = {card.digest: card}, dict[str, str]()
        for parent, _ in card.parents:
            found = _known(partial(find_ancestry, self._registry, parent))
            if found is None or found.lineage is None:
                raise NotFound(
                    f"{card.name} began from the adapter {parent}, which isn't registered here with its card",
                    code="missing_parent",
                    param="source",
                    fix="add the parent first",
                )
            ancestors |= {digest: found.lineage.card(digest) for digest in found.adapters}
            folders[parent] = found.served.folder
        Lineage(ancestors.values())
        if is_merge(card):
            self._check_merge(card, folder, folders)

    def _check_merge(self, card: AdapterCard, folder: Path, folders: dict[str, str]) -> None:
        """A merge needs no witness: what was trained by any constant could be sold as one."""
        merge = Merge(folder=str(folder), digest=card.digest, parents=folders, weights=dict(card.parents))
        if not is_made_of_parents(merge, self._shapes_for(folder)):
            raise InvalidInput(
                f"{card.name} names no rows that it was trained on, and isn't the merge of its parents",
                code="invalid_merge",
                param="source",
                fix="send what jobs/merge.py made of them, or the card that was written when it was trained",
            )

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
        published = {one.number: one for one in versions}.get(card.datanet_version)
        if published is None or card.row_root != published.row_root:
            raise InvalidInput(
                f"{card.datanet} has no version {card.datanet_version} with the rows that the card names",
                code="unknown_datanet_version",
                param="source",
            )
        if card.credit_root not in ("", published.credit_root):  # empty: of a card that names none
            raise InvalidInput(
                f"{card.datanet} has no version {card.datanet_version} with the order of credit that the card names",
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


def _terms(account: str, new: NewAdapter, card: AdapterCard) -> AdapterTerms:
    return AdapterTerms(
        adapter=new.name,
        adapter_digest=card.digest,
        datanet=card.datanet,
        datanet_version=card.datanet_version,
        row_root=card.row_root,
        owner_account=account,
        prompt_price_nano=new.prompt_price_nano,
        completion_price_nano=new.completion_price_nano,
    )


def _same_card(folder: Path, card: AdapterCard) -> bool:
    """But for what was measured after training. As text: the loss of a merge is not a number, which equals nothing."""
    if not (folder / "card.json").exists():
        return False
    told = (replace(each, evaluation={}) for each in (load_card(folder), card))
    one, other = (json.dumps(asdict(each), sort_keys=True) for each in told)
    return one == other


def _known(find: Callable[[], Found]) -> Found | None:
    try:
        return find()
    except NotFound:
        return None
