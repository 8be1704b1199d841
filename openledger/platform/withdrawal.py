"""A contributor withdraws: an adapter that never saw their rows is served in the old one's place, at once.

It is the run again with their rows at weight 0 and every batch as it was (`attribution.bank.member_without`): one of
the bank's members, or trained now. It answers under the old name from the next request on; what was sold before is
still attributed to the old one. It has no bank, so its index attributes its answers, until a clean adapter is trained
without the rows and takes the name.

An adapter can forget only what it was trained on itself: where an ancestor knows the rows, nothing is switched.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray

from openledger.adapters.base_model import BaseModel
from openledger.adapters.card import AdapterCard, adapter_digest, checked_card, save_card
from openledger.adapters.registry import AdapterRegistry, RegisteredAdapter
from openledger.attribution.bank_folder import find_bank
from openledger.attribution.index_folder import IndexEntry, read_index
from openledger.attribution.likeness import knows_credit, load_repeats
from openledger.attribution.trainer import train_without
from openledger.core.errors import Conflict, InvalidInput, NotFound
from openledger.core.hashing import digest_json
from openledger.core.values import Row
from openledger.datanets.versions import credit_root
from openledger.platform.generations import Ancestry, find_ancestry, index_folder, index_views
from openledger.platform.pipeline import put_on_sale, sale_terms
from openledger.platform.point_of_sale import log_withdrawal
from openledger.training.lora import save_lora, with_smaller_b
from openledger.training.members import Weights
from openledger.training.record import (
    check_credit,
    load_held_out,
    load_run,
    load_weights,
    rows_in_order,
    save_checkpoint,
    save_held_out,
)
from openledger.training.trainer import middle_folder

_MIDDLE = 0.5  # of B, for the index where no epochs were kept


@dataclass(frozen=True, slots=True, kw_only=True)
class Withdrawal:
    """What is to be done: the adapter sold as `name` with the card `card` was trained on `num_rows` rows of
    `contributor`. `ready` where the adapter without them is there already; `done` where it is what is sold."""

    name: str
    contributor: str
    adapter: RegisteredAdapter
    card: AdapterCard
    num_rows: int
    ready: bool
    done: bool = False

    @property
    def trainer(self) -> str:
        """The account that a training is to be for, and that the Datanet's permission and licence are asked for: the
        seller's. Empty where nothing is to be trained: the way out of a sale asks nobody."""
        if self.ready or self.done or self.adapter.terms is None:
            return ""
        return self.adapter.terms.owner_account


def plan_withdrawal(registry: AdapterRegistry, name: str, contributor: str) -> Withdrawal:
    """Raises NotFound (`unknown_model`, `unknown_contributor`), InvalidInput (`not_sold`, `one_contributor`), Conflict
    (`ancestor_knows`, `already_without`)."""
    adapter = registry.get(name)
    if adapter.terms is None:
        raise InvalidInput(f"{name} is not sold", code="not_sold", param="adapter")
    card, ancestry = checked_card(Path(adapter.folder)), find_ancestry(registry, adapter.digest)
    if card.recipe.get("without") == contributor:
        return Withdrawal(
            name=name, contributor=contributor, adapter=adapter, card=card, num_rows=0, ready=True, done=True
        )
    _check_ancestors(ancestry, name, contributor)
    if contributor not in card.contributors:
        raise NotFound(
            f"{name} was trained on no row of {contributor}", code="unknown_contributor", param="contributor"
        )
    if len(card.contributors) == 1:
        raise InvalidInput(
            f"all of {name}'s rows are {contributor}'s: nothing is left without them",
            code="one_contributor",
            param="contributor",
            fix="take the adapter out of sale",
        )
    if "without" in card.recipe:
        raise Conflict(
            f"{name} is served without {card.recipe['without']} already, and can't be made again without another",
            code="already_without",
            param="contributor",
            fix="remove both contributors' rows from the Datanet and train a clean adapter: jobs/train.py",
        )
    kept = find_bank(Path(adapter.folder), adapter.digest)
    ready = kept is not None and contributor in kept.withouts
    num_rows = card.contributors[contributor]
    return Withdrawal(name=name, contributor=contributor, adapter=adapter, card=card, num_rows=num_rows, ready=ready)


