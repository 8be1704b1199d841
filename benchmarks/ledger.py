"""How fast the ledger is beside the bare loop of each database it stands on, in one interleaved run.

    python benchmarks/ledger.py                      every engine that is installed, batches of 1, 100 and 8000
    python benchmarks/ledger.py --only bare --only ledger --rounds 40
    python benchmarks/ledger.py open                 builds a ledger of 10 million transfers once, times its opening
    python benchmarks/ledger.py group                64 threads, one transfer at a time
    python benchmarks/ledger.py actor                through the Ray actor

Peers that the project itself doesn't need are in benchmarks/ledger_requirements.txt; one that can't be started is named
with the reason.

A bare loop inserts rows (16-byte id, debit, credit, amount) and adds to the balances of 10,000 accounts, commits and
syncs for each batch: no rules, no fence, no log. The ledger does all it always does. In each round every engine takes
one batch, so that all of them share what else the machine does; ratios are of medians. `cpu` is this process's time, a
server's is not in it. Seed 1.
"""

import argparse
import os
import secrets
import shutil
import sqlite3
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import apsw
import numpy as np

from openledger.core.errors import OpenLedgerError
from openledger.core.signing import SigningKey
from openledger.ledger import Account, Ledger, Transfer
from openledger.ledger.group import GroupCommit
from openledger.ledger.packed import account_key
from openledger.ledger.setwise import PENDING, POST, RECORD, new_ids

NUM_ACCOUNTS = 10_000
NAMES = [f"user:{number}" for number in range(NUM_ACCOUNTS)]
KEYS = np.frombuffer(b"".join(map(account_key, NAMES)), "<u8").reshape(-1, 2)
KEY = SigningKey(b"b" * 32)
_INSTALL = "pip install -c constraints.txt -r benchmarks/ledger_requirements.txt"
CODE = np.frombuffer(b"pay".ljust(16, b"\0"), "<u8")
FOLDER = Path(os.environ.get("OPENLEDGER_BENCH_FOLDER", tempfile.gettempdir())) / "openledger-bench-ledger"


@dataclass(frozen=True, slots=True)
class Batch:
    """Columns of plain transfers, and what some engines take instead."""

    ids: list[bytes]
    debits: list[int]
    credits: list[int]
    amounts: list[int]
    records: bytes
    with_holds: bytes
    links: bytes


@dataclass(slots=True)
class Engine:
    name: str
    commit: Callable[[Batch], None]
    close: Callable[[], None]
    times_s: list[float] = field(default_factory=list)
    cpus_s: list[float] = field(default_factory=list)


def make_batch(size: int, chance: np.random.Generator, time_ms: int) -> Batch:
    ids = new_ids(size, time_ms, secrets.token_bytes)
    debits = chance.integers(0, NUM_ACCOUNTS, size)
    credits = (debits + chance.integers(1, NUM_ACCOUNTS, size)) % NUM_ACCOUNTS
    amounts = chance.integers(1, 1000, size)
    records = _records(ids, debits, credits, amounts)
    return Batch(
        ids=ids.tolist(),
        debits=debits.tolist(),
        credits=credits.tolist(),
        amounts=amounts.tolist(),
        records=records.tobytes(),
        with_holds=_with_holds(records),
        links=bytes([1, 0] * (size // 2) + [0] * (size % 2)),
    )


def _records(ids: Any, debits: Any, credits: Any, amounts: Any) -> Any:
    records = np.zeros(len(ids), RECORD)
    records["id"], records["debit"], records["credit"] = ids, KEYS[debits], KEYS[credits]
    records["amount"], records["code"] = amounts, CODE
    return records


def _with_holds(plain: Any) -> bytes:
    """A third holds, a third posts half of those, a third plain; linked in pairs."""
    records, third = plain.copy(), len(plain) // 3
    records["kind"][:third] = PENDING
    posts = slice(third, 2 * third)
    records["kind"][posts] = POST
    records["pending"][posts] = records["id"][:third]
    records["debit"][posts], records["credit"][posts] = records["debit"][:third], records["credit"][:third]
    records["amount"][posts] = (records["amount"][:third] + 1) // 2
    return bytes(records.tobytes())


def bare_apsw(folder: Path) -> Engine:
    db = apsw.Connection(str(folder / "bare.db"))
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "wal_autocheckpoint=8000"):
        db.execute(f"PRAGMA {pragma}").fetchall()
    db.execute("CREATE TABLE t(id BLOB PRIMARY KEY, debit INT, credit INT, amount INT) WITHOUT ROWID")
    db.execute("CREATE TABLE a(id INTEGER PRIMARY KEY, debits INT, credits INT)")
    with db:
        db.executemany("INSERT INTO a VALUES (?, 0, 0)", ((number,) for number in range(NUM_ACCOUNTS)))

    def commit(batch: Batch) -> None:
        db.execute("BEGIN IMMEDIATE")
        db.executemany("INSERT INTO t VALUES (?, ?, ?, ?)", _rows(batch))
        db.executemany("UPDATE a SET debits = debits + ?, credits = credits + ? WHERE id = ?", _sums(batch))
        db.execute("COMMIT")

    return Engine("bare apsw loop", commit, db.close)


def bare_sqlite3(folder: Path) -> Engine:
    db = sqlite3.connect(folder / "stdlib.db", isolation_level=None)
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "wal_autocheckpoint=8000"):
        db.execute(f"PRAGMA {pragma}").fetchall()
    db.execute("CREATE TABLE t(id BLOB PRIMARY KEY, debit INT, credit INT, amount INT) WITHOUT ROWID")
    db.execute("CREATE TABLE a(id INTEGER PRIMARY KEY, debits INT, credits INT)")
    db.execute("BEGIN")
    db.executemany("INSERT INTO a VALUES (?, 0, 0)", ((number,) for number in range(NUM_ACCOUNTS)))
    db.execute("COMMIT")

    def commit(batch: Batch) -> None:
        db.execute("BEGIN IMMEDIATE")
        db.executemany("INSERT INTO t VALUES (?, ?, ?, ?)", _rows(batch))
        db.executemany("UPDATE a SET debits = debits + ?, credits = credits + ? WHERE id = ?", _sums(batch))
        db.execute("COMMIT")

    return Engine(f"stdlib sqlite3 {sqlite3.sqlite_version}", commit, db.close)


