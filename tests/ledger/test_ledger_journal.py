"""The file beneath: fenced, synced, its own format, and a failing disk that never half-writes."""

import apsw
import psycopg
import pytest
from ledger_values import hold, move
from settled_ledger import build_pool

from openledger.core.clock import ManualClock
from openledger.core.database import check_sqlite_version, open_database
from openledger.core.errors import Conflict, Corrupt, InvalidInput, Unavailable
from openledger.core.signing import SigningKey
from openledger.ledger import Ledger, postgres
from openledger.ledger.journal import Journal
from openledger.ledger.postgres import PostgresStore, location_of
from openledger.ledger.sqlite import SqliteStore, check_file_system

KEY = SigningKey(b"k" * 32)


def test_a_reopened_ledger_goes_on_where_it_stopped(ledger, storage, clock):
    ledger.commit([move("t1", 5)])
    before = ledger.checkpoint()
    ledger.close()
    again = Ledger(storage, clock, KEY, "openledger/test")
    assert again.checkpoint() == before
    assert again.commit([move("t1", 5)]) == ["exists"]
    again.close()


def test_a_replaced_ledger_can_not_write_any_more(ledger, storage, clock):
    ledger.commit([move("t1", 5)])
    successor = Ledger(storage, clock, KEY, "openledger/test")
    with pytest.raises(Unavailable) as caught:
        ledger.commit([move("t2", 5)])
    assert caught.value.code == "stale_epoch"
    with pytest.raises(Unavailable):
        ledger.create_accounts([])
    assert successor.find("t2") is None
    assert successor.commit([move("t2", 5)]) == ["created"]
    successor.audit()
    successor.close()


def test_without_the_fence_the_replaced_ledger_would_write(ledger, storage, clock, monkeypatch):
    monkeypatch.setattr(type(ledger._journal.store), "_check_epoch", lambda self, current: None)
    successor = Ledger(storage, clock, KEY, "openledger/test")
    assert ledger.commit([move("t2", 5)]) == ["created"]
    assert successor.find("t2") is not None
    successor.close()


