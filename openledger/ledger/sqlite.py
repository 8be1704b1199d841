"""A ledger's storage in one SQLite file: the embedded default. Decides nothing; see `store`.

Lists go to SQLite as one array (`carray`), not as one statement a row: a third of the time. Ids start with the time,
so their index grows at its end. Sums stand apart from names: a batch rewrites the rows of the accounts it touches, and
those are short.
"""

import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import apsw

from openledger.core.database import open_database, open_read_only, reading, storage_errors, writing
from openledger.core.errors import Conflict, Unavailable
from openledger.core.files import sync_folder
from openledger.ledger.former import upgrade
from openledger.ledger.store import FORMAT, MAX_TRANSFERS, AccountRow, BatchRow, HoldRow, Sums

_SCHEMA = """
CREATE TABLE IF NOT EXISTS accounts(
  number INTEGER PRIMARY KEY, account_id TEXT NOT NULL UNIQUE, key BLOB NOT NULL UNIQUE, kind TEXT NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS sums(
  number INTEGER PRIMARY KEY, may_go_negative INTEGER NOT NULL,
  debits_pending INTEGER NOT NULL CHECK (debits_pending >= 0), debits_posted INTEGER NOT NULL,
  credits_pending INTEGER NOT NULL CHECK (credits_pending >= 0), credits_posted INTEGER NOT NULL,
  last_seq INTEGER NOT NULL,
  CHECK (may_go_negative OR credits_posted - debits_posted - debits_pending >= 0)
) STRICT;
CREATE TABLE IF NOT EXISTS transfers(id BLOB PRIMARY KEY, place INTEGER NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS holds(
  id BLOB PRIMARY KEY, debit INTEGER NOT NULL, credit INTEGER NOT NULL, amount INTEGER NOT NULL,
  expires_ms INTEGER NOT NULL, state TEXT NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS batches(
  seq INTEGER PRIMARY KEY, time_ms INTEGER NOT NULL, form TEXT NOT NULL, body BLOB NOT NULL, statement BLOB,
  links BLOB NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS nodes(
  level INTEGER NOT NULL, position INTEGER NOT NULL, hash BLOB NOT NULL, PRIMARY KEY (level, position)
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS head(
  only INTEGER PRIMARY KEY CHECK (only = 1), size INTEGER NOT NULL, time_ms INTEGER NOT NULL, note TEXT NOT NULL
) STRICT;
INSERT OR IGNORE INTO meta VALUES ('epoch', '0');
"""
_ACCOUNT = """number, account_id, a.key, kind, may_go_negative, debits_pending, debits_posted, credits_pending,
              credits_posted, last_seq"""
