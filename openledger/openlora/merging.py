"""When a replica merges an adapter into weights of its own: when that adapter alone has filled its batch for a while,
and where there is memory for it.

    part(a) = mean over the last `after_s` of (a's requests in the engine / the larger of the batch and all requests)

The adapter with part >= `fill` is merged, and given up once its part is under `keep`. `fill` is over a half, so that
there is one at most. Routers then send other adapters to other replicas (`routing`). Those that come all the same are
answered as before: a step is computed with the merged weights only where all of it is under that adapter.

Knows neither engines nor asyncio.
"""

import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil  # type: ignore[import-untyped]

from openledger.core.errors import InvalidInput, Unavailable

_CGROUP = Path("/sys/fs/cgroup")
_LOOKS = 10  # in `after_s`, or one a second where that is more


def check_memory(num_bytes: int, cgroup: Path = _CGROUP) -> None:
    """Raises Unavailable (`no_memory_to_merge`) where so much, and a half more, isn't free: an allocation succeeds all
    the same, and the process is killed when it writes there."""
    free = psutil.virtual_memory().available
    limit, used = cgroup / "memory.max", cgroup / "memory.current"
    if limit.exists() and (text := limit.read_text().strip()).isdigit():
        free = min(free, int(text) - int(used.read_text()))
    if 3 * num_bytes > 2 * free:
        raise Unavailable(
            f"merging takes {num_bytes >> 20} MiB for good, and {free >> 20} MiB are free",
            code="no_memory_to_merge",
            fix="give the replicas more memory, or leave merging off",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeOptions:
    """Off where `after_s` is 0. Raises InvalidInput (`invalid_limit`)."""

    after_s: float = 0.0
    fill: float = 0.8
    keep: float = 0.25

    def __post_init__(self) -> None:
        if not (0 <= self.after_s < math.inf and 0.5 < self.fill <= 1 and 0 <= self.keep < self.fill):
            raise InvalidInput(
                f"an adapter can't be merged after {self.after_s} s at {self.fill} of a batch and kept at {self.keep}",
                code="invalid_limit",
                param="merge",
                fix="after_s of 0 (off) or more, fill over 0.5 and at most 1, keep under fill",
            )

    @property
    def period_s(self) -> float:
        return min(1.0, self.after_s / _LOOKS)


class Fullness:
    """`look` is called every `period_s`. `now_s` is a monotonic clock."""

    def __init__(self, options: MergeOptions, now_s: Callable[[], float]):
        self._options, self._now_s = options, now_s
        self._looks: deque[tuple[float, dict[str, float]]] = deque()
        self.forget()

    def look(self, running: Mapping[str, int], batch: int) -> None:
        """`running` are the requests in the engine by adapter."""
        now_s, room = self._now_s(), max(batch, sum(running.values()))
        self._looks.append((now_s, {adapter: count / room for adapter, count in running.items() if adapter}))
        while now_s - self._looks[0][0] > self._options.after_s:
            self._looks.popleft()

    def wanted(self, merged: str) -> str:
        """The adapter that is to be merged, where `merged` is now; empty where none is to be."""
        if self._now_s() - self._since_s < self._options.after_s:
            return merged
        parts = {adapter: self._part(adapter) for adapter in {adapter for _, look in self._looks for adapter in look}}
        fullest = max(parts, key=parts.__getitem__, default="")
        if fullest and parts[fullest] >= self._options.fill:
            return fullest
        return merged if merged and parts.get(merged, 0.0) >= self._options.keep else ""

    def forget(self) -> None:
        """Begin anew: nothing is wanted before `after_s`."""
        self._looks.clear()
        self._since_s = self._now_s()

    def _part(self, adapter: str) -> float:
        return sum(look.get(adapter, 0.0) for _, look in self._looks) / len(self._looks)
