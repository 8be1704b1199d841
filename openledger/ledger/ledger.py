"""The ledger: double-entry accounts in nano-OPEN inside a verifiable log. Knows nothing of who deserves what.

A batch of transfers is one leaf of the log, and what was answered is on disk. `commit` makes a batch whole or not at
all, with a statement that says why. `submit` answers each transfer by itself, `linked` ones together. `submit_packed`
is `submit` for thousands at a time, as bytes. Ids are permanent, so anything may be sent again after any failure, and
gives the results it gave first.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openledger.core import merkle
from openledger.core.clock import Clock, SystemClock
from openledger.core.errors import Conflict, InvalidInput, NotFound, TooLarge
from openledger.core.hashing import canonical_json
from openledger.core.signing import SigningKey
from openledger.ledger import log, packed, statements
from openledger.ledger.accounts import Account, Balance, opened
from openledger.ledger.audit import AuditReport, audit_journal
from openledger.ledger.checkpoints import Checkpoint, check_log_name, sign_checkpoint, verification_key
from openledger.ledger.export import write_export
from openledger.ledger.journal import PACKED, Journal
from openledger.ledger.keyring import ROTATION, rotation_statement
from openledger.ledger.opening import is_postgres, open_store
from openledger.ledger.reader import prove, usages, verdicts
from openledger.ledger.receipts import receipt_of
from openledger.ledger.rules import Book, apply, apply_each, compare_known, link
from openledger.ledger.store import MAX_TRANSFERS, BatchRow
from openledger.ledger.transfers import CREATED, EXISTS, RESULTS, Batch, Entry, Transfer, transfer_bytes

if TYPE_CHECKING:
    from openledger.ledger.setwise import Int64, Outcome, Records, Sheet

MAX_STATEMENT_BYTES = 64 * 2**20
OTHER_STATEMENT = "exists_with_different_statement"
_RESULT_CODES = {name: code for code, name in enumerate(RESULTS)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What one caller asks for: `whole` is a commit (with or without a statement), else each transfer or chain of
    `linked` ones by itself. Raises InvalidInput or TooLarge for what could never be served."""

    transfers: tuple[Transfer, ...]
    statement: dict[str, Any] | None = None
    whole: bool = False
    linked: tuple[bool, ...] = ()

    def __post_init__(self) -> None:
        if not self.transfers:
            raise InvalidInput("a batch needs a transfer", code="empty_batch", param="transfers")
        _check_count(len(self.transfers))
        _check_linked(self.linked, len(self.transfers))
        if self.statement is not None:
            _check_statement(self.statement)