_CHECKPOINT_PAGES = 8000
_NETWORK_FILE_SYSTEMS = frozenset({"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "fuse.sshfs", "ceph", "glusterfs"})


class SqliteStore:
    """One connection to one file. Not for concurrent use by threads."""

    def __init__(self, path: Path, *, read_only: bool = False):
        """Raises what `open_database` and `open_read_only` raise, and Unavailable on a network file system."""
        self.path, self.location, self.epoch = path, str(path), -1
        if read_only:
            self._db = open_read_only(path, FORMAT)
            return
        check_file_system(path)
        if path.exists():
            upgrade(path, _SCHEMA)
        self._db = open_database(path, _SCHEMA, FORMAT)
        self._db.execute(f"PRAGMA wal_autocheckpoint={_CHECKPOINT_PAGES}").fetchall()
        with storage_errors(path), writing(self._db):
            self.epoch = int(self.meta("epoch")) + 1
            self.set_meta("epoch", str(self.epoch))

    def close(self) -> None:
        self._db.close()

    @contextmanager
    def writing(self) -> Iterator[None]:
        with storage_errors(self.path), writing(self._db):
            self._check_epoch(int(self.meta("epoch")))
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
        row = self._db.execute("SELECT size, time_ms, note FROM head").fetchone()
        return row if row else (0, 0, "")

    def put_head(self, size: int, time_ms: int, note: str) -> None:
        self._db.execute("INSERT OR REPLACE INTO head VALUES (1, ?, ?, ?)", (size, time_ms, note))

    def accounts(self, account_ids: Sequence[str]) -> list[AccountRow]:
        return self._accounts("account_id", account_ids)

    def accounts_by_key(self, keys: Sequence[bytes]) -> list[AccountRow]:
        return self._accounts("key", keys)

    def accounts_by_number(self, numbers: Sequence[int]) -> list[AccountRow]:
        return self._accounts("number", array("q", numbers))

    def all_accounts(self) -> Iterator[AccountRow]:
        rows = self._db.execute(f"SELECT {_ACCOUNT} FROM accounts a JOIN sums USING (number) ORDER BY account_id")
        return (AccountRow._make(row) for row in rows)

    def num_accounts(self) -> int:
        return int(str(self._db.execute("SELECT coalesce(max(number), -1) + 1 FROM accounts").fetchall()[0][0]))

    def add_accounts(self, rows: Sequence[AccountRow]) -> None:
        self._db.executemany("INSERT INTO accounts VALUES (?, ?, ?, ?)", [row[:4] for row in rows])
        self._db.executemany("INSERT INTO sums VALUES (?, ?, ?, ?, ?, ?, ?)", [(row.number, *row[4:]) for row in rows])

    def put_sums(self, rows: Iterable[Sums | tuple[int, ...]]) -> None:
        self._db.executemany(
            "UPDATE sums SET debits_pending = ?, debits_posted = ?, credits_pending = ?, credits_posted = ?,"
            " last_seq = ? WHERE number = ?",
            rows,
        )

    def add_ids(self, keys: Sequence[bytes], seq: int) -> bool:
        if not keys:
            return True
        first = seq * MAX_TRANSFERS - 1  # rows of an array count from 1
        self._db.execute("SAVEPOINT ids")
        try:
            self._db.execute("INSERT INTO transfers SELECT value, rowid + ? FROM carray(?)", (first, _array(keys)))
        except apsw.ConstraintError:
            self._db.execute("ROLLBACK TO ids")
            return False
        finally:
            if self._db.in_transaction:
                self._db.execute("RELEASE ids")
        return True

    def places(self, keys: Sequence[bytes]) -> dict[bytes, tuple[int, int]]:
        rows = self._wanted("SELECT id, place FROM carray(?) w JOIN transfers ON id = w.value", keys)
        return {row[0]: divmod(row[1], MAX_TRANSFERS) for row in rows}

    def holds(self, keys: Sequence[bytes]) -> list[HoldRow]:
        query = "SELECT id, debit, credit, amount, expires_ms, state FROM carray(?) w JOIN holds ON id = w.value"
        return [HoldRow._make(row) for row in self._wanted(query, keys)]

    def put_holds(self, rows: Iterable[HoldRow]) -> None:
        self._db.executemany("INSERT OR REPLACE INTO holds VALUES (?, ?, ?, ?, ?, ?)", rows)

    def all_holds(self) -> Iterator[HoldRow]:
        return (HoldRow._make(row) for row in self._db.execute("SELECT * FROM holds ORDER BY id"))

    def add_batch(self, row: BatchRow) -> None:
        self._db.execute("INSERT INTO batches VALUES (?, ?, ?, ?, ?, ?)", row)

    def batch(self, seq: int) -> BatchRow | None:
        row = self._db.execute("SELECT * FROM batches WHERE seq = ?", (seq,)).fetchone()
        return BatchRow._make(row) if row else None

    def node(self, level: int, position: int) -> bytes | None:
        query = "SELECT hash FROM nodes WHERE level = ? AND position = ?"
        row = self._db.execute(query, (level, position)).fetchone()
        return bytes(row[0]) if row else None

    def add_nodes(self, nodes: Sequence[tuple[int, int, bytes]]) -> None:
        self._db.executemany("INSERT INTO nodes VALUES (?, ?, ?)", nodes)

    def counts(self) -> dict[str, int]:
        tables = ("accounts", "transfers", "holds", "batches", "nodes")
        return {name: int(str(self._db.execute(f"SELECT count(*) FROM {name}").fetchall()[0][0])) for name in tables}

    def damage(self) -> str:
        found = [str(row[0]) for row in self._db.execute("PRAGMA integrity_check(1)")]
        return "" if found == ["ok"] else "; ".join(found)

    def backup(self, path: Path) -> None:
        """By SQLite's own backup, in steps, so that the writer goes on. Raises Conflict where `path` exists."""
        if path.exists():
            raise Conflict(f"{path} exists", code="file_exists", param=str(path), fix="name a file that isn't there")
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.new")
        temporary.unlink(missing_ok=True)
        with storage_errors(path):
            target = apsw.Connection(str(temporary))
            with target.backup("main", self._db, "main") as copying:
                while not copying.done:
                    copying.step(1000)
            target.execute("PRAGMA journal_mode=DELETE").fetchall()  # one file, whole without its companions
            target.close()
            descriptor = os.open(temporary, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)
            temporary.replace(path)
            sync_folder(path.parent)

    def _check_epoch(self, current: int) -> None:
        check_epoch(self.epoch, current)

    def _accounts(self, column: str, wanted: Sequence[Any]) -> list[AccountRow]:
        query = f"SELECT {_ACCOUNT} FROM carray(?) w JOIN accounts a ON a.{column} = w.value JOIN sums USING (number)"
        return [AccountRow._make(row) for row in self._wanted(query, wanted)]

    def _wanted(self, query: str, wanted: Sequence[Any]) -> Iterable[tuple[Any, ...]]:
        return self._db.execute(query, (_array(wanted),)) if wanted else ()


def check_epoch(own: int, current: int) -> None:
    """Raises Unavailable where another store was opened for writing after the one of epoch `own`."""
    if current != own:
        raise Unavailable(
            f"this ledger (epoch {own}) was replaced by another (epoch {current}); nothing was written",
            code="stale_epoch",
            fix="send the same batch, with the same ids, to the ledger that replaced this one",
        )


def check_file_system(path: Path, mounts: str = "/proc/mounts") -> None:
    """Raises Unavailable where `path` is on a network file system: its locks and syncs don't hold what SQLite needs."""
    try:
        lines = [line.split() for line in Path(mounts).read_text().splitlines()]
    except OSError:
        return
    place = path.resolve()
    mounted = {Path(line[1]): line[2] for line in lines if len(line) > 2}
    kind = next((mounted[folder] for folder in (place, *place.parents) if folder in mounted), "")
    if kind in _NETWORK_FILE_SYSTEMS:
        raise Unavailable(
            f"{path} is on a network file system ({kind})",
            code="network_file_system",
            param=str(path),
            fix="put the ledger on a disk of this machine, or use PostgreSQL",
        )


def _array(values: Sequence[Any]) -> Any:
    """Of texts, of bytes, or of the integers in an `array`."""
    return apsw.carray(values if isinstance(values, array) else tuple(values))
