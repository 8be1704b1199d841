"""What Datanets cost, each figure beside the library used bare, in the same run on the same machine.

    python benchmarks/datanets.py                       every part
    python benchmarks/datanets.py storage --rows 1000000
    python benchmarks/datanets.py ingest --ingested 100000
    python benchmarks/datanets.py processes                   without Ray: one process, and one with a second beside it
    python benchmarks/datanets.py contributors                eight at once through the actor, as it was and as it is
    python benchmarks/datanets.py newcomer                    100 rows, while eight large contributions wait
    python benchmarks/datanets.py duplicates
    python benchmarks/datanets.py honest                      documentation strings of every installed package
    python benchmarks/datanets.py writers
    python benchmarks/datanets.py raydata --rows 200000
    python benchmarks/datanets.py curve --grown 100000 --keep work/curve --plot docs/images/datanet_cost.svg
                                                      the same again goes on where it was cut off, or further

Rows are made of invented words in Zipf's proportions, about 1 KB each, from a fixed seed. CPU is that of this process
(user and system); wall times of runs that write depend on what the disk's `fsync` costs.
"""

import argparse
import asyncio
import contextlib
import importlib.util
import json
import logging
import math
import os
import random
import resource
import statistics
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from importlib.metadata import packages_distributions
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import lance
import psutil
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from openledger.core.clock import SystemClock
from openledger.core.errors import NotFound
from openledger.core.files import sync_folder
from openledger.core.signed import contribution_id
from openledger.core.signing import SigningKey
from openledger.core.values import Contribution, Row, RowDraft
from openledger.datanets.contribution import sign_contribution
from openledger.datanets.datanets import Datanets
from openledger.datanets.dedupe import DuplicateIndex
from openledger.datanets.docstrings import package_rows
from openledger.datanets.gate import Rules, judge
from openledger.datanets.ingest import Ingest, prepare_here
from openledger.datanets.preparing import Prepared, prepare
from openledger.datanets.rows import SCHEMA, table_of
from openledger.datanets.shard import Shard, ShardHost

SEED = 1
NUM_TAKEN = 1_000
READ_TURNS = 5  # after one in which files come into memory
NUM_WRITERS = 8
WRITER_TURNS = 5
RAY_TURNS = 5
NEWCOMERS = 20
_ROLES = {
    "ray::DatanetsActor": "actor", "ray::OneAtATime": "actor", "ray::ShardHost": "shards",
    "ray::WithoutJournal": "shards", "ray::IDLE": "workers", "ray::prepare_here": "workers",
}  # fmt: skip
WORDS_IN_ROW = 160
_POINT_ROWS = 5_000


@dataclass(frozen=True, slots=True)
class Cost:
    wall_ms: float
    cpu_ms: float


@dataclass(frozen=True, slots=True)
class Point:
    """What the rows up to `rows` cost, each, from the point before. `alone_us` is the CPU of what depends on a row
    alone, at the same time: it can't grow, and tells how dear CPU was under the load of that moment."""

    rows: int
    cpu_us: float
    wall_us: float
    bytes_per_row: float
    alone_us: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="?", choices=sorted(PARTS), help="all of them without it")
    parser.add_argument("--rows", type=int, default=200_000, help="of the parts storage and raydata")
    parser.add_argument(
        "--ingested", type=int, default=50_000, help="rows of the parts ingest, processes, contributors"
    )
    parser.add_argument("--turns", type=int, default=5, help="of the parts processes and contributors")
    parser.add_argument("--grown", type=int, default=50_000, help="rows of the curve part")
    parser.add_argument("--keep", type=Path, help="where the curve part keeps its Datanet and figures, to go on later")
    parser.add_argument("--plot", type=Path, help="where the curve part writes its SVG")
    arguments = parser.parse_args()
    for name in [arguments.part] if arguments.part else sorted(PARTS):
        PARTS[name](arguments)


