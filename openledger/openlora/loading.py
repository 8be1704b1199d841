"""How an adapter comes from its place into the engine, beside the decode loop: threads, time limits, one fetch at a
time for each adapter.

Two kinds of threads, so that storage which hangs holds up nobody whose adapter is on this node: a few loader threads
that read local files, and one thread for each fetch, of which no more than `max_fetches` are waited for at once.
Lives on one asyncio loop; knows nothing of slots and requests.
"""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from openledger.adapters.checks import WEIGHTS_FILE
from openledger.adapters.registry import AdapterRegistry
from openledger.core.errors import Corrupt, Unavailable
from openledger.openlora.tiers import AdapterTiers

Result = TypeVar("Result")
_KEPT_SOURCES = 65536


class AdapterLoader:
    """`load_engine(digest, folder)` is the engine's `load`. Without `tiers` only local folders can be loaded."""

    def __init__(
        self,
        load_engine: Callable[[str, Path], None],
        registry: AdapterRegistry,
        tiers: AdapterTiers | None = None,
        *,
        max_loads: int = 2,
        max_fetches: int = 8,
        fetch_within_s: float = 60.0,
    ):
        self._load_engine, self._registry, self._tiers = load_engine, registry, tiers
        self._threads = ThreadPoolExecutor(max_loads, "openlora-loads")
        self._may_fetch = asyncio.Semaphore(max_fetches)
        self._fetch_within_s = fetch_within_s
        self._sources: dict[str, str] = {}
        self._fetches: dict[str, asyncio.Task[None]] = {}
        self.mean_bytes = 0.0  # of the adapters loaded last

    def source(self, digest: str) -> str:
        return self._sources.get(digest, "")

    def remember(self, digest: str, source: str) -> None:
        """Where an adapter is: what a request says of it. The registry is asked for the others."""
        if source and self._sources.get(digest) != source:
            self._sources[digest] = source
            if len(self._sources) > _KEPT_SOURCES:
                del self._sources[next(iter(self._sources))]

    def forget(self, digest: str) -> None:
        self._sources.pop(digest, None)

    async def load(self, digest: str) -> None:
        """Bring the adapter into the engine. Raises NotFound (`unknown_adapter`), what the tiers raise, what
        `check_adapter` raises."""
        if not await self._beside(self._load_from_here, digest):
            await asyncio.shield(self._fetch(digest))
            await self._beside(self._load_from_here, digest)

    def look_ahead(self, digest: str) -> None:
        """Begin to bring an adapter to this node, without waiting. What goes wrong shows when it is loaded."""
        if self._tiers is not None and digest not in self._fetches:
            self._fetches[digest] = self._task(digest, self._locate_ahead(digest))

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _load_from_here(self, digest: str) -> bool:
        """False where nothing on this node has the adapter. One visit to a loader thread: each costs a turn at the
        interpreter's lock, which the step thread holds most of the time."""
        folder = self._find(digest)
        if folder is None:
            return False
        try:
            self._load_engine(digest, folder)
            size = (folder / WEIGHTS_FILE).stat().st_size
            self.mean_bytes = size if not self.mean_bytes else 0.9 * self.mean_bytes + 0.1 * size
        except Corrupt:
            if self._tiers is not None:  # a copy that was damaged on this node is fetched again the next time
                self._tiers.forget(digest)
            raise
        return True

    def _find(self, digest: str) -> Path | None:
        source = self._find_source(digest)
        return Path(source) if self._tiers is None else self._tiers.find(digest, source)

    def _is_here(self, digest: str) -> bool:
        return self._tiers is None or self._tiers.has(digest, self._find_source(digest))

    def _find_source(self, digest: str) -> str:
        return self._sources.get(digest) or self._registry.find_digest(digest).place

    def _fetch(self, digest: str) -> "asyncio.Task[None]":
        if digest not in self._fetches:
            self._fetches[digest] = self._task(digest, self._fetch_within_limits(digest))
        return self._fetches[digest]

    def _task(self, digest: str, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        task = asyncio.ensure_future(work)
        task.add_done_callback(lambda done: (self._fetches.pop(digest, None), done.cancelled() or done.exception()))
        return task

    async def _locate_ahead(self, digest: str) -> None:
        if not await self._beside(self._is_here, digest):
            await self._fetch_within_limits(digest)

    async def _fetch_within_limits(self, digest: str) -> None:
        assert self._tiers is not None
        source = await self._beside(self._find_source, digest)
        async with self._may_fetch:
            try:
                async with asyncio.timeout(self._fetch_within_s):
                    await in_thread(self._tiers.fetch, digest, source)
            except TimeoutError:
                raise Unavailable(
                    f"{source} did not give the adapter within {self._fetch_within_s:g} s",
                    code="adapter_storage_unavailable",
                    fix="try again later",
                ) from None

    async def _beside(self, function: Callable[..., Result], *arguments: Any) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *arguments)


async def in_thread(function: Callable[..., Result], *arguments: Any) -> Result:
    """The result of a call that may never return, on a thread of its own that dies with the process."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Result] = loop.create_future()

    def tell(result: Result | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is None:
            future.set_result(result)  # type: ignore[arg-type]
        else:
            future.set_exception(error)

    def run() -> None:
        result, error = None, None
        try:
            result = function(*arguments)
        except BaseException as raised:  # noqa: BLE001  raised again where the result is awaited
            error = raised
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(tell, result, error)

    threading.Thread(target=run, name="openlora-fetch", daemon=True).start()
    return await future
