"""Time, injected: nothing in the house reads the wall clock on its own."""

import time
from dataclasses import dataclass
from typing import Protocol


class Clock(Protocol):
    """Milliseconds since the Unix epoch, UTC."""

    def now_ms(self) -> int: ...


@dataclass(frozen=True, slots=True)
class SystemClock:
    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000


@dataclass(slots=True)
class ManualClock:
    """A clock that stands still until it is told to move; for tests and simulations."""

    time_ms: int = 1_700_000_000_000

    def now_ms(self) -> int:
        return self.time_ms

    def advance(self, milliseconds: int) -> None:
        self.time_ms += milliseconds


def format_span(span_ms: int) -> str:
    """A span of time in its two largest units: `2 d 3 h`."""
    seconds, wholes = span_ms // 1000, list[str]()
    for size, name in ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s")):
        number, seconds = divmod(seconds, size)
        wholes += [f"{number} {name}"] if number or wholes or name == "s" else []
    return " ".join(wholes[:2])
