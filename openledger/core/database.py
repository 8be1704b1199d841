"""SQLite as this house uses it: current enough, write-ahead, synced before the answer. Knows no table.

SQLite before 3.51.3 can corrupt a write-ahead log that two connections reset at once, which is what an old process and
its successor are; so the library's version is checked before a file is opened.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import apsw

from openledger.core.errors import Corrupt, OpenLedgerError, Unavailable
from openledger.core.files import sync_folder

OLDEST_SQLITE = (3, 51, 3)
_BUSY_TIMEOUT_MS = 10_000


def open_database(path: Path, schema: str, file_format: str) -> apsw.Connection:
    """A connection to `path`, made with `schema` where there is none.

    Raises Corrupt where the file is something else or of another format, Unavailable where it can't be opened.
    """
    check_sqlite_version(apsw.sqlite_lib_version())
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        connection = apsw.Connection(str(path))
        connection.set_busy_timeout(_BUSY_TIMEOUT_MS)
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "fullfsync=ON", "secure_delete=ON", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}").fetchall()
        with writing(connection):
            connection.execute("CREATE TABLE IF NOT EXISTS meta(name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT")
            connection.execute(schema)
            connection.execute("INSERT OR IGNORE INTO meta VALUES ('format', ?)", (file_format,))
        sync_folder(path.parent)
        check_format(connection, path, file_format)
    return connection


def open_read_only(path: Path, file_format: str) -> apsw.Connection:
    """A connection that can't change `path`, beside whoever writes it."""
    check_sqlite_version(apsw.sqlite_lib_version())
    with storage_errors(path):
        connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
        connection.set_busy_timeout(_BUSY_TIMEOUT_MS)
        check_format(connection, path, file_format)
    return connection


@contextmanager
def writing(connection: apsw.Connection) -> Iterator[None]:
    """One write transaction: what happens inside is durable when this ends, or undone when it raises. Inside another
    one it is a part of that, and ends with it."""
    if connection.txn_state() == apsw.SQLITE_TXN_WRITE:
        yield
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


@contextmanager
def reading(connection: apsw.Connection) -> Iterator[None]:
    """One read transaction: every query inside sees the same state."""
    connection.execute("BEGIN")
    try:
        yield
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def truncate_log(connection: apsw.Connection) -> None:
    """Leave nothing in the write-ahead log: text that was deleted is gone from there too. Raises Unavailable."""
    with storage_errors(Path(connection.filename)):
        connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn what SQLite and the disk say into our errors."""
    try:
        yield
    except OpenLedgerError:
        raise
    except (apsw.CorruptError, apsw.NotADBError, apsw.FormatError) as error:
        raise Corrupt(f"{path} is damaged: {error}", code="corrupt_database", param=str(path)) from error
    except (apsw.BusyError, apsw.LockedError) as error:
        raise Unavailable(f"{path} is in use: {error}", code="database_busy", param=str(path)) from error
    except (apsw.Error, OSError) as error:
        raise Unavailable(
            f"{path} can't be read or written: {error}",
            code="storage_failed",
            param=str(path),
            fix="check the disk: space, permissions, and that it is no network file system",
        ) from error


def check_sqlite_version(version: str) -> None:
    """Raises Unavailable for a library that is known to lose writes."""
    if tuple(int(part) for part in version.split(".")) < OLDEST_SQLITE:
        raise Unavailable(
            f"SQLite {version} can corrupt a write-ahead log",
            code="sqlite_too_old",
            fix="install apsw 3.54 or later, which brings its own SQLite",
        )


def check_format(connection: apsw.Connection, path: Path, expected: str) -> None:
    try:
        row = connection.execute("SELECT value FROM meta WHERE name = 'format'").fetchone()
    except apsw.SQLError as error:
        raise Corrupt(f"{path} is no {expected}", code="unknown_format", param=str(path)) from error
    if row is None or row[0] != expected:
        found = row[0] if row else "nothing"
        raise Corrupt(f"{path} holds {found!r}, not {expected!r}", code="unknown_format", param=str(path))
