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
