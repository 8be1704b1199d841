"""The audit: recompute a whole ledger from its log and name the first entry that is wrong.

Everything is derived again: each leaf and the root, each transfer's permission by the rules, every balance, the
supply, each fee and its parts, each pool and its payouts. Reads a ledger's file (beside the process that writes it) or
an export.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from openledger.core import merkle
from openledger.core.errors import Corrupt, NotFound
from openledger.core.hashing import canonical_json
from openledger.core.money import OPEN, SUPPLY_NANO, Unit, format_money, showing
from openledger.ledger import statements
from openledger.ledger.accounts import UNATTRIBUTED, Balance, opened
from openledger.ledger.appeals import Appeals
from openledger.ledger.checkpoints import open_checkpoint
from openledger.ledger.contributor_keys import ContributorKeys
from openledger.ledger.deposits import Deposits
from openledger.ledger.disputes import Disputes
from openledger.ledger.economy_audit import EconomyAudit
from openledger.ledger.export import Claim, read_export
from openledger.ledger.governance import EXECUTE, pools_of
from openledger.ledger.journal import Journal, ids_of
from openledger.ledger.keyring import ROTATION, check_rotation
from openledger.ledger.log import leaf_hash, leaf_of, nodes_after_append
from openledger.ledger.nonces import Rounds
from openledger.ledger.offers import Offers
from openledger.ledger.opening import is_postgres, open_store
from openledger.ledger.packed import account_key, id_text
from openledger.ledger.refunds import REFUND
from openledger.ledger.removals import REMOVAL, check_removal
from openledger.ledger.rules import Book, apply
from openledger.ledger.seals import Seals
from openledger.ledger.signers import Signers
from openledger.ledger.stakes import reward_account
from openledger.ledger.store import MAX_TRANSFERS
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
    num_appeals: int = 0
    num_seals: int = 0
    num_registered: int = 0
    num_refunds: int = 0
    num_offers: int = 0  # of what was trained
    num_withdrawal_offers: int = 0
    num_base_offers: int = 0
    unit: str = OPEN.name

    @property
    def lines(self) -> tuple[str, ...]:
        with showing(Unit(name=self.unit)):
            issued = format_money(self.issued_nano)
        source = "within the supply" if self.unit == OPEN.name else "all of it paid in and not paid out"
        told: tuple[str, ...] = (
            f"{self.num_batches} batches of {self.origin}: every leaf, and root {self.root}, signature good",
            f"{self.num_transfers} transfers: each one allowed by the rules, no id twice",
            f"{self.num_accounts} accounts: every balance recomputed, none below what it may be, all summing to zero",
            f"{issued} issued, {source}",
            f"{self.num_answers} answers: each fee is tokens times prices and the sum of its parts",
            f"{self.num_settlements} settlements: each pool is the sum of its answers' parts and of its payouts",
        )
        more = {
            "statements on parameters, supply, stake and votes: each one allowed": self.num_registered,
            "refunds: each part from where it went": self.num_refunds,
            "offers: each constant drawn again, its witnesses counted, and nothing else sold since": self.num_offers,
            "offers less a contributor's rows: each by the runs of what its seller had on sale, whose word it is that"
            " nothing else was changed": self.num_withdrawal_offers,
            "offers of base models: of nobody's rows": self.num_base_offers,
            "disputes: each escrow, signature, verdict and award recomputed": self.num_disputes,
            "appeals: each deposit, signature and decision recomputed": self.num_appeals,
            "seals: each opening is by the rows that were sealed": self.num_seals,
        }
        return (*told, *(f"{number} {what}" for what, number in more.items() if number))


def audit_file(path: Path | str, key: str) -> AuditReport:
    """Audit the ledger (a file, or a PostgreSQL URL) or the export at `path` against the verification key `key`.

    Raises NotFound where there is nothing, Corrupt naming the first wrong entry in `param`.
    """
    if is_postgres(path):
        return _audit_store(path, key)
    try:
        with Path(path).open("rb") as stream:
            is_database = stream.read(len(_SQLITE_MAGIC)) == _SQLITE_MAGIC
    except OSError as error:
        raise NotFound(f"no ledger at {path}: {error.strerror}", code="no_ledger", param=str(path)) from error
    return _audit_store(path, key) if is_database else audit_entries(read_export(Path(path)), key)


def _audit_store(storage: Path | str, key: str) -> AuditReport:
    journal = Journal(open_store(storage, read_only=True))
    try:
        return audit_journal(journal, key)
    finally:
        journal.close()


def audit_journal(journal: Journal, key: str) -> AuditReport:
    """Like `audit_file`, over an open journal; also checks what only the file has: nodes, holds, indexes."""
    with journal.reading():
        if damage := journal.store.damage():
            raise Corrupt(f"SQLite finds the file damaged: {damage}", code="corrupt_database", param=journal.location)
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

    ids: set[str] = field(default_factory=set)
    book: Book = field(init=False)
    tree: merkle.Frontier = field(default_factory=merkle.Frontier)
    pools: dict[str, list[list[object]]] = field(default_factory=dict)
    fees_nano: dict[str, int] = field(default_factory=dict)
    left: set[str] = field(default_factory=set)  # commitments of answers that refunds took out of their pools
    settled: set[str] = field(default_factory=set)
    rounds: Rounds = field(default_factory=Rounds)
    verdicts: Verdicts = field(default_factory=Verdicts)
    keys: ContributorKeys = field(default_factory=ContributorKeys)
    signers: Signers = field(init=False)
    disputes: Disputes = field(init=False)
    appeals: Appeals = field(init=False)
    deposits: Deposits = field(default_factory=Deposits)
    seals: Seals = field(init=False)
    offers: Offers = field(default_factory=Offers)
    rotations: list[str] = field(default_factory=list)
    economy: EconomyAudit = field(default_factory=EconomyAudit)
    time_ms: int = 0
    num_answers: int = 0

    def __post_init__(self) -> None:
        self.book = Book(known=self.ids)
        self.signers = Signers(keys=self.keys)
        self.seals = Seals(keys=self.keys)
        self.disputes = Disputes(signers=self.signers)
        self.appeals = Appeals(signers=self.signers)

    def run(self, entries: Iterable[tuple[Batch, bytes] | Claim], key: str) -> AuditReport:
        for entry in entries:
            if isinstance(entry, Claim):
                return self.report(entry, key)
            self.take(*entry)
        raise Corrupt("the log has no end", code="malformed_export", param="checkpoint")

    def take(self, batch: Batch, claimed_leaf: bytes) -> None:
        place = f"batch {batch.seq}"
        leaf = leaf_hash(leaf_of(batch))
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
        if len(batch.transfers) > MAX_TRANSFERS:
            raise Corrupt(f"batch {batch.seq} is too long", code="batch_too_large", param=f"batch {batch.seq}")
        changes, results = apply(self.book, batch.transfers, batch.time_ms)
        for transfer, result in zip(batch.transfers, results, strict=True):
            name = transfer.transfer_id
            if name in self.ids:
                raise Corrupt(f"transfer {name} is there twice", code="transfer_twice", param=name)
            if result != CREATED:
                raise Corrupt(f"transfer {name} breaks the rules: {result}", code="refused_transfer", param=name)
            self.ids.add(name)
        self.book.take(changes)

    def take_statement(self, batch: Batch) -> None:
        try:
            self.check_statement(batch)
        except Corrupt as error:
            place = f"batch {batch.seq}"
            raise Corrupt(f"{place}: {error.message}", code=error.code, param=place) from error

    def check_statement(self, batch: Batch) -> None:
        statement, kind = batch.statement or {}, statements.format_of(batch.statement)
        self.rounds.take(batch)
        self.keys.take(batch)
        self.signers.take(batch)
        if kind == ROTATION:
            self.take_rotation(batch, statement)
        if kind == statements.USAGE:
            statements.check_usage(statement)
            statements.check_usage_transfers(statement, batch.transfers)
            self.offers.sell(statement)
            self.num_answers += 1
            pool = statement["accounts"]["contributors"]
            if pool in self.settled:
                raise Corrupt(f"{pool} was settled before", code="paid_after_settlement", param="statement")
            evidence = [item for item in statements.evidence_of([statement]) if item[1]]
            self.pools.setdefault(pool, []).extend(evidence)
            self.fees_nano[pool] = self.fees_nano.get(pool, 0) + statements.bounded_fee(statement)
            self.verdicts.sell(statement)
        elif kind == VERDICT:
            self.verdicts.take(statement, batch.transfers)
        elif kind == REMOVAL:
            check_removal(statement, batch.transfers, self.keys)
        elif kind in statements.SETTLEMENTS:
            pool = _settled_pool(batch)
            statements.check_settlement(statement, self.pools.get(pool, []))
            statements.check_settlement_transfers(statement, batch.transfers)
            statements.check_ceiling_fees(statement, self.fees_nano.get(pool, 0))
            if statements.not_counted(statement) != self.not_counted(pool):
                raise Corrupt(f"{pool}: not the answers marked wrong", code="wrong_verdicts", param="statement")
            self.settled.add(pool)
        elif kind != REFUND and any(_touches_pool(transfer) for transfer in batch.transfers):
            raise Corrupt("money goes through a pool without saying why", code="unexplained_pool", param="statement")
        self.disputes.take(batch)
        self.appeals.take(batch)
        self.deposits.take(batch, self.appeals.by_row)
        self.seals.take(batch)
        self.offers.take(batch, self.rounds, self.signers, self.economy.register.parameters)
        self.economy.take(batch, self.available_nano)
        if kind == EXECUTE:
            self.take_execution(statement)
        if kind == REFUND:
            self.leave_pool(*self.economy.leaving(statement))

    def take_execution(self, statement: dict[str, Any]) -> None:
        register = self.economy.register
        action = register.governance.find(statement["proposal"]).action
        window_ms = register.parameters.in_force["dispute_window_ms"]
        self.disputes.spend(pools_of(action), window_ms, statement["time_ms"])

    def available_nano(self, account: str, pool: tuple[str, str]) -> int:
        """What `account` could still give for a refund of an answer of `pool`: of what is unattributed, its own."""
        spendable = self.book.balances[account].available_nano
        return min(spendable, self.disputes.free_nano(pool)) if account == UNATTRIBUTED else spendable

    def leave_pool(self, pool: str, commitment: str, fee_nano: int) -> None:
        """An answer that was refunded before its pool was settled is as if it hadn't been sold."""
        if pool:
            self.pools[pool] = [item for item in self.pools.get(pool, []) if item[0] != commitment]
            self.fees_nano[pool] -= fee_nano
            self.left.add(commitment)

    def not_counted(self, pool: str) -> list[str]:
        """Commitments of answers that were marked wrong and, before or after, not refunded out of their pool."""
        return [commitment for commitment in self.verdicts.not_counted(pool) if commitment not in self.left]

    def take_rotation(self, batch: Batch, statement: dict[str, Any]) -> None:
        check_rotation(statement)
        if statement["size"] != batch.seq or batch.transfers:
            raise Corrupt("a rotation at another place than it says", code="wrong_rotation", param="statement")
        self.rotations.append(canonical_json(statement).decode())

    def report(self, claim: Claim, key: str) -> AuditReport:
        checkpoint = open_checkpoint(claim.checkpoint, "\n".join([key.strip(), *self.rotations]))
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
            num_appeals=len(self.appeals.by_row),
            num_seals=len(self.seals.sealed),
            num_registered=self.economy.register.number,
            num_refunds=len(self.economy.refunded),
            num_offers=self.offers.numbers["trained"],
            num_withdrawal_offers=self.offers.numbers["withdrawal"],
            num_base_offers=self.offers.numbers["base"],
            unit=self.economy.register.unit.name,
        )

    def check_balances(self, claimed: Iterable[Balance]) -> None:
        given = {balance.account_id: balance for balance in claimed}
        for name in sorted(given.keys() | self.book.balances.keys()):
            if given.get(name) != self.book.balances.get(name):
                raise Corrupt(f"the balance of {name} isn't what its transfers make", code="wrong_balance", param=name)
        for pool in self.settled | {reward_account(*key) for key in self.economy.rewards}:
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
    num_nodes = _check_nodes(journal, audit.tree.size)
    _check_index(journal, audit.tree.size)
    _check_holds(journal, audit)
    expected = {
        "accounts": len(audit.book.balances),
        "transfers": len(audit.ids),
        "holds": len(audit.book.holds),
        "batches": audit.tree.size,
        "nodes": num_nodes,
    }
    for table, count in journal.store.counts().items():
        if count != expected[table]:
            raise Corrupt(f"{table}: {count} rows, the log makes {expected[table]}", code="wrong_count", param=table)


