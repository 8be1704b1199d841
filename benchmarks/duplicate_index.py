"""What the one owner of the duplicate index can hold: CPU and memory per row as the index grows, and how long it takes
to build it again.

    python benchmarks/duplicate_index.py --rows 150000

Rows are those of `benchmarks/datanets.py`: invented words in Zipf's proportions, about 1 KB each, seed 1. The features
(words and sketches) depend on a row alone and are made before the clock starts: what is measured is what cannot be
handed to another process, because each row is judged after all before it. CPU is this process's own.
"""

import argparse
import gc
import time

import psutil
from datanets import batches
from rich.console import Console
from rich.table import Table

from openledger.datanets.dedupe import DuplicateIndex, features_of

PART = 1_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--marks", type=int, default=6, help="lines of the table")
    arguments = parser.parse_args()
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


if __name__ == "__main__":
    main()
