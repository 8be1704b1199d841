"""The audit: recompute a whole ledger from its log and name the first entry that is wrong.

Everything is derived again: each leaf and the root, each transfer's permission by the rules, every balance, the
supply, each fee and its parts, each pool and its payouts. Reads a ledger's file (beside the process that writes it) or
an export.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from openledger.core import merkle
from openledger.core.errors import Corrupt, NotFound
from openledger.core.money import SUPPLY_NANO, format_open
from openledger.ledger import statements
from openledger.ledger.accounts import Balance, opened
from openledger.ledger.checkpoints import open_checkpoint
from openledger.ledger.disputes import Disputes
from openledger.ledger.export import Claim, read_export
from openledger.ledger.journal import Journal
from openledger.ledger.log import leaf_hash, leaf_of, nodes_after_append
from openledger.ledger.nonces import Rounds
from openledger.ledger.removals import REMOVAL, check_removal
from openledger.ledger.rules import Book, apply
from openledger.ledger.transfers import CREATED, Batch, Transfer
from openledger.ledger.verdicts import VERDICT, Verdicts

_SQLITE_MAGIC = b"SQLite format 3\x00"


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditReport:
    """What was found right. `issued_nano` is what genesis has given out; `root` is hex."""

    origin: str
    root: str
    num_batches: int
    num_transfers: int
    num_accounts: int
    num_answers: int
    num_settlements: int
    issued_nano: int
    num_disputes: int = 0

    @property
    def lines(self) -> tuple[str, ...]:
        told = (
            f"{self.num_batches} batches of {self.origin}: every leaf, and root {self.root}, signature good",
            f"{self.num_transfers} transfers: each one allowed by the rules, no id twice",
            f"{self.num_accounts} accounts: every balance recomputed, none below what it may be, all summing to zero",
            f"{format_open(self.issued_nano)} OPEN issued, within the supply",
            f"{self.num_answers} answers: each fee is tokens times prices and the sum of its parts",
            f"{self.num_settlements} settlements: each pool is the sum of its answers' parts and of its payouts",
        )
        if not self.num_disputes:
            return told
        return (*told, f"{self.num_disputes} disputes: each escrow, verdict and award recomputed")


def audit_file(path: Path, key: str) -> AuditReport:
    """Audit the ledger file or the export at `path` against the verification key `key`.

    Raises NotFound where there is nothing, Corrupt naming the first wrong entry in `param`.
    """
    try:
        with path.open("rb") as stream:
            is_database = stream.read(len(_SQLITE_MAGIC)) == _SQLITE_MAGIC
    except OSError as error:
        raise NotFound(f"no ledger at {path}: {error.strerror}", code="no_ledger", param=str(path)) from error
    if not is_database:
        return audit_entries(read_export(path), key)
    journal = Journal(path, read_only=True)
    try:
        return audit_journal(journal, key)
    finally:
        journal.close()


def audit_journal(journal: Journal, key: str) -> AuditReport:
    """Like `audit_file`, over an open journal; also checks what only the file has: nodes, holds, indexes."""
    with journal.reading():
        if damage := journal.damage():
            raise Corrupt(f"SQLite finds the file damaged: {damage}", code="corrupt_database", param=str(journal.path))
        audit = _Audit()
        report = audit.run(_stored(journal), key)
        _check_file(journal, audit)
    return report


def audit_entries(entries: Iterable[tuple[Batch, bytes] | Claim], key: str) -> AuditReport:
    """Audit batches, each with the hash claimed for its leaf, up to the claim that ends them."""
    return _Audit().run(entries, key)


@dataclass(slots=True)
class _Audit:
    """One pass over a log: the state that it recomputes."""

    book: Book = field(default_factory=Book)
    tree: merkle.Frontier = field(default_factory=merkle.Frontier)
    pools: dict[str, list[list[object]]] = field(default_factory=dict)
    settled: set[str] = field(default_factory=set)
    rounds: Rounds = field(default_factory=Rounds)
    verdicts: Verdicts = field(default_factory=Verdicts)
    ids: set[str] = field(default_factory=set)
    disputes: Disputes = field(default_factory=Disputes)
    time_ms: int = 0
    num_answers: int = 0

    def run(self, entries: Iterable[tuple[Batch, bytes] | Claim], key: str) -> AuditReport:
        for entry in entries:
            if isinstance(entry, Claim):
                return self.report(entry, key)
            self.take(*entry)
        raise Corrupt("the log has no end", code="malformed_export", param="checkpoint")

    def take(self, batch: Batch, claimed_leaf: bytes) -> None:
        place = f"batch {batch.seq}"
        leaf = leaf_hash(leaf_of(batch.seq, batch.time_ms, batch.transfers, batch.statement))
        if batch.seq != self.tree.size or leaf != claimed_leaf:
            raise Corrupt(f"{place}: its content isn't what its leaf commits to", code="wrong_leaf", param=place)
        if batch.time_ms < self.time_ms:
            raise Corrupt(f"{place} is older than the one before it", code="wrong_time", param=place)
        self.tree.append(leaf)
        self.time_ms = batch.time_ms
        self.open_accounts(batch)
        self.take_transfers(batch)
        self.take_statement(batch)

    def open_accounts(self, batch: Batch) -> None:
        if statements.format_of(batch.statement) != statements.ACCOUNTS:
            return
        for account in statements.accounts_in(batch.statement or {}):
            if account.account_id in self.book.balances:
                raise Corrupt(f"{account.account_id} is opened twice", code="account_twice", param=account.account_id)
            self.book.balances[account.account_id] = opened(account)

    def take_transfers(self, batch: Batch) -> None:
        changes, results = apply(self.book, batch.transfers, batch.time_ms)
        for transfer, result in zip(batch.transfers, results, strict=True):
            name = transfer.transfer_id
            if name in self.ids:
                raise Corrupt(f"transfer {name} is there twice", code="transfer_twice", param=name)
            if result != CREATED:
                raise Corrupt(f"transfer {name} breaks the rules: {result}", code="refused_transfer", param=name)
            self.ids.add(name)
        self.book.take(changes)
        self.book.known.update(item.transfer_id for item in batch.transfers if item.kind != "pending")

    def take_statement(self, batch: Batch) -> None:
        try:
            self.check_statement(batch)
        except Corrupt as error:
            place = f"batch {batch.seq}"
            raise Corrupt(f"{place}: {error.message}", code=error.code, param=place) from error

    def check_statement(self, batch: Batch) -> None:
        statement, kind = batch.statement or {}, statements.format_of(batch.statement)
        self.rounds.take(batch)
        if kind == statements.USAGE:
            statements.check_usage(statement)
            statements.check_usage_transfers(statement, batch.transfers)
            self.num_answers += 1
            pool = statement["accounts"]["contributors"]
            if pool in self.settled:
                raise Corrupt(f"{pool} was settled before", code="paid_after_settlement", param="statement")
            evidence = [item for item in statements.evidence_of([statement]) if item[1]]
            self.pools.setdefault(pool, []).extend(evidence)
            self.verdicts.sell(statement)
        elif kind == VERDICT:
            self.verdicts.take(statement, batch.transfers)
        elif kind == REMOVAL:
            check_removal(statement, batch.transfers)
        elif kind in statements.SETTLEMENTS:
            pool = _settled_pool(batch)
            statements.check_settlement(statement, self.pools.get(pool, []))
            statements.check_settlement_transfers(statement, batch.transfers)
            if statements.not_counted(statement) != self.verdicts.not_counted(pool):
                raise Corrupt(f"{pool}: not the answers marked wrong", code="wrong_verdicts", param="statement")
            self.settled.add(pool)
        elif any(_touches_pool(transfer) for transfer in batch.transfers):
            raise Corrupt("money goes through a pool without saying why", code="unexplained_pool", param="statement")
        self.disputes.take(batch)

    def report(self, claim: Claim, key: str) -> AuditReport:
        checkpoint = open_checkpoint(claim.checkpoint, key)
        if claim.origin != checkpoint.origin:
            raise Corrupt("the log goes by another name than its checkpoint", code="wrong_origin", param="origin")
        if (checkpoint.size, checkpoint.root) != (self.tree.size, self.tree.root().hex()):
            raise Corrupt("the log isn't the one that the checkpoint signs", code="wrong_root", param="checkpoint")
        self.check_balances(claim.balances)
        return AuditReport(
            origin=checkpoint.origin,
            root=checkpoint.root,
            num_batches=self.tree.size,
            num_transfers=len(self.ids),
            num_accounts=len(self.book.balances),
            num_answers=self.num_answers,
            num_settlements=len(self.settled),
            issued_nano=self.issued_nano(),
            num_disputes=sum(len(known) for known in self.disputes.by_pool.values()),
        )

    def check_balances(self, claimed: Iterable[Balance]) -> None:
        given = {balance.account_id: balance for balance in claimed}
        for name in sorted(given.keys() | self.book.balances.keys()):
            if given.get(name) != self.book.balances.get(name):
                raise Corrupt(f"the balance of {name} isn't what its transfers make", code="wrong_balance", param=name)
        for pool in self.settled:
            if self.book.balances[pool].posted_nano:
                raise Corrupt(f"{pool} was settled and isn't empty", code="pool_and_payouts_differ", param=pool)
        total = sum(balance.posted_nano for balance in self.book.balances.values())
        if total or self.issued_nano() > SUPPLY_NANO:
            raise Corrupt("the accounts don't sum to zero, or exceed the supply", code="wrong_supply", param="supply")

    def issued_nano(self) -> int:
        return -sum(balance.posted_nano for balance in self.book.balances.values() if balance.posted_nano < 0)


def _settled_pool(batch: Batch) -> str:
    return batch.transfers[0].debit if batch.transfers else ""


def _touches_pool(transfer: Transfer) -> bool:
    return transfer.debit.startswith("pool:") or transfer.credit.startswith("pool:")


def _stored(journal: Journal) -> Iterator[tuple[Batch, bytes] | Claim]:
    size, _, note = journal.head()
    for seq in range(size):
        yield journal.batch(seq), journal.node(0, seq)
    origin = journal.meta("verification_key").partition("+")[0]
    yield Claim(origin=origin, balances=tuple(journal.all_balances()), checkpoint=note)


def _check_file(journal: Journal, audit: _Audit) -> None:
    num_nodes = 0
    for seq in range(audit.tree.size):
        for level, position, value in nodes_after_append(seq, journal.node(0, seq), journal.node):
            num_nodes += 1
            if journal.node(level, position) != value:
                place = f"node {level}/{position}"
                raise Corrupt(f"{place} isn't the hash of its children", code="wrong_node", param=place)
    for name, expires_ms, state in journal.holds():
        hold = audit.book.holds.get(name)
        if hold is None or (hold.expires_ms, hold.state) != (expires_ms, state):
            raise Corrupt(f"hold {name} isn't what the log makes it", code="wrong_hold", param=name)
    expected = {
        "accounts": len(audit.book.balances),
        "transfers": len(audit.ids),
        "holds": len(audit.book.holds),
        "batches": audit.tree.size,
        "nodes": num_nodes,
    }
    for table, count in journal.counts().items():
        if count != expected[table]:
            raise Corrupt(f"{table}: {count} rows, the log makes {expected[table]}", code="wrong_count", param=table)
