"""Which adapters are in the engine's slots: who is loaded, who leaves, and that nobody leaves while in use.

Loads run beside everything else; asking is never a wait. `enter` begins a load where a slot is free or can be freed,
`claim` counts a use of one that is ready, `use` does both and waits, for those who may. What leaves is what has the
least heat: uses, halved every `HALF_LIFE_S`, so that an adapter asked often is not driven out by many that are asked
once, as the least recently used would be. Sizes count in the tiers below, which are limited by bytes. Lives on one
asyncio loop.
"""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from typing import Any

from openledger.core.errors import TooLarge

Load = Callable[[str], Awaitable[None]]
Unload = Callable[[str], Awaitable[None]]
HALF_LIFE_S = 60.0
_KEPT_HEATS = 4  # times the slots


class Heat:
    """Uses by digest, halved every `half_life_s`. Forgets the coldest beyond `max_kept`."""

    def __init__(self, max_kept: int, now_s: Callable[[], float], half_life_s: float = HALF_LIFE_S):
        self._max_kept, self._now_s, self._half_life_s = max_kept, now_s, half_life_s
        self._counts: dict[str, tuple[float, float]] = {}  # heat, and when it was that

    def add(self, digest: str, uses: float = 1.0) -> None:
        self._counts[digest] = (self.of(digest) + uses, self._now_s())
        if len(self._counts) > 2 * self._max_kept:
            warmest = sorted(self._counts, key=self.of, reverse=True)[: self._max_kept]
            self._counts = {kept: self._counts[kept] for kept in warmest}

    def of(self, digest: str) -> float:
        count, then_s = self._counts.get(digest, (0.0, 0.0))
        return count and count * 0.5 ** ((self._now_s() - then_s) / self._half_life_s)