def storage(arguments: argparse.Namespace) -> None:
    """One shard against plain Parquet files (synced as ours are) and a Lance dataset (not synced: Lance doesn't)."""
    commits = [table_of(batch) for batch in batches(arguments.rows, 10_000)]
    small = {100: [table_of(batch) for batch in batches(30_000, 100, "small")]}
    small[1] = [table_of(batch) for batch in batches(300, 1, "single")]
    ids = [row_id for table in commits for row_id in table.column("row_id").to_pylist()]
    wanted = random.Random(SEED).sample(range(len(ids)), min(NUM_TAKEN, len(ids)))
    size_mb = sum(table.nbytes for table in commits) / 1e6
    found: dict[str, dict[str, Cost]] = {kind.__name__: {} for kind in (Parquet, Lance, Ours)}
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        stores = [kind(Path(name) / kind.__name__) for kind in (Parquet, Lance, Ours)]
        for store, spent in zip(stores, append_in_turns(stores, commits), strict=True):
            found[type(store).__name__]["append 10,000 rows"] = middle(spent)
        reads = {f"take {len(wanted):,} random rows": lambda one: one.take(wanted, ids), "scan": lambda one: one.scan()}
        for what, read in reads.items():
            turns = [[cost(lambda s=store, r=read: r(s)) for store in stores] for _ in range(READ_TURNS + 1)]
            for store, spent in zip(stores, zip(*turns[1:], strict=True), strict=True):
                found[type(store).__name__][what] = middle(spent)
        for size, tables in small.items():
            what = f"append {size} rows" if size > 1 else "append one row"
            for store, spent in zip(stores, append_in_turns(stores, tables), strict=True):
                found[type(store).__name__][f"{what}, median"] = middle(spent)
                found[type(store).__name__][f"{what}, mean"] = mean(spent)
    table = Table(title=f"storage: {len(ids):,} rows, {size_mb:,.0f} MB")
    ratios_of = ("Parquet / ours, wall", "Parquet / ours, CPU", "Lance / ours, CPU")
    for column in ("", *(f"{kind} {unit}" for kind in found for unit in ("wall", "CPU")), *ratios_of):
        table.add_column(column, justify="right" if column else "left")
    for what in found["Ours"]:
        costs = [found[kind][what] for kind in found]
        cells = [f"{value:,.1f} ms" for one in costs for value in (one.wall_ms, one.cpu_ms)]
        parquet, bare, ours = costs
        ratios = [parquet.wall_ms / ours.wall_ms, parquet.cpu_ms / ours.cpu_ms, bare.cpu_ms / ours.cpu_ms]
        table.add_row(what, *cells, *(f"{ratio:.2f}" for ratio in ratios))
    Console(width=150).print(table)


