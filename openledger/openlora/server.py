"""One engine with its adapters, for asyncio: streams tokens, scores, loads what a request names.

Owns the way from a request to the engine and back: adapter into memory, request to the step thread, events to the
reader, everything given back when the reader leaves. Ray's deployment wraps this class and adds nothing.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from openledger.adapters.registry import AdapterRegistry
from openledger.core.errors import Conflict, OpenLedgerError, Unavailable
from openledger.core.values import GenerationRequest, TokenEvent
from openledger.openlora.residency import Residency
from openledger.openlora.step_thread import StepThread
from openledger.openlora.torch_engine import TorchEngine


class AdapterServer:
    """Adapters come from `registry` by digest, or from a folder named to `load`. Made and used on one asyncio loop."""

    def __init__(self, engine: TorchEngine, registry: AdapterRegistry, *, max_resident: int = 64):
        self._engine, self._registry = engine, registry
        self._folders: dict[str, Path] = {}
        self._steps = StepThread(engine)
        self._residency = Residency(self._load, self._unload, max_resident)
        self._max_resident = max_resident

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenEvent, None]:
        """The request's events as they come; the last has a `finish_reason`. Bad requests end in an error event.
        A reader that leaves early cancels the request."""
        try:
            async with self._residency.use((request.adapter_digest,)), aclosing(self._events(request)) as events:
                async for event in events:
                    yield event
        except OpenLedgerError as error:
            yield TokenEvent(
                request_id=request.request_id, token_ids=(), text="", finish_reason="error", error=error.to_dict()
            )

    async def score(
        self, prompt_ids: Sequence[int], completion_ids: Sequence[int], adapter_digests: Sequence[str]
    ) -> npt.NDArray[np.float32]:
        """As `core.scoring.Scorer`, a few adapters at a time between the steps of those who wait for an answer.
        Raises NotFound, InvalidInput, or what is wrong with an adapter."""
        size = min(
            max(1, self._max_resident // 2), self._engine.num_scored_at_once(len(prompt_ids) + len(completion_ids))
        )
        parts = [np.zeros((0, len(completion_ids)), np.float32)]
        for begin in range(0, len(adapter_digests), size):
            digests = tuple(adapter_digests[begin : begin + size])
            async with self._residency.use(digests):
                parts.append(await self._score_between_steps(prompt_ids, completion_ids, digests))
        return np.concatenate(parts)

    async def load(self, digest: str, folder: str) -> None:
        """Check and load the adapter in `folder` now, and remember where it is. Raises what `check_adapter` raises."""
        known, self._folders[digest] = self._folders.get(digest), Path(folder)
        try:
            async with self._residency.use((digest,)):
                pass
        except OpenLedgerError:
            self._folders.pop(digest, None)
            if known is not None:
                self._folders[digest] = known
            raise

    async def unload(self, digest: str) -> None:
        """Raises Conflict (`adapter_in_use`) while a request needs it."""
        if not await self._residency.forget(digest):
            raise Conflict(f"adapter {digest} is in use", code="adapter_in_use", param="digest", fix="try again later")
        self._folders.pop(digest, None)

    async def describe(self) -> dict[str, Any]:
        description = await asyncio.wrap_future(self._steps.call(self._engine.describe))
        return {**description, "max_resident": self._max_resident}

    def check_health(self) -> None:
        """Raises Unavailable once the engine has failed."""
        if self._steps.failure is not None:
            raise Unavailable(f"the engine failed: {self._steps.failure!r}", code="engine_stopped")

    def close(self) -> None:
        self._steps.stop()

    async def _events(self, request: GenerationRequest) -> AsyncGenerator[TokenEvent, None]:
        loop, events = asyncio.get_running_loop(), asyncio.Queue[TokenEvent]()

        def deliver(event: TokenEvent) -> None:
            with suppress(RuntimeError):  # the reader's loop is closed: nobody listens
                loop.call_soon_threadsafe(events.put_nowait, event)

        submitted = self._steps.submit(request, deliver)
        finished = False
        try:
            await asyncio.wrap_future(submitted)
            while not finished:
                event = await events.get()
                finished = event.finish_reason is not None
                yield event
        finally:
            if not finished and not submitted.cancelled():
                self._steps.cancel(request.request_id, deliver)

    async def _score_between_steps(
        self, prompt_ids: Sequence[int], completion_ids: Sequence[int], digests: Sequence[str]
    ) -> npt.NDArray[np.float32]:
        call = self._steps.call(lambda: self._engine.score(prompt_ids, completion_ids, digests), background=True)
        return await asyncio.wrap_future(call)

    async def _load(self, digest: str) -> None:
        folder = self._folders.get(digest)
        await asyncio.to_thread(self._load_from_disk, digest, folder)

    def _load_from_disk(self, digest: str, folder: Path | None) -> None:
        self._engine.load(digest, folder or Path(self._registry.find_digest(digest).folder))

    async def _unload(self, digest: str) -> None:
        await asyncio.wrap_future(self._steps.call(lambda: self._engine.unload(digest)))
