"""Lists of repeated rows that an index of before lacks, added before a settlement goes by them.

Which list a period goes by, its rule of shares says (`attribution.likeness`). An index that was built before that rule
was there has an older one, and a settlement by it would read as one by the rule that was voted. So it is completed
first, from the run and those of its rows that are left; where that can't be done here, nothing is paid.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ray

from openledger.adapters.card import AdapterCard
from openledger.adapters.registry import AdapterRegistry, RegisteredAdapter
from openledger.attribution.index_folder import is_finished
from openledger.attribution.likeness import knows_credit, lacks_repeats, likeness_rule
from openledger.core.errors import NotFound
from openledger.core.shares import leaves_unpaid
from openledger.core.values import Row
from openledger.datanets.versions import credit_root
from openledger.platform.generations import Ancestry, index_folder, is_merge
from openledger.training.record import check_credit, load_run

RowsOf = Callable[[AdapterCard], tuple[Sequence[Row], Sequence[str]]]
"""Of an adapter's Datanet version the rows that are still there, and the ids of all in the order of credit."""


def complete_lists(
    ancestry: Ancestry,
    shares_rule: str,
    registry: AdapterRegistry,
    indexes: Path,
    host: Any,
    rows_of: RowsOf | None = None,
) -> None:
    """Add to the finished indexes of all generations the lists that `shares_rule` needs, as far as their runs know the
    order of credit; `host` is the index actor. Raises NotFound (`missing_repeats`) where one is lacking and nobody
    gives its rows, InvalidInput (`other_credit`) where a record has another order than the version, and as `rows_of`
    and `build_repeats`."""
    if shares_rule and not leaves_unpaid(shares_rule):
        return
    for digest, adapter in ancestry.adapters.items():
        card, index = ancestry.card(digest), index_folder(indexes, digest)
        if card is None or is_merge(card) or not is_finished(index):
            continue
        run = run_folder(registry, adapter, card)
        if not knows_credit(run) or not lacks_repeats(index, run, shares_rule):
            continue
        if rows_of is None:
            raise _missing(card, likeness_rule(shares_rule))
        _complete(card, run, index, host, rows_of)


def run_folder(registry: AdapterRegistry, adapter: RegisteredAdapter, card: AdapterCard) -> Path:
    """Where the record of the run is kept that made the adapter: of one without a contributor's rows the old one's,
    whose run is repeated there."""
    without_of = card.recipe.get("without_of")
    return Path(registry.find_digest(without_of).folder if without_of else adapter.folder)


def _complete(card: AdapterCard, run: Path, index: Path, host: Any, rows_of: RowsOf) -> None:
    rows, order = rows_of(card)
    check_credit(load_run(run), order, credit_root(order) if order else "")
    there = {row.row_id: row for row in rows}
    left = [there[row_id] for row_id in card.rows_trained if row_id in there]
    ray.get(host.build.remote([], card.digest, left, [], str(index), str(run)))


def _missing(card: AdapterCard, rule: str) -> NotFound:
    return NotFound(
        f"the index of {card.name} has no list of repeated rows by {rule}, which this period's rule of shares goes by",
        code="missing_repeats",
        param=card.digest,
        fix="settle with jobs/settle.py, which adds it from the rows that are left: nothing was paid",
    )
