"""Whose row was first, as the log has it: a version's order of credit against the seals of its sealed rows, before
anything is trained or indexed by it.

The order is the registry's word (`datanets.versions`), and who owns the registry could have it changed, or restore an
older one. Seals are in the log as well, so whoever has both compares them: the platform itself, before a run's record
takes the order over, and any stranger (docs/concepts/attribution.md).
"""

from collections.abc import Iterable
from typing import Any

from openledger.core.sealing import FORMAT as SEAL
from openledger.core.values import DatanetVersion, Row
from openledger.datanets.versions import LoggedOpening, check_sealed
from openledger.economy.port import LedgerPort, newest_first
from openledger.ledger.seals import SEALS_ACCOUNT
from openledger.ledger.statements import format_of
from openledger.platform.pipeline import find_credit


def checked_credit(datanets: Any, version: DatanetVersion, rows: Iterable[Row], ledger: LedgerPort) -> list[str]:
    """As `find_credit`, of `version` with the `rows` that are there. Raises InvalidInput (`other_credit`) where sealed
    rows stand in other places than the log has their seals."""
    order = find_credit(datanets, version)
    if order:
        check_sealed(order, rows, openings_in(ledger, version.datanet))
    return order


def openings_in(ledger: LedgerPort, datanet: str) -> list[LoggedOpening]:
    """See `ledger.seals.Seals.openings`, of one Datanet's seals. Reads their own entries, and not the whole log."""
    sealed: dict[tuple[str, str], tuple[int, int]] = {}
    found = list[LoggedOpening]()
    for seq in sorted({entry.seq for entry in newest_first(ledger, SEALS_ACCOUNT)}):
        statement = ledger.batch(seq).statement or {}
        own = statement.get("contributor_id", ""), statement.get("digest", "")
        if statement.get("datanet") != datanet:
            continue
        if format_of(statement) == SEAL:
            sealed[own] = seq, statement["expires_ms"]
        elif own in sealed:
            found.append((*sealed[own], statement["signed"]))
    return sorted(found, key=lambda opening: opening[0])
