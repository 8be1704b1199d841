"""Write transactions: durable as a whole or undone as a whole, also one inside another."""

from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest

from openledger.core.database import open_database, reading, writing


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[apsw.Connection]:
    connection = open_database(tmp_path / "a.db", "CREATE TABLE IF NOT EXISTS t(value INTEGER)", "test/1")
    yield connection
    connection.close()


def values(connection: apsw.Connection) -> list[int]:
    """As another connection sees them: what is committed."""
    other = apsw.Connection(connection.filename)
    return [int(str(row[0])) for row in other.execute("SELECT value FROM t")]


def insert(connection: apsw.Connection, value: int) -> None:
    with writing(connection):
        connection.execute("INSERT INTO t VALUES (?)", (value,))


def test_one_inside_another_is_committed_with_it(connection: apsw.Connection) -> None:
    with writing(connection):
        insert(connection, 1)
        assert values(connection) == []
        insert(connection, 2)
    assert values(connection) == [1, 2]


def test_and_undone_with_it(connection: apsw.Connection) -> None:
    def fail() -> None:
        with writing(connection):
            insert(connection, 1)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert values(connection) == []
    insert(connection, 2)
    assert values(connection) == [2]


def test_inside_a_read_transaction_it_is_refused(connection: apsw.Connection) -> None:
    """Which is rolled back at its end: what was written would be lost without a word."""
    with reading(connection):
        connection.execute("SELECT * FROM t").fetchall()
        with pytest.raises(apsw.SQLError):
            insert(connection, 1)
