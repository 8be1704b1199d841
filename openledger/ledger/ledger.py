"""The ledger: double-entry accounts in nano-OPEN inside a verifiable log. Knows nothing of who deserves what.

A batch of transfers is one transaction, one fsync and one leaf: all of it is created, durably and provably, or nothing.
Ids are permanent, so a batch may be sent again after any failure, and gives the results it gave first.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from openledger.core import merkle
from openledger.core.clock import Clock, SystemClock
from openledger.core.errors import Conflict, InvalidInput, NotFound, TooLarge
from openledger.core.hashing import canonical_json
from openledger.core.signing import SigningKey
from openledger.ledger import log, statements
from openledger.ledger.accounts import Account, Balance, opened
from openledger.ledger.audit import AuditReport, audit_journal
from openledger.ledger.checkpoints import Checkpoint, check_log_name, sign_checkpoint, verification_key
from openledger.ledger.export import write_export
from openledger.ledger.journal import Journal
from openledger.ledger.proofs import FORMAT as PROOF_FORMAT
from openledger.ledger.refunds import CODE as REFUND_CODE
from openledger.ledger.rules import Book, apply, link
from openledger.ledger.transfers import CREATED, EXISTS, Batch, Entry, Transfer, compare, transfer_to_dict
from openledger.ledger.verdicts import is_verdict

MAX_TRANSFERS = 8192
MAX_STATEMENT_BYTES = 64 * 2**20


class Ledger:
    """One writer over one file.

    `signing_key` may be the path of a key file, which is made where there is none. `name` is the log's origin. Raises
    Conflict where the file belongs to another name or key, and what `database.open_database` raises.
    """

    def __init__(
        self,
        path: Path,
        clock: Clock | None = None,
        signing_key: SigningKey | Path | None = None,
        name: str = "openledger/local",
    ):
        self._name = check_log_name(name)
        self._clock = clock or SystemClock()
        key = signing_key or path.with_suffix(".key")
        self._key = SigningKey.load_or_create(key) if isinstance(key, Path) else key
        self._journal = Journal(path)
        self._bind_key()

    def verification_key(self) -> str:
        """The line with which anyone can check this ledger's checkpoints and proofs."""
        return verification_key(self._name, self._key.public_key)

    def create_accounts(self, accounts: Sequence[Account]) -> list[str]:
        """Open those that aren't open yet, all or none. Results: created, exists, exists_with_different_kind,
        exists_with_different_may_go_negative, linked_transfer_failed."""
        with self._journal.writing():
            known = self._journal.balances(account.account_id for account in accounts)
            results = [_compare_account(account, known.get(account.account_id)) for account in accounts]
            fresh = {a.account_id: a for a, result in zip(accounts, results, strict=True) if result == CREATED}
            if any(result not in (CREATED, EXISTS) for result in results):
                return link(results)
            if fresh:
                changes = Book({name: opened(account) for name, account in fresh.items()})
                self._append((), statements.accounts_statement(list(fresh.values())), changes, self._now_ms())
        return results

    def commit(self, transfers: Sequence[Transfer], statement: dict[str, Any] | None = None) -> list[str]:
        """One result for each transfer (see `transfers`); all are created, or nothing is.

        `statement` is bound into the log with the batch. When this returns, what was created is on disk. Raises
        InvalidInput for an empty batch or a statement that isn't canonical JSON, TooLarge for a batch over the limits.
        """
        _check_batch(transfers, statement)
        with self._journal.writing():
            known = self._journal.entries(transfer.transfer_id for transfer in transfers)
            if known:
                return self._compare_known(transfers, statement, known)
            time_ms = self._now_ms()  # read once: what expiry is reckoned from is what the leaf says
            changes, results = apply(self._journal.book_for(transfers), transfers, time_ms)
            if all(result == CREATED for result in results):
                self._append(tuple(transfers), statement, changes, time_ms)
        return results

    def balance(self, account_id: str) -> Balance:
        """Raises NotFound."""
        found = self._journal.balances([account_id])
        if account_id not in found:
            raise NotFound(
                f"there is no account {account_id}",
                code="account_not_found",
                param="account",
                fix="check the spelling, or fund it first",
            )
        return found[account_id]

    def balances(self) -> list[Balance]:
        """Every account, by id."""
        return list(self._journal.all_balances())

    def transfers(self, account_id: str, limit: int = 1000) -> list[Entry]:
        """What moved on an account, newest first."""
        return self._journal.history(account_id, limit=limit)

    def find(self, transfer_id: str) -> Entry | None:
        return self._journal.entries([transfer_id]).get(transfer_id)

    def batch(self, seq: int) -> Batch:
        """Raises NotFound for a batch that is not in the log."""
        if not 0 <= seq < self._journal.head()[0]:
            raise NotFound(f"there is no batch {seq}", code="batch_not_found", param="seq")
        return self._journal.batch(seq)

    def usages(self, pool: str) -> list[dict[str, Any]]:
        """The statements of the answers that paid into `pool` and were not refunded out of it, in the order of the
        log."""
        history = self._journal.history(pool)
        refunded = _refunded(history, pool)
        paid = [entry for entry in reversed(history) if entry.transfer.credit == pool]
        found = [self._journal.batch(entry.seq).statement or {} for entry in paid]
        return [statement for statement in found if statement.get("answer_id") not in refunded]

    def verdicts(self, pool: str) -> list[dict[str, Any]]:
        """The statements of the verdicts on answers that paid into `pool`, in the order of the log."""
        history = self._journal.history(pool)
        refunded = _refunded(history, pool)
        held = [entry for entry in reversed(history) if entry.transfer.kind == "pending"]
        found = [self._journal.batch(entry.seq).statement or {} for entry in held]
        return [one for one in found if is_verdict(one) and one["answer_id"] not in refunded]

    def checkpoint(self) -> str:
        """The signed note over the log as it stands."""
        return self._journal.head()[2]

    def consistency(self, old_size: int) -> list[str]:
        """The proof (RFC 9162, hex) that the log of `old_size` is a prefix of today's. Raises InvalidInput."""
        with self._journal.reading():
            size = self._journal.head()[0]
            if not 0 < old_size <= size:
                raise InvalidInput(f"the log has 1 to {size} batches", code="invalid_size", param="old_size")
            return [item.hex() for item in log.consistency_path(old_size, size, self._journal.node)]

    def proof(self, transfer_id: str) -> dict[str, Any]:
        """The proof of one transfer; `proofs.encode_proof` makes its file. Raises NotFound."""
        with self._journal.reading():
            entry = self.find(transfer_id)
            if entry is None:
                raise NotFound(f"there is no transfer {transfer_id}", code="transfer_not_found", param="transfer_id")
            batch = self._journal.batch(entry.seq)
            size, _, note = self._journal.head()
            path = log.inclusion_path(entry.seq, size, self._journal.node)
            return {
                "format": PROOF_FORMAT,
                "transfer": transfer_to_dict(entry.transfer),
                "batch": {"ordinal": entry.ordinal, "path": _path_in_batch(batch, entry.ordinal)},
                "leaf": log.leaf_of(batch.seq, batch.time_ms, batch.transfers, batch.statement),
                "statement": batch.statement,
                "path": [item.hex() for item in path],
                "checkpoint": note,
                "evidence": self._evidence(batch),
            }

    def audit(self) -> AuditReport:
        """Recompute everything from the log. Raises Corrupt naming the first wrong entry."""
        return audit_journal(self._journal, self.verification_key())

    def export(self, path: Path) -> None:
        """Write the ledger as text that anyone can audit."""
        write_export(self._journal, self._name, path)

    def close(self) -> None:
        self._journal.close()

    def _bind_key(self) -> None:
        with self._journal.writing():
            bound = self._journal.meta("verification_key")
            if bound and bound != self.verification_key():
                raise Conflict(
                    f"{self._journal.path} belongs to {bound}, not to {self.verification_key()}",
                    code="wrong_key",
                    param="signing_key",
                    fix="open the ledger with the name and the key file it was made with",
                )
            if not bound:
                self._journal.set_meta("verification_key", self.verification_key())
                self._put_head(0, self._clock.now_ms(), merkle.EMPTY_ROOT)

    def _now_ms(self) -> int:
        """The log's time: the clock's, but never before the batch before."""
        return max(self._clock.now_ms(), self._journal.head()[1])

    def _compare_known(
        self, transfers: Sequence[Transfer], statement: dict[str, Any] | None, known: dict[str, Entry]
    ) -> list[str]:
        results = [
            compare(transfer, known[transfer.transfer_id].transfer) if transfer.transfer_id in known else CREATED
            for transfer in transfers
        ]
        if any(result != EXISTS for result in results):
            return link(results)
        first = {entry.seq: self._journal.batch(entry.seq).statement for entry in known.values()}
        same = all(_same_statement(statement, stored) for stored in first.values())
        return results if same else ["exists_with_different_statement"] * len(transfers)

    def _append(
        self, transfers: tuple[Transfer, ...], statement: dict[str, Any] | None, changes: Book, time_ms: int
    ) -> None:
        size = self._journal.head()[0]
        batch = Batch(seq=size, time_ms=time_ms, transfers=transfers, statement=statement)
        leaf = log.leaf_hash(log.leaf_of(size, time_ms, transfers, statement))
        self._journal.add_batch(batch)
        self._journal.put_changes(changes)
        self._journal.add_nodes(log.nodes_after_append(size, leaf, self._journal.node))
        self._put_head(size + 1, time_ms, log.root(size + 1, self._journal.node))

    def _put_head(self, size: int, time_ms: int, root: bytes) -> None:
        checkpoint = Checkpoint(origin=self._name, size=size, root=root.hex())
        self._journal.put_head(size, time_ms, sign_checkpoint(checkpoint, self._key))

    def _evidence(self, batch: Batch) -> list[list[Any]] | None:
        if statements.format_of(batch.statement) not in statements.SETTLEMENTS:
            return None
        return statements.evidence_of(self.usages(batch.transfers[0].debit))


