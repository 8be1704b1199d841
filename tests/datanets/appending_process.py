"""Eight threads append to one shard, each its own rows under its own keys, and say on stdout which were answered.

    python appending_process.py FOLDER KILL_BEFORE_FSYNC JOURNAL_BYTES

The process kills itself (SIGKILL) before that many-th `fsync`. The shard's journal holds at most JOURNAL_BYTES.
"""

import os
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

from openledger.core.values import Row
from openledger.datanets import shard as shard_module
from openledger.datanets.shard import Shard

NUM_THREADS, NUM_APPENDS, NUM_ROWS = 8, 6, 5


def appends() -> Iterator[tuple[str, list[Row]]]:
    for number in range(NUM_THREADS * NUM_APPENDS):
        yield f"key-{number}", [_row(number, ordinal) for ordinal in range(NUM_ROWS)]


def _row(number: int, ordinal: int) -> Row:
    return Row(
        row_id=f"row_{number}_{ordinal}",
        datanet="docs",
        contributor_id="ctr_a",
        contribution_id=f"ctb_{number}",
        ordinal=ordinal,
        source="",
        prompt=f"What is {number}?",
        completion=f"A number, for the {ordinal}th time.",
    )


def main() -> None:
    shard_module.MAX_JOURNAL_BYTES = int(sys.argv[3])
    shard = Shard(Path(sys.argv[1]))
    _kill_before_fsync(int(sys.argv[2]))

    def append(item: tuple[str, list[Row]]) -> None:
        key, rows = item
        shard.append(rows, key)
        os.write(1, f"{key}\n".encode())

    with ThreadPoolExecutor(NUM_THREADS) as pool:
        list(pool.map(append, appends()))


def _kill_before_fsync(kill_at: int) -> None:
    fsync, calls = os.fsync, count(1)

    def counted(descriptor: int) -> None:
        if next(calls) >= kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        fsync(descriptor)

    os.fsync = counted  # type: ignore[assignment]


if __name__ == "__main__":
    main()
