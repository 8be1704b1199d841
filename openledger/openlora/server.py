"""One engine with its adapters, for asyncio: streams tokens, scores, loads what a request names.

Owns the way from a request to the engine and back: a place in the fair queue, its adapter into a slot, request to the
step thread, events to the reader, everything given back when the reader leaves. A request enters the engine only when
its adapter is loaded; until then nobody waits for it but itself. Beside that it has the engine merge the adapter that
fills it (`merging`). Ray's deployment wraps this class and adds nothing.
"""

import asyncio
import logging
import time
from collections import Counter, deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from openledger.adapters.registry import AdapterRegistry
from openledger.core.errors import Conflict, OpenLedgerError, TooManyRequests, Unavailable
from openledger.core.values import EmbeddingRequest, GenerationRequest, SamplingParameters, TokenEvent
from openledger.openlora.admission import COST_OF_GENERATED, AdmissionLimits, FairQueue, Waiting
from openledger.openlora.engine import Engine, Vectors, precision_of
from openledger.openlora.ensembles import Places, check_ensemble, places_of
from openledger.openlora.loading import AdapterLoader
from openledger.openlora.merging import Fullness, MergeOptions
from openledger.openlora.residency import Residency
from openledger.openlora.step_cost import StepCost, measure_step_cost
from openledger.openlora.step_thread import Deliver, Result, StepThread
from openledger.openlora.tiers import AdapterTiers

_LOOK_AHEAD = 32  # adapters of the queue that are brought to this node beyond those that get a slot
_RATE_WINDOW_S = 30.0
_SLOTS_WITH_SPARE = 16  # from so many slots on, one is kept free
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingOptions:
    """`max_resident` slots for adapters. So many of them may have requests in the engine at once that reading their
    weights takes `distinct_share` of a step of the base (see `step_cost`), and never more than `max_distinct` (0: as
    many as there are slots). `pinned` are loaded at the start and stay."""

    max_resident: int = 64
    max_distinct: int = 0
    distinct_share: float = 1.0
    pinned: tuple[str, ...] = ()
    max_loads: int = 2
    max_fetches: int = 8
    fetch_within_s: float = 60.0
    coalesce_s: float = 0.008
    admission: AdmissionLimits = field(default_factory=AdmissionLimits)
    merge: MergeOptions = field(default_factory=MergeOptions)


