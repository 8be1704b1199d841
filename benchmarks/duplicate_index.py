"""What the duplicate index costs, in one process and divided over the shards: CPU and memory of a row, per process.

    python benchmarks/duplicate_index.py --rows 150000                    in one process, as it grows
    python benchmarks/duplicate_index.py --rows 20000 --owners 1 2 4      and divided over so many shard actors

Rows are those of `benchmarks/datanets.py`: invented words in Zipf's proportions, about 1 KB each, seed 1. The features
(words and sketches) depend on a row alone and are made before the clock starts: what is measured is what each row is
judged by, look-up and insertion, in contributions of 1,000 rows.

With `--owners` each contribution is judged both ways, by turns which comes first, and the verdicts are compared; then
as many rows again by the divided index alone, which shows what the process that judges keeps of a row. Its CPU is that
of all its threads, Ray's among them; the first contribution is left out. Memory is resident, less what is shared.
"""

import argparse
import gc
import os
import pickle
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import psutil
from datanets import batches
from rich.console import Console
from rich.table import Table

from openledger.datanets.actor import ShardHandle
from openledger.datanets.dedupe import DuplicateIndex, Features, Index, features_of
from openledger.datanets.divided import DividedIndex
from openledger.datanets.keyed import KEY_BYTES, FeatureKey, batch_of
from openledger.datanets.shard import ShardHost

PART = 1_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--marks", type=int, default=6, help="lines of the table")
    parser.add_argument("--owners", type=int, nargs="+", help="divided over so many shard actors")
    arguments = parser.parse_args()
    if arguments.owners:
        divided(arguments)
    else:
        alone(arguments)


def alone(arguments: argparse.Namespace) -> None:
    table = Table(title="the duplicate index in one process")
    for column in ("rows", "look-up us", "add us", "features us (elsewhere)", "resident bytes per row", "rows/s"):
        table.add_column(column, justify="right")
    index, every = DuplicateIndex(), max(1, arguments.rows // PART // arguments.marks)
    process, spent, first_bytes = psutil.Process(), [0.0, 0.0, 0.0], 0
    for number, batch in enumerate(batches(arguments.rows, PART, "index"), start=1):
        began = time.process_time()
        features = features_of((row.prompt, row.completion) for row in batch)
        made = time.process_time()
        overlay = index.overlay()
        for one in features:
            overlay.find(one)
        found = time.process_time()
        for row, one in zip(batch, features, strict=True):
            overlay.add(row.row_id, one)
        index.absorb(overlay)
        added = time.process_time()
        spent = [total + part for total, part in zip(spent, (found - made, added - found, made - began), strict=True)]
        if number == 1:
            del overlay, features
            gc.collect()
            first_bytes = process.memory_info().rss
        if number % every == 0:
            look_us, add_us, features_us = (1e6 * total / every / PART for total in spent)
            grown = (process.memory_info().rss - first_bytes) / max(1, (number - 1) * PART)
            table.add_row(
                f"{number * PART:,}", f"{look_us:.0f}", f"{add_us:.0f}", f"{features_us:.0f}", f"{grown:,.0f}",
                f"{1e6 / (look_us + add_us):,.0f}",
            )  # fmt: skip
            spent = [0.0, 0.0, 0.0]
    Console(width=150).print(table)


class Host(ShardHost):
    """A shard's actor that tells its process."""

    def pid(self) -> int:
        return os.getpid()


def divided(arguments: argparse.Namespace) -> None:
    os.environ.update(RAY_worker_niceness="0")
    import ray

    table = Table(title=f"{arguments.rows:,} rows in contributions of {PART:,}; microseconds of CPU and bytes a row")
    for column in (
        "shards", "one process", "judging", "all shards", "together", "ratio", "bytes, one process", "bytes, judging",
        "bytes, each shard", "sent to each",
    ):  # fmt: skip
        table.add_column(column, justify="right")
    with tempfile.TemporaryDirectory(prefix="ol") as short:
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR", _temp_dir=short)
        for number in arguments.owners:
            table.add_row(str(number), *_both_ways(ray, arguments.rows, number, Path(short)))
        ray.shutdown()
    Console(width=150).print(table)


def _both_ways(ray: Any, num_rows: int, number: int, folder: Path) -> list[str]:
    hosts = [ray.remote(Host).options(num_cpus=0, max_concurrency=8).remote(folder / str(at)) for at in range(number)]
    processes = [psutil.Process(pid) for pid in ray.get([host.pid.remote() for host in hosts])]
    one, key = DuplicateIndex(), FeatureKey(bytes(KEY_BYTES))
    several = DividedIndex([ShardHandle(host) for host in hosts], number, key, 1, list, lambda rows: [])
    spent, gained = defaultdict[str, float](float), 0
    for at, batch in enumerate(islice(batches(2 * num_rows, PART, "index"), 2 * num_rows // PART)):
        if at == 1:
            began_s, began = sum(map(_cpu_s, processes)), [_own_bytes(process) for process in processes]
        if at == num_rows // PART:
            shards_s, half = sum(map(_cpu_s, processes)) - began_s, _own_bytes(psutil.Process())
        features = features_of((row.prompt, row.completion) for row in batch)
        ids, place, found = [row.row_id for row in batch], (at + 1, 0), dict[str, list[str]]()
        for name, index in sorted({"one": one, "several": several}.items(), reverse=bool(at % 2)):
            if name == "one" and at >= num_rows // PART:  # what the judging process gains without an index of its own
                continue
            before, held = time.process_time(), _own_bytes(psutil.Process())
            found[name] = _judged(index, ids, features, place)
            if 0 < at < num_rows // PART:
                spent[name] += time.process_time() - before
                gained += (_own_bytes(psutil.Process()) - held) * (name == "one")
        assert found.get("one", found["several"]) == found["several"]
    num_counted = num_rows - PART
    judging = (_own_bytes(psutil.Process()) - half) / num_rows
    held = max(_own_bytes(now) - then for now, then in zip(processes, began, strict=True)) / (2 * num_rows - PART)
    sent = len(pickle.dumps(batch_of(key.keyed(features)))) / PART
    several.close()
    for host in hosts:
        ray.kill(host)
    together_s = spent["several"] + shards_s
    us = [f"{1e6 * some / num_counted:.0f}" for some in (spent["one"], spent["several"], shards_s, together_s)]
    sizes = [f"{some:,.0f}" for some in (gained / num_counted, judging, held, sent)]
    return [*us, f"{together_s / spent['one']:.2f}", *sizes]


def _judged(index: Index, ids: Sequence[str], features: Sequence[Features], place: tuple[int, int]) -> list[str]:
    overlay = index.overlay(place, features)
    found = []
    for ordinal, (row_id, one) in enumerate(zip(ids, features, strict=True)):
        if duplicate := overlay.find(one):
            found.append(duplicate.row_id)
        else:
            overlay.add(row_id, one, ordinal=ordinal)
    index.absorb(overlay)
    return found


def _own_bytes(process: psutil.Process) -> int:
    """Resident, without Ray's object store and other files that several processes have."""
    told = process.memory_info()
    return int(told.rss - told.shared)


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _resident_bytes() -> int:
    return int(psutil.Process().memory_info().rss)


if __name__ == "__main__":
    main()