class Residency:
    """`load` and `unload` do the work; at most `max_resident` adapters are loaded (or loading) at any time. `ready` and
    `failed` are told how each load ended."""

    def __init__(
        self,
        load: Load,
        unload: Unload,
        max_resident: int,
        *,
        ready: Callable[[str], None] = lambda digest: None,
        failed: Callable[[str, BaseException], None] = lambda digest, error: None,
        now_s: Callable[[], float] = time.monotonic,
    ):
        self._load, self._unload, self.max_resident = load, unload, max_resident
        self._ready, self._failed = ready, failed
        self.heat = Heat(_KEPT_HEATS * max_resident, now_s)
        self._loads: dict[str, asyncio.Task[None]] = {}
        self._uses: Counter[str] = Counter()
        self._pinned: set[str] = set()
        self._draining: set[str] = set()
        self._leaving: dict[str, asyncio.Task[None]] = {}
        self._waiters: list[asyncio.Future[None]] = []

    @asynccontextmanager
    async def use(self, digests: Sequence[str]) -> AsyncIterator[None]:
        """Hold all of `digests` in memory; the empty one, the base, needs nothing. Raises what `load` raises, and
        TooLarge (`too_many_adapters`) for more at once than there are places."""
        wanted = sorted({digest for digest in digests if digest})
        if len(wanted) > self.max_resident:
            raise TooLarge(
                f"{len(wanted)} adapters at once, there is room for {self.max_resident}",
                code="too_many_adapters",
                param="adapter_digests",
            )
        while not self._fits(wanted):
            await self._change()
        for digest in wanted:  # all places at once, or none: two that each hold half would wait for each other
            self._count(digest)
        try:
            loads = [self.enter(digest) for digest in wanted]
            for load in loads:
                if load is not None:
                    await asyncio.shield(load)  # one client's leaving must not end a load that others await
            yield
        finally:
            for digest in wanted:
                self.release(digest)

    def is_ready(self, digest: str) -> bool:
        """Loaded, and not asked to leave."""
        load = self._loads.get(digest)
        return digest not in self._draining and load is not None and load.done() and not _failed(load)

    def is_here(self, digest: str) -> bool:
        """Loaded or being loaded."""
        return digest in self._loads

    def enter(self, digest: str, keep: Collection[str] = ()) -> "asyncio.Task[None] | None":
        """Begin to load `digest` unless it is here; the load, or None where no slot can be had."""
        if digest not in self._loads:
            if len(self._loads) >= self.max_resident:
                victim = self._coldest(keep)
                if victim is None:
                    return None
                self._leave(victim)
            load = asyncio.ensure_future(self._enter(digest, tuple(self._leaving.values())))
            load.add_done_callback(_failed)  # also where nobody waits for it
            self._loads[digest] = load
        return self._loads[digest]

    def free_one(self, keep: Collection[str] = ()) -> None:
        """Have a slot ready for the next: leaving takes until a step ends, which nobody should wait for twice."""
        if len(self._loads) >= self.max_resident and (victim := self._coldest(keep)) is not None:
            self._leave(victim)

    def claim(self, digest: str) -> None:
        """Count one more use of an adapter that is ready. Ended by `release`."""
        self._count(digest)

    def hold(self, digests: Sequence[str], until: "asyncio.Future[Any]") -> None:
        """Keep adapters that are in use until `until` is done, also where whoever uses them leaves before."""
        held = {digest for digest in digests if digest}
        self._uses.update(held)  # no heat: the use was counted

        def let_go(_: "asyncio.Future[Any]") -> None:
            for digest in held:
                self.release(digest)

        until.add_done_callback(let_go)

    def release(self, digest: str) -> None:
        self._uses[digest] -= 1
        if self._uses[digest] <= 0:
            del self._uses[digest]
        self._changed()

    def drain_one(self, wanted: bool) -> None:
        """Where a slot is `wanted` that nobody can be driven out of, ask the coldest of those in use to leave: it takes
        no new use, and its slot is free once the last ends. Where none is wanted any more, it may stay."""
        if not wanted:
            self._draining.clear()
        elif not self._draining and (used := self._uses.keys() & self._loads.keys() - self._pinned):
            self._draining.add(min(used, key=self._value))

    async def pin(self, digest: str) -> None:
        """Load an adapter and never let it leave. Raises TooLarge where no slot would be left for others."""
        if len(self._pinned | {digest}) >= self.max_resident:
            raise TooLarge(
                f"{len(self._pinned)} of {self.max_resident} slots are pinned: one must stay for the others",
                code="too_many_pinned",
                param="digest",
                fix="unpin another one, or raise max_resident",
            )
        async with self.use((digest,)):
            self._pinned.add(digest)

    def unpin(self, digest: str) -> None:
        self._pinned.discard(digest)
        self._changed()

    async def forget(self, digest: str) -> bool:
        """Unload an adapter that nobody uses; False where somebody does."""
        if self._uses[digest]:
            return False
        self._pinned.discard(digest)
        if digest in self._loads:
            await asyncio.shield(self._leave(digest))
        return True

    def resident(self) -> tuple[str, ...]:
        return tuple(digest for digest, task in self._loads.items() if task.done() and not _failed(task))

    def pinned(self) -> tuple[str, ...]:
        return tuple(sorted(self._pinned))

    def _fits(self, wanted: Sequence[str]) -> bool:
        return len(self._uses.keys() | self._pinned | set(wanted)) <= self.max_resident

    def _coldest(self, keep: Collection[str]) -> str | None:
        free = (d for d in self._loads if d not in self._uses and d not in self._pinned and d not in keep)
        return min(free, key=self._value, default=None)

    def _value(self, digest: str) -> float:
        return -1.0 if digest in self._draining else self.heat.of(digest)

    def _count(self, digest: str) -> None:
        self._uses[digest] += 1
        self.heat.add(digest)

    async def _enter(self, digest: str, leaving: "Sequence[asyncio.Task[None]]") -> None:
        try:
            for task in leaving:
                await task
            await self._load(digest)
        except BaseException as error:
            if self._loads.get(digest) is asyncio.current_task():
                del self._loads[digest]
            self._failed(digest, error)
            self._changed()
            raise
        asyncio.get_running_loop().call_soon(self._tell_ready, digest)

    def _tell_ready(self, digest: str) -> None:
        """Once the load's task is done, which `is_ready` looks at."""
        self._changed()
        self._ready(digest)

    def _leave(self, digest: str) -> "asyncio.Task[None]":
        """A task of its own, so that a client's leaving in the middle can't leave an adapter in memory uncounted."""
        self._draining.discard(digest)
        leaving = asyncio.ensure_future(self._do_leave(digest, self._loads.pop(digest)))
        self._leaving[digest] = leaving
        return leaving

    async def _do_leave(self, digest: str, load: "asyncio.Task[None]") -> None:
        try:
            if not load.done():
                await asyncio.wait([load])
            if not _failed(load):
                await self._unload(digest)
        finally:
            self._leaving.pop(digest, None)

    async def _change(self) -> None:
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        await waiter

    def _changed(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)


def _failed(load: "asyncio.Task[None]") -> bool:
    return load.done() and (load.cancelled() or load.exception() is not None)