class AdapterServer:
    """Adapters come from where a request says, from `registry` by digest, or from a folder named to `load`. Made and
    used on one asyncio loop."""

    def __init__(
        self,
        engine: Engine,
        registry: AdapterRegistry,
        options: ServingOptions | None = None,
        tiers: AdapterTiers | None = None,
    ):
        self.options = options or ServingOptions()
        self._engine = engine
        self._said: deque[tuple[asyncio.Queue[TokenEvent], TokenEvent]] = deque()  # on the way to their readers
        self._loop: asyncio.AbstractEventLoop | None = None
        self._steps = StepThread(engine, told=self._cross)
        self._loader = AdapterLoader(
            engine.load,
            registry,
            tiers,
            max_loads=self.options.max_loads,
            max_fetches=self.options.max_fetches,
            fetch_within_s=self.options.fetch_within_s,
        )
        self._residency = Residency(
            self._loader.load,
            self._unload,
            self.options.max_resident,
            ready=self._after_load,
            failed=self._refuse_waiting,
        )
        self._queue = FairQueue(self.options.admission)
        self._turns: dict[Waiting, asyncio.Future[None]] = {}
        self._running: Counter[str] = Counter()  # requests in the engine by adapter
        self._num_running = 0
        self._embedding_turn = asyncio.Lock()
        self._num_embedding, self._embedding_tokens = 0, 0
        self._num_gathering = 0  # ensembles whose adapters come into slots
        self._in_flight: dict[str, Deliver] = {}
        self._num_blocks = 0
        self._cost: StepCost | None = None
        batch = engine.options.max_batch
        self._max_running = batch + batch // 8 + 1  # a few wait in the engine, so that no step misses one
        self._ended_s: deque[float] = deque()  # when those of the last seconds ended
        self._merging: asyncio.Task[None] | None = None
        self._closing = False
        self._precision = ""  # told by the engine once somebody asks

    async def start(self, base_folder: Path | None = None) -> None:
        """Warm up: a token of the base model, and the pinned adapters; and measure what a step of the base in
        `base_folder` costs. Raises what is wrong with one of these, and InvalidInput (`merging_unsupported`)."""
        if self.options.merge.after_s:
            self._engine.check_merging()
            self._merging = asyncio.ensure_future(self._merge_by_load())
        if base_folder is not None:
            self._cost = await asyncio.to_thread(measure_step_cost, base_folder)
        self._num_blocks = int((await self.describe()).get("free_blocks", 0))  # nothing is in use yet
        request = GenerationRequest(
            request_id="warm-up", prompt_ids=(0,), sampling=SamplingParameters(max_tokens=2, ignore_end=True)
        )
        async for event in self.generate(request):
            if event.error is not None:
                raise Unavailable(f"the engine does not answer: {event.error.get('message')}", code="engine_stopped")
        for digest in self.options.pinned:
            await self._residency.pin(digest)

    async def generate(self, request: GenerationRequest, source: Places = "") -> AsyncGenerator[TokenEvent, None]:
        """The request's events as they come; after the one that `is_last` nothing follows. Bad requests end in an error
        event. A reader that leaves early cancels the request. `source` says where the adapter's files are."""
        try:
            for digest, place in places_of(request, source).items():
                self._loader.remember(digest, place)
            async with self._together(request), self._turn(request), aclosing(self._events(request)) as events:
                async for event in events:
                    self._queue.charge(request.tenant, request.adapter_digest, COST_OF_GENERATED * len(event.token_ids))
                    yield event
        except OpenLedgerError as error:
            told = {**error.to_dict(), "retry_after_s": getattr(error, "retry_after_s", None)}
            yield TokenEvent(request_id=request.request_id, token_ids=(), text="", finish_reason="error", error=told)

    def leave(self, request_id: str) -> None:
        """End a request early: its reader still gets what was generated. One that isn't in the engine is let be."""
        if request_id in self._in_flight:
            self._steps.cancel(request_id, self._in_flight[request_id])

    async def score(
        self,
        prompt_ids: Sequence[int],
        completion_ids: Sequence[int],
        adapter_digests: Sequence[str],
        places: Mapping[str, str] | None = None,
        precision: str = "",
    ) -> npt.NDArray[np.float32]:
        """As `core.scoring.Scorer`, a few adapters at a time between the steps of those who wait for an answer.
        `places` says where adapters are that the registry doesn't know: a bank's members, which nobody is served.
        With `precision` (of `precision_of`) only an engine that computes so tells: each replica chooses its own.
        Raises NotFound, InvalidInput, Conflict (`other_precision`), or what is wrong with an adapter."""
        if precision:
            await self._check_precision(precision)
        for digest, place in (places or {}).items():
            self._loader.remember(digest, place)
        size = min(
            max(1, self.options.max_resident // 2),
            self._engine.num_scored_at_once(len(prompt_ids) + len(completion_ids)),
        )
        parts = [np.zeros((0, len(completion_ids)), np.float32)]
        for begin in range(0, len(adapter_digests), size):
            digests = tuple(adapter_digests[begin : begin + size])
            async with self._residency.use(digests):
                parts.append(await self._score_between_steps(prompt_ids, completion_ids, digests))
            self._pump()
        return np.concatenate(parts)

    async def _check_precision(self, asked: str) -> None:
        if not self._precision:
            self._precision = precision_of(await self.describe())
        if self._precision != asked:
            raise Conflict(
                f"this replica computes in {self._precision}, not in {asked}",
                code="other_precision",
                param="precision",
                fix="deploy with the dtype float32, so that no replica chooses its own",
            )

    async def embed(self, request: EmbeddingRequest, source: str = "") -> Vectors:
        """A vector for each input, as `Engine.embed`: as many at a time as a step has tokens, one time between two
        steps of those who wait for tokens. An input that is longer gives way to them. Raises TooManyRequests
        (`queue_full`), what `Engine.embed` raises, or what is wrong with the adapter."""
        self._check_room(self._num_embedding)
        digest = request.adapter_digest
        self._loader.remember(digest, source)
        self._embedding_tokens += request.num_tokens
        self._num_embedding += 1
        parts = []
        try:
            async with self._residency.use((digest,) if digest else ()):
                for part in parts_of(request.inputs, self._engine.options.step_tokens):
                    async with self._embedding_turn:
                        parts.append(await self._embed_part(part, digest))
                    self._queue.charge(request.tenant, digest, sum(map(len, part)))
        finally:
            self._embedding_tokens -= request.num_tokens
            self._num_embedding -= 1
            self._pump()
        return Vectors(
            vectors_KH=np.concatenate([part.vectors_KH for part in parts]),
            engine_ms=sum(part.engine_ms for part in parts),
        )

    async def load(self, digest: str, place: str) -> None:
        """Check and load the adapter at `place` now, and remember where it is. Raises what `check_adapter` raises."""
        known = self._loader.source(digest)
        self._loader.remember(digest, place)
        try:
            async with self._residency.use((digest,)):
                pass
        except OpenLedgerError:
            self._loader.forget(digest)
            self._loader.remember(digest, known)
            raise
        finally:
            self._pump()

    async def unload(self, digest: str) -> None:
        """Raises Conflict (`adapter_in_use`) while a request needs it."""
        if not await self._residency.forget(digest):
            raise Conflict(f"adapter {digest} is in use", code="adapter_in_use", param="digest", fix="try again later")
        self._loader.forget(digest)

    async def pin(self, digest: str, place: str = "") -> None:
        """Load an adapter and keep it. Raises TooLarge (`too_many_pinned`), or what is wrong with it."""
        self._loader.remember(digest, place)
        await self._residency.pin(digest)

    def unpin(self, digest: str) -> None:
        self._residency.unpin(digest)

    async def describe(self) -> dict[str, Any]:
        description = await asyncio.wrap_future(self._steps.call(self._engine.describe))
        return {
            **description,
            "max_resident": self.options.max_resident,
            "pinned": list(self._residency.pinned()),
            "queued": len(self._queue),
            "queued_tokens": self._queue.num_tokens,
            "in_engine": self._num_running,
            "in_flight": sorted(self._in_flight),
            "max_distinct": self._max_distinct(),
        }

    def merged(self) -> str:
        return self._engine.merged()

    def resident(self) -> tuple[str, ...]:
        return self._residency.resident()

    def load_stats(self) -> dict[str, float]:
        """How busy this server is: what routing and autoscaling go by."""
        return {
            "queued_tokens": float(self._queue.num_tokens + self._embedding_tokens),
            "queued": float(len(self._queue)),
            "running": float(self._num_running),
            "busy": self._num_running / self._engine.options.max_batch,
            "merged": float(bool(self.merged())),
        }

    async def pressure(self) -> dict[str, float]:
        """`load_stats` with the part of the memory for keys and values that is in use."""
        told = await self.describe()
        free = told.get("free_blocks", self._num_blocks)
        return {**self.load_stats(), "kv": 1.0 - free / self._num_blocks if self._num_blocks else 0.0}

    def check_health(self) -> None:
        """Raises Unavailable once the engine has failed."""
        if self._steps.failure is not None:
            raise Unavailable(f"the engine failed: {self._steps.failure!r}", code="engine_stopped")

    async def drain(self, within_s: float) -> bool:
        """Take no new requests and wait for those under way; whether all ended in time."""
        self._closing = True
        end_s = time.monotonic() + within_s
        while self._is_busy() and time.monotonic() < end_s:
            await asyncio.sleep(0.05)
        return not self._is_busy()

    def _is_busy(self) -> bool:
        return bool(self._num_running or len(self._queue) or self._num_embedding or self._num_gathering)

    def close(self) -> None:
        if self._merging is not None:
            self._merging.cancel()
        self._steps.stop()
        self._loader.close()

    @asynccontextmanager
    async def _together(self, request: GenerationRequest) -> AsyncIterator[None]:
        """An ensemble's adapters, all in slots. Nothing for other requests: theirs comes while they wait their turn."""
        if not request.ensemble:
            yield
            return
        check_ensemble(request)
        self._check_room(self._num_gathering)
        self._num_gathering += 1
        try:
            async with AsyncExitStack() as slots:
                members = self._residency.use([digest for digest, _ in request.ensemble])
                try:
                    await self._within_limit(slots.enter_async_context(members))
                finally:
                    self._num_gathering -= 1
                yield
        finally:
            self._pump()

    @asynccontextmanager
    async def _turn(self, request: GenerationRequest) -> AsyncIterator[None]:
        """A request's time in the engine, from its turn in the queue on."""
        if self._closing:
            raise Unavailable("this replica is being stopped", code="engine_draining", fix="try again: another answers")
        waiting = Waiting(
            tenant=request.tenant,
            adapter=request.adapter_digest,
            num_tokens=len(request.prompt_ids),
            since_s=time.monotonic(),
        )
        self._queue.put(waiting, self._retry_after_s)
        turn = self._turns[waiting] = asyncio.get_running_loop().create_future()
        try:
            self._pump()
            await self._within_limit(turn)
            yield
        finally:
            self._turns.pop(waiting, None)
            if not self._queue.remove(waiting) and _was_given(turn):
                self._end(waiting.adapter)
            self._pump()

    async def _within_limit(self, turn: Awaitable[None]) -> None:
        limit_s = self.options.admission.start_within_s
        try:
            async with asyncio.timeout(limit_s):
                await turn
        except TimeoutError:
            raise Unavailable(
                f"the request waited {limit_s:g} s and had not begun", code="not_begun_in_time", fix="try again later"
            ) from None

    def _pump(self) -> None:
        """Load what those who wait need, and hand to the engine whose turn it is."""
        if not len(self._queue):
            return
        self._look_ahead()
        while self._num_running < self._max_running:
            waiting = self._queue.pop(self._can_run)
            if waiting is None:
                return
            turn = self._turns.get(waiting)
            if turn is not None and not turn.done():  # done: its reader has just left
                self._begin(waiting, turn)

    def _can_run(self, adapter: str) -> bool:
        if not adapter:
            return True
        joins = adapter in self._running or len(self._running.keys() - {""}) < self._max_distinct()
        return joins and self._residency.is_ready(adapter)

    def _max_distinct(self) -> int:
        most = self.options.max_distinct or self.options.max_resident
        if self._cost is None:
            return most
        batch = self._engine.options.max_batch
        return min(most, self._cost.max_distinct(batch, self._loader.mean_bytes, self.options.distinct_share))

    def _begin(self, waiting: Waiting, turn: "asyncio.Future[None]") -> None:
        self._num_running += 1
        self._running[waiting.adapter] += 1
        if waiting.adapter:
            self._residency.claim(waiting.adapter)
        turn.set_result(None)

    def _end(self, adapter: str) -> None:
        self._num_running -= 1
        self._running[adapter] -= 1
        if not self._running[adapter]:
            del self._running[adapter]
        if adapter:
            self._residency.release(adapter)
        self._ended_s.append(time.monotonic())
        self._forget_ended()

    def _after_load(self, digest: str) -> None:
        self._pump()
        if self.options.max_resident >= _SLOTS_WITH_SPARE:
            self._residency.free_one(keep={digest, *(waiting.adapter for waiting in self._queue.adapters())})

    def _look_ahead(self) -> None:
        """Begin to load, in the order in which they will be served, the adapters of those who wait. One that others
        wait for too leaves its slot only to somebody who has lost patience, and waits longer than they: or two would
        drive each other out before either is used."""
        now_s, patience_s = time.monotonic(), self.options.admission.patience_s
        first = list(islice(self._queue.adapters(), self.options.max_resident + _LOOK_AHEAD))
        wanted = {waiting.adapter for waiting in first}
        blocked = False
        for waiting in first:
            if not waiting.adapter or self._residency.is_here(waiting.adapter):
                continue
            overdue = now_s - waiting.since_s > patience_s
            kept = {one.adapter for one in first if one.since_s <= waiting.since_s} if overdue else wanted
            if self._residency.enter(waiting.adapter, keep=kept) is None:
                blocked |= overdue
                self._loader.look_ahead(waiting.adapter)
        self._residency.drain_one(blocked)

    def _refuse_waiting(self, digest: str, error: BaseException) -> None:
        """An adapter can't be loaded: those who wait for it hear why, and nobody else."""
        for waiting in self._queue.remove_adapter(digest):
            turn = self._turns.get(waiting)
            if turn is not None and not turn.done():
                turn.set_exception(error)

    def _retry_after_s(self) -> int:
        """How long until half of the queue has been served, at the rate of the last seconds."""
        self._forget_ended()
        rate = max(len(self._ended_s), 1) / _RATE_WINDOW_S
        return max(1, min(60, round(len(self._queue) / 2 / rate)))

    def _forget_ended(self) -> None:
        since_s = time.monotonic() - _RATE_WINDOW_S
        while self._ended_s and self._ended_s[0] < since_s:
            self._ended_s.popleft()

    async def _events(self, request: GenerationRequest) -> AsyncGenerator[TokenEvent, None]:
        self._loop, events = asyncio.get_running_loop(), asyncio.Queue[TokenEvent]()

        def deliver(event: TokenEvent) -> None:
            self._said.append((events, event))

        submitted = self._steps.submit(request, deliver)
        finished = False
        self._in_flight[request.request_id] = deliver
        try:
            await asyncio.wrap_future(submitted)
            while not finished:
                event = await events.get()
                finished = event.is_last
                yield event
        finally:
            self._in_flight.pop(request.request_id, None)
            if not finished and not submitted.cancelled():
                self._steps.cancel(request.request_id, deliver)

    def _cross(self) -> None:
        """On the step thread: one waking of the loop for all that a step said."""
        if self._loop is not None:
            with suppress(RuntimeError):  # it is closed: nobody listens
                self._loop.call_soon_threadsafe(self._hand_over)

    def _hand_over(self) -> None:
        while self._said:
            events, event = self._said.popleft()
            events.put_nowait(event)

    async def _score_between_steps(
        self, prompt_ids: Sequence[int], completion_ids: Sequence[int], digests: Sequence[str]
    ) -> npt.NDArray[np.float32]:
        return await self._passed(digests, lambda: self._engine.score(prompt_ids, completion_ids, digests), True)

    async def _embed_part(self, part: Sequence[Sequence[int]], digest: str) -> Vectors:
        is_long = sum(map(len, part)) > self._engine.options.step_tokens
        return await self._passed((digest,), lambda: self._engine.embed(part, digest), is_long)

    async def _passed(self, digests: Sequence[str], compute: Callable[[], Result], background: bool) -> Result:
        """What a pass computes. Once begun it goes on though its caller leaves, and gives way to calls that take
        adapters out; so its adapters are held until it has ended, and only then is their place given to others."""
        call = self._steps.call(compute, background=background)
        ended = asyncio.wrap_future(call)
        self._residency.hold(digests, ended)
        ended.add_done_callback(lambda _: self._pump())
        try:
            return await asyncio.shield(ended)
        except asyncio.CancelledError:
            call.cancel()  # one that hasn't begun never does
            raise

    def _check_room(self, num_waiting: int) -> None:
        if self._closing:
            raise Unavailable("this replica is being stopped", code="engine_draining", fix="try again: another answers")
        if num_waiting >= self.options.admission.max_waiting:
            raise TooManyRequests(
                f"{num_waiting} requests are waiting",
                code="queue_full",
                fix="try again in a few seconds",
                retry_after_s=self._retry_after_s(),
            )

    async def _merge_by_load(self) -> None:
        full = Fullness(self.options.merge, time.monotonic)
        while True:
            await asyncio.sleep(self.options.merge.period_s)
            full.look(self._running, self._engine.options.max_batch)
            merged = self.merged()
            if (wanted := full.wanted(merged)) == merged:
                continue
            try:
                await asyncio.wrap_future(self._steps.call(self._engine.unmerge))
                if wanted:
                    await self._merge(wanted)
            except (OpenLedgerError, RuntimeError, MemoryError) as error:  # no memory is a RuntimeError of torch
                _log.warning("adapter %s was not merged: %r", wanted, error)
            full.forget()  # nobody looked meanwhile

    async def _merge(self, digest: str) -> None:
        async with self._residency.use((digest,)):
            await asyncio.to_thread(self._engine.merge, digest)

    async def _unload(self, digest: str) -> None:
        await asyncio.wrap_future(self._steps.call(lambda: self._engine.unload(digest)))


def parts_of(inputs: Sequence[Sequence[int]], max_tokens: int) -> Iterator[list[Sequence[int]]]:
    """`inputs` in their order, as many in a part as have `max_tokens`; a longer one is a part by itself."""
    part: list[Sequence[int]] = []
    num_tokens = 0
    for each in inputs:
        if part and num_tokens + len(each) > max_tokens:
            yield part
            part, num_tokens = [], 0
        part.append(each)
        num_tokens += len(each)
    if part:
        yield part


def _was_given(turn: "asyncio.Future[None]") -> bool:
    return turn.done() and not turn.cancelled() and turn.exception() is None
