"""Which adapters are in the engine's memory: loaded when first named, the least recently used leaves first.

Owns the count of those in use: an adapter in use never leaves, and a request that finds every place in use waits for
one. Concurrent requests for one adapter share one load. Lives on one asyncio loop; files are read on other threads.
"""

import asyncio
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

from openledger.core.errors import TooLarge

Load = Callable[[str], Awaitable[None]]
Unload = Callable[[str], Awaitable[None]]


class Residency:
    """`load` and `unload` do the work; at most `max_resident` adapters are loaded (or loading) at any time."""

    def __init__(self, load: Load, unload: Unload, max_resident: int):
        self._load, self._unload, self._max_resident = load, unload, max_resident
        self._loads: OrderedDict[str, asyncio.Task[None]] = OrderedDict()  # least recently used first
        self._uses: Counter[str] = Counter()
        self._leaving: dict[str, asyncio.Task[None]] = {}
        self._changed = asyncio.Condition()

    @asynccontextmanager
    async def use(self, digests: Sequence[str]) -> AsyncIterator[None]:
        """Hold all of `digests` in memory; the empty one, the base, needs nothing. Raises what `load` raises, and
        TooLarge (`too_many_adapters`) for more at once than there are places."""
        wanted = sorted({digest for digest in digests if digest})
        if len(wanted) > self._max_resident:
            raise TooLarge(
                f"{len(wanted)} adapters at once, there is room for {self._max_resident}",
                code="too_many_adapters",
                param="adapter_digests",
            )
        await self._claim(wanted)
        try:
            await self._start(wanted)
            for digest in wanted:
                await asyncio.shield(self._loads[digest])  # one client's leaving must not end a load others await
            yield
        finally:
            await self._release(wanted)

    async def forget(self, digest: str) -> bool:
        """Unload an adapter that nobody uses; False where somebody does."""
        async with self._changed:
            if self._uses[digest]:
                return False
            if digest in self._loads:
                await self._evict(digest)
        return True

    def resident(self) -> tuple[str, ...]:
        return tuple(digest for digest, task in self._loads.items() if task.done() and not _failed(task))

    async def _claim(self, wanted: Sequence[str]) -> None:
        """Take all places at once, or none: two requests that each hold half can't block each other."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._fits(wanted))
            self._uses.update(wanted)

    def _fits(self, wanted: Sequence[str]) -> bool:
        return len(self._uses.keys() | set(wanted)) <= self._max_resident

    async def _start(self, wanted: Sequence[str]) -> None:
        async with self._changed:
            while len(self._loads.keys() | set(wanted)) > self._max_resident:
                await self._evict(next(digest for digest in self._loads if digest not in self._uses))
            for digest in wanted:
                if digest not in self._loads or _failed(self._loads[digest]):
                    self._loads[digest] = asyncio.ensure_future(self._enter(digest))
                self._loads.move_to_end(digest)

    async def _enter(self, digest: str) -> None:
        if leaving := self._leaving.get(digest):
            await leaving
        await self._load(digest)

    async def _evict(self, digest: str) -> None:
        """Shielded, so that a client's leaving in the middle can't leave an adapter in memory uncounted."""
        leaving = asyncio.ensure_future(self._leave(digest, self._loads.pop(digest)))
        self._leaving[digest] = leaving
        await asyncio.shield(leaving)

    async def _leave(self, digest: str, load: "asyncio.Task[None]") -> None:
        try:
            await asyncio.wait([load])
            if not _failed(load):
                await self._unload(digest)
        finally:
            self._leaving.pop(digest, None)

    async def _release(self, wanted: Sequence[str]) -> None:
        async with self._changed:
            self._uses.subtract(wanted)
            self._uses = +self._uses  # only those in use are kept as keys
            self._changed.notify_all()


def _failed(load: "asyncio.Task[None]") -> bool:
    return load.done() and (load.cancelled() or load.exception() is not None)