def withdraw(
    plan: Withdrawal,
    registry: AdapterRegistry,
    base: BaseModel,
    rows: Sequence[Row],
    build: Callable[..., Any],
    adapters: Path,
    indexes: Path,
    *,
    economy: Any,
    credit: Callable[[], Sequence[str]] = tuple,
    num_gpus: float | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> AdapterCard:
    """Serve the adapter that never saw the contributor's rows under the old one's name, then build its index by `build`
    (an `index_task`, or an `IndexHost`'s `build.remote`: one that has a GPU keeps it from the training). `rows` are
    those of its Datanet version that are still there; the contributor's own are needed only where the adapter
    without them isn't ready. `credit` gives the order of credit of that version (`platform.credit`), and is asked only
    once the adapter without them is served. May be repeated; stopped on its way, it goes on.

    Raises NotFound (`rows_gone`) where a row is needed that is gone, Corrupt (`corrupt_index`) where the old adapter's
    index or its list of repeated rows (`corrupt_repeats`) is, and as `train_without`. InvalidInput (`other_credit`)
    where the old run's record has another order, and what `credit` raises: nobody's rows stay on sale for that, but no
    index is built by it.
    """
    card = plan.card
    if not plan.done:
        final, epochs = _matrices(plan, base, rows, num_gpus, tell)
        folder = _write(plan, final, epochs, adapters, indexes)
        card = checked_card(folder)
        _offer(plan, registry, folder, card, economy)
        tell(f"{plan.name} is served without {plan.contributor} from now on: {card.digest}")
    tell("building its index")
    folders = index_views(registry.get(plan.name).folder), card.digest
    trained, decoys = _indexed_rows(card, rows, indexes)
    folder, run = index_folder(indexes, card.digest), _measured_run(registry, card, indexes, credit)
    ray.get(build(*folders, trained, decoys, str(folder), run))
    return card


def _measured_run(
    registry: AdapterRegistry, card: AdapterCard, indexes: Path, credit: Callable[[], Sequence[str]]
) -> str:
    """The old adapter's run, where its index has a list of repeated rows or it knows the order of credit; else empty.
    It began where this one's did, and the rows that are left are compared anew there: of rows alike one is paid, also
    where an earlier one is gone."""
    old = card.recipe["without_of"]
    run = registry.find_digest(old).folder
    if load_repeats(index_folder(indexes, old)) is None and not knows_credit(Path(run)):
        return ""
    order = credit()
    check_credit(load_run(Path(run)), order, credit_root(order) if order else "")
    return run


def _offer(plan: Withdrawal, registry: AdapterRegistry, folder: Path, card: AdapterCard, economy: Any) -> None:
    """By the constant that the old one was sold with: nobody's rows stay on sale for want of a witness. The log says
    which adapter it takes the place of."""
    if known := plan.adapter.terms:
        prices = known.prompt_price_nano, known.completion_price_nano
        terms = sale_terms(plan.name, card, known.owner_account, prices)
        log_withdrawal(economy, registry, terms, card)
        put_on_sale(registry, plan.name, folder, card, known.owner_account, prices)


def _check_ancestors(ancestry: Ancestry, name: str, contributor: str) -> None:
    for digest in list(ancestry.adapters)[1:]:
        card = ancestry.card(digest)
        if card is not None and contributor in card.contributors:
            raise Conflict(
                f"{name} comes from {card.name} ({digest[:12]}), which was trained on rows of {contributor}",
                code="ancestor_knows",
                param="contributor",
                fix=f"withdraw from {card.name} first, then train {name} again from what it is then",
            )


def _matrices(
    plan: Withdrawal, base: BaseModel, rows: Sequence[Row], num_gpus: float | None, tell: Callable[[str], None]
) -> tuple[Weights, dict[int, Weights]]:
    """Those of the adapter without the contributor, in the end and after the epochs that were kept."""
    folder = Path(plan.adapter.folder)
    kept = find_bank(folder, plan.adapter.digest)
    if kept is not None and plan.contributor in kept.withouts:
        return load_weights(kept.withouts[plan.contributor]), {}
    tell(f"training {plan.name} without {plan.contributor}")
    trained = rows_in_order(plan.card.rows_trained, rows, plan.card.name)
    return train_without(folder, base, trained, plan.contributor, num_gpus=num_gpus)


def _write(plan: Withdrawal, final: Weights, epochs: Mapping[int, Weights], adapters: Path, indexes: Path) -> Path:
    """The PEFT folder with its card, which is written last. The old adapter's index knows
    whose its rows were, also when they are gone."""
    old, card = Path(plan.adapter.folder), plan.card
    folder = adapters / f"{plan.name}-{digest_json([card.digest, plan.contributor])[:12]}"
    if (folder / "card.json").exists():
        return folder
    for epoch, weights in epochs.items():
        save_checkpoint(folder, epoch, weights)
    save_lora(folder, old, final)
    save_lora(Path(middle_folder(str(folder))), old, with_smaller_b(final, _MIDDLE))
    save_held_out(folder, [row for row in load_held_out(old) if row.contributor_id != plan.contributor])
    left = {name: number for name, number in card.contributors.items() if name != plan.contributor}
    whose = {entry.row_id: entry.contributor_id for entry in _entries(indexes, card.digest)}
    save_card(
        folder,
        replace(
            card,
            digest=adapter_digest(folder),
            contributors=left,
            rows_trained=tuple(row for row in card.rows_trained if whose[row] != plan.contributor),
            recipe={**card.recipe, "without": plan.contributor, "without_of": card.digest},
            evaluation={},
        ),
    )
    return folder


def _indexed_rows(card: AdapterCard, rows: Sequence[Row], indexes: Path) -> tuple[list[Row], list[Row]]:
    """The rows of the adapter's index, as far as they are there: what it was trained on, and the old index's decoys but
    for the contributor's own. What trained rows that are gone brought is nobody's (`attribution.period`)."""
    there, trained = {row.row_id: row for row in rows}, set(card.rows_trained)
    spare = [
        entry.row_id
        for entry in _entries(indexes, card.recipe["without_of"])
        if not entry.trained and entry.contributor_id != card.recipe["without"]
    ]
    own = [there[row_id] for row_id in card.rows_trained if row_id in there]
    return own, [there[row_id] for row_id in spare if row_id in there and row_id not in trained]


def _entries(indexes: Path, digest: str) -> tuple[IndexEntry, ...]:
    return read_index(index_folder(indexes, digest))[0].entries