def sqlalchemy_core(folder: Path) -> Engine:
    import sqlalchemy as sa

    engine = sa.create_engine(f"sqlite:///{folder / 'sqlalchemy.db'}")
    tables = sa.MetaData()
    transfers = sa.Table(
        "t",
        tables,
        sa.Column("id", sa.LargeBinary, primary_key=True),
        *(sa.Column(name, sa.BigInteger) for name in ("debit", "credit", "amount")),
    )
    accounts = sa.Table(
        "a", tables, sa.Column("id", sa.Integer, primary_key=True), sa.Column("debits", sa.BigInteger),
        sa.Column("credits", sa.BigInteger),
    )  # fmt: skip
    tables.create_all(engine)
    connection = engine.connect()
    connection.exec_driver_sql("PRAGMA journal_mode=WAL")
    connection.exec_driver_sql("PRAGMA synchronous=FULL")
    connection.execute(accounts.insert(), [{"id": n, "debits": 0, "credits": 0} for n in range(NUM_ACCOUNTS)])
    connection.commit()
    add = (
        accounts.update()
        .where(accounts.c.id == sa.bindparam("b_id"))
        .values(debits=accounts.c.debits + sa.bindparam("b_d"), credits=accounts.c.credits + sa.bindparam("b_c"))
    )

    def commit(batch: Batch) -> None:
        rows = [dict(zip(("id", "debit", "credit", "amount"), row, strict=True)) for row in _rows(batch)]
        connection.execute(transfers.insert(), rows)
        connection.execute(add, [{"b_d": d, "b_c": c, "b_id": n} for d, c, n in _sums(batch)])
        connection.commit()

    return Engine(f"SQLAlchemy {sa.__version__} Core on sqlite3", commit, connection.close)


def postgres_executemany(url: str) -> Engine:
    import psycopg

    db = psycopg.connect(url, autocommit=True)
    db.execute("CREATE TABLE t(id bytea PRIMARY KEY, debit bigint, credit bigint, amount bigint)")
    db.execute("CREATE TABLE a(id integer PRIMARY KEY, debits bigint, credits bigint)")
    db.execute("INSERT INTO a SELECT n, 0, 0 FROM generate_series(0, %s) n", (NUM_ACCOUNTS - 1,))

    def commit(batch: Batch) -> None:
        with db.transaction(), db.cursor() as cursor:
            cursor.executemany("INSERT INTO t VALUES (%s, %s, %s, %s)", list(_rows(batch)))
            cursor.executemany("UPDATE a SET debits = debits + %s, credits = credits + %s WHERE id = %s", _sums(batch))

    return Engine("PostgreSQL executemany", commit, db.close)


def tigerbeetle(folder: Path) -> Engine:
    import ledger_tigerbeetle

    commit, close = ledger_tigerbeetle.start(folder, NUM_ACCOUNTS)
    return Engine(
        "TigerBeetle, stock Python client",
        lambda batch: commit((batch.ids, batch.debits, batch.credits, batch.amounts)),
        close,
    )


