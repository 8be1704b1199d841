"""Whose row was first, as the log has it: a version's order of credit against the seals of its sealed rows, before
anything is trained or indexed by it.

The order is the registry's word (`datanets.versions`), and who owns the registry could have it changed, or restore an
older one. Seals are in the log as well, so whoever has both compares them: the platform itself, before a run's record
takes the order over, and any stranger (docs/concepts/attribution.md). A log that lacks a seal says nothing of its rows.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray

from openledger.adapters.card import AdapterCard
from openledger.core.errors import InvalidInput, NotFound
from openledger.core.sealing import FORMAT as SEAL
from openledger.core.sealing import SealReceipt, seal_digest
from openledger.core.values import DatanetVersion, Row
from openledger.datanets.seals import UnloggedSeal
from openledger.datanets.versions import LoggedOpening, misplaced, other_credit, sealed_rows
from openledger.economy.port import LedgerPort, newest_first
from openledger.ledger.seals import SEALS_ACCOUNT
from openledger.ledger.statements import Statement, format_of
from openledger.platform.pipeline import find_credit, published

Own = tuple[str, str]  # a contributor and his digest
_PAGE = 256  # batches that one call reads


@dataclass(frozen=True, slots=True, kw_only=True)
class Credit:
    """`order` as of `find_credit`. `left_out` are rows that nothing is to be trained on, each with its contribution."""

    order: list[str]
    left_out: Mapping[str, str] = field(default_factory=dict)


def checked_credit(datanets: Any, version: DatanetVersion, rows: Iterable[Row], ledger: LedgerPort) -> list[str]:
    """As `find_credit`, where `rows` of `version` were trained on. Raises InvalidInput (`other_credit`) where sealed
    ones stand in other places than the log has their seals."""
    order, rows = find_credit(datanets, version), list(rows)
    if order:
        sealed = sealed_rows(rows, openings_in(ledger, version.datanet))
        for found in misplaced(order, rows, sealed):
            raise other_credit(found)
    return order


def rows_and_credit(datanets: Any, ledger: LedgerPort, card: AdapterCard) -> tuple[list[Row], list[str]]:
    """Of the version that an adapter was trained on the rows that are left, and the order as of `checked_credit`: what
    its list of repeated rows is made of. Raises as that and `published`."""
    version, rows = published(datanets, card.datanet, card.datanet_version)
    trained = set(card.rows_trained)
    return rows, checked_credit(datanets, version, [row for row in rows if row.row_id in trained], ledger)


def credit_to_train(
    datanets: Any,
    version: DatanetVersion,
    rows: Iterable[Row],
    ledger: LedgerPort,
    tell: Callable[[str], None] = lambda _: None,
) -> Credit:
    """As `find_credit`, before anything is trained on the `rows` of `version` that are there. Sealed rows whose opening
    the registry doesn't know, as one that was restored and was sent them again, stand where they came: where that is
    behind rows sealed after them, their contribution is left out.

    Raises InvalidInput (`other_credit`) where others stand in other places than the log has their seals, and where the
    log lacks an opening that it was told: it is of an earlier time than the registry."""
    order, rows = find_credit(datanets, version), list(rows)
    if not order:
        return Credit(order=order)
    pending = ray.get(datanets.unlogged_seals.remote())  # first: what isn't in here is in the log
    log = _seals_in(ledger, version.datanet)
    log.add_pending(pending)
    _check_log(datanets, version, rows, log)
    seal_at, gone = {seq: own for own, (seq, _) in log.sealed.items()}, set[str]()
    for found in misplaced(order, rows, sealed_rows(rows, log.openings())):
        if (own := found.row.contribution_id) in gone:
            continue
        if _opened(datanets, version, *seal_at[found.opening[0]]) == own:
            raise other_credit(found)
        gone.add(own)
        tell(f"{own} is left out: {found.row.row_id} {found.problem}, and the registry knows of no opening of its seal")
    return Credit(order=order, left_out={row.row_id: one for row in rows if (one := row.contribution_id) in gone})


def openings_in(ledger: LedgerPort, datanet: str) -> list[LoggedOpening]:
    """See `ledger.seals.Seals.openings`, of one Datanet's seals. Reads their own batches, and not the whole log."""
    return _seals_in(ledger, datanet).openings()


@dataclass(frozen=True, slots=True)
class _LoggedSeals:
    """By contributor and digest: a seal's place in the log and its expiry, and what was signed where it was opened."""

    sealed: dict[Own, tuple[int, int]] = field(default_factory=dict)
    opened: dict[Own, Mapping[str, Any]] = field(default_factory=dict)

    def openings(self) -> list[LoggedOpening]:
        found = [(*self.sealed[own], signed) for own, signed in self.opened.items()]
        return sorted(found, key=lambda opening: opening[0])

    def add_pending(self, pending: Iterable[UnloggedSeal]) -> None:
        """Openings that the log has yet to be told, or refuses: they are what was sealed all the same."""
        for one in pending:
            own = one.contributor_id, one.digest
            if one.signed and own in self.sealed and seal_digest(one.signed, one.signature) == one.digest:
                self.opened.setdefault(own, one.signed)


def _check_log(datanets: Any, version: DatanetVersion, rows: Sequence[Row], log: _LoggedSeals) -> None:
    """Only a contributor to the version is asked for, so that nobody else's seals cost a question."""
    contributors, there = {row.contributor_id for row in rows}, {row.contribution_id for row in rows}
    for contributor, digest in sorted(log.sealed.keys() - log.opened.keys()):
        if contributor in contributors and (own := _opened(datanets, version, contributor, digest)) in there:
            raise InvalidInput(
                f"{own} was opened by the registry, and the log has no opening of its seal {digest}",
                code="other_credit",
                param="credit",
                fix="restore the newest copy of the ledger: it is of an earlier time than the registry",
            )


def _opened(datanets: Any, version: DatanetVersion, contributor: str, digest: str) -> str | None:
    """The contribution that opened a seal by the registry's word; None where it waits, expired or isn't known."""
    try:
        receipt: SealReceipt = ray.get(datanets.find_seal.remote(version.datanet, contributor, digest))
    except NotFound:
        return None
    return receipt.contribution_id


def _seals_in(ledger: LedgerPort, datanet: str) -> _LoggedSeals:
    found = _LoggedSeals()
    for seq, statement in _statements(ledger, datanet):
        own = statement["contributor_id"], statement["digest"]
        if format_of(statement) == SEAL:
            found.sealed[own] = seq, statement["expires_ms"]
        elif own in found.sealed:
            found.opened[own] = statement["signed"]
    return found


def _statements(ledger: LedgerPort, datanet: str) -> Iterator[tuple[int, Statement]]:
    """What the log says of one Datanet's seals, each with its place, in the order of the log. Which batches these are
    the transfers' references say: those of other Datanets, which anybody makes for nothing, aren't read."""
    entries = newest_first(ledger, SEALS_ACCOUNT)
    seqs = sorted({entry.seq for entry in entries if entry.transfer.reference.startswith(f"{datanet}:")})
    for start in range(0, len(seqs), _PAGE):
        for batch in ledger.batches(seqs[start : start + _PAGE]):
            statement = batch.statement or {}
            if statement.get("datanet") == datanet:
                yield batch.seq, statement