def test_writes_are_synced_before_the_answer(path):
    store = SqliteStore(path)
    pragmas = {name: store._db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous")}
    store.close()
    assert pragmas == {"journal_mode": "wal", "synchronous": 2}


@pytest.mark.parametrize("version", ["3.40.1", "3.51.2"])
def test_an_sqlite_that_loses_writes_is_refused(version):
    with pytest.raises(Unavailable) as caught:
        check_sqlite_version(version)
    assert caught.value.code == "sqlite_too_old"


def test_the_sqlite_in_use_is_current():
    check_sqlite_version(apsw.sqlite_lib_version())


def test_another_key_or_name_does_not_open_the_file(ledger, storage, clock):
    for key, name in ((SigningKey(b"o" * 32), "openledger/test"), (KEY, "openledger/other")):
        with pytest.raises(Conflict) as caught:
            Ledger(storage, clock, key, name)
        assert caught.value.code == "wrong_key"


def test_a_file_that_is_no_ledger_is_named(path):
    path.write_bytes(b"not a database, but longer than the header of one" * 100)
    with pytest.raises(Corrupt):
        SqliteStore(path)


def test_a_database_of_another_format_is_named(path):
    open_database(path, "", "something/1").close()
    with pytest.raises(Corrupt) as caught:
        SqliteStore(path)
    assert caught.value.code == "unknown_format"


def test_a_clock_that_goes_back_does_not_take_the_log_with_it(path):
    clock = ManualClock()
    ledger = Ledger(path, clock, KEY, "openledger/test")
    from openledger.ledger import Account

    genesis = Account(account_id="genesis", kind="genesis", may_go_negative=True)
    ledger.create_accounts([genesis, Account(account_id="user:a", kind="user")])
    ledger.commit([move("t1", 1)])
    clock.advance(-10_000)
    ledger.commit([move("t2", 1)])
    times = [entry.time_ms for entry in ledger.transfers("user:a")]
    assert times == sorted(times, reverse=True)
    ledger.audit()
    ledger.close()


DISK_ERRORS = {"full": (apsw.FullError, psycopg.errors.DiskFull), "broken": (apsw.IOError, psycopg.OperationalError)}


@pytest.mark.parametrize("failure", sorted(DISK_ERRORS))
@pytest.mark.parametrize("step", ["add_batch", "put_changes", "add_nodes", "put_head"])
def test_a_disk_that_fails_at_any_step_leaves_nothing_half_done(ledger, storage, monkeypatch, step, failure):
    error = DISK_ERRORS[failure][isinstance(storage, str)]
    ledger.commit([move("t1", 5)])
    before = ledger.checkpoint()
    original = getattr(Journal, step)

    def write_and_fail(self, *arguments):
        original(self, *arguments)
        raise error("disk")

    monkeypatch.setattr(Journal, step, write_and_fail)
    with pytest.raises(Unavailable) as caught:
        ledger.commit([move("t2", 5)])
    monkeypatch.undo()
    assert caught.value.code == "storage_failed"
    assert (ledger.checkpoint(), ledger.find("t2")) == (before, None)
    assert ledger.commit([move("t2", 5)]) == ["created"]
    ledger.audit()


def test_a_hold_expires_by_the_time_its_leaf_states(path):
    """Under a clock that moves with every look at it, the audit still finds the expiry that the ledger reckoned."""

    class TickingClock(ManualClock):
        def now_ms(self):
            self.time_ms += 1
            return self.time_ms

    ledger = Ledger(path, TickingClock(), KEY, "openledger/test")
    build_pool(ledger)
    ledger.commit([hold("timed", 5, timeout_ms=100)])
    ledger.audit()
    ledger.close()


@pytest.mark.parametrize(("kind", "refused"), [("ext4", False), ("nfs4", True), ("cifs", True)])
def test_a_network_file_system_is_refused(tmp_path, kind, refused):
    mounts = tmp_path / "mounts"
    mounts.write_text(f"root / ext4 rw 0 0\nserver:/x {tmp_path} {kind} rw 0 0\n")
    if not refused:
        check_file_system(tmp_path / "deep" / "ledger.db", str(mounts))
        return
    with pytest.raises(Unavailable) as caught:
        check_file_system(tmp_path / "deep" / "ledger.db", str(mounts))
    assert caught.value.code == "network_file_system"


class TestPostgres:
    def test_messages_do_not_hold_the_password(self):
        assert location_of("postgresql://ledger:secret@db.example:5433/books") == "postgresql://db.example:5433/books"

    def test_a_database_without_a_ledger_is_named_to_a_reader(self, postgres_server):
        with pytest.raises(Corrupt) as caught:
            PostgresStore(postgres_server.new_database(), read_only=True)
        assert caught.value.code == "unknown_format"

    def test_a_ledger_needs_a_key_file(self, postgres_server):
        with pytest.raises(InvalidInput) as caught:
            Ledger(postgres_server.new_database())
        assert caught.value.code == "no_signing_key"

    def test_a_server_that_does_not_sync_is_refused(self, postgres_server, monkeypatch):
        url = postgres_server.new_database()
        monkeypatch.setattr(postgres, "SYNCED", "another")
        with pytest.raises(Unavailable) as caught:
            PostgresStore(url)
        assert caught.value.code == "unsafe_database"

    def test_without_psycopg_it_says_what_to_install(self, monkeypatch):
        monkeypatch.setattr(postgres, "psycopg", None)
        with pytest.raises(Unavailable) as caught:
            PostgresStore("postgresql://nowhere/ledger")
        assert caught.value.code == "postgres_missing"

    def test_opening_twice_changes_no_table_and_raises_the_epoch(self, postgres_server):
        url = postgres_server.new_database()
        first = PostgresStore(url)
        second = PostgresStore(url)
        assert (first.epoch, second.epoch, second.meta("schema")) == (1, 2, str(len(postgres.MIGRATIONS)))
        first.close()
        second.close()