def _check_nodes(journal: Journal, size: int) -> int:
    num_nodes = 0
    for seq in range(size):
        for level, position, value in nodes_after_append(seq, journal.node(0, seq), journal.node):
            num_nodes += 1
            if journal.node(level, position) != value:
                place = f"node {level}/{position}"
                raise Corrupt(f"{place} isn't the hash of its children", code="wrong_node", param=place)
    return num_nodes


def _check_index(journal: Journal, size: int) -> None:
    """That every id leads to its transfer, and every account through all batches that touched it."""
    last: dict[str, int] = {}
    for seq in range(size):
        place, batch = f"batch {seq}", journal.batch(seq)
        ids = ids_of(batch)
        if journal.store.places(ids) != {name: (seq, ordinal) for ordinal, name in enumerate(ids)}:
            raise Corrupt(f"{place}: its ids lead elsewhere", code="wrong_place", param=place)
        touched = {account for item in batch.transfers for account in (item.debit, item.credit)}
        if journal.links(seq) != {account: last.get(account, -1) for account in touched}:
            raise Corrupt(f"{place}: its accounts' links lead elsewhere", code="wrong_links", param=place)
        last.update(dict.fromkeys(touched, seq))
    for row in journal.store.all_accounts():
        if row.last_seq != last.get(row.account_id, -1) or row.key != account_key(row.account_id):
            raise Corrupt(f"{row.account_id} leads elsewhere", code="wrong_links", param=row.account_id)


def _check_holds(journal: Journal, audit: _Audit) -> None:
    numbers = {row.number: row.account_id for row in journal.store.all_accounts()}
    for row in journal.store.all_holds():
        name = id_text(row.key)
        stored = (numbers.get(row.debit), numbers.get(row.credit), row.amount, row.expires_ms, row.state)
        hold = audit.book.holds.get(name)
        if hold is None or stored != (
            hold.transfer.debit,
            hold.transfer.credit,
            hold.transfer.amount_nano,
            hold.expires_ms,
            hold.state,
        ):
            raise Corrupt(f"hold {name} isn't what the log makes it", code="wrong_hold", param=name)
