"""Reading a ledger beside whoever writes it: proofs, checkpoints, copies. Needs no key and changes nothing.

`Ledger` reads through the same functions.
"""

from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from openledger.core.errors import Corrupt, InvalidInput, NotFound
from openledger.ledger import log, statements
from openledger.ledger.checkpoints import parse_note
from openledger.ledger.export import write_export
from openledger.ledger.journal import Journal, touching
from openledger.ledger.opening import open_store
from openledger.ledger.proofs import proof_of
from openledger.ledger.refunds import CODE as REFUND_CODE
from openledger.ledger.transfers import Batch, Transfer
from openledger.ledger.verdicts import is_verdict


class LedgerReader:
    """A ledger's file or PostgreSQL URL, opened for reading. Raises what its store raises."""

    def __init__(self, storage: Path | str):
        if isinstance(storage, Path) and not storage.exists():
            raise NotFound(f"no ledger at {storage}", code="no_ledger", param=str(storage))
        self._journal = Journal(open_store(storage, read_only=True))

    def __enter__(self) -> "LedgerReader":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._journal.close()

    def checkpoint(self) -> str:
        return self._journal.head()[2]

    def consistency_to(self, note: str) -> Callable[[int], list[str]]:
        """A call that proves (hex) that the log of an older size is a prefix of the one that `note` signs."""
        size = parse_note(note).checkpoint.size
        return lambda old: [item.hex() for item in log.consistency_path(old, size, self._journal.node)]

    def proof(self, transfer_id: str, checkpoint: str = "") -> dict[str, Any]:
        return prove(self._journal, transfer_id, checkpoint)

    def export(self, path: Path) -> None:
        origin = self._journal.meta("verification_key").partition("+")[0]
        write_export(self._journal, origin, path)

    def backup(self, path: Path) -> None:
        self._journal.store.backup(path)


def prove(journal: Journal, transfer_id: str, checkpoint: str = "") -> dict[str, Any]:
    """As `Ledger.proof`."""
    with journal.reading():
        entry = journal.entries([transfer_id]).get(transfer_id)
        if entry is None:
            raise NotFound(f"there is no transfer {transfer_id}", code="transfer_not_found", param="transfer_id")
        batch = journal.batch(entry.seq)
        note = checkpoint or journal.head()[2]
        size = _size_of(journal, note)
        if entry.seq >= size:
            raise InvalidInput("the checkpoint is older than the transfer", code="old_checkpoint", param="checkpoint")
        path = log.inclusion_path(entry.seq, size, journal.node)
        return proof_of(batch, entry.ordinal, path, note, _evidence(journal, batch))


def usages(journal: Journal, pool: str) -> list[dict[str, Any]]:
    """The statements of the answers that paid into `pool` and were not refunded out of it, in the order of the log."""
    return [statement for transfer, statement in _unrefunded(journal, pool) if transfer.credit == pool]


def verdicts(journal: Journal, pool: str) -> list[dict[str, Any]]:
    """The statements of the verdicts on those answers, in the order of the log."""
    held = [statement for transfer, statement in _unrefunded(journal, pool) if transfer.kind == "pending"]
    return [statement for statement in held if is_verdict(statement)]


def _unrefunded(journal: Journal, pool: str) -> list[tuple[Transfer, dict[str, Any]]]:
    """The transfers that touched `pool`, oldest first, each with its batch's statement; without those of answers that
    were refunded out of it."""
    batches = list(journal.batches_of(pool))
    told = [(entry.transfer, batch.statement or {}) for batch in batches for entry in touching(batch, pool)]
    refunded = {one.reference for one, _ in told if one.debit == pool and one.code == REFUND_CODE}
    return [(one, statement) for one, statement in reversed(told) if statement.get("answer_id") not in refunded]


def _size_of(journal: Journal, note: str) -> int:
    point = parse_note(note).checkpoint
    name = journal.meta("verification_key").partition("+")[0]
    known = point.origin == name and point.size <= journal.head()[0]
    if not known or log.root(point.size, journal.node).hex() != point.root:
        raise Corrupt("the checkpoint isn't over this log", code="wrong_root", param="checkpoint")
    return point.size


def _evidence(journal: Journal, batch: Batch) -> list[list[Any]] | None:
    if statements.format_of(batch.statement) not in statements.SETTLEMENTS:
        return None
    return statements.evidence_of(usages(journal, batch.transfers[0].debit))
