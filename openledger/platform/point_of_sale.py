"""The point of sale: may an adapter be offered? What cards say of each generation's run, for the economy to check.

A derived adapter is sold on the work of all its generations, and all are paid of what it sells. So each that was
trained on rows of its own has to have a witnessed constant (`economy.witnesses`): else a run that was shopped for could
be sold by going on from it. A merge has no rows and no constant; its parents answer for theirs, and `intake` sees to it
that it is one. An adapter that is sold
already stays under its name, at any price, whatever was asked when it was first offered.

What is offered stands in the log before the registry has it (`ledger.offers`): by whom, under which parameters, and of
which rounds, for anybody to audit. What was on sale before the log asked for that is named when it begins to.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray

from openledger.adapters.card import AdapterCard, load_card
from openledger.adapters.registry import AdapterRegistry, RegisteredAdapter
from openledger.core.errors import Conflict, Corrupt, NotFound
from openledger.core.hashing import digest_json
from openledger.core.values import AdapterTerms
from openledger.economy.witnesses import Training
from openledger.ledger.nonces import Purpose
from openledger.ledger.offers import Lot, Offer, lot_of
from openledger.platform.generations import find_ancestry, is_merge
from openledger.training.recipe import WHERE
from openledger.training.trainer import TrainingJob

_log = logging.getLogger(__name__)
_OF_WITHDRAWALS = ("without", "without_of")  # what a withdrawal adds to the recipe of the run it repeats


def check_offer(economy: Any, registry: AdapterRegistry, name: str, card: AdapterCard, seller: str) -> None:
    """Raises Conflict (`constant_unwitnessed`) unless `seller` may offer the adapter as `name`; see `WitnessBook`."""
    if not is_sold(registry, name, card.digest):
        ray.get(economy.check_sale.remote(trainings(registry, card, seller)))


def check_plan(economy: Any, registry: AdapterRegistry, job: TrainingJob, seller: str) -> None:
    """The same before `job` is trained, for its adapter under the Datanet's name: a refusal costs no training then."""
    folder = Path(job.output)
    if (folder / "card.json").exists():
        check_offer(economy, registry, job.name, load_card(folder), seller)
        return
    purpose = purpose_of(job.version.row_root, job.base.digest, job.recipe.to_dict(), job.version.credit_root)
    planned = Training(
        adapter=job.name,
        datanet=job.version.datanet,
        version=job.version.number,
        purpose=purpose,
        constant=job.constant,
        seller=seller,
    )
    before = _ancestors(registry, job.parent.digest, seller) if job.parent else []
    ray.get(economy.check_sale.remote([planned, *before]))


def begin_offers(economy: Any, registry: AdapterRegistry) -> None:
    """Let the log ask for an offer of whatever is sold from now on, but for what is on sale. May be repeated."""
    if not ray.get(economy.has_offers.remote()):
        ray.get(economy.begin_offers.remote(terms_on_sale(registry)))


def log_offer(economy: Any, registry: AdapterRegistry, terms: AdapterTerms, card: AdapterCard) -> None:
    """Put the offer of a trained adapter into the log, before the registry has it. May be repeated. Raises Conflict
    (`constant_unwitnessed`)."""
    begin_offers(economy, registry)
    lot = lot_of(terms)
    if ray.get(economy.missing_offers.remote([lot])):
        ray.get(economy.offer.remote(offer_of(lot, trainings(registry, card, lot.seller))))


def log_withdrawal(economy: Any, registry: AdapterRegistry, terms: AdapterTerms, card: AdapterCard) -> None:
    """The same of a run less a contributor's rows, which takes the place of what its card names."""
    begin_offers(economy, registry)
    lot = lot_of(terms)
    if ray.get(economy.missing_offers.remote([lot])):
        ray.get(economy.offer.remote(withdrawal_of(lot, card)))