def _check_batch(transfers: Sequence[Transfer], statement: dict[str, Any] | None) -> None:
    if not transfers:
        raise InvalidInput("a batch needs a transfer", code="empty_batch", param="transfers")
    if len(transfers) > MAX_TRANSFERS:
        raise TooLarge(
            f"{len(transfers)} transfers in one batch; the limit is {MAX_TRANSFERS}",
            code="batch_too_large",
            param="transfers",
            fix="send several batches",
        )
    if statement is not None and len(canonical_json(statement)) > MAX_STATEMENT_BYTES:
        raise TooLarge("the statement is over 64 MiB", code="statement_too_large", param="statement")
    if statements.format_of(statement) == statements.ACCOUNTS:
        raise InvalidInput("accounts are opened by create_accounts", code="invalid_statement", param="statement")


def _refunded(history: Sequence[Entry], pool: str) -> set[str]:
    """Ids of the answers that left `pool` again."""
    return {entry.transfer.reference for entry in history
            if entry.transfer.debit == pool and entry.transfer.code == REFUND_CODE}  # fmt: skip


def _compare_account(account: Account, known: Balance | None) -> str:
    if known is None:
        return CREATED
    if account.kind != known.kind:
        return "exists_with_different_kind"
    return EXISTS if account.may_go_negative == known.may_go_negative else "exists_with_different_may_go_negative"


def _same_statement(given: dict[str, Any] | None, stored: dict[str, Any] | None) -> bool:
    return canonical_json(given) == canonical_json(stored)


def _path_in_batch(batch: Batch, ordinal: int) -> list[str]:
    return [item.hex() for item in merkle.inclusion_proof(ordinal, log.transfer_hashes(batch.transfers))]