class Ledger:
    """One writer over one storage.

    `storage` is the path of an SQLite file, or the URL of a PostgreSQL database. `signing_key` may be the path of a key
    file, which is made where there is none; beside an SQLite file it has a place of its own. `name` is the log's
    origin; `patience_s` is how long to wait for a database that can't be reached. Raises Conflict where the ledger
    belongs to another name or key, and what its store raises.
    """

    def __init__(
        self,
        storage: Path | str,
        clock: Clock | None = None,
        signing_key: SigningKey | Path | None = None,
        name: str = "openledger/local",
        patience_s: float = 0,
    ):
        self._name = check_log_name(name)
        self._clock = clock or SystemClock()
        self._key = _key_of(storage, signing_key)
        self._journal = Journal(open_store(storage, patience_s=patience_s))
        self._size, self._time_ms = 0, 0
        self._sheet: Sheet | None = None
        self._stated: dict[str, Batch] = {}  # what the last transaction appended, by each batch's first transfer
        self._bind_key()

    def verification_key(self) -> str:
        """The line with which anyone can check this ledger's checkpoints and proofs."""
        return verification_key(self._name, self._key.public_key)

    def create_accounts(self, accounts: Sequence[Account]) -> list[str]:
        """Open those that aren't open yet, all or none. Results: created, exists, exists_with_different_kind,
        exists_with_different_may_go_negative, linked_transfer_failed."""
        with self._writing():
            known = self._journal.balances(account.account_id for account in accounts)
            results = [_compare_account(account, known.get(account.account_id)) for account in accounts]
            fresh = {a.account_id: a for a, result in zip(accounts, results, strict=True) if result == CREATED}
            if any(result not in (CREATED, EXISTS) for result in results):
                return link(results)
            if fresh:
                self._journal.add_accounts([opened(account) for account in fresh.values()])
                self._append((), statements.accounts_statement(list(fresh.values())), Book(), self._now_ms())
        return results

    def commit(self, transfers: Sequence[Transfer], statement: dict[str, Any] | None = None) -> list[str]:
        """One result for each transfer (see `transfers`); all are created, or nothing is.

        `statement` is bound into the log with the batch. When this returns, what was created is on disk. Raises
        InvalidInput for an empty batch or a statement that isn't canonical JSON, TooLarge for a batch over the limits.
        """
        return self.serve([Request(transfers=tuple(transfers), statement=statement, whole=True)])[0]

    def commit_each(
        self, commits: Sequence[tuple[Sequence[Transfer], dict[str, Any] | None]]
    ) -> list[tuple[list[str], dict[str, Any] | None]]:
        """As `commit` for each by itself, all of them durable by one sync; beside its results, where it states
        something, the receipt of its first transfer if that stands in the log."""
        requests = [
            Request(transfers=tuple(transfers), statement=statement, whole=True) for transfers, statement in commits
        ]
        told = zip(requests, self.serve(requests), strict=True)
        return [(results, self._promise(request, results)) for request, results in told]

    def submit(self, transfers: Sequence[Transfer], linked: Sequence[bool] = ()) -> list[str]:
        """One result for each transfer, each created or refused by itself.

        `linked[i]` ties transfer i to the next: a chain so tied is created whole or not at all. What was created is on
        disk, and one batch of the log. Raises what `commit` raises, and InvalidInput for a chain without an end.
        """
        return self.serve([Request(transfers=tuple(transfers), linked=tuple(linked))])[0]

    def submit_packed(self, data: bytes, linked: bytes = b"") -> bytes:
        """As `submit`, for the records of `packed`; gives one byte for each, its result's place in `RESULTS`.

        `linked` has one byte for each record, 0 or 1. Raises InvalidInput naming the first record that could never be
        a transfer; nothing is done then.
        """
        from openledger.ledger import setwise

        records = setwise.read_records(data)
        _check_count(len(records))
        ties = [bool(tie) for tie in linked] if linked else [False] * len(records)
        _check_linked(ties, len(records))
        with self._writing():
            outcome = self._created_at_once(records) or self._created_in_order(records, data, ties)
        return bytes(map(_RESULT_CODES.__getitem__, outcome.results))

    def serve(self, requests: Sequence[Request]) -> list[list[str]]:
        """Results of many callers' requests, in their order, made durable by one sync.

        Each commit with a statement has a leaf of its own; what states nothing is gathered into one.
        """
        with self._writing():
            results: list[list[str]] = []
            for group in _gathered(requests):
                if group[0].whole:
                    results.append(self._committed(group[0].transfers, group[0].statement))
                else:
                    results += self._submitted(group)
        return results

    def balance(self, account_id: str) -> Balance:
        """Raises NotFound."""
        found = self._journal.balances([account_id])
        if account_id not in found:
            raise NotFound(
                f"there is no account {account_id}",
                code="account_not_found",
                param="account",
                fix="check the spelling, or fund it first; a contributor's opens with the first payout",
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

    def batches(self, seqs: Sequence[int]) -> list[Batch]:
        """As `batch`, of several."""
        return [self.batch(seq) for seq in seqs]

    def usages(self, pool: str) -> list[dict[str, Any]]:
        """The statements of the answers that paid into `pool` and were not refunded out of it, in the order of the
        log."""
        return usages(self._journal, pool)

    def verdicts(self, pool: str) -> list[dict[str, Any]]:
        """The statements of the verdicts on answers that paid into `pool`, in the order of the log."""
        return verdicts(self._journal, pool)

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

    def proof(self, transfer_id: str, checkpoint: str = "") -> dict[str, Any]:
        """The proof of one transfer; `proofs.encode_proof` makes its file. Raises NotFound.

        `checkpoint` is a note over this log to prove it against, for example one that witnesses cosigned; by default
        the newest. Raises Corrupt for a note that isn't over this log, InvalidInput for one from before the transfer.
        """
        return prove(self._journal, transfer_id, checkpoint)

    def receipt(self, transfer_id: str) -> dict[str, Any]:
        """The signed promise that a transfer stands in the log; `receipts.encode_receipt` makes its file. Raises
        NotFound."""
        entry = self.find(transfer_id)
        if entry is None:
            raise NotFound(f"there is no transfer {transfer_id}", code="transfer_not_found", param="transfer_id")
        return receipt_of(self._journal.batch(entry.seq), entry.ordinal, self._name, self._key)

    def key_ring(self) -> str:
        """The verification key, and each rotation: with it, proofs from before and after a rotation verify."""
        rotations = [line for line in self._journal.meta("rotations").split("\n") if line]
        return "\n".join([self.verification_key(), *rotations]) + "\n"

    def rotate_key(self, new_key: SigningKey | Path) -> None:
        """Sign with `new_key` from now on; the old key signs that, and it is an entry in the log.

        Raises InvalidInput for the key that is in use. From then on the ledger opens with the new key only.
        """
        new = SigningKey.load_or_create(new_key) if isinstance(new_key, Path) else new_key
        if new.public_key == self._key.public_key:
            raise InvalidInput("that is the key in use", code="same_key", param="new_key")
        old, written = self._key, verification_key(self._name, new.public_key)
        try:
            with self._writing():
                statement = rotation_statement(self.verification_key(), written, self._size, old, new)
                rotations = self._journal.meta("rotations") + canonical_json(statement).decode() + "\n"
                self._journal.set_meta("rotations", rotations)
                self._journal.set_meta("verification_key", written)
                self._key = new
                self._append((), statement, Book(), self._now_ms())
        except BaseException:
            self._key = old
            raise

    def audit(self) -> AuditReport:
        """Recompute everything from the log. Raises Corrupt naming the first wrong entry."""
        return audit_journal(self._journal, self.verification_key())

    def export(self, path: Path) -> None:
        """Write the ledger as text that anyone can audit."""
        write_export(self._journal, self._name, path)

    def backup(self, path: Path) -> None:
        """A copy of the whole ledger as it stands, durable at `path`, while it goes on. Raises Conflict where there is
        a file."""
        self._journal.store.backup(path)

    def close(self) -> None:
        self._journal.close()

    def _promise(self, request: Request, results: Sequence[str]) -> dict[str, Any] | None:
        if request.statement is None or results[0] not in (CREATED, EXISTS):
            return None
        first = request.transfers[0].transfer_id
        batch = self._stated.get(first)
        return self.receipt(first) if batch is None else receipt_of(batch, 0, self._name, self._key)

    def _bind_key(self) -> None:
        with self._journal.writing():
            bound = self._journal.meta("verification_key")
            if bound and bound != self.verification_key():
                raise Conflict(
                    f"{self._journal.location} belongs to {bound}, not to {self.verification_key()}",
                    code="wrong_key",
                    param="signing_key",
                    fix="open the ledger with the name and the key file it was made with",
                )
            if not bound:
                self._journal.set_meta("verification_key", self.verification_key())
                self._put_head(0, self._clock.now_ms(), merkle.EMPTY_ROOT)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """One transaction of any number of batches, and one signed head. What is kept in memory goes when it fails."""
        try:
            with self._journal.writing():
                self._stated = {}
                before, self._time_ms, _ = self._journal.head()
                self._size = before
                yield
                if self._size != before:
                    self._put_head(self._size, self._time_ms, log.root(self._size, self._journal.node))
        except BaseException:
            self._sheet, self._stated = None, {}
            raise

    def _now_ms(self) -> int:
        """The log's time: the clock's, but never before the batch before."""
        return max(self._clock.now_ms(), self._time_ms)

    def _committed(self, transfers: tuple[Transfer, ...], statement: dict[str, Any] | None) -> list[str]:
        known = self._journal.entries(transfer.transfer_id for transfer in transfers)
        if known:
            return self._compare_known(transfers, statement, known)
        time_ms = self._now_ms()  # read once: what expiry is reckoned from is what the leaf says
        changes, results = apply(self._journal.book_for(transfers), transfers, time_ms)
        if all(result == CREATED for result in results):
            self._append(transfers, statement, changes, time_ms)
        return results

    def _submitted(self, requests: Sequence[Request]) -> list[list[str]]:
        transfers = [transfer for request in requests for transfer in request.transfers]
        chains = [chain for request in requests for chain in _chains(request.transfers, request.linked)]
        known = self._journal.entries(transfer.transfer_id for transfer in transfers)
        time_ms = self._now_ms()
        before = {name: entry.transfer for name, entry in known.items()}
        changes, results = apply_each(self._journal.book_for(transfers), chains, before, time_ms)
        created = tuple(item for item, result in zip(transfers, results, strict=True) if result == CREATED)
        if created:
            self._append(created, None, changes, time_ms)
        told = iter(self._told(transfers, results, known))
        return [[next(told) for _ in request.transfers] for request in requests]

    def _told(self, transfers: Sequence[Transfer], results: list[str], known: dict[str, Entry]) -> list[str]:
        """`results`, where what exists was created by a batch that states something, which nobody states now."""
        if not known:
            return results
        seqs = {entry.seq for entry in known.values()}
        stated = {seq for seq in seqs if self._journal.batch(seq).statement is not None}
        return [
            OTHER_STATEMENT if result == EXISTS and _seq(known.get(transfer.transfer_id)) in stated else result
            for transfer, result in zip(transfers, results, strict=True)
        ]

    def _compare_known(
        self, transfers: Sequence[Transfer], statement: dict[str, Any] | None, known: dict[str, Entry]
    ) -> list[str]:
        results = compare_known(transfers, {name: entry.transfer for name, entry in known.items()}) or []
        if any(result != EXISTS for result in results):
            return results
        first = {entry.seq: self._journal.batch(entry.seq).statement for entry in known.values()}
        same = all(_same_statement(statement, stored) for stored in first.values())
        return results if same else [OTHER_STATEMENT] * len(transfers)

    def _append(
        self, transfers: tuple[Transfer, ...], statement: dict[str, Any] | None, changes: Book, time_ms: int
    ) -> None:
        batch = Batch(seq=self._size, time_ms=time_ms, transfers=transfers, statement=statement)
        if transfers and statement is not None:
            self._stated[transfers[0].transfer_id] = batch
        texts = [transfer_bytes(transfer) for transfer in transfers]
        self._journal.add_batch(batch, texts)
        sums = self._journal.put_changes(changes, batch.seq)
        if self._sheet is not None:
            self._sheet.put(sums)
        self._grow(log.leaf_hash(log.leaf_over(batch, texts)), time_ms)

    def _grow(self, leaf: bytes, time_ms: int) -> None:
        self._journal.add_nodes(log.nodes_after_append(self._size, leaf, self._journal.node))
        self._size, self._time_ms = self._size + 1, time_ms

    def _created_at_once(self, records: "Records") -> "Outcome | None":
        """All of `records` created, or None and nothing done: where an id is known, which the index of ids finds as
        it takes them, or where one is refused."""
        from openledger.ledger import setwise

        sheet, debits, credits = self._loaded_sheet(records)
        store, time_ms = self._journal.store, self._now_ms()
        outcome = setwise.apply_as_set(sheet, records, debits, credits)
        if outcome is None:
            pending = set(records["pending"].tolist()) - {bytes(16)}
            known = setwise.Known(holds={row.key: row for row in store.holds([*pending])})
            outcome = setwise.apply_if_all(sheet, records, debits, credits, known, time_ms)
        if outcome is None or not store.add_ids(records["id"].tolist(), self._size):
            return None
        self._append_packed(records.tobytes(), outcome, time_ms)
        return outcome

    def _created_in_order(self, records: "Records", data: bytes, ties: list[bool]) -> "Outcome":
        from openledger.ledger import setwise

        time_ms = self._now_ms()
        sheet, debits, credits = self._loaded_sheet(records)
        outcome = setwise.apply_in_order(sheet, records, debits, credits, ties, self._known(records, data), time_ms)
        if outcome.created:
            made = records[outcome.created]
            self._journal.store.add_ids(made["id"].tolist(), self._size)
            self._append_packed(made.tobytes(), outcome, time_ms)
        return outcome

    def _known(self, records: "Records", data: bytes) -> Any:
        from openledger.ledger import setwise

        store = self._journal.store
        ids, pending = records["id"].tolist(), set(records["pending"].tolist()) - {bytes(16)}
        places = store.places([*set(ids), *pending])
        batches = {seq: self._journal.batch(seq) for seq in {places[name][0] for name in ids if name in places}}
        results = {}
        for place, name in enumerate(ids):
            if name in places:
                seq, ordinal = places[name]
                result = packed.compare_record(packed.record_at(data, place), batches[seq].transfers[ordinal])
                stated = result == EXISTS and batches[seq].statement is not None
                results[place] = OTHER_STATEMENT if stated else result
        holds = {row.key: row for row in store.holds([*pending])}
        return setwise.Known(results=results, holds=holds, others=frozenset(pending & places.keys() - holds.keys()))

    def _append_packed(self, data: bytes, outcome: "Outcome", time_ms: int) -> None:
        from openledger.ledger import setwise

        sheet, store, seq, slots = self._sheet, self._journal.store, self._size, outcome.slots
        assert sheet is not None
        links = setwise.links_of(sheet.numbers[slots], sheet.last[slots])
        store.add_batch(BatchRow(seq, time_ms, PACKED, data, None, links))
        store.put_sums(setwise.sums_rows(sheet, outcome, seq))
        if outcome.holds:
            store.put_holds(outcome.holds)
        sheet.sums[slots], sheet.last[slots] = outcome.sums, seq
        self._grow(log.leaf_hash(log.packed_leaf(seq, time_ms, data)), time_ms)

    def _loaded_sheet(self, records: "Records") -> "tuple[Sheet, Int64, Int64]":
        """The sheet with the accounts that `records` name, where there are such, and their slots in it."""
        import numpy as np

        from openledger.ledger import setwise

        if self._sheet is None or self._sheet.is_large:
            self._sheet = setwise.Sheet()
        keys = np.concatenate([records["debit"], records["credit"]])
        slots = self._sheet.find(keys)
        if (slots < 0).any():
            wanted = {key.tobytes() for key in keys[slots < 0]}
            self._sheet.add(self._journal.store.accounts_by_key(list(wanted)))
            slots = self._sheet.find(keys)
        return self._sheet, slots[: len(records)], slots[len(records) :]

    def _put_head(self, size: int, time_ms: int, root: bytes) -> None:
        checkpoint = Checkpoint(origin=self._name, size=size, root=root.hex())
        self._journal.put_head(size, time_ms, sign_checkpoint(checkpoint, self._key))


def _key_of(storage: Path | str, signing_key: SigningKey | Path | None) -> SigningKey:
    if isinstance(signing_key, SigningKey):
        return signing_key
    if signing_key is None and is_postgres(storage):
        raise InvalidInput(
            "a ledger in PostgreSQL needs a key file", code="no_signing_key", param="signing_key", fix="name its path"
        )
    return SigningKey.load_or_create(signing_key or Path(storage).with_suffix(".key"))


def _gathered(requests: Sequence[Request]) -> Iterator[list[Request]]:
    """Commits alone, what comes between them together; together they stay under the limit of one batch."""
    group: list[Request] = []
    count = 0
    for request in requests:
        if group and (request.whole or count + len(request.transfers) > MAX_TRANSFERS):
            yield group
            group, count = [], 0
        if request.whole:
            yield [request]
        else:
            group.append(request)
            count += len(request.transfers)
    if group:
        yield group


def _chains(transfers: Sequence[Transfer], linked: Sequence[bool]) -> Iterator[Sequence[Transfer]]:
    start = 0
    for place, tied in enumerate(linked or [False] * len(transfers)):
        if not tied:
            yield transfers[start : place + 1]
            start = place + 1


def _check_statement(statement: dict[str, Any]) -> None:
    if len(canonical_json(statement)) > MAX_STATEMENT_BYTES:
        raise TooLarge("the statement is over 64 MiB", code="statement_too_large", param="statement")
    if statements.format_of(statement) == statements.ACCOUNTS:
        raise InvalidInput("accounts are opened by create_accounts", code="invalid_statement", param="statement")
    if statements.format_of(statement) == ROTATION:
        raise InvalidInput("keys are rotated by rotate_key", code="invalid_statement", param="statement")


def _check_count(count: int) -> None:
    if count > MAX_TRANSFERS:
        raise TooLarge(
            f"{count} transfers in one batch; the limit is {MAX_TRANSFERS}",
            code="batch_too_large",
            param="transfers",
            fix="send several batches",
        )


def _check_linked(linked: Sequence[bool], count: int) -> None:
    if linked and (len(linked) != count or linked[-1]):
        raise InvalidInput(
            "the links don't fit the transfers",
            code="invalid_links",
            param="linked",
            fix="send one for each transfer; the last one of a chain, and of the batch, ties to nothing",
        )


def _compare_account(account: Account, known: Balance | None) -> str:
    if known is None:
        return CREATED
    if account.kind != known.kind:
        return "exists_with_different_kind"
    return EXISTS if account.may_go_negative == known.may_go_negative else "exists_with_different_may_go_negative"


def _same_statement(given: dict[str, Any] | None, stored: dict[str, Any] | None) -> bool:
    return canonical_json(given) == canonical_json(stored)


def _seq(entry: Entry | None) -> int:
    return -1 if entry is None else entry.seq
