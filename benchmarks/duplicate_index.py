"""What the one owner of the duplicate index can hold: CPU and memory per row as the index grows, and how long it takes
to build it again.

    python benchmarks/duplicate_index.py --rows 150000
    python benchmarks/duplicate_index.py --rows 20000 --owners 1 2 4      what dividing it over Ray actors would cost

Rows are those of `benchmarks/datanets.py`: invented words in Zipf's proportions, about 1 KB each, seed 1. The features
(words and sketches) depend on a row alone and are made before the clock starts: what is measured is what cannot be
handed to another process, because each row is judged after all before it. CPU is this process's own.

Dividing it was tried in two ways, each here for its cost alone; the verdicts that they'd give are another matter
(docs/decisions/0014-duplicate-index-owner.md):

- *rows*: each owner has the whole index of its rows. A contribution's features go to all owners, each looks all rows up
  and takes its own: one round.
- *bands*: each owner has the bands that fall to it, of all rows, and no word. Band keys go to the owners, the ids of
  candidates come back, and words of candidates would be asked for in a second round, which is not in the figures.

CPU is then that of all processes, memory that of one owner over what it had before the first row.
"""

import argparse
import gc
import hashlib
import os
import pickle
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from itertools import islice
from typing import Any

import psutil
from datanets import batches
from rich.console import Console
from rich.table import Table

from openledger.datanets.dedupe import DuplicateIndex, Features, PackedFeatures, features_of, packed, unpacked

PART = 1_000
NUM_BANDS = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--marks", type=int, default=6, help="lines of the table")
    parser.add_argument("--owners", type=int, nargs="+", help="divide it over so many actors, by turns")
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


class RowOwner:
    """The whole index of some of the rows."""

    def __init__(self) -> None:
        self._index = DuplicateIndex()
        self._first_bytes = 0

    def take(self, features: PackedFeatures, ids: Sequence[str], own: Sequence[int]) -> list[str]:
        """Originals of all rows; those of `own` are added."""
        every = unpacked(features)
        found = [duplicate.row_id for one in every if (duplicate := self._index.find(one))]
        for number in own:
            self._index.add(ids[number], every[number])
        self._first_bytes = self._first_bytes or _resident_bytes()
        return found

    def told(self) -> tuple[float, int]:
        return _used_s(), _resident_bytes() - self._first_bytes


class BandOwner:
    """Some of the bands of all rows."""

    def __init__(self) -> None:
        self._bands: dict[bytes, Any] = {}
        self._first_bytes = 0

    def take(self, keys: bytes, numbers: bytes) -> list[tuple[int, int]]:
        """Pairs of a row's number and a candidate's; then the rows are added. A key has 8 bytes, a number 4."""
        found = list[tuple[int, int]]()
        for at in range(len(keys) // 8):
            key, number = keys[8 * at : 8 * at + 8], int.from_bytes(numbers[4 * at : 4 * at + 4], "little")
            known = self._bands.setdefault(key, number)
            if known == number:
                continue
            if isinstance(known, int):
                self._bands[key] = known = [known]
            found += [(number, other) for other in known[:100]]
            known.append(number)
        self._first_bytes = self._first_bytes or _resident_bytes()
        return found

    def told(self) -> tuple[float, int]:
        return _used_s(), _resident_bytes() - self._first_bytes


def divided(arguments: argparse.Namespace) -> None:
    os.environ.update(RAY_worker_niceness="0")
    import ray

    table = Table(
        title=f"the duplicate index of {arguments.rows:,} rows over Ray actors, contributions of {PART:,} rows"
    )
    for column in (
        "divided by",
        "owners",
        "CPU us a row",
        "wall us a row",
        "bytes a row and owner",
        "sent bytes a row",
    ):
        table.add_column(column, justify="right" if column != "divided by" else "left")
    with tempfile.TemporaryDirectory(prefix="ol") as short:
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR", _temp_dir=short)
        for number in arguments.owners:
            for name, owner, send in (("rows", RowOwner, _send_rows), ("bands", BandOwner, _send_bands)):
                owners = [ray.remote(owner).options(num_cpus=0).remote() for _ in range(number)]
                before_s = sum(cpu for cpu, _ in ray.get([one.told.remote() for one in owners]))
                used_s = wall_s = 0.0
                num_sent = 0
                for batch in islice(batches(arguments.rows, PART, "index"), arguments.rows // PART):
                    features = features_of((row.prompt, row.completion) for row in batch)
                    began, wall = time.process_time(), time.perf_counter()
                    num_sent += send(ray, owners, features, [row.row_id for row in batch])
                    used_s, wall_s = used_s + time.process_time() - began, wall_s + time.perf_counter() - wall
                told = ray.get([one.told.remote() for one in owners])
                cpu_us = 1e6 * (used_s + sum(cpu for cpu, _ in told) - before_s) / arguments.rows
                held = max(held for _, held in told) / (arguments.rows - PART)
                table.add_row(
                    name, str(number), f"{cpu_us:.0f}", f"{1e6 * wall_s / arguments.rows:.0f}", f"{held:,.0f}",
                    f"{num_sent / arguments.rows:,.0f}",
                )  # fmt: skip
                for one in owners:
                    ray.kill(one)
        ray.shutdown()
    Console(width=150).print(table)


def _send_rows(ray: Any, owners: Sequence[Any], features: Sequence[Features], ids: Sequence[str]) -> int:
    sent = packed(features)
    held = ray.put(sent)
    own = [[at for at in range(len(ids)) if at % len(owners) == number] for number in range(len(owners))]
    ray.get([one.take.remote(held, list(ids), mine) for one, mine in zip(owners, own, strict=True)])
    return len(pickle.dumps(sent)) * len(owners)


def _send_bands(ray: Any, owners: Sequence[Any], features: Sequence[Features], ids: Sequence[str]) -> int:
    keys, numbers = defaultdict[int, bytearray](bytearray), defaultdict[int, bytearray](bytearray)
    for row_id, one in zip(ids, features, strict=True):
        number = int(row_id[4:12], 16).to_bytes(4, "little")
        for table, sketch in enumerate((one.answer_sketch, one.row_sketch)):
            for band, key in enumerate(_band_keys(sketch)):
                at = (table * NUM_BANDS + band) % len(owners)
                keys[at] += key
                numbers[at] += number
    ray.get([one.take.remote(bytes(keys[at]), bytes(numbers[at])) for at, one in enumerate(owners)])
    return sum(map(len, keys.values())) + sum(map(len, numbers.values()))


def _band_keys(sketch: Any) -> list[bytes]:
    """A band is as many of the sketch's numbers as there are bands' worth of; its place is in its key."""
    numbers = sketch.digest()
    size = len(numbers) // NUM_BANDS
    return [
        hashlib.blake2b(repr((band, numbers[band * size : (band + 1) * size])).encode(), digest_size=8).digest()
        for band in range(NUM_BANDS)
    ]


def _resident_bytes() -> int:
    return int(psutil.Process().memory_info().rss)


def _used_s() -> float:
    return time.process_time()


if __name__ == "__main__":
    main()
