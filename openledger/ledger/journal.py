"""The journal: accounts, transfers, batches and tree nodes in one SQLite file. Decides nothing; see `rules`.

Opening raises the file's epoch, and every write checks inside its transaction that the epoch is still its own. A
process that was thought dead and comes back after its successor opened the file can't write any more.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from openledger.core.errors import Corrupt, Unavailable
from openledger.core.hashing import canonical_json
from openledger.ledger.accounts import Balance
from openledger.ledger.database import open_database, open_read_only, reading, storage_errors, writing
from openledger.ledger.log import Node
from openledger.ledger.rules import Book, Hold
from openledger.ledger.transfers import Batch, Entry, Transfer

FORMAT = "openledger.ledger/1"
_SCHEMA = """
CREATE TABLE IF NOT EXISTS accounts(
  account_id TEXT PRIMARY KEY, kind TEXT NOT NULL, may_go_negative INTEGER NOT NULL,
  debits_pending INTEGER NOT NULL CHECK (debits_pending >= 0), debits_posted INTEGER NOT NULL,
  credits_pending INTEGER NOT NULL CHECK (credits_pending >= 0), credits_posted INTEGER NOT NULL,
  CHECK (may_go_negative OR credits_posted - debits_posted - debits_pending >= 0)
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS transfers(
  transfer_id TEXT PRIMARY KEY, debit TEXT NOT NULL, credit TEXT NOT NULL,
  amount INTEGER NOT NULL CHECK (amount > 0), code TEXT NOT NULL, reference TEXT NOT NULL, kind TEXT NOT NULL,
  pending_id TEXT NOT NULL, timeout_ms INTEGER NOT NULL, seq INTEGER NOT NULL, ordinal INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX IF NOT EXISTS transfers_in_order ON transfers(seq, ordinal);
CREATE INDEX IF NOT EXISTS transfers_by_debit ON transfers(debit, seq, ordinal);
CREATE INDEX IF NOT EXISTS transfers_by_credit ON transfers(credit, seq, ordinal);
CREATE TABLE IF NOT EXISTS holds(
  transfer_id TEXT PRIMARY KEY, expires_ms INTEGER NOT NULL, state TEXT NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS batches(
  seq INTEGER PRIMARY KEY, time_ms INTEGER NOT NULL, statement BLOB
) STRICT;
CREATE TABLE IF NOT EXISTS nodes(
  level INTEGER NOT NULL, position INTEGER NOT NULL, hash BLOB NOT NULL, PRIMARY KEY (level, position)
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS head(
  only INTEGER PRIMARY KEY CHECK (only = 1), size INTEGER NOT NULL, time_ms INTEGER NOT NULL, note TEXT NOT NULL
) STRICT;
INSERT OR IGNORE INTO meta VALUES ('epoch', '0');
"""
_FIELDS = "transfer_id, debit, credit, amount, code, reference, kind, pending_id, timeout_ms"
_CHUNK = 500


class Journal:
    """One connection to one file. Not for concurrent use by threads; the ledger that owns it is the one writer."""

    def __init__(self, path: Path, *, read_only: bool = False):
        """Raises what `open_database` and `open_read_only` raise."""
        self.path = path
        self.epoch = -1
        if read_only:
            self._db = open_read_only(path, FORMAT)
            return
        self._db = open_database(path, _SCHEMA, FORMAT)
        with storage_errors(path), writing(self._db):
            self.epoch = int(self.meta("epoch")) + 1
            self.set_meta("epoch", str(self.epoch))

    def close(self) -> None:
        self._db.close()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """A durable write transaction. Raises Unavailable (`stale_epoch`) where another journal opened the file."""
        with storage_errors(self.path), writing(self._db):
            self._check_epoch()
            yield

    @contextmanager
    def reading(self) -> Iterator[None]:
        with storage_errors(self.path), reading(self._db):
            yield

    def meta(self, name: str) -> str:
        row = self._db.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        return str(row[0]) if row else ""

    def set_meta(self, name: str, value: str) -> None:
        self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, value))

    def head(self) -> tuple[int, int, str]:
        """Size of the log, time of its last batch (ms), and the checkpoint that was signed with it."""
        row = self._db.execute("SELECT size, time_ms, note FROM head").fetchone()
        return row if row else (0, 0, "")

    def entries(self, transfer_ids: Iterable[str]) -> dict[str, Entry]:
        """Those of `transfer_ids` that exist."""
        query = f"SELECT {_FIELDS}, seq, ordinal, time_ms FROM transfers JOIN batches USING (seq) WHERE transfer_id IN"
        return {row[0]: _entry(row) for row in self._in_chunks(query, transfer_ids)}

    def balances(self, account_ids: Iterable[str]) -> dict[str, Balance]:
        rows = self._in_chunks("SELECT * FROM accounts WHERE account_id IN", account_ids)
        return {row[0]: _balance(row) for row in rows}

    def book_for(self, transfers: Sequence[Transfer]) -> Book:
        """What the rules need to see to judge `transfers`."""
        wanted = {transfer.pending_id for transfer in transfers if transfer.pending_id}
        known = self.entries(wanted)
        query = "SELECT transfer_id, expires_ms, state FROM holds WHERE transfer_id IN"
        holds = {
            row[0]: Hold(transfer=known[row[0]].transfer, expires_ms=row[1], state=row[2])
            for row in self._in_chunks(query, known)
        }
        touched = [(transfer.debit, transfer.credit) for transfer in transfers]
        return Book(self.balances({account for pair in touched for account in pair}), holds, set(known))

    def batch(self, seq: int) -> Batch:
        """Raises Corrupt where the batch isn't there or its statement is no JSON."""
        row = self._db.execute("SELECT time_ms, statement FROM batches WHERE seq = ?", (seq,)).fetchone()
        if row is None:
            raise Corrupt(f"batch {seq} is missing", code="missing_batch", param=f"batch {seq}")
        query = f"SELECT {_FIELDS} FROM transfers WHERE seq = ? ORDER BY ordinal"
        transfers = tuple(_transfer(values) for values in self._db.execute(query, (seq,)))
        return Batch(seq=seq, time_ms=row[0], transfers=transfers, statement=_statement(seq, row[1]))

    def history(self, account_id: str, *, credits_only: bool = False, limit: int = -1) -> list[Entry]:
        """What moved on an account, newest first; `limit` -1 is all."""
        side = "credit = ?1" if credits_only else "(debit = ?1 OR credit = ?1)"
        query = f"""SELECT {_FIELDS}, seq, ordinal, time_ms FROM transfers JOIN batches USING (seq)
                    WHERE {side} ORDER BY seq DESC, ordinal DESC LIMIT ?2"""
        return [_entry(row) for row in self._db.execute(query, (account_id, limit))]

    def all_balances(self) -> Iterator[Balance]:
        return (_balance(row) for row in self._db.execute("SELECT * FROM accounts ORDER BY account_id"))

    def node(self, level: int, position: int) -> bytes:
        """Raises Corrupt where the node isn't there."""
        query = "SELECT hash FROM nodes WHERE level = ? AND position = ?"
        row = self._db.execute(query, (level, position)).fetchone()
        if row is None:
            raise Corrupt(f"node {level}/{position} is missing", code="missing_node", param=f"node {level}/{position}")
        return bytes(row[0])

    def damage(self) -> str:
        """What SQLite itself finds wrong with the file; empty when nothing."""
        found = [str(row[0]) for row in self._db.execute("PRAGMA integrity_check(1)")]
        return "" if found == ["ok"] else "; ".join(found)

    def counts(self) -> dict[str, int]:
        """Rows of each table that grows."""
        tables = ("accounts", "transfers", "holds", "batches", "nodes")
        counted = {name: self._db.execute(f"SELECT count(*) FROM {name}").fetchall()[0][0] for name in tables}
        return {name: int(str(count)) for name, count in counted.items()}

    def holds(self) -> Iterator[tuple[str, int, str]]:
        """Id, expiry (ms) and state of every hold."""
        return iter(self._db.execute("SELECT transfer_id, expires_ms, state FROM holds ORDER BY transfer_id"))

    def add_batch(self, batch: Batch) -> None:
        statement = None if batch.statement is None else canonical_json(batch.statement)
        self._db.execute("INSERT INTO batches VALUES (?, ?, ?)", (batch.seq, batch.time_ms, statement))
        rows = [(*_values(transfer), batch.seq, place) for place, transfer in enumerate(batch.transfers)]
        self._db.executemany(f"INSERT INTO transfers VALUES ({','.join('?' * 11)})", rows)

    def put_changes(self, changes: Book) -> None:
        self._db.executemany(
            "INSERT OR REPLACE INTO accounts VALUES (?, ?, ?, ?, ?, ?, ?)",
            [_row(balance) for balance in changes.balances.values()],
        )
        self._db.executemany(
            "INSERT OR REPLACE INTO holds VALUES (?, ?, ?)",
            [(name, hold.expires_ms, hold.state) for name, hold in changes.holds.items()],
        )

    def add_nodes(self, nodes: Sequence[Node]) -> None:
        self._db.executemany("INSERT INTO nodes VALUES (?, ?, ?)", nodes)

    def put_head(self, size: int, time_ms: int, note: str) -> None:
        self._db.execute("INSERT OR REPLACE INTO head VALUES (1, ?, ?, ?)", (size, time_ms, note))

    def _check_epoch(self) -> None:
        current = int(self.meta("epoch"))
        if current != self.epoch:
            raise Unavailable(
                f"this ledger (epoch {self.epoch}) was replaced by another (epoch {current}); nothing was written",
                code="stale_epoch",
                fix="send the same batch, with the same ids, to the ledger that replaced this one",
            )

    def _in_chunks(self, query: str, keys: Iterable[str]) -> Iterator[tuple[Any, ...]]:
        wanted = list(keys)
        for start in range(0, len(wanted), _CHUNK):
            chunk = wanted[start : start + _CHUNK]
            yield from self._db.execute(f"{query} ({','.join('?' * len(chunk))})", chunk)


def _values(transfer: Transfer) -> tuple[str | int, ...]:
    return (
        transfer.transfer_id,
        transfer.debit,
        transfer.credit,
        transfer.amount_nano,
        transfer.code,
        transfer.reference,
        transfer.kind,
        transfer.pending_id,
        transfer.timeout_ms,
    )


def _transfer(row: Sequence[Any]) -> Transfer:
    try:
        return Transfer(
            transfer_id=row[0],
            debit=row[1],
            credit=row[2],
            amount_nano=row[3],
            code=row[4],
            reference=row[5],
            kind=row[6],
            pending_id=row[7],
            timeout_ms=row[8],
        )
    except ValueError as error:
        raise Corrupt(f"transfer {row[0]!r}: {error}", code="malformed_transfer", param=str(row[0])) from error


def _entry(row: Sequence[Any]) -> Entry:
    return Entry(transfer=_transfer(row), seq=row[9], ordinal=row[10], time_ms=row[11])


def _balance(row: Sequence[Any]) -> Balance:
    return Balance(
        account_id=row[0],
        kind=row[1],
        may_go_negative=bool(row[2]),
        debits_pending_nano=row[3],
        debits_posted_nano=row[4],
        credits_pending_nano=row[5],
        credits_posted_nano=row[6],
    )


def _row(balance: Balance) -> tuple[str | int, ...]:
    return (
        balance.account_id,
        balance.kind,
        int(balance.may_go_negative),
        balance.debits_pending_nano,
        balance.debits_posted_nano,
        balance.credits_pending_nano,
        balance.credits_posted_nano,
    )


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
