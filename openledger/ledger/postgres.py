"""A ledger's storage in a PostgreSQL database, for a cluster: the actor that writes it may move to another node.

The epoch is a row that every write transaction locks for sharing and that opening for writing updates. So an old writer
waits for its successor's opening and then reads the new epoch, or its successor waits for the old one's last batch;
whatever an old writer's connection still holds is cut off first, so a frozen one can't keep its successor out.

Long lists come as binary COPY, made of whole columns: ids straight into their table, in a savepoint that is rolled back
where one is known; sums into a staging table, and from there by one statement. Needs psycopg 3
(`openledger[postgres]`).
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt

from openledger.core.errors import Corrupt, InvalidInput, OpenLedgerError, Unavailable
from openledger.ledger.sqlite import check_epoch
from openledger.ledger.store import FORMAT, MAX_TRANSFERS, AccountRow, BatchRow, HoldRow, Sums

try:
    import psycopg
except ImportError:  # an optional extra; `PostgresStore` says so
    psycopg = None  # type: ignore[assignment]

OLDEST_SERVER = 140_000
SYNCED = "on"
_CONNECT_TIMEOUT_S = 10
_RETRY_S = 0.5
_WRITER = "openledger-ledger"
# Each step brings a database from its number to the next; a step that was released never changes.
MIGRATIONS = (
    """
    CREATE TABLE meta(name text PRIMARY KEY, value text NOT NULL);
    INSERT INTO meta VALUES ('epoch', '0');
    CREATE TABLE accounts(
      number bigint PRIMARY KEY, account_id text COLLATE "C" NOT NULL UNIQUE, key bytea NOT NULL UNIQUE,
      kind text NOT NULL);
    CREATE TABLE sums(
      number bigint PRIMARY KEY, may_go_negative smallint NOT NULL,
      debits_pending bigint NOT NULL CHECK (debits_pending >= 0), debits_posted bigint NOT NULL,
      credits_pending bigint NOT NULL CHECK (credits_pending >= 0), credits_posted bigint NOT NULL,
      last_seq bigint NOT NULL,
      CHECK (may_go_negative = 1 OR credits_posted - debits_posted - debits_pending >= 0)
    ) WITH (fillfactor = 50);
    CREATE TABLE transfers(id bytea PRIMARY KEY, place bigint NOT NULL);
    CREATE TABLE holds(
      id bytea PRIMARY KEY, debit bigint NOT NULL, credit bigint NOT NULL, amount bigint NOT NULL,
      expires_ms bigint NOT NULL, state text NOT NULL);
    CREATE TABLE batches(
      seq bigint PRIMARY KEY, time_ms bigint NOT NULL, form text NOT NULL, body bytea NOT NULL, statement bytea,
      links bytea NOT NULL);
    ALTER TABLE batches ALTER body SET STORAGE EXTERNAL, ALTER links SET STORAGE EXTERNAL;
    CREATE TABLE nodes(
      level bigint NOT NULL, position bigint NOT NULL, hash bytea NOT NULL, PRIMARY KEY (level, position));
    CREATE TABLE head(
      only_one integer PRIMARY KEY CHECK (only_one = 1), size bigint NOT NULL, time_ms bigint NOT NULL,
      note text NOT NULL);
    """,
)
_STAGING = """
CREATE TEMPORARY TABLE staged_sums(
  debits_pending bigint, debits_posted bigint, credits_pending bigint, credits_posted bigint, last_seq bigint,
  number bigint);
