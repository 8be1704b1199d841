"""Which processes a test run has started and not ended: they carry its mark in their environment."""

import contextlib
import os
import time
from collections.abc import Mapping

import psutil

MARK = "OPENLEDGER_TEST_RUN"
# Python's own helper for shared memory and semaphores ends with the process that started it.
_ENDS_WITH_US = ("multiprocessing.resource_tracker", "multiprocessing.forkserver")


def processes_marked(mark: str) -> list[psutil.Process]:
    """Processes, other than this one, that were started with `OPENLEDGER_TEST_RUN=mark`."""
    return [process for process in psutil.process_iter() if process.pid != os.getpid() and _is_marked(process, mark)]


def wait_until_gone(mark: str, timeout_s: float = 15.0) -> list[psutil.Process]:
    """The marked processes that are still there after `timeout_s`; an ending process needs a moment."""
    deadline = time.monotonic() + timeout_s
    while (left := processes_marked(mark)) and time.monotonic() < deadline:
        time.sleep(0.2)
    return left


def describe(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return f"{process.pid} {' '.join(process.cmdline())[:200]}"
    return f"{process.pid} (ended meanwhile)"


def _is_marked(process: psutil.Process, mark: str) -> bool:
    try:
        environment: Mapping[str, str] = process.environ()
        return (
            environment.get(MARK) == mark
            and process.status() != psutil.STATUS_ZOMBIE
            and not any(name in part for part in process.cmdline() for name in _ENDS_WITH_US)
        )
    except (psutil.Error, OSError):
        return False