def ingest(arguments: argparse.Namespace) -> None:
    """Everything between a signed contribution and its receipt, in one process over two shards; 1,000 rows each."""
    table = Table(title="ingest: signature, hashes, gate, durable append (rows of 1.1 KB, one process)")
    for column in ("rows before", "rows/s, wall", "rows/s, CPU", "gate alone, CPU", "Parquet appends / all, CPU"):
        table.add_column(column, justify="right")
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        datanets, bare, before = _datanets(folder / "ours"), Parquet(folder / "parquet"), 0
        sent = contributions("ingest", arguments.ingested)
        for number, (batch, contribution) in enumerate(
            zip(batches(arguments.ingested, 1_000, "ingest"), sent, strict=True)
        ):
            alone = cost(lambda c=contribution: datanets.preview(c))
            whole = cost(lambda c=contribution: datanets.contribute(c))
            plain = cost(lambda rows=batch: bare.append([table_of(rows)]))
            if number % max(1, arguments.ingested // 10_000) == 0:
                speeds = [1e3 * len(batch) / ms for ms in (whole.wall_ms, whole.cpu_ms, alone.cpu_ms)]
                ratio = f"{plain.cpu_ms / whole.cpu_ms:.2f}"
                table.add_row(f"{before:,}", *(f"{speed:,.0f}" for speed in speeds), ratio)
            before += len(batch)
        datanets.close()
    Console(width=150).print(table)


def processes(arguments: argparse.Namespace) -> None:
    """The whole gate and durable appends over two shards without Ray, in turns: in one process, and with a second one
    that prepares what depends on a contribution alone; 1,000 rows each, by eight contributors, eight on their way at
    once. The first turn, in which the second process starts, is left out."""
    per_turn = arguments.ingested // (arguments.turns + 1)
    table = Table(title=f"ingest without Ray, {arguments.turns} turns of {per_turn:,} rows")
    for column in ("", "rows/s, wall, median", "best turn", "CPU us per row", "of it in the second process"):
        table.add_column(column, justify="right" if column else "left")
    spent: dict[str, list[tuple[Cost, float]]] = {"one process": [], "with a second process": []}
    with tempfile.TemporaryDirectory(prefix="bench-") as name, ProcessPoolExecutor(1, get_context("spawn")) as pool:
        datanets = {kind: _datanets(Path(name) / str(number)) for number, kind in enumerate(spent)}
        for turn in range(arguments.turns + 1):
            part = list(contributions(f"processes-{turn}", per_turn, num_people=NUM_WRITERS))
            for number, (kind, each) in enumerate(spent.items()):
                before = _family_cpu_s().total()
                one = cost(lambda d=datanets[kind], n=number, p=part: asyncio.run(_sent(d, pool, n, p)))
                if turn:
                    each.append((one, 1e3 * (_family_cpu_s().total() - before)))
        for one in datanets.values():
            one.close()
    for kind, each in spent.items():
        speeds = [1e3 * per_turn / one.wall_ms for one, _ in each]
        beside_us = statistics.median(beside for _, beside in each) * 1e3 / per_turn
        own_us = statistics.median(one.cpu_ms for one, _ in each) * 1e3 / per_turn
        figures = f"{statistics.median(speeds):,.0f}", f"{max(speeds):,.0f}", f"{own_us + beside_us:,.0f}"
        table.add_row(kind, *figures, f"{beside_us:,.0f}")
    Console(width=110).print(table)


async def _sent(datanets: Datanets, pool: ProcessPoolExecutor, num_workers: int, part: Sequence[Contribution]) -> None:
    async def elsewhere(contribution: Contribution, detectors: tuple[str, ...], rules: Rules) -> Prepared | None:
        return await asyncio.get_running_loop().run_in_executor(pool, prepare_here, contribution, detectors, rules)

    arriving, places = Ingest(datanets, elsewhere, num_workers), asyncio.Semaphore(NUM_WRITERS)

    async def send(contribution: Contribution) -> None:
        async with places:
            await arriving.contribute(contribution)

    await asyncio.gather(*map(send, part))
    arriving.close()


def contributors(arguments: argparse.Namespace) -> None:
    """Eight contributors at once through the actor, over two shard actors, in turns: as it was (one contribution at a
    time), and as it is, without and with workers beside it. CPU is that of this process and all of Ray's below it, and
    what each of them has of it: here, the actor, the shards, the workers, and Ray itself. The first turn, in which
    workers start, is left out."""
    os.environ.update(RAY_worker_niceness="0")
    import ray

    table = Table(title=f"{NUM_WRITERS} contributors at once through the actor, {arguments.turns} turns, medians")
    parts = ("here", "actor", "shards", "workers", "Ray")
    figures = ("commits/s, wall", "rows/s, wall", "CPU us per row", *parts, "wall / as it was", "CPU / as it was")
    for column in ("", *figures):
        table.add_column(column, justify="right" if column else "left")
    with tempfile.TemporaryDirectory(prefix="bench-") as name, tempfile.TemporaryDirectory(prefix="ol") as short:
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR", _temp_dir=short)
        for size in (100, 1_000):
            actors = _actors(Path(name) / str(size), size)
            spent: dict[str, list[Cost]] = {kind: [] for kind in actors}
            shared: dict[str, list[Counter[str]]] = {kind: [] for kind in actors}
            num_sent = max(NUM_WRITERS, arguments.ingested // arguments.turns // size)
            for turn in range(arguments.turns + 1):
                part = list(contributions(f"turn-{turn}", num_sent * size, size, NUM_WRITERS))
                for kind, actor in actors.items():
                    before = _family_cpu_s()
                    one = cost(lambda a=actor, p=part: _in_threads(lambda c: ray.get(a.contribute.remote(c)), p))
                    used = _family_cpu_s()
                    used.subtract(before)
                    if turn:  # in the first, workers start
                        spent[kind].append(Cost(one.wall_ms, one.cpu_ms + 1e3 * used.total()))
                        shared[kind].append(used + Counter(here=one.cpu_ms / 1e3))
            was = spent["one at a time"]
            for kind, each in spent.items():
                wall, cpu = (statistics.median(getattr(one, unit) for one in each) for unit in ("wall_ms", "cpu_ms"))
                ratios = [
                    statistics.median(getattr(a, unit) / getattr(b, unit) for a, b in zip(each, was, strict=True))
                    for unit in ("wall_ms", "cpu_ms")
                ]
                speeds = f"{1e3 * num_sent / wall:,.1f}", f"{1e3 * num_sent * size / wall:,.0f}"
                per_row = [1e3 * cpu, *(1e6 * statistics.median(one[part] for one in shared[kind]) for part in parts)]
                cells = (f"{us / num_sent / size:,.0f}" for us in per_row)
                table.add_row(f"{size:,} each, {kind}", *speeds, *cells, *(f"{ratio:.2f}" for ratio in ratios))
            for actor in actors.values():
                ray.kill(actor)
        ray.shutdown()
    Console(width=150).print(table)


def newcomer(arguments: argparse.Namespace) -> None:
    """How long 100 rows of somebody new wait for their verdicts through the actor, while eight others send 1,000 rows
    after the other without a pause; and how long they wait alone. Signing and the way over HTTP are not in it."""
    os.environ.update(RAY_worker_niceness="0")
    import ray

    from openledger.datanets.actor import start_datanets

    table = Table(title=f"100 rows of a newcomer, {NEWCOMERS} after the other")
    for column in ("beside", "median s", "longest s", "rows a second beside it"):
        table.add_column(column, justify="right" if column != "beside" else "left")
    with tempfile.TemporaryDirectory(prefix="bench-") as name, tempfile.TemporaryDirectory(prefix="ol") as short:
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR", _temp_dir=short)
        actor = start_datanets(Path(name), 2, "bench-newcomer")
        ray.get(actor.create.remote("docs", "Invented words", "acct_bench"))
        small = list(contributions("newcomer", 2 * NEWCOMERS * 100, 100, 2))
        alone = [_waited_s(actor, one) for one in small[::2]]
        stop = threading.Event()
        with ThreadPoolExecutor(NUM_WRITERS) as pool:
            began = time.perf_counter()
            others = [pool.submit(_send_large, actor, number, stop) for number in range(NUM_WRITERS)]
            time.sleep(5)  # until all of them wait for each other
            beside = [_waited_s(actor, one) for one in small[1::2]]
            stop.set()
            speed = 1_000 * sum(one.result() for one in others) / (time.perf_counter() - began)
        ray.kill(actor)
        ray.shutdown()
    for what, waited, rows_s in (("nobody", alone, 0.0), (f"{NUM_WRITERS} senders of 1,000 rows", beside, speed)):
        table.add_row(what, f"{statistics.median(waited):.2f}", f"{max(waited):.2f}", f"{rows_s:,.0f}")
    Console(width=110).print(table)


def _waited_s(actor: Any, contribution: Contribution) -> float:
    import ray

    began = time.perf_counter()
    receipt = ray.get(actor.contribute.remote(contribution))
    assert len(receipt.verdicts) == len(contribution.drafts)
    return time.perf_counter() - began


def _send_large(actor: Any, number: int, stop: threading.Event) -> int:
    import ray

    sent = 0
    for contribution in contributions(f"large-{number}", 200_000):
        if stop.is_set():
            break
        ray.get(actor.contribute.remote(contribution))
        sent += 1
    return sent


def _actors(folder: Path, size: int) -> dict[str, Any]:
    """The Datanets actor with each number of workers, and as it was before contributions shared anything and before
    shards had a journal."""
    import ray

    from openledger.datanets import shard
    from openledger.datanets.actor import ShardHandle, start_datanets

    class OneAtATime(Datanets):
        def __init__(self, place: Path, shards: Sequence[Any]):
            super().__init__(place, [ShardHandle(shard) for shard in shards], SystemClock())

    class WithoutJournal(ShardHost):
        def __init__(self, place: Path):
            shard.MAX_SMALL_BYTES = 0
            super().__init__(place)

    before = folder / "before"
    before.mkdir(parents=True)
    hosts = [ray.remote(WithoutJournal).options(num_cpus=0).remote(before / f"shard-{number}") for number in range(2)]
    actors = {"one at a time": ray.remote(OneAtATime).options(num_cpus=0).remote(before, hosts)}
    for workers in (0, 1, 2):
        place = folder / f"{workers}-workers"
        place.mkdir()
        actors[f"{workers} workers"] = start_datanets(place, 2, f"bench-{size}-{workers}", gate_workers=workers)
    for actor in actors.values():
        ray.get(actor.create.remote("docs", "Invented words", "acct_bench"))
    return actors


def _datanets(folder: Path) -> Datanets:
    folder.mkdir(exist_ok=True)
    datanets = Datanets(folder, [ShardHost(folder / f"shard-{number}") for number in range(2)], SystemClock())
    datanets.create("docs", "Invented words", "acct_bench")
    return datanets


def contributions(name: str, num_rows: int, size: int = 1_000, num_people: int = 1) -> Iterator[Contribution]:
    """Signed, of `size` rows each, by one after the other."""
    keys = [SigningKey(letter.encode() * 32) for letter in "bcdefghi"[:num_people]]
    for number, batch in enumerate(batches(num_rows, size, name)):
        drafts = [RowDraft(prompt=row.prompt, completion=row.completion, source=row.source) for row in batch]
        yield sign_contribution(keys[number % num_people], "docs", drafts, str(number))


def writers(arguments: argparse.Namespace) -> None:
    """Eight threads that append 1,000 rows at a time to one table, and 100 at a time: a shard, and Delta with the syncs
    that it leaves out, in turns (`pip install -r benchmarks/datanets_requirements.txt`, needed for nothing else). Then
    every append to the shard is sent again, as after an answer that was lost: by what it holds, none is doubled."""
    found = Table(title=f"{NUM_WRITERS} writers, {WRITER_TURNS} turns of {3 * NUM_WRITERS} commits, medians")
    heads = "commits/s, wall", "commits/s, CPU", "wall / Delta", "CPU / Delta", "rows sent", "rows stored", "sent again"
    for column in ("", *heads):
        found.add_column(column, justify="right" if column else "left")
    kinds: list[type[Any]] = [Ours] + ([Delta] if importlib.util.find_spec("deltalake") else [])
    for size in (1_000, 100):
        with tempfile.TemporaryDirectory(prefix="bench-") as name:
            stores = [kind(Path(name) / kind.__name__) for kind in kinds]
            speeds: dict[Any, list[tuple[float, float]]] = {store: [] for store in stores}
            sent = list(enumerate(batches(3 * NUM_WRITERS * (WRITER_TURNS + 1) * size, size, f"writers-{size}")))
            for turn in range(WRITER_TURNS + 1):
                part = sent[turn * 3 * NUM_WRITERS : (turn + 1) * 3 * NUM_WRITERS]
                for store in stores:
                    ready = [store.ready(number, rows) for number, rows in part]
                    spent = cost(lambda s=store, r=ready: _in_threads(s.commit, r))
                    if turn:  # in the first the table is made
                        speeds[store].append((1e3 * len(part) / spent.wall_ms, 1e3 * len(part) / spent.cpu_ms))
            num_sent = size * len(sent)
            for store in stores:
                ratios = _beside(speeds[store], speeds[stores[-1]]) if len(stores) > 1 else ("-", "-")
                wall, cpu = (statistics.median(column) for column in zip(*speeds[store], strict=True))
                stored, again = store.count(), "-"
                if isinstance(store, Ours):
                    _in_threads(store.commit, [store.ready(number, rows) for number, rows in sent])
                    again = f"{store.count():,}"
                what = f"{type(store).__name__}, {size:,} rows a commit"
                found.add_row(what, f"{wall:,.1f}", f"{cpu:,.1f}", *ratios, f"{num_sent:,}", f"{stored:,}", again)
    Console(width=150).print(found)


def _beside(own: Sequence[tuple[float, float]], other: Sequence[tuple[float, float]]) -> Iterator[str]:
    """Wall and CPU speed as medians of the ratios turn by turn."""
    for column in range(2):
        yield f"{statistics.median(a[column] / b[column] for a, b in zip(own, other, strict=True)):.2f}"


def _in_threads(call: Callable[[Any], None], items: Sequence[Any]) -> None:
    with ThreadPoolExecutor(NUM_WRITERS) as pool:
        list(pool.map(call, items))


def raydata(arguments: argparse.Namespace) -> None:
    """A full scan of two shards into Ray Data: Ray's own reader of Lance, and ours of a version with all rows, in
    turns. Ours includes the plan of what to read. CPU is that of Ray's processes on this machine."""
    os.environ.update(RAY_worker_niceness="0")
    import ray

    from openledger.platform.bulk import PartsDatasource

    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        shards = [Shard(Path(name) / f"shard-{number}") for number in range(2)]
        for number, batch in enumerate(batches(arguments.rows, 10_000, "raydata")):
            shards[number % 2].append(batch, str(number))
        ids, uris = [shard.row_ids() for shard in shards], [shard._files.uri for shard in shards]
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        ray.data.DataContext.get_current().enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)

        def ours() -> Any:
            parts = [part for shard, each in zip(shards, ids, strict=True) for part in shard.parts(each)]
            return ray.data.read_datasource(PartsDatasource(parts, SCHEMA.names))

        readers: dict[str, Callable[[], Any]] = {
            "ray.data.read_lance": lambda: ray.data.read_lance(uris, columns=SCHEMA.names),
            "a version, from its shards": ours,
        }
        spent: dict[str, list[Cost]] = {reader: [] for reader in readers}
        for turn in range(RAY_TURNS + 1):
            for reader, read in readers.items():
                before = _family_cpu_s()
                one = cost(lambda r=read: _scanned(r(), arguments.rows))
                if turn:  # in the first Ray's workers start
                    spent[reader].append(Cost(one.wall_ms, one.cpu_ms + 1e3 * (_family_cpu_s() - before)))
        ray.shutdown()
    table = Table(title=f"a full scan of {arguments.rows:,} rows into Ray Data, {RAY_TURNS} turns, medians")
    for column in ("", "wall ms", "CPU ms", "wall / Ray's own", "CPU / Ray's own"):
        table.add_column(column, justify="right" if column else "left")
    base = spent["ray.data.read_lance"]
    for reader, each in spent.items():
        figures = [statistics.median(getattr(one, unit) for one in each) for unit in ("wall_ms", "cpu_ms")]
        ratios = [
            statistics.median(getattr(one, unit) / getattr(other, unit) for one, other in zip(each, base, strict=True))
            for unit in ("wall_ms", "cpu_ms")
        ]
        table.add_row(reader, *(f"{value:,.0f}" for value in figures), *(f"{ratio:.2f}" for ratio in ratios))
    Console(width=150).print(table)


def _scanned(dataset: Any, num_rows: int) -> None:
    assert sum(len(batch) for batch in dataset.iter_batches(batch_format="pyarrow", batch_size=None)) == num_rows


def _family_cpu_s() -> Counter[str]:
    """Of the processes below this one, by what they do."""
    used = Counter[str]()
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            title = " ".join(process.cmdline()[:1])
            role = next((role for start, role in _ROLES.items() if title.startswith(start)), "Ray")
            used[role] += sum(process.cpu_times()[:2])
    return used


def curve(arguments: argparse.Namespace) -> None:
    """What a row costs as a Datanet grows, and how much memory: one process over two shards, 1,000 rows each. In a
    folder that is kept each point is written when it is measured, and the next run goes on behind the last one. Memory
    is that of the process, over what it had before the first row; the first point of a run has what opening took."""
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = arguments.keep or Path(name) / "curve"
        folder.mkdir(parents=True, exist_ok=True)
        _grow(folder, arguments.grown)
        points = _points(folder)
    table = Table(title="cost per row as a Datanet grows")
    for column in ("rows", "CPU us", "wall us", "resident bytes", "CPU us of the row alone", "CPU / of the row alone"):
        table.add_column(column, justify="right")
    for point in points:
        values = (point.rows, point.cpu_us, point.wall_us, point.bytes_per_row, point.alone_us)
        table.add_row(*(f"{value:,.0f}" for value in values), f"{point.cpu_us / point.alone_us:.2f}")
    Console(width=150).print(table)
    if arguments.plot:
        _plot(arguments.plot, points)


def _grow(folder: Path, num_rows: int) -> None:
    before = psutil.Process().memory_info().rss
    datanets = _datanets(folder / "datanets")
    sent = (one for one in contributions("curve", num_rows) if datanets.judged(contribution_id(one)) is None)
    while part := list(islice(sent, _POINT_ROWS // 1_000)):
        spent = cost(lambda p=part: [datanets.contribute(each) for each in p])
        rows = datanets.stored_count("docs")
        grown = (psutil.Process().memory_info().rss - before) / rows
        per_row = [ms / len(part) for ms in (spent.cpu_ms, spent.wall_ms)]
        alone = cost(lambda p=part: prepare(p[-1])).cpu_ms
        with (folder / "points.jsonl").open("a") as stream:
            stream.write(json.dumps(asdict(Point(rows, *per_row, grown, alone))) + "\n")
    datanets.close()


def _points(folder: Path) -> list[Point]:
    path = folder / "points.jsonl"
    return [Point(**json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []


def _plot(path: Path, points: Sequence[Point]) -> None:
    """An SVG of its own: two axes with a few marks, and two points for each measurement."""
    width, height, left, right, bottom, top = 640, 320, 60, 40, 40, 30
    most_rows = max(point.rows for point in points)
    most_us = 100 * math.ceil(1.2 * max(point.cpu_us for point in points) / 100)

    def at(rows: float, us: float) -> tuple[float, float]:
        across, up = (width - left - right) / most_rows, (height - bottom - top) / most_us
        return left + across * rows, height - bottom - up * us

    def dots(values: Sequence[tuple[float, float]], colour: str) -> str:
        found = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5"/>' for x, y in (at(*value) for value in values))
        return f'<g fill="{colour}">{found}</g>'

    marks = ""
    for quarter in range(5):
        rows, us = most_rows * quarter / 4, most_us * quarter / 4
        marks += f'<text x="{at(rows, 0)[0]:.0f}" y="{height - bottom + 16}" text-anchor="middle">{rows:,.0f}</text>'
        marks += f'<text x="{left - 6}" y="{at(0, us)[1] + 4:.0f}" text-anchor="end">{us:,.0f}</text>'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif"'
        f' font-size="12"><rect width="{width}" height="{height}" fill="white"/>'
        f'<path d="M{left} {top}V{height - bottom}H{width - right}" fill="none" stroke="#444"/>{marks}'
        + dots([(point.rows, point.cpu_us) for point in points], "#1f6feb")
        + dots([(point.rows, point.alone_us) for point in points], "#8c959f")
        + f'<text x="{left}" y="18">microseconds of CPU per row: <tspan fill="#1f6feb">everything</tspan>,'
        f' <tspan fill="#6e7781">what depends on the row alone</tspan></text>'
        f'<text x="{width - right}" y="{height - 8}" text-anchor="end">rows in the Datanet</text></svg>\n'
    )


def duplicates(arguments: argparse.Namespace) -> None:
    """Near duplicates on a made set with known truth: each kind of edit of 1,000 rows, judged against the 5,000 rows
    they come from; and honest rows of the same make, which are none."""
    dice = random.Random(SEED)
    rows = [RowDraft(prompt=row.prompt, completion=row.completion) for row in next(batches(5_000, 5_000, "originals"))]
    vocabulary = sorted({word for row in rows[:500] for word in row.completion.split()})
    index = DuplicateIndex()
    judge(rows, [str(number) for number in range(len(rows))], index)
    kinds: dict[str, Callable[[RowDraft], RowDraft]] = {
        f"{percent} % of the answer's words edited": lambda row, p=percent: _edited(row, p, vocabulary, dice)
        for percent in (5, 10, 20, 40)
    }
    kinds["sentences of 20 words in another order"] = lambda row: _reordered(row, dice)
    kinds["10 % edited, another question"] = lambda row: replace(
        _edited(row, 10, vocabulary, dice), prompt=" ".join(dice.choices(vocabulary, k=12))
    )
    table = Table("kind", "named as a copy of its original", "called a copy of another", "precision", title=_TITLE)
    total = _Named()
    for kind, edit in kinds.items():
        total += _told(table, kind, _copied(rows, edit, index, dice))
    templated = _templated(2_000, vocabulary, dice)
    judged = judge(templated, [f"t{number}" for number in range(len(templated))], index)
    total += _told(table, "10 % edited, one of 2,000 rows of one formula", _copied(
        templated, kinds["10 % of the answer's words edited"], index, dice, "t"))  # fmt: skip
    honest = [RowDraft(prompt=row.prompt, completion=row.completion) for row in next(batches(5_000, 5_000, "others"))]
    others = judge(honest, [f"h{n}" for n in range(5_000)], index.overlay())
    for kind, found in ("5,000 other rows of the same words", others), ("the 2,000 rows of one formula", judged):
        total += _told(table, kind, _Named(wrong=sum(v.duplicate_of is not None for v in found), of=len(found)))
    table.add_row("all", "", "", total.precision)
    Console(width=150).print(table)


_TITLE = "near duplicates"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Named:
    """Of `of` rows judged, how many were named as a copy of their original, and how many of another row."""

    right: int = 0
    wrong: int = 0
    of: int = 0

    def __add__(self, other: "_Named") -> "_Named":
        return _Named(right=self.right + other.right, wrong=self.wrong + other.wrong, of=self.of + other.of)

    @property
    def precision(self) -> str:
        """Of the rows that were called a copy, those that are one, and of the row that was named."""
        return f"{100 * self.right / (self.right + self.wrong):.2f} %" if self.right else "-"


def _told(table: Table, kind: str, named: _Named) -> _Named:
    right, wrong = (f"{100 * count / named.of:.2f} %" for count in (named.right, named.wrong))
    table.add_row(kind, right if named.right else "-", wrong, named.precision)
    return named


def _copied(
    rows: Sequence[RowDraft], edit: Callable[[RowDraft], RowDraft], index: DuplicateIndex, dice: random.Random,
    prefix: str = "",
) -> _Named:  # fmt: skip
    """1,000 of `rows`, which stand in `index`, edited and judged, each alone."""
    chosen = dice.sample(range(len(rows)), 1_000)
    found = [judge([edit(rows[at])], ["copy"], index.overlay())[0].duplicate_of for at in chosen]
    right = sum(name == f"{prefix}{at}" for name, at in zip(found, chosen, strict=True))
    return _Named(right=right, wrong=sum(name is not None for name in found) - right, of=len(found))


def _templated(num_rows: int, vocabulary: Sequence[str], dice: random.Random) -> list[RowDraft]:
    """What a table becomes: one question and one answer, of which names and values alone are another in each row."""
    rows = []
    for _ in range(num_rows):
        name, unit, place, other = ("".join(dice.choices(vocabulary, k=2)) for _ in range(4))
        answer = (
            f"The setting {name} says how many {unit} the {place} keeps before it asks the {other} for more. It is"
            f" {dice.randrange(1, 10_000)} unless a file says otherwise, and at most {dice.randrange(10_000, 10**6)}."
        )
        rows.append(RowDraft(prompt=f"What does the setting {name} of the {place} do?", completion=answer))
    return rows


def honest(arguments: argparse.Namespace) -> None:
    """Documentation strings of every package that is installed here, in the order of their names, each judged after all
    before it; and 300 rows of random letters, digits and signs, which are to be rejected."""
    index, reasons, num_rows = DuplicateIndex(), Counter[str](), 0
    for package in sorted(name for name in packages_distributions() if name.isidentifier()):
        with contextlib.suppress(NotFound, OSError, ValueError, ImportError):
            rows = [RowDraft(prompt=one.prompt, completion=one.completion) for one in package_rows(package)]
            found = judge(rows, [f"row_{num_rows + n}" for n in range(len(rows))], index)
            num_rows += len(rows)
            reasons.update(reason for verdict in found for reason in verdict.reasons[:1])
    table = Table("verdict", "rows", "part", title=f"{num_rows:,} documentation strings of installed packages")
    for reason, count in reasons.most_common():
        table.add_row(reason, f"{count:,}", f"{100 * count / num_rows:.3f} %")
    dice = random.Random(SEED)
    noise = [" ".join("".join(dice.choices(_NOISE, k=7)) for _ in range(10)) for _ in range(300)]
    verdicts = judge([RowDraft(prompt=f"What is {n}?", completion=one) for n, one in enumerate(noise)],
                     [f"noise_{n}" for n in range(300)], DuplicateIndex())  # fmt: skip
    num_rejected = sum(verdict.outcome == "reject" for verdict in verdicts)
    table.add_row("of 300 rows of random signs, rejected", f"{num_rejected}", f"{num_rejected / 3:.1f} %")
    Console(width=150).print(table)


_NOISE = "abcdefghijklmnopqrstuvwxyz0123456789#$%&*+=?@"


def _edited(row: RowDraft, percent: int, vocabulary: Sequence[str], dice: random.Random) -> RowDraft:
    words = row.completion.split()
    for place in dice.sample(range(len(words)), len(words) * percent // 100):
        words[place] = dice.choice(vocabulary)
    return replace(row, completion=" ".join(words))


def _reordered(row: RowDraft, dice: random.Random) -> RowDraft:
    words = row.completion.split()
    pieces = [words[start : start + 20] for start in range(0, len(words), 20)]
    return replace(row, completion=" ".join(word for piece in dice.sample(pieces, len(pieces)) for word in piece))


class Parquet:
    """One file for each append, synced, in a folder read with `pyarrow.dataset`."""

    def __init__(self, folder: Path):
        folder.mkdir()
        self._folder = folder

    def append(self, tables: Sequence[pa.Table]) -> None:
        for table in tables:
            path = self._folder / f"{len(os.listdir(self._folder)):06}.parquet"
            with path.open("wb") as stream:
                pq.write_table(table, stream, compression="zstd")
                stream.flush()
                os.fsync(stream.fileno())
            sync_folder(self._folder)

    def take(self, places: Sequence[int], ids: Sequence[str]) -> None:
        assert len(self._open().take(sorted(places))) == len(places)

    def scan(self) -> None:
        sum(len(batch) for batch in self._open().to_batches())

    def _open(self) -> pyarrow.dataset.Dataset:
        return pyarrow.dataset.dataset(self._folder, format="parquet")


class Lance:
    def __init__(self, folder: Path):
        self._uri = str(folder)

    def append(self, tables: Sequence[pa.Table]) -> None:
        for table in tables:
            mode = "append" if Path(self._uri).exists() else "create"
            self._dataset = lance.write_dataset(table, self._uri, mode=mode, data_storage_version="2.1")

    def take(self, places: Sequence[int], ids: Sequence[str]) -> None:
        assert len(self._dataset.take(sorted(places))) == len(places)

    def scan(self) -> None:
        sum(len(batch) for batch in self._dataset.to_batches())


class Delta:
    """Appends, each followed by the syncs that Delta leaves out on a local disk."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._synced: set[Path] = set()
        self._lock = threading.Lock()

    def ready(self, number: int, rows: Sequence[Row]) -> pa.Table:
        return table_of(rows)

    def commit(self, table: pa.Table) -> None:
        """Sent twice, Delta stores it twice."""
        import deltalake

        while True:
            try:
                deltalake.write_deltalake(str(self._folder), table, mode="append")
                break
            except deltalake.exceptions.CommitFailedError:
                continue  # other writers were first, more often than it tries by itself
        with self._lock:  # each file is synced once, by whoever sees it first: the doubt is in Delta's favour
            new = {path for path in self._folder.rglob("*") if path.suffix in (".parquet", ".json")} - self._synced
            self._synced |= new
        for path in new:
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
        for folder in {path.parent for path in new}:
            sync_folder(folder)

    def count(self) -> int:
        import deltalake

        return len(deltalake.DeltaTable(str(self._folder)).to_pyarrow_table())


class Ours:
    """Appends of tables, as the others'; the way from `Row` to Arrow and back is the gate's and the trainer's."""

    def __init__(self, folder: Path):
        self._shard = Shard(folder)
        self._count = 0

    def append(self, tables: Sequence[pa.Table]) -> None:
        for table in tables:
            self._count += 1
            self._shard._write([(table, f"key-{self._count}")])

    def ready(self, number: int, rows: Sequence[Row]) -> tuple[Sequence[Row], str]:
        return rows, f"commit-{number}"

    def commit(self, ready: tuple[Sequence[Row], str]) -> None:
        self._shard.append(*ready)

    def count(self) -> int:
        return sum(len(batch) for batch in self._shard.scan())

    def take(self, places: Sequence[int], ids: Sequence[str]) -> None:
        assert len(self._shard.table([ids[place] for place in places])) == len(places)

    def scan(self) -> None:
        sum(len(batch) for batch in self._shard.scan())


def batches(num_rows: int, size: int, name: str = "row") -> Iterator[list[Row]]:
    dice = random.Random(f"{SEED}-{name}")
    vocabulary = ["".join(dice.choice("bcdfgklmnprstaeiou") for _ in range(dice.randint(2, 9))) for _ in range(20_000)]
    weights = [1 / (place + 1) for place in range(len(vocabulary))]
    for start in range(0, num_rows, size):
        words = dice.choices(vocabulary, weights=weights, k=size * WORDS_IN_ROW)
        yield [_row(start + n, words[n * WORDS_IN_ROW : (n + 1) * WORDS_IN_ROW], dice) for n in range(size)]


def _row(number: int, words: Sequence[str], dice: random.Random) -> Row:
    return Row(
        row_id=f"row_{dice.getrandbits(128):032x}",
        datanet="docs",
        contributor_id=f"ctr_{number % 50}",
        contribution_id=f"ctb_{number // 100}",
        ordinal=number % 100,
        source=f"file:{number}",
        prompt=" ".join(words[:15]),
        completion=" ".join(words[15:]),
    )


def cost(call: Callable[[], object]) -> Cost:
    wall, cpu = time.perf_counter(), _cpu_s()
    call()
    return Cost(1e3 * (time.perf_counter() - wall), 1e3 * (_cpu_s() - cpu))


def append_in_turns(stores: Sequence[Any], tables: Sequence[pa.Table]) -> list[list[Cost]]:
    """What each append cost each store: a table to every store before the next, so that what else the machine does in
    the meantime falls on all."""
    spent = [[cost(lambda s=store, t=table: s.append([t])) for store in stores] for table in tables]
    return [list(column) for column in zip(*spent, strict=True)]


def middle(spent: Sequence[Cost]) -> Cost:
    return Cost(statistics.median(one.wall_ms for one in spent), statistics.median(one.cpu_ms for one in spent))


def mean(spent: Sequence[Cost]) -> Cost:
    """With what few appends pay for many: a shard's journal that comes into its dataset, files that become fewer."""
    return Cost(statistics.mean(one.wall_ms for one in spent), statistics.mean(one.cpu_ms for one in spent))


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


PARTS: dict[str, Callable[[argparse.Namespace], None]] = {
    "storage": storage,
    "ingest": ingest,
    "writers": writers,
    "curve": curve,
    "contributors": contributors,
    "processes": processes,
    "newcomer": newcomer,
    "raydata": raydata,
    "duplicates": duplicates,
    "honest": honest,
}

if __name__ == "__main__":
    main()
