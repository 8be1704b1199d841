"""The report's file, which the API and the quickstart change: one of them at a time, in whichever process.

Whoever changes it holds a lock from before he asks which rows were taken back until it is written. So a removal is
either known to him, or comes behind him and changes the file that he wrote.
"""

import asyncio
import fcntl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TextIO


@contextmanager
def changing(path: Path) -> Iterator[None]:
    with _beside(path) as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


@asynccontextmanager
async def changing_meanwhile(path: Path) -> AsyncIterator[None]:
    """`changing`, for an event loop: others go on while this one waits."""
    with _beside(path) as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            await asyncio.to_thread(fcntl.flock, stream, fcntl.LOCK_EX)
        yield


def _beside(path: Path) -> TextIO:
    """The lock's file: the other is replaced each time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.with_name(f".{path.name}.lock").open("w")
