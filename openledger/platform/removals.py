"""What a removal of rows means beyond their Datanet: the entry in the log, and the adapters that have learnt from them.

Storage has forgotten the rows when these functions are called. An adapter hasn't: it is listed, with everything that
was made from its rows, until its owner serves another one.
"""

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openledger.adapters.card import AdapterCard, load_card
from openledger.adapters.registry import AdapterRegistry, RegisteredAdapter
from openledger.attribution.bank_folder import find_bank
from openledger.core.errors import Conflict
from openledger.core.rekeying import replaced
from openledger.core.values import Removal
from openledger.ledger.removals import removal_accounts, removal_statement, removal_transfers
from openledger.ledger.transfers import CREATED, EXISTS
from openledger.platform.calls import answered
from openledger.platform.pipeline import index_folder
from openledger.training.record import load_held_out


@dataclass(frozen=True, slots=True, kw_only=True)
class AffectedAdapter:
    """An adapter that was trained on, or is measured with, some of the rows: itself, or one that it came from.

    `num_trained` counts rows of its whole line. `served` says whether it can be asked under `name` now. `made` are the
    folders and files that were derived from its rows: weights, gradients, bank, held-out rows. `without` names the
    contributors for whom its bank has an adapter that never saw them, which the owner can serve at once; none where an
    ancestor knows some of the rows.
    """

    name: str
    digest: str
    served: bool
    num_trained: int
    num_held_out: int
    made: tuple[str, ...]
    without: tuple[str, ...]


def affected_adapters(registry: AdapterRegistry, indexes: Path, row_ids: Collection[str]) -> list[AffectedAdapter]:
    """Every registered adapter that has to do with one of the rows, by name. Spans and caches of answers are made
    from the rows when they are asked for, and are gone with them."""
    wanted, adapters = set(row_ids), registry.list()
    cards = {adapter.name: card for adapter in adapters if (card := _card_of(adapter)) is not None}
    by_digest: dict[str, list[AdapterCard]] = {}
    for card in cards.values():
        by_digest.setdefault(card.digest, []).append(card)
    found = [
        _affected(adapter, card, _ancestors(card, by_digest), wanted, indexes)
        for adapter in adapters
        if (card := cards.get(adapter.name)) is not None
    ]
    return [one for one in found if one is not None]


async def record_removal(ledger: Any, removal: Removal, key_holder: Callable[[str], Awaitable[str]]) -> str:
    """Put the removal into the log of the ledger's actor, once; the id of the transfer whose proof shows it.

    Raises Conflict where the ledger refuses it; and Forbidden for a withdrawal that isn't there yet, by a key that
    isn't the contributor's now by what `key_holder` (as `Service.key_holder`) says: there it would stand for good
    behind the change that replaced the key.
    """
    statement = removal_statement(removal)
    transfers = removal_transfers(statement)
    if removal.kind == "withdrawn" and await answered(ledger.find.remote(transfers[0].transfer_id)) is None:
        await _check_signer(removal, key_holder)
    await answered(ledger.create_accounts.remote(removal_accounts(removal.datanet)))
    for result in await answered(ledger.commit.remote(transfers, statement)):
        if result not in (CREATED, EXISTS):
            raise Conflict(f"the ledger refused the removal: {result}", code=result, param="removal")
    return transfers[0].transfer_id


async def _check_signer(removal: Removal, key_holder: Callable[[str], Awaitable[str]]) -> None:
    public_key = removal.signed["public_key"]
    if await key_holder(public_key) != removal.by:
        raise replaced(public_key, removal.by)


def _card_of(adapter: RegisteredAdapter) -> AdapterCard | None:
    folder = Path(adapter.folder)
    return load_card(folder) if (folder / "card.json").exists() else None


def _ancestors(card: AdapterCard, by_digest: Mapping[str, Sequence[AdapterCard]]) -> list[AdapterCard]:
    """The cards of all that the adapter came from, as far as they are registered: a line that is broken can't be
    settled, but what is left of it still knows its rows."""
    found: list[AdapterCard] = []
    seen, left = {card.digest}, [digest for digest, _ in card.parents]
    while left:
        digest = left.pop()
        if digest not in seen:
            seen.add(digest)
            found += by_digest.get(digest, ())
            left += [parent for own in by_digest.get(digest, ()) for parent, _ in own.parents]
    return found


def _affected(
    adapter: RegisteredAdapter, card: AdapterCard, ancestors: Sequence[AdapterCard], wanted: set[str], indexes: Path
) -> AffectedAdapter | None:
    folder = Path(adapter.folder)
    inherited = wanted.intersection(row for own in ancestors for row in own.rows_trained)
    trained = wanted.intersection(card.rows_trained) | inherited
    held_out = wanted.intersection(example.row_id for example in load_held_out(folder))
    if not trained and not held_out:
        return None
    bank = find_bank(folder, adapter.digest)
    made = [folder, index_folder(indexes, adapter.digest), folder / "bank", folder / "held_out.json"]
    return AffectedAdapter(
        name=adapter.name,
        digest=adapter.digest,
        served=adapter.terms is not None,
        num_trained=len(trained),
        num_held_out=len(held_out),
        made=tuple(str(path) for path in made if path.exists()),
        without=() if bank is None or inherited else tuple(sorted(bank.withouts)),
    )