def ledger_engine(name: str, storage: Path | str, *, with_holds: bool = False) -> Engine:
    ledger = funded_ledger(storage)

    def commit(batch: Batch) -> None:
        if with_holds:
            results = ledger.submit_packed(batch.with_holds, batch.links)
        else:
            results = ledger.submit_packed(batch.records)
        assert not any(results), set(results)

    return Engine(name, commit, ledger.close)


def funded_ledger(storage: Path | str, key: SigningKey | Path = KEY) -> Ledger:
    ledger = Ledger(storage, None, key, "openledger/bench")
    ledger.create_accounts([Account(account_id="genesis", kind="genesis", may_go_negative=True)])
    for start in range(0, NUM_ACCOUNTS, 5000):
        part = NAMES[start : start + 5000]
        ledger.create_accounts([Account(account_id=name, kind="user") for name in part])
        ledger.commit([_grant(name) for name in part])
    return ledger


def _grant(name: str) -> Transfer:
    return Transfer(transfer_id=f"grant.{name}", debit="genesis", credit=name, amount_nano=10**13, code="grant")


def _rows(batch: Batch) -> Iterator[tuple[bytes, int, int, int]]:
    return zip(batch.ids, batch.debits, batch.credits, batch.amounts, strict=True)


def _sums(batch: Batch) -> list[tuple[int, int, int]]:
    out: dict[int, int] = {}
    into: dict[int, int] = {}
    for debit, credit, amount in zip(batch.debits, batch.credits, batch.amounts, strict=True):
        out[debit] = out.get(debit, 0) + amount
        into[credit] = into.get(credit, 0) + amount
    return [(out.get(number, 0), into.get(number, 0), number) for number in sorted(out.keys() | into.keys())]


@contextmanager
def engines(folder: Path, only: list[str]) -> Iterator[list[Engine]]:
    server = postgres_server()
    made: list[Engine] = []
    makers: dict[str, Callable[[], Engine]] = {
        "bare apsw loop": lambda: bare_apsw(folder),
        "ledger, embedded": lambda: ledger_engine("ledger, embedded", folder / "ledger.db"),
        "ledger, embedded, holds and links": lambda: ledger_engine(
            "ledger, embedded, holds and links", folder / "holds.db", with_holds=True
        ),
        "stdlib sqlite3": lambda: bare_sqlite3(folder),
        "SQLAlchemy Core": lambda: sqlalchemy_core(folder),
        "TigerBeetle": lambda: tigerbeetle(folder),
    }
    if server is not None:
        makers |= {
            "PostgreSQL executemany": lambda: postgres_executemany(server.new_database()),
            "ledger, PostgreSQL": lambda: ledger_engine("ledger, PostgreSQL", server.new_database()),
        }
    for name, make in makers.items():
        if only and not any(word in name for word in only):
            continue
        try:
            made.append(make())
        except (ImportError, OpenLedgerError) as error:
            print(f"not in the table: {name}: {error}; {getattr(error, 'fix', None) or _INSTALL}")
    try:
        yield made
    finally:
        for engine in made:
            engine.close()
        if server is not None:
            server.stop()
            shutil.rmtree(server.folder, ignore_errors=True)


def postgres_server() -> Any:
    """A server of its own, or None where none is installed."""
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
    try:
        from postgres_server import start_server
    except ImportError:
        return None
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    started = start_server(port)
    if isinstance(started, str):
        print(started)
        return None
    return started


def compare(rounds: int, sizes: list[int], only: list[str]) -> None:
    for size in sizes:
        folder = fresh_folder("compare")
        with engines(folder, only) as made:
            run_rounds(made, size, rounds)
            print_table(made, size)
        shutil.rmtree(folder)


def run_rounds(made: list[Engine], size: int, rounds: int) -> None:
    chance = np.random.default_rng(1)
    warm = 3
    for turn in range(rounds + warm):
        batch = make_batch(size, chance, 1_700_000_000_000 + turn)
        for place in range(len(made)):
            engine = made[(turn + place) % len(made)]
            start, cpu = time.perf_counter(), time.process_time()
            engine.commit(batch)
            if turn >= warm:
                engine.times_s.append(time.perf_counter() - start)
                engine.cpus_s.append(time.process_time() - cpu)


def print_table(made: list[Engine], size: int) -> None:
    base = next((engine for engine in made if engine.name.startswith("bare")), made[0])
    print(f"\nbatches of {size}, {len(base.times_s)} rounds")
    print(f"{'engine':40} {'transfers/s':>12} {'best':>9} {'cpu us':>8}  to {base.name}")
    for engine in made:
        median = statistics.median(engine.times_s)
        ratio = statistics.median(base.times_s) / median
        cpu = statistics.median(engine.cpus_s) / size * 1e6
        cpu_ratio = statistics.median(base.cpus_s) / statistics.median(engine.cpus_s)
        best = size / min(engine.times_s)
        print(f"{engine.name:40} {size / median:12,.0f} {best:9,.0f} {cpu:8.2f}  {ratio:.2f} (by cpu {cpu_ratio:.2f})")


