"""What a training tells while it runs elsewhere: its epochs, read from the checkpoints that its worker leaves."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from openledger.training.record import checkpoint_paths


@contextmanager
def told_epochs(output: Path, num_epochs: int, tell: Callable[[str], None], interval_s: float = 1.0) -> Iterator[None]:
    """While the block runs, `tell` of each epoch whose checkpoint comes to lie under `output`. What lies there already
    is of an interrupted run, and told as one line."""
    over, known = threading.Event(), set(checkpoint_paths(output))
    if known:
        tell(f"going on after epoch {max(known)} of {num_epochs}")

    def look() -> None:
        for epoch in sorted(set(checkpoint_paths(output)) - known):
            known.add(epoch)
            tell(f"epoch {epoch} of {num_epochs} done")

    def watch() -> None:
        while not over.wait(interval_s):
            look()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
        look()
