"""The journal: accounts, transfers and batches as values, over a `Store`'s rows. Decides nothing; see `rules`.

An account's history is a chain through the log: its row names the newest batch that touched it, and each batch links to
the one before, account by account. So history costs no index over transfers.
"""

import json
from array import array
from bisect import bisect_left
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

from openledger.core.errors import Corrupt, InvalidInput
from openledger.core.hashing import canonical_json
from openledger.ledger.accounts import Balance
from openledger.ledger.log import Node
from openledger.ledger.packed import account_key, accounts_in, id_key, id_text, ids_in, unpack
from openledger.ledger.rules import Book, Hold
from openledger.ledger.store import MAX_TRANSFERS, AccountRow, BatchRow, HoldRow, Store, Sums
from openledger.ledger.transfers import Batch, Entry, Transfer, transfer_bytes, transfer_from_dict

JSON, PACKED = "json", "packed"


class Journal:
    """Values in, values out. One writer; not for concurrent use by threads."""

    def __init__(self, store: Store):
        self.store = store
        self.location = store.location
        self._rows: dict[str, AccountRow] = {}  # what `book_for` read, for the batch that is judged by it

    @property
    def epoch(self) -> int:
        return self.store.epoch

    def close(self) -> None:
        self.store.close()

    def writing(self) -> AbstractContextManager[None]:
        """A durable write transaction. Raises Unavailable (`stale_epoch`) where another journal was opened since."""
        return self.store.writing()

    def reading(self) -> AbstractContextManager[None]:
        return self.store.reading()

    def meta(self, name: str) -> str:
        return self.store.meta(name)

    def set_meta(self, name: str, value: str) -> None:
        self.store.set_meta(name, value)

    def head(self) -> tuple[int, int, str]:
        """Size of the log, time of its last batch (ms), and the checkpoint that was signed with it."""
        return self.store.head()

    def entries(self, transfer_ids: Iterable[str]) -> dict[str, Entry]:
        """Those of `transfer_ids` that exist."""
        places = self.store.places([id_key(name) for name in set(transfer_ids)])
        batches = {seq: self.batch(seq) for seq in {seq for seq, _ in places.values()}}
        found = (entry_of(batches[seq], ordinal) for seq, ordinal in places.values())
        return {entry.transfer.transfer_id: entry for entry in found}

    def balances(self, account_ids: Iterable[str]) -> dict[str, Balance]:
        return {row.account_id: balance_of(row) for row in self.store.accounts(list(set(account_ids)))}

    def book_for(self, transfers: Sequence[Transfer]) -> Book:
        """What the rules need to see to judge `transfers`."""
        wanted = {transfer.pending_id for transfer in transfers if transfer.pending_id}
        known = self.entries(wanted) if wanted else {}
        rows = self.store.holds([id_key(name) for name in known])
        holds = {name: _hold(known[name].transfer, row) for row in rows if (name := id_text(row.key)) in known}
        self._rows = {row.account_id: row for row in self.store.accounts(list(_accounts_of(transfers)))}
        balances = {name: balance_of(row) for name, row in self._rows.items()}
        return Book(balances, holds, set(known))

    def batch(self, seq: int) -> Batch:
        """Raises Corrupt where the batch isn't there or isn't what a batch can be."""
        return self._batch_of(self.row(seq))

    def row(self, seq: int) -> BatchRow:
        """The batch as it is stored. Raises Corrupt where it isn't there."""
        row = self.store.batch(seq)
        if row is None:
            raise Corrupt(f"batch {seq} is missing", code="missing_batch", param=f"batch {seq}")
        return row

    def links(self, seq: int) -> dict[str, int]:
        """For each account that batch `seq` touched, the batch that touched it before (-1 for none)."""
        pairs = array("q", self.row(seq).links)
        before = dict(zip(pairs[::2], pairs[1::2], strict=True))
        return {row.account_id: before[row.number] for row in self.store.accounts_by_number(list(before))}

    def history(self, account_id: str, *, credits_only: bool = False, limit: int = -1) -> list[Entry]:
        """What moved on an account, newest first; `limit` -1 is all."""
        found: list[Entry] = []
        for batch in self.batches_of(account_id):
            found += touching(batch, account_id, credits_only=credits_only)
            if 0 <= limit <= len(found):
                return found[:limit]
        return found

    def batches_of(self, account_id: str) -> Iterator[Batch]:
        """Those that touched an account, newest first."""
        for row in self.store.accounts([account_id]):
            yield from self._linked(row)

    def all_balances(self) -> Iterator[Balance]:
        return (balance_of(row) for row in self.store.all_accounts())

    def node(self, level: int, position: int) -> bytes:
        """Raises Corrupt where the node isn't there."""
        found = self.store.node(level, position)
        if found is None:
            raise Corrupt(f"node {level}/{position} is missing", code="missing_node", param=f"node {level}/{position}")
        return found

    def holds(self) -> Iterator[tuple[str, int, str]]:
        """Id, expiry (ms) and state of every hold."""
        return ((id_text(row.key), row.expires_ms, row.state) for row in self.store.all_holds())

    def add_accounts(self, balances: Collection[Balance]) -> None:
        first = self.store.num_accounts()
        self.store.add_accounts([_new_row(first + place, balance) for place, balance in enumerate(balances)])

    def add_batch(self, batch: Batch, texts: Iterable[bytes] | None = None) -> None:
        """The batch and the index of its ids; `book_for` was asked for its transfers before. `texts` are their
        `transfer_bytes`, where they are at hand."""
        rows = [self._rows[name] for name in _accounts_of(batch.transfers)]
        links = array("q")
        for row in sorted(rows):
            links.extend((row.number, row.last_seq))
        statement = None if batch.statement is None else canonical_json(batch.statement)
        body = batch.packed or _body(texts or map(transfer_bytes, batch.transfers))
        form = PACKED if batch.packed else JSON
        self.store.add_batch(BatchRow(batch.seq, batch.time_ms, form, body, statement, links.tobytes()))
        self.store.add_ids([id_key(transfer.transfer_id) for transfer in batch.transfers], batch.seq)

    def put_changes(self, changes: Book, seq: int) -> list[Sums]:
        """Store what batch `seq` made of accounts and holds; the accounts' new sums."""
        sums = [_sums(balance, self._rows[name].number, seq) for name, balance in changes.balances.items()]
        self.store.put_sums(sums)
        if changes.holds:
            numbers = {name: row.number for name, row in self._rows.items()}
            self.store.put_holds([_hold_row(hold, numbers) for hold in changes.holds.values()])
        return sums

    def add_nodes(self, nodes: Sequence[Node]) -> None:
        self.store.add_nodes(nodes)

    def put_head(self, size: int, time_ms: int, note: str) -> None:
        self.store.put_head(size, time_ms, note)

    def _batch_of(self, row: BatchRow) -> Batch:
        seq = row.seq
        statement = _statement(seq, row.statement)
        try:
            if row.form == PACKED:
                names = {
                    found.key: found.account_id for found in self.store.accounts_by_key(list(accounts_in(row.body)))
                }
                transfers, packed = unpack(row.body, names), row.body
            else:
                transfers, packed = _transfers(row.body), b""
        except (ValueError, TypeError, Corrupt) as error:
            raise Corrupt(f"batch {seq}: {error}", code="malformed_transfer", param=f"batch {seq}") from error
        return Batch(seq=seq, time_ms=row.time_ms, transfers=transfers, statement=statement, packed=packed)

    def _linked(self, row: AccountRow) -> Iterator[Batch]:
        seq = row.last_seq
        while seq >= 0:
            stored = self.row(seq)
            yield self._batch_of(stored)
            before = _link(stored.links, row.number)
            if before >= seq:
                raise Corrupt(f"batch {seq}: its links lead forward", code="wrong_links", param=f"batch {seq}")
            seq = before


