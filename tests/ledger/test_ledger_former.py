"""A ledger that an earlier version wrote opens, keeps its log to the hash, and audits clean."""

import json

import apsw
import pytest
from ledger_values import hold, move
from settled_ledger import build

from openledger.core.errors import Corrupt
from openledger.core.signing import SigningKey
from openledger.ledger import Ledger

KEY = SigningKey(b"k" * 32)
FORMER_SCHEMA = """
CREATE TABLE accounts(
  account_id TEXT PRIMARY KEY, kind TEXT NOT NULL, may_go_negative INTEGER NOT NULL,
  debits_pending INTEGER NOT NULL, debits_posted INTEGER NOT NULL,
  credits_pending INTEGER NOT NULL, credits_posted INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE transfers(
  transfer_id TEXT PRIMARY KEY, debit TEXT NOT NULL, credit TEXT NOT NULL,
  amount INTEGER NOT NULL, code TEXT NOT NULL, reference TEXT NOT NULL, kind TEXT NOT NULL,
  pending_id TEXT NOT NULL, timeout_ms INTEGER NOT NULL, seq INTEGER NOT NULL, ordinal INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX transfers_in_order ON transfers(seq, ordinal);
CREATE INDEX transfers_by_debit ON transfers(debit, seq, ordinal);
CREATE INDEX transfers_by_credit ON transfers(credit, seq, ordinal);
CREATE TABLE holds(
  transfer_id TEXT PRIMARY KEY, expires_ms INTEGER NOT NULL, state TEXT NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE batches(seq INTEGER PRIMARY KEY, time_ms INTEGER NOT NULL, statement BLOB) STRICT;
"""


@pytest.fixture
def former(path, clock):
    """The path of a settled ledger, put back into the tables of the earlier version; and what it held."""
    ledger = Ledger(path, clock, KEY, "openledger/test")
    build(ledger)
    ledger.commit([move("start", 50)])
    ledger.commit([hold("open", 8, timeout_ms=1000)])
    held = ledger.balances(), ledger.checkpoint(), ledger.transfers("user:a"), ledger.audit()
    ledger.close()
    put_back(path)
    return path, held


def put_back(path):
    connection = apsw.Connection(str(path))
    with connection:
        accounts = connection.execute(
            "SELECT account_id, kind, may_go_negative, debits_pending, debits_posted, credits_pending, credits_posted"
            " FROM accounts JOIN sums USING (number)"
        ).fetchall()
        batches = connection.execute("SELECT seq, time_ms, statement, body FROM batches").fetchall()
        holds = connection.execute("SELECT CAST(id AS TEXT), expires_ms, state FROM holds").fetchall()
        for table in ("accounts", "sums", "transfers", "holds", "batches"):
            connection.execute(f"DROP TABLE {table}")
        connection.execute(FORMER_SCHEMA)
        connection.executemany("INSERT INTO accounts VALUES (?, ?, ?, ?, ?, ?, ?)", accounts)
        connection.executemany("INSERT INTO holds VALUES (?, ?, ?)", holds)
        connection.executemany("INSERT INTO batches VALUES (?, ?, ?)", [row[:3] for row in batches])
        for seq, _, _, body in batches:
            for ordinal, t in enumerate(json.loads(body)):
                columns = ("transfer_id", "debit", "credit", "amount_nano", "code", "reference", "kind", "pending_id")
                row = (*(t[column] for column in columns), t["timeout_ms"], seq, ordinal)
                connection.execute(f"INSERT INTO transfers VALUES ({','.join('?' * 11)})", row)
        connection.execute("UPDATE meta SET value = 'openledger.ledger/1' WHERE name = 'format'")
    connection.close()


def test_it_opens_with_everything_it_held_and_goes_on(former, clock):
    path, held = former
    ledger = Ledger(path, clock, KEY, "openledger/test")
    assert (ledger.balances(), ledger.checkpoint(), ledger.transfers("user:a"), ledger.audit()) == held
    void = move("v", 8, "user:a", "user:b", kind="void", pending_id="open")
    assert ledger.submit([move("start", 50), void]) == ["exists", "created"]
    ledger.audit()
    ledger.close()
    Ledger(path, clock, KEY, "openledger/test").close()


def test_a_changed_batch_is_named_and_the_old_ledger_stays(former, clock):
    path, _ = former
    connection = apsw.Connection(str(path))
    connection.execute("UPDATE transfers SET amount = amount + 1 WHERE transfer_id = 'grant'")
    connection.close()
    with pytest.raises(Corrupt) as caught:
        Ledger(path, clock, KEY, "openledger/test")
    assert (caught.value.code, caught.value.param) == ("wrong_leaf", "batch 1")
    connection = apsw.Connection(str(path))
    assert connection.execute("SELECT value FROM meta WHERE name = 'format'").fetchall() == [("openledger.ledger/1",)]
    assert connection.execute("SELECT count(*) FROM transfers WHERE amount > 0").fetchall()[0][0] > 10
    connection.close()
