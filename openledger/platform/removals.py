"""What a removal of rows means beyond their Datanet: the entry in the log, and the adapters that have learnt from them.

Storage has forgotten the rows when these functions are called. An adapter hasn't: it is listed, with everything that
was made from its rows, until its owner serves another one.
"""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from openledger.adapters.card import load_card
from openledger.adapters.registry import AdapterRegistry, RegisteredAdapter
from openledger.attribution.bank_folder import find_bank
from openledger.core.errors import Conflict
from openledger.core.values import Removal
from openledger.economy.port import LedgerPort
from openledger.ledger.removals import removal_accounts, removal_statement, removal_transfers
from openledger.ledger.transfers import CREATED, EXISTS
from openledger.platform.pipeline import index_folder
from openledger.training.record import load_held_out


@dataclass(frozen=True, slots=True, kw_only=True)
class AffectedAdapter:
    """An adapter that was trained on, or is measured with, some of the rows.

    `served` says whether it can be asked under `name` now. `made` are the folders and files that were derived from its
    rows: weights, gradients, bank, held-out rows. `without` names the contributors for whom its bank has an adapter
    that never saw them, which the owner can serve at once.
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
    wanted = set(row_ids)
    found = [_affected(adapter, indexes, wanted) for adapter in registry.list()]
    return [one for one in found if one is not None]


def record_removal(ledger: LedgerPort, removal: Removal) -> str:
    """Put the removal into the log, once; the id of the transfer whose proof shows it."""
    statement = removal_statement(removal)
    transfers = removal_transfers(statement)
    ledger.create_accounts(removal_accounts(removal.datanet))
    check_recorded(ledger.commit(transfers, statement))
    return transfers[0].transfer_id


def check_recorded(results: list[str]) -> None:
    """Raises Conflict where the ledger refused a removal's batch."""
    for result in results:
        if result not in (CREATED, EXISTS):
            raise Conflict(f"the ledger refused the removal: {result}", code=result, param="removal")


def _affected(adapter: RegisteredAdapter, indexes: Path, wanted: set[str]) -> AffectedAdapter | None:
    folder = Path(adapter.folder)
    if not (folder / "card.json").exists():
        return None
    trained = wanted.intersection(load_card(folder).rows_trained)
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
        without=() if bank is None else tuple(sorted(bank.withouts)),
    )
