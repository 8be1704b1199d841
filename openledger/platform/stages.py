"""Telling a person what is being done: one line for each stage while it runs, and what it found when it ends. What is
no result goes to standard error (`tell`).

Also measures each stage: wall time, and the peak of the memory that this process and all it started hold together
(proportional set size, so that shared pages count once).
"""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import psutil  # type: ignore[import-untyped]
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

_SAMPLE_S = 1.0
_MIB = 2**20


def tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


@contextmanager
def timed(doing: str) -> Iterator[None]:
    """Tells at once what the block is `doing`, and behind it how long that took."""
    tell(f"{doing} ...")
    started = time.monotonic()
    yield
    tell(f"{doing} took {time.monotonic() - started:.1f} s")


@dataclass(slots=True)
class Stage:
    """`tell` shows what is being done now, `count` how far it is; `detail` is what was found."""

    name: str
    tell: Callable[[str], None]
    count: Callable[[int, int], None]
    detail: str = ""


@dataclass(slots=True)
class StageLog:
    """Runs stages one after another on `console`; `records` are for the report."""

    console: Console
    records: list[dict[str, Any]] = field(default_factory=list)
    number: int = 0

    @contextmanager
    def stage(self, name: str) -> Iterator[Stage]:
        self.number += 1
        started = time.monotonic()
        if not self.console.is_terminal:  # where nothing turns, a line has to say what takes so long
            tell(f"{name} ...")
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(bar_width=24), TimeElapsedColumn())
        with (
            Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal) as progress,
            peak_memory() as peak,
        ):
            task = progress.add_task(name, total=None)
            stage = Stage(
                name,
                tell=lambda text: progress.update(task, description=f"{name}: {text}"),
                count=lambda done, total: progress.update(task, completed=done, total=total),
            )
            yield stage
        seconds = time.monotonic() - started
        self.records.append(
            {"name": name, "seconds": round(seconds, 1), "detail": stage.detail, "peak_mib": round(peak() / _MIB)}
        )
        self.console.print(
            f"[green]{self.number}[/] {name:<12} {seconds:6.1f} s  {stage.detail}", highlight=False, soft_wrap=True
        )


@contextmanager
def peak_memory() -> Iterator[Callable[[], int]]:
    """While open, samples the memory of this process and its descendants; the value is the peak so far, in bytes."""
    peak, done = [_tree_bytes()], threading.Event()

    def sample() -> None:
        while not done.wait(_SAMPLE_S):
            peak[0] = max(peak[0], _tree_bytes())

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield lambda: peak[0]
    finally:
        done.set()
        thread.join()


def _tree_bytes() -> int:
    total, own = 0, psutil.Process()
    for process in [own, *own.children(recursive=True)]:
        try:
            memory = process.memory_full_info()
        except psutil.Error:
            continue
        total += getattr(memory, "pss", memory.rss)
    return total