def log_on_sale(economy: Any, registry: AdapterRegistry) -> None:
    """Offer what the registry has on sale and the log hasn't: base models, and what a log that was put back from a
    backup has lost. What may not be offered stays unsold, and is told. May be repeated."""
    begin_offers(economy, registry)
    sold = {lot_of(one.terms): one for one in registry.list() if one.terms}
    for lot in ray.get(economy.missing_offers.remote(list(sold))):
        try:
            _offer_again(economy, registry, lot, sold[lot])
        except (Conflict, NotFound, Corrupt) as error:
            _log.warning("%s isn't sold until it is offered again: %s (%s)", lot.adapter, error.message, error.code)


def terms_on_sale(registry: AdapterRegistry) -> list[AdapterTerms]:
    return [one.terms for one in registry.list() if one.terms]


def offer_of(lot: Lot, runs: Sequence[Training]) -> Offer:
    return Offer(lot=lot, trainings=tuple(runs))


def withdrawal_of(lot: Lot, card: AdapterCard) -> Offer:
    without, instead_of = (card.recipe[name] for name in _OF_WITHDRAWALS)
    return Offer(lot=lot, kind="withdrawal", instead_of=instead_of, contributor=without)


def _offer_again(economy: Any, registry: AdapterRegistry, lot: Lot, known: RegisteredAdapter) -> None:
    """As it was offered: a base model, a run, or that run less a contributor's rows, after the run."""
    if known.is_base:
        ray.get(economy.offer.remote(Offer(lot=lot, kind="base")))
        return
    card = load_card(Path(known.folder))
    if not (old_digest := card.recipe.get("without_of", "")):
        ray.get(economy.offer.remote(offer_of(lot, trainings(registry, card, lot.seller))))
        return
    for before in ray.get(economy.missing_offers.remote([replace(lot, adapter_digest=old_digest)])):
        old = load_card(Path(registry.find_digest(old_digest).folder))
        ray.get(economy.offer.remote(offer_of(before, trainings(registry, old, lot.seller))))
    ray.get(economy.offer.remote(withdrawal_of(lot, card)))


def trainings(registry: AdapterRegistry, card: AdapterCard, seller: str) -> list[Training]:
    """The runs of the adapter with that card and of every generation before it. An ancestor that is sold itself answers
    to its own seller. Raises as `find_ancestry`."""
    found = [_training(card, seller)]
    for parent, _ in card.parents:
        found += _ancestors(registry, parent, seller)
    return list(dict.fromkeys(one for one in found if one is not None))


def purpose_of(row_root: str, base_digest: str, recipe: Mapping[str, Any], credit_root: str = "") -> Purpose:
    """What a constant is drawn for, of a version's rows, a base and a recipe's settings but for those that say where it
    computes. Where the version has an order
    of credit, the digest of the settings covers its root too: the log has it from when the round was closed, or the
    adapter offered, and who knows the settings can show that it was another."""
    settings = {name: value for name, value in recipe.items() if name not in {*_OF_WITHDRAWALS, *WHERE}}
    text = json.dumps(settings, sort_keys=True)
    return Purpose(
        row_root=row_root,
        base_digest=base_digest,
        recipe_digest=digest_json([text, credit_root] if credit_root else text),
    )


def is_sold(registry: AdapterRegistry, name: str, digest: str) -> bool:
    try:
        known = registry.get(name)
    except NotFound:
        return False
    return known.digest == digest and known.terms is not None


def _ancestors(registry: AdapterRegistry, digest: str, seller: str) -> list[Training]:
    ancestry, found = find_ancestry(registry, digest), []
    for each, adapter in ancestry.adapters.items():
        card = ancestry.card(each)
        if card is None:
            raise NotFound(
                f"{adapter.name} has no card: nobody knows by which constant it was trained",
                code="missing_parent",
                param=each,
                fix="restore its card.json",
            )
        found.append(_training(card, adapter.terms.owner_account if adapter.terms else seller))
    return [one for one in found if one is not None]


def _training(card: AdapterCard, seller: str) -> Training | None:
    """None for a merge."""
    if is_merge(card):
        return None
    return Training(
        adapter=card.name,
        datanet=card.datanet,
        version=card.datanet_version,
        purpose=purpose_of(card.row_root, card.base_digest, card.recipe, card.credit_root),
        constant=card.order or card.initial_a,
        seller=seller,
    )
