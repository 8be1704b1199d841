"""A ledger made again from its export, in any storage: after a loss, or to move from SQLite to PostgreSQL.

Each batch is judged by the rules again and must have the leaf that the export claims for it; the end must have the
signed root. Can be run again after it was interrupted: what is there already is compared and kept.
"""

from collections.abc import Callable
from pathlib import Path

from openledger.core.errors import Conflict, Corrupt
from openledger.core.hashing import canonical_json
from openledger.ledger import log, statements
from openledger.ledger.accounts import opened
from openledger.ledger.audit import AuditReport, audit_file, audit_journal
from openledger.ledger.checkpoints import parse_note
from openledger.ledger.export import Claim, read_export
from openledger.ledger.journal import Journal
from openledger.ledger.keyring import ROTATION
from openledger.ledger.opening import open_store
from openledger.ledger.rules import Book, apply
from openledger.ledger.transfers import CREATED, Batch

_BATCHES_A_COMMIT = 200


def restore(
    export: Path, storage: Path | str, key: str, progress: Callable[[int], None] = lambda _: None
) -> AuditReport:
    """Write the ledger of `export` into `storage`, and audit it there. `progress` is told how many batches are done.

    Raises what the audit of the export raises, and Conflict where `storage` holds another ledger.
    """
    audit_file(export, key)
    journal = Journal(open_store(storage))
    try:
        _restore(export, journal, key.strip().partition("\n")[0], progress)
        return audit_journal(journal, key)
    finally:
        journal.close()


def _restore(export: Path, journal: Journal, key: str, progress: Callable[[int], None]) -> None:
    waiting: list[tuple[Batch, bytes]] = []
    for entry in read_export(export):
        if isinstance(entry, Claim):
            _write(journal, waiting, (entry, key))
            progress(journal.head()[0])
            return
        waiting.append(entry)
        if len(waiting) == _BATCHES_A_COMMIT:
            _write(journal, waiting, None)
            progress(waiting[-1][0].seq + 1)
            waiting.clear()


def _write(journal: Journal, batches: list[tuple[Batch, bytes]], end: tuple[Claim, str] | None) -> None:
    with journal.writing():
        size = journal.store.counts()["batches"]
        for batch, leaf in batches:
            if batch.seq < size:
                _compare(journal, batch, leaf)
                continue
            _append(journal, batch, leaf)
            size = batch.seq + 1
        if end is not None:
            _finish(journal, *end, size, batches[-1][0].time_ms if batches else 0)


def _compare(journal: Journal, batch: Batch, leaf: bytes) -> None:
    if journal.node(0, batch.seq) != leaf:
        raise Conflict(
            f"{journal.location} holds another ledger: its batch {batch.seq} differs",
            code="another_ledger",
            param="storage",
            fix="restore into an empty place",
        )


def _append(journal: Journal, batch: Batch, leaf: bytes) -> None:
    if log.leaf_hash(log.leaf_of(batch)) != leaf:
        raise Corrupt(f"batch {batch.seq}: not the leaf it claims", code="wrong_leaf", param=f"batch {batch.seq}")
    changes = Book()
    if statements.format_of(batch.statement) == statements.ACCOUNTS:
        journal.add_accounts([opened(account) for account in statements.accounts_in(batch.statement or {})])
    if batch.transfers:
        changes, results = apply(journal.book_for(batch.transfers), batch.transfers, batch.time_ms)
        if any(result != CREATED for result in results):
            raise Corrupt(f"batch {batch.seq} breaks the rules", code="refused_transfer", param=f"batch {batch.seq}")
    if statements.format_of(batch.statement) == ROTATION:
        rotation = canonical_json(batch.statement).decode()
        journal.set_meta("rotations", journal.meta("rotations") + rotation + "\n")
        journal.set_meta("verification_key", (batch.statement or {})["new"])
    journal.add_batch(batch)
    journal.put_changes(changes, batch.seq)
    journal.add_nodes(log.nodes_after_append(batch.seq, leaf, journal.node))


def _finish(journal: Journal, claim: Claim, key: str, size: int, time_ms: int) -> None:
    point = parse_note(claim.checkpoint).checkpoint
    if size != point.size or log.root(size, journal.node).hex() != point.root:
        raise Conflict(f"{journal.location} holds another ledger", code="another_ledger", param="storage")
    if not journal.meta("verification_key"):
        journal.set_meta("verification_key", key)
    journal.put_head(size, time_ms or journal.head()[1], claim.checkpoint)
