"""Ledgers in SQLite as earlier versions wrote them (`openledger.ledger/1`), brought to today's tables where they stand.

Then, transfers were rows; now they stand in the bodies of their batches. The log is the same: each batch must have the
leaf that the old tables have for it. One transaction: an interrupted upgrade leaves the old ledger as it was.
"""

import json
from array import array
from pathlib import Path

import apsw

from openledger.core.database import check_sqlite_version, storage_errors, writing
from openledger.core.errors import Corrupt
from openledger.ledger.log import leaf_hash, leaf_of
from openledger.ledger.packed import account_key, id_key
from openledger.ledger.store import FORMAT, MAX_TRANSFERS
from openledger.ledger.transfers import Batch, Transfer, transfer_bytes

FORMER = "openledger.ledger/1"
_MOVED = ("accounts", "transfers", "holds", "batches")
_FIELDS = "transfer_id, debit, credit, amount, code, reference, kind, pending_id, timeout_ms"
_NAMES = ("transfer_id", "debit", "credit", "amount_nano", "code", "reference", "kind", "pending_id", "timeout_ms")


def upgrade(path: Path, schema: str) -> None:
    """Bring the ledger at `path` to `schema`; one that has it stays as it is. Raises Corrupt naming a wrong batch."""
    check_sqlite_version(apsw.sqlite_lib_version())
    with storage_errors(path):
        connection = apsw.Connection(str(path))
        try:
            connection.set_busy_timeout(10_000)
            if _format(connection) == FORMER:
                with writing(connection):
                    _rewrite(connection, schema)
        finally:
            connection.close()


def _format(connection: apsw.Connection) -> str:
    try:
        row = connection.execute("SELECT value FROM meta WHERE name = 'format'").fetchone()
    except apsw.SQLError:
        return ""
    return str(row[0]) if row else ""


def _rewrite(connection: apsw.Connection, schema: str) -> None:
    for table in _MOVED:
        connection.execute(f"ALTER TABLE {table} RENAME TO former_{table}")
    connection.execute(schema)
    connection.execute(
        "INSERT INTO accounts SELECT row_number() OVER () - 1, account_id, CAST(account_id AS BLOB), kind"
        " FROM former_accounts"
    )
    rows = connection.execute("SELECT account_id, number FROM accounts").fetchall()
    numbers = {str(name): int(str(number)) for name, number in rows}
    keys = [(account_key(name), number) for name, number in numbers.items()]
    connection.executemany("UPDATE accounts SET key = ? WHERE number = ?", keys)
    last: dict[str, int] = {}
    former = connection.execute("SELECT seq, time_ms, statement FROM former_batches ORDER BY seq")
    for seq, time_ms, statement in former:
        _move_batch(connection, int(str(seq)), int(str(time_ms)), statement, numbers, last)
    connection.execute(
        "INSERT INTO sums SELECT number, may_go_negative, debits_pending, debits_posted, credits_pending,"
        " credits_posted, -1 FROM former_accounts JOIN accounts USING (account_id)"
    )
    newest = [(seq, numbers[name]) for name, seq in last.items()]
    connection.executemany("UPDATE sums SET last_seq = ? WHERE number = ?", newest)
    _move_holds(connection, numbers)
    for table in _MOVED:
        connection.execute(f"DROP TABLE former_{table}")
    connection.execute("UPDATE meta SET value = ? WHERE name = 'format'", (FORMAT,))


def _move_batch(
    connection: apsw.Connection,
    seq: int,
    time_ms: int,
    statement: object,
    numbers: dict[str, int],
    last: dict[str, int],
) -> None:
    rows = connection.execute(f"SELECT {_FIELDS} FROM former_transfers WHERE seq = ? ORDER BY ordinal", (seq,))
    place = f"batch {seq}"
    try:
        transfers = tuple(Transfer(**dict(zip(_NAMES, row, strict=True))) for row in rows)
        stated = None if statement is None else json.loads(bytes(statement))  # type: ignore[call-overload]
    except ValueError as error:
        raise Corrupt(f"{place}: {error}", code="malformed_transfer", param=place) from error
    leaf = leaf_hash(leaf_of(Batch(seq=seq, time_ms=time_ms, transfers=transfers, statement=stated)))
    if (leaf,) not in connection.execute("SELECT hash FROM nodes WHERE level = 0 AND position = ?", (seq,)).fetchall():
        raise Corrupt(f"{place}: its content isn't what its leaf commits to", code="wrong_leaf", param=place)
    touched = sorted({name for item in transfers for name in (item.debit, item.credit)}, key=numbers.__getitem__)
    links = array("q", [value for name in touched for value in (numbers[name], last.get(name, -1))])
    body = b"[" + b",".join(map(transfer_bytes, transfers)) + b"]"
    connection.execute(
        "INSERT INTO batches VALUES (?, ?, 'json', ?, ?, ?)",
        (seq, time_ms, body, statement, links.tobytes()),
    )
    ids = [(id_key(item.transfer_id), seq * MAX_TRANSFERS + ordinal) for ordinal, item in enumerate(transfers)]
    connection.executemany("INSERT INTO transfers VALUES (?, ?)", ids)
    last.update(dict.fromkeys(touched, seq))


def _move_holds(connection: apsw.Connection, numbers: dict[str, int]) -> None:
    rows = connection.execute(
        "SELECT transfer_id, debit, credit, amount, expires_ms, state FROM former_holds JOIN former_transfers"
        " USING (transfer_id)"
    )
    holds = [(id_key(str(row[0])), numbers[str(row[1])], numbers[str(row[2])], *row[3:]) for row in rows]
    connection.executemany("INSERT INTO holds VALUES (?, ?, ?, ?, ?, ?)", holds)
