"""What Datanets cost, each figure beside the library used bare, in the same run on the same machine.

    python benchmarks/datanets.py                       every part
    python benchmarks/datanets.py storage --rows 1000000
    python benchmarks/datanets.py ingest

Rows are made of invented words in Zipf's proportions, about 1 KB each, from a fixed seed. CPU is that of this process
(user and system); wall times of runs that write depend on what the disk's `fsync` costs.
"""

import argparse
import os
import random
import resource
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import lance
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from openledger.core.files import sync_folder
from openledger.core.values import Row
from openledger.datanets.rows import table_of
from openledger.datanets.shard import Shard

SEED = 1
NUM_TAKEN = 1_000
REPEATS = 3
WORDS_IN_ROW = 160


@dataclass(frozen=True, slots=True)
class Cost:
    wall_ms: float
    cpu_ms: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="?", choices=sorted(PARTS), help="all of them without it")
    parser.add_argument("--rows", type=int, default=200_000, help="of the storage part")
    arguments = parser.parse_args()
    for name in [arguments.part] if arguments.part else sorted(PARTS):
        PARTS[name](arguments)


def storage(arguments: argparse.Namespace) -> None:
    """One shard against plain Parquet files (synced as ours are) and a Lance dataset (not synced: Lance doesn't)."""
    commits = [table_of(batch) for batch in batches(arguments.rows, 10_000)]
    small = [table_of(batch) for batch in batches(10_000, 100, "small")]
    ids = [row_id for table in commits for row_id in table.column("row_id").to_pylist()]
    wanted = random.Random(SEED).sample(range(len(ids)), min(NUM_TAKEN, len(ids)))
    size_mb = sum(table.nbytes for table in commits) / 1e6
    found: dict[str, dict[str, Cost]] = {}
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        for kind in (Parquet, Lance, Ours):
            store = kind(Path(name) / kind.__name__)
            costs = {f"append {len(commits)} times 10,000 rows": cost(lambda s=store: s.append(commits))}
            costs[f"take {len(wanted):,} random rows"] = best(lambda s=store: s.take(wanted, ids))
            costs["scan"] = best(store.scan)
            costs[f"append {len(small)} times 100 rows"] = cost(lambda s=store: s.append(small))
            found[kind.__name__] = costs
    table = Table(title=f"storage: {len(ids):,} rows, {size_mb:,.0f} MB")
    for column in (
        "",
        *(f"{kind} {unit}" for kind in found for unit in ("wall", "CPU")),
        "CPU / Parquet",
        "CPU / Lance",
    ):
        table.add_column(column, justify="right" if column else "left")
    for what in found["Ours"]:
        costs = [found[kind][what] for kind in found]
        cells = [f"{value:,.0f} ms" for one in costs for value in (one.wall_ms, one.cpu_ms)]
        ratios = [f"{costs[2].cpu_ms / one.cpu_ms:.2f}" for one in costs[:2]]
        table.add_row(what, *cells, *ratios)
    Console(width=150).print(table)


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


class Ours:
    """Appends of tables, as the others'; the way from `Row` to Arrow and back is the gate's and the trainer's."""

    def __init__(self, folder: Path):
        self._shard = Shard(folder)
        self._count = 0

    def append(self, tables: Sequence[pa.Table]) -> None:
        for table in tables:
            self._count += 1
            self._shard._write(table, f"key-{self._count}")

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


def best(call: Callable[[], object]) -> Cost:
    return min((cost(call) for _ in range(REPEATS)), key=lambda one: one.cpu_ms)


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


PARTS: dict[str, Callable[[argparse.Namespace], None]] = {"storage": storage}

if __name__ == "__main__":
    main()