def group(num_callers: int, each: int) -> None:
    """Threads that submit one transfer at a time, each waiting for its answer."""
    folder = fresh_folder("group")
    ledger = funded_ledger(folder / "ledger.db")
    together = GroupCommit(ledger)

    def pay(caller: int) -> None:
        for turn in range(each):
            transfer = Transfer(
                transfer_id=f"t{turn:06}.{caller}",
                debit=NAMES[caller],
                credit=NAMES[1000 + turn % 9000],
                amount_nano=1,
                code="pay",
            )
            assert together.submit([transfer]) == ["created"]

    before = ledger.proof("grant.user:0")["leaf"]["seq"]
    threads = [threading.Thread(target=pay, args=(caller,)) for caller in range(num_callers)]
    start, cpu = time.perf_counter(), time.process_time()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took, used, count = time.perf_counter() - start, time.process_time() - cpu, num_callers * each
    last = ledger.transfers(NAMES[0], limit=1)[0].seq
    print(f"\n{num_callers} threads, one transfer at a time: {count / took:,.0f} durable submissions/s,")
    print(f"{used / count * 1e6:.0f} us of CPU each, {count / (last - before):.0f} in a batch")
    ledger.close()
    shutil.rmtree(folder)


def actor(rounds: int) -> None:
    """Packed batches of 8000 through the Ray actor and in-process, turn by turn.

    Ray's workers run at niceness 15, which on a machine with other work measures that work; here they run as this
    process does.
    """
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112, as Ray spells it
    import ray

    from openledger.ledger.actor import LedgerActor

    ray.init(num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    folder = fresh_folder("actor")
    inside = funded_ledger(folder / "in.db")
    funded_ledger(folder / "out.db", folder / "key").close()
    handle = LedgerActor.remote(folder / "out.db", None, folder / "key", "openledger/bench")
    ray.get(handle.verification_key.remote())
    made = [
        Engine("bare, in-process", lambda batch: _all_created(inside.submit_packed(batch.records)), inside.close),
        Engine(
            "through the Ray actor",
            lambda batch: _all_created(ray.get(handle.submit_packed.remote(batch.records))),
            lambda: ray.kill(handle),
        ),
    ]
    run_rounds(made, 8000, rounds)
    print_table(made, 8000)
    for engine in made:
        engine.close()
    ray.shutdown()
    shutil.rmtree(folder)


def _all_created(results: bytes) -> None:
    assert not any(results), set(results)


def opening(num_transfers: int) -> None:
    """Opening a large ledger, in a process that has just started."""
    path = FOLDER / f"open-{num_transfers}" / "ledger.db"
    if not path.exists():
        build(path, num_transfers)
    start = time.perf_counter()
    ledger = Ledger(path, None, KEY, "openledger/bench")
    opened = time.perf_counter() - start
    balance = ledger.balance(NAMES[7])
    ledger.submit_packed(make_batch(1, np.random.default_rng(), time.time_ns() // 10**6).records)
    first = time.perf_counter() - start
    print(f"\n{num_transfers:,} transfers, {path.stat().st_size / 2**20:,.0f} MiB: opened in {opened:.3f} s,")
    print(f"first balance ({balance.posted_nano} nano-OPEN) and first batch after {first:.3f} s")
    ledger.close()


def build(path: Path, num_transfers: int) -> None:
    shutil.rmtree(path.parent, ignore_errors=True)
    ledger, chance, start = funded_ledger(path), np.random.default_rng(1), time.perf_counter()
    for turn in range(-(-num_transfers // 8000)):
        _all_created(ledger.submit_packed(make_batch(8000, chance, 1_600_000_000_000 + turn).records))
    ledger.close()
    print(f"built in {time.perf_counter() - start:.0f} s, making the batches included")


def fresh_folder(name: str) -> Path:
    folder = FOLDER / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=["all", "compare", "group", "actor", "open"], default="all")
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--sizes", type=int, nargs="*", default=[1, 100, 8000])
    parser.add_argument("--only", action="append", default=[], help="engines whose name holds this word")
    parser.add_argument("--transfers", type=int, default=10_000_000, help="of the ledger that is opened")
    options = parser.parse_args()
    if options.what in ("all", "compare"):
        compare(options.rounds, options.sizes, options.only)
    if options.what in ("all", "group"):
        group(64, 300)
    if options.what in ("all", "actor"):
        actor(options.rounds)
    if options.what in ("all", "open"):
        opening(options.transfers)


if __name__ == "__main__":
    main()