"""
_ACCOUNT = """number, account_id, a.key, kind, may_go_negative, debits_pending, debits_posted, credits_pending,
              credits_posted, last_seq"""
_ID_BYTES = 16  # of most ids; others are texts
_COPY_HEADER, _COPY_END = b"PGCOPY\n\xff\r\n\0" + bytes(8), b"\xff\xff"
_FEW = 64  # rows for which a statement a row costs less than staging


class PostgresStore:
    """One session with one database. Not for concurrent use by threads."""

    def __init__(self, url: str, *, read_only: bool = False, patience_s: float = 0):
        """Raises Unavailable where psycopg or the database isn't there or the server doesn't sync, Corrupt for a
        database of another format."""
        if psycopg is None:
            raise Unavailable(
                "a ledger in PostgreSQL needs psycopg",
                code="postgres_missing",
                fix="pip install 'openledger[postgres]'",
            )
        self._url, self.location, self.epoch = url, location_of(url), -1
        self._read_only = read_only
        self._db = self._connect_patiently(patience_s)
        if read_only:
            return
        with self._errors(), self._db.transaction():
            row = self._execute(
                "UPDATE meta SET value = (value::bigint + 1)::text WHERE name = 'epoch' RETURNING value"
            )
            self.epoch = int(row.fetchone()[0])

    def close(self) -> None:
        self._db.close()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """A connection that broke is made again, at the same epoch: whoever replaced this store is still seen."""
        with self._errors(), self._transaction("BEGIN", "SELECT value FROM meta WHERE name = 'epoch' FOR SHARE") as row:
            self._check_epoch(int(row[0]))
            yield

    @contextmanager
    def reading(self) -> Iterator[None]:
        with self._errors(), self._transaction("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY", "SELECT 1"):
            yield

    def meta(self, name: str) -> str:
        row = self._read("SELECT value FROM meta WHERE name = %s", name).fetchone()
        return str(row[0]) if row else ""

    def set_meta(self, name: str, value: str) -> None:
        self._execute(
            "INSERT INTO meta VALUES (%s, %s) ON CONFLICT (name) DO UPDATE SET value = excluded.value", name, value
        )

    def head(self) -> tuple[int, int, str]:
        row = self._read("SELECT size, time_ms, note FROM head").fetchone()
        return row if row else (0, 0, "")

    def put_head(self, size: int, time_ms: int, note: str) -> None:
        self._execute(
            "INSERT INTO head VALUES (1, %s, %s, %s) ON CONFLICT (only_one) DO UPDATE SET"
            " size = excluded.size, time_ms = excluded.time_ms, note = excluded.note",
            size,
            time_ms,
            note,
        )

    def accounts(self, account_ids: Sequence[str]) -> list[AccountRow]:
        return self._accounts("account_id", list(account_ids))

    def accounts_by_key(self, keys: Sequence[bytes]) -> list[AccountRow]:
        return self._accounts("key", list(keys))

    def accounts_by_number(self, numbers: Sequence[int]) -> list[AccountRow]:
        return self._accounts("number", list(numbers))

    def all_accounts(self) -> Iterator[AccountRow]:
        rows = self._read(f"SELECT {_ACCOUNT} FROM accounts a JOIN sums USING (number) ORDER BY account_id")
        return (AccountRow._make(row) for row in rows)

    def num_accounts(self) -> int:
        return int(self._read("SELECT coalesce(max(number), -1) + 1 FROM accounts").fetchone()[0])

    def add_accounts(self, rows: Sequence[AccountRow]) -> None:
        self._copy("COPY accounts FROM STDIN (FORMAT BINARY)", ("int8", "text", "bytea", "text"), (r[:4] for r in rows))
        types = ("int8", "int2", "int8", "int8", "int8", "int8", "int8")
        self._copy("COPY sums FROM STDIN (FORMAT BINARY)", types, ((row.number, *row[4:]) for row in rows))

    def put_sums(self, rows: Iterable[Sums | tuple[int, ...]]) -> None:
        given = list(rows)
        if len(given) <= _FEW:
            self._execute_many(
                "UPDATE sums SET debits_pending = %s, debits_posted = %s, credits_pending = %s, credits_posted = %s,"
                " last_seq = %s WHERE number = %s",
                given,
            )
            return
        self._execute("TRUNCATE staged_sums")
        self._copy_columns("COPY staged_sums FROM STDIN (FORMAT BINARY)", *np.array(given, np.int64).T)
        self._execute(
            "UPDATE sums SET debits_pending = n.debits_pending, debits_posted = n.debits_posted,"
            " credits_pending = n.credits_pending, credits_posted = n.credits_posted, last_seq = n.last_seq"
            " FROM staged_sums n WHERE sums.number = n.number"
        )

    def add_ids(self, keys: Sequence[bytes], seq: int) -> bool:
        if not keys:
            return True
        try:
            with self._db.transaction():
                self._insert_ids(keys, seq * MAX_TRANSFERS)
        except psycopg.errors.UniqueViolation:
            return False
        return True

    def places(self, keys: Sequence[bytes]) -> dict[bytes, tuple[int, int]]:
        rows = self._read("SELECT id, place FROM transfers WHERE id = ANY(%s)", list(keys)) if keys else ()
        return {row[0]: divmod(row[1], MAX_TRANSFERS) for row in rows}

    def holds(self, keys: Sequence[bytes]) -> list[HoldRow]:
        rows = self._read("SELECT * FROM holds WHERE id = ANY(%s)", list(keys)) if keys else ()
        return [HoldRow._make(row) for row in rows]

    def put_holds(self, rows: Iterable[HoldRow]) -> None:
        self._execute_many(
            "INSERT INTO holds VALUES (%s, %s, %s, %s, %s, %s) ON CONFLICT (id) DO UPDATE SET state = excluded.state",
            list(rows),
        )

    def all_holds(self) -> Iterator[HoldRow]:
        return (HoldRow._make(row) for row in self._read("SELECT * FROM holds ORDER BY id"))

    def add_batch(self, row: BatchRow) -> None:
        self._execute("INSERT INTO batches VALUES (%b, %b, %b, %b, %b, %b)", *row)

    def batch(self, seq: int) -> BatchRow | None:
        row = self._read("SELECT * FROM batches WHERE seq = %s", seq).fetchone()
        return BatchRow._make(row) if row else None

    def node(self, level: int, position: int) -> bytes | None:
        row = self._read("SELECT hash FROM nodes WHERE level = %s AND position = %s", level, position).fetchone()
        return row[0] if row else None

    def add_nodes(self, nodes: Sequence[tuple[int, int, bytes]]) -> None:
        self._execute_many("INSERT INTO nodes VALUES (%s, %s, %s)", list(nodes))

    def counts(self) -> dict[str, int]:
        tables = ("accounts", "transfers", "holds", "batches", "nodes")
        return {name: int(self._read(f"SELECT count(*) FROM {name}").fetchone()[0]) for name in tables}

    def damage(self) -> str:
        return ""

    def backup(self, path: Path) -> None:
        raise InvalidInput(
            "PostgreSQL is backed up by its own tools",
            code="backup_by_server",
            param=str(path),
            fix="pg_dump --format=custom, or continuous archiving (docs/guides/ledger.md); `export` works on both",
        )

    def _connect_patiently(self, patience_s: float) -> Any:
        """A process that fails to open isn't started again by Ray; one that waits for its database is there."""
        deadline = time.monotonic() + patience_s
        while True:
            try:
                return self._connect()
            except Unavailable as error:
                if error.code != "storage_failed" or time.monotonic() >= deadline:
                    raise
            time.sleep(_RETRY_S)

    def _connect(self) -> Any:
        with self._errors():
            connection = psycopg.connect(
                self._url, autocommit=True, connect_timeout=_CONNECT_TIMEOUT_S, application_name=_WRITER
            )
            try:
                if connection.info.server_version < OLDEST_SERVER:
                    raise Unavailable("the ledger needs PostgreSQL 14 or later", code="postgres_too_old")
                self._prepare(connection)
            except BaseException:
                connection.close()
                raise
        return connection

    def _prepare(self, connection: Any) -> None:
        if connection.execute("SHOW fsync").fetchone()[0] != SYNCED:
            raise Unavailable(
                f"{self.location} doesn't sync what it acknowledges",
                code="unsafe_database",
                fix="set fsync = on in postgresql.conf",
            )
        if not self._read_only:
            connection.execute("SET synchronous_commit = on")
            connection.execute("SET idle_in_transaction_session_timeout = '60s'")
            if self.epoch < 0:
                _cut_off_writers(connection)
                _migrate(connection)
            connection.execute(_STAGING)
        if connection.execute("SELECT to_regclass('meta')").fetchone()[0] is None:
            raise Corrupt(f"{self.location} holds no ledger", code="unknown_format", param=self.location)
        found = connection.execute("SELECT value FROM meta WHERE name = 'format'").fetchone()
        if found is None or found[0] != FORMAT:
            raise Corrupt(f"{self.location} is no {FORMAT}", code="unknown_format", param=self.location)

    @contextmanager
    def _transaction(self, begin: str, first: str) -> Iterator[Any]:
        """Gives the row of the query `first`."""
        try:
            row = self._begun(begin, first)
        except psycopg.OperationalError:
            if not self._db.closed:
                raise
            row = self._begun(begin, first)
        try:
            yield row
            if self._db.execute("COMMIT").statusmessage != "COMMIT":
                raise Unavailable(f"{self.location} undid the batch", code="storage_failed", param=self.location)
        except BaseException:
            if not self._db.closed:
                self._db.execute("ROLLBACK")
            raise

    def _begun(self, begin: str, first: str) -> Any:
        if self._db.closed:
            self._db = self._connect()
        self._db.execute(begin)
        return self._db.execute(first).fetchone()

    def _check_epoch(self, current: int) -> None:
        check_epoch(self.epoch, current)

    def _read(self, query: str, *values: Any) -> Any:
        if self._db.closed:
            with self._errors():
                self._db = self._connect()
        return self._execute(query, *values)

    def _execute(self, query: str, *values: Any) -> Any:
        with self._errors():
            return self._db.execute(query, values or None, binary=True)

    def _execute_many(self, query: str, rows: Sequence[Any]) -> None:
        if rows:
            self._db.cursor().executemany(query, rows)

    def _copy(self, statement: str, types: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        with self._db.cursor().copy(statement) as copying:
            copying.set_types(types)
            for row in rows:
                copying.write_row(row)

    def _insert_ids(self, keys: Sequence[bytes], first: int) -> None:
        if len(keys) <= _FEW:
            self._db.execute(
                "INSERT INTO transfers SELECT id, %s + place - 1 FROM unnest(%s::bytea[]) WITH ORDINALITY t(id, place)",
                (first, list(keys)),
                binary=True,
            )
            return
        statement = "COPY transfers FROM STDIN (FORMAT BINARY)"
        places = range(first, first + len(keys))
        if all(len(key) == _ID_BYTES for key in keys):
            self._copy_columns(statement, np.frombuffer(b"".join(keys), f"V{_ID_BYTES}"), np.array(places))
        else:
            self._copy(statement, ("bytea", "int8"), zip(keys, places, strict=True))

    def _copy_columns(self, statement: str, *columns: npt.NDArray[Any]) -> None:
        with self._db.cursor().copy(statement) as copying:
            copying.write(_copy_bytes(columns))

    def _accounts(self, column: str, wanted: list[Any]) -> list[AccountRow]:
        query = f"SELECT {_ACCOUNT} FROM accounts a JOIN sums USING (number) WHERE a.{column} = ANY(%s)"
        return [AccountRow._make(row) for row in self._read(query, wanted)] if wanted else []

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OpenLedgerError:
            raise
        except psycopg.errors.DataError as error:
            raise Corrupt(f"{self.location}: {error}", code="corrupt_database", param=self.location) from error
        except psycopg.Error as error:
            raise Unavailable(
                f"{self.location} can't be read or written: {str(error).strip()}",
                code="storage_failed",
                param=self.location,
                fix="check the server and the network, then send the same ids again",
            ) from error


def location_of(url: str) -> str:
    """`url` without its password, for messages."""
    parts = urlsplit(url)
    return f"postgresql://{parts.hostname or ''}{f':{parts.port}' if parts.port else ''}{parts.path}"


def _copy_bytes(columns: Sequence[npt.NDArray[Any]]) -> bytes:
    """COPY's binary form of columns of 64-bit integers, or of strings of one length (PostgreSQL's manual, COPY, "Binary
    Format"): a row is the number of its fields, then each one's length and bytes, big-endian."""
    layout: list[tuple[str, Any]] = [("fields", ">i2")]
    for place, column in enumerate(columns):
        layout += [(f"length{place}", ">i4"), (f"value{place}", column.dtype.newbyteorder(">"))]
    rows = np.empty(len(columns[0]), layout)
    rows["fields"] = len(columns)
    for place, column in enumerate(columns):
        rows[f"length{place}"], rows[f"value{place}"] = column.itemsize, column
    return b"".join((_COPY_HEADER, rows.tobytes(), _COPY_END))


def _cut_off_writers(connection: Any) -> None:
    """End the sessions of ledgers before this one: a frozen process would hold its locks for ever."""
    connection.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = %s"
        " AND datname = current_database() AND pid <> pg_backend_pid() AND usename = current_user",
        (_WRITER,),
    )


def _migrate(connection: Any) -> None:
    """Bring the database to today's tables, one step after the other, each whole or not at all."""
    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(hashtext('openledger.ledger'))")
        known = connection.execute("SELECT to_regclass('meta')").fetchone()[0] is not None
        row = connection.execute("SELECT value FROM meta WHERE name = 'schema'").fetchone() if known else None
        for step in MIGRATIONS[int(row[0]) if row else 0 :]:
            connection.execute(step)
        connection.execute(
            "INSERT INTO meta VALUES ('schema', %s), ('format', %s) ON CONFLICT (name) DO UPDATE"
            " SET value = excluded.value WHERE meta.name = 'schema'",
            (str(len(MIGRATIONS)), FORMAT),
        )