def entry_of(batch: Batch, ordinal: int) -> Entry:
    """Raises Corrupt where the batch is shorter."""
    if ordinal >= len(batch.transfers):
        place = f"batch {batch.seq}"
        raise Corrupt(f"{place} has no transfer {ordinal}", code="wrong_place", param=place)
    return Entry(transfer=batch.transfers[ordinal], seq=batch.seq, ordinal=ordinal, time_ms=batch.time_ms)


def ids_of(batch: Batch) -> list[bytes]:
    """The bytes under which a batch's ids are indexed."""
    return ids_in(batch.packed) if batch.packed else [id_key(transfer.transfer_id) for transfer in batch.transfers]


def place_of(seq: int, ordinal: int) -> int:
    return seq * MAX_TRANSFERS + ordinal


def balance_of(row: AccountRow) -> Balance:
    return Balance(row.account_id, row.kind, bool(row.may_go_negative), *row[5:9])


def _accounts_of(transfers: Iterable[Transfer]) -> set[str]:
    return {account for transfer in transfers for account in (transfer.debit, transfer.credit)}


def touching(batch: Batch, account_id: str, *, credits_only: bool = False) -> Iterator[Entry]:
    """What a batch moved on an account, last first."""
    for ordinal in range(len(batch.transfers) - 1, -1, -1):
        transfer = batch.transfers[ordinal]
        if transfer.credit == account_id or (transfer.debit == account_id and not credits_only):
            yield entry_of(batch, ordinal)


def _link(links: bytes, number: int) -> int:
    """The batch that touched account `number` before, -1 for none or where the links don't have it."""
    pairs = array("q", links)
    place = bisect_left(range(len(pairs) // 2), number, key=lambda index: pairs[2 * index])
    return pairs[2 * place + 1] if 2 * place < len(pairs) and pairs[2 * place] == number else -1


def _hold(transfer: Transfer, row: HoldRow) -> Hold:
    return Hold(transfer=transfer, expires_ms=row.expires_ms, state=row.state)  # type: ignore[arg-type]


def _hold_row(hold: Hold, numbers: dict[str, int]) -> HoldRow:
    transfer = hold.transfer
    return HoldRow(
        id_key(transfer.transfer_id),
        numbers[transfer.debit],
        numbers[transfer.credit],
        transfer.amount_nano,
        hold.expires_ms,
        hold.state,
    )


def _new_row(number: int, balance: Balance) -> AccountRow:
    key = account_key(balance.account_id)
    return AccountRow(number, balance.account_id, key, balance.kind, int(balance.may_go_negative), 0, 0, 0, 0, -1)


def _sums(balance: Balance, number: int, seq: int) -> Sums:
    return Sums(*balance[3:], seq, number)


def _body(texts: Iterable[bytes]) -> bytes:
    return b"[" + b",".join(texts) + b"]"


def _transfers(body: bytes) -> tuple[Transfer, ...]:
    transfers = tuple(transfer_from_dict(item) for item in json.loads(body))
    if _body(map(transfer_bytes, transfers)) != body:
        raise InvalidInput("not canonical", code="not_canonical")
    return transfers


def _statement(seq: int, data: bytes | None) -> dict[str, Any] | None:
    if data is None:
        return None
    try:
        statement: dict[str, Any] = json.loads(data)
        canonical = canonical_json(statement) == data
    except ValueError:
        canonical = False
    if not canonical:
        raise Corrupt(f"the statement of batch {seq} is damaged", code="malformed_statement", param=f"batch {seq}")
    return statement
