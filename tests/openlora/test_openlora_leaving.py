"""A client that leaves in the middle of a pass: the pass goes on, and its adapter's memory stays until it has ended."""

import asyncio
import threading
from collections.abc import Awaitable, Iterator
from typing import Any

import numpy as np
import pytest
from openlora_models import Served, prompt_of, request, tokens_of

from openledger.adapters.registry import AdapterRegistry
from openledger.core.errors import Conflict
from openledger.core.values import EmbeddingRequest
from openledger.openlora.server import AdapterServer, ServingOptions
from openledger.openlora.torch_engine import EngineOptions, TorchEngine

WITHIN_S = 20.0
PASSES = ("embed", "score")


class StoppedPass:
    """A server with one slot, whose first pass that gives way stops there until `go` is set. `resident` is what was in
    the engine after each time that it gave way, `ended` the passes that ran to their end."""

    def __init__(self, served: Served):
        self.served = served
        self.reached, self.go = threading.Event(), threading.Event()
        self.resident: list[tuple[str, ...]] = []
        self.ended: list[str] = []
        self.engine = TorchEngine(served.base, EngineOptions(max_batch=2, step_tokens=16))
        registry = AdapterRegistry(served.folders["one"].parent)
        for name, folder in served.folders.items():
            registry.register(name, folder, served.digests[name])
        self.server = AdapterServer(self.engine, registry, ServingOptions(max_resident=1))
        plain = self.engine._people
        assert plain is not None

        def people() -> None:
            self.reached.set()
            assert self.go.wait(WITHIN_S)
            plain()
            self.resident.append(self.engine.resident())

        self.engine.give_way_to(people)
        for kind in PASSES:
            setattr(self.engine, kind, self._noted(kind, getattr(self.engine, kind)))

    def begin(self, kind: str, name: str = "one") -> "asyncio.Task[Any]":
        digest, ids = self.served.digests[name], prompt_of(100)
        asked: Awaitable[Any] = (
            self.server.embed(EmbeddingRequest(inputs=(tuple(ids),), adapter_digest=digest))
            if kind == "embed"
            else self.server.score(ids[:60], ids[60:], (digest,))
        )
        return asyncio.ensure_future(asked)

    async def begin_and_leave(self, kind: str) -> None:
        client = self.begin(kind)
        assert await asyncio.to_thread(self.reached.wait, WITHIN_S)
        client.cancel()
        assert isinstance((await asyncio.gather(client, return_exceptions=True))[0], asyncio.CancelledError)

    def _noted(self, kind: str, compute: Any) -> Any:
        def noted(*arguments: Any) -> Any:
            result = compute(*arguments)
            self.ended.append(kind)
            return result

        return noted


@pytest.fixture
def stopped(served: Served) -> Iterator[StoppedPass]:
    stopped = StoppedPass(served)
    yield stopped
    stopped.go.set()
    stopped.server.close()


async def _a_while() -> None:
    for _ in range(50):
        await asyncio.sleep(0)


@pytest.mark.parametrize("kind", PASSES)
class TestEviction:
    async def test_waits_until_the_pass_has_ended(self, stopped: StoppedPass, kind: str) -> None:
        one, two = (stopped.served.digests[name] for name in ("one", "two"))
        await stopped.begin_and_leave(kind)
        other = asyncio.create_task(stopped.server.load(two, str(stopped.served.folders["two"])))
        await _a_while()  # an eviction would now lie before the step thread
        stopped.go.set()
        async with asyncio.timeout(WITHIN_S):
            await other
        assert set(stopped.resident) == {(one,)}
        assert stopped.ended == [kind]
        assert (stopped.server.resident(), stopped.engine.resident()) == ((two,), (two,))

    async def test_an_answer_that_needs_the_place_comes_after_it(self, stopped: StoppedPass, kind: str) -> None:
        async def answer() -> list[int]:
            events = stopped.server.generate(request("r", prompt_of(5), stopped.served.digests["two"], max_tokens=3))
            return tokens_of([event async for event in events])

        await stopped.begin_and_leave(kind)
        other = asyncio.create_task(answer())
        await _a_while()
        stopped.go.set()
        async with asyncio.timeout(WITHIN_S):
            assert len(await other) == 3
        assert set(stopped.resident) == {(stopped.served.digests["one"],)}

    async def test_unloading_is_refused_until_then(self, stopped: StoppedPass, kind: str) -> None:
        one = stopped.served.digests["one"]
        await stopped.begin_and_leave(kind)
        with pytest.raises(Conflict) as caught:
            await stopped.server.unload(one)
        assert caught.value.code == "adapter_in_use"
        stopped.go.set()
        async with asyncio.timeout(WITHIN_S):
            while stopped.server._residency._uses:
                await asyncio.sleep(0.005)
        await stopped.server.unload(one)
        assert (stopped.ended, stopped.engine.resident()) == ([kind], ())

    async def test_a_pass_that_has_not_begun_never_does(self, stopped: StoppedPass, kind: str) -> None:
        """Its adapter is free at once."""
        running = stopped.begin("score")
        assert await asyncio.to_thread(stopped.reached.wait, WITHIN_S)
        client = stopped.begin(kind)
        await _a_while()
        assert stopped.server._residency._uses[stopped.served.digests["one"]] == 4  # two clients and their passes
        client.cancel()
        await asyncio.gather(client, return_exceptions=True)
        await asyncio.sleep(0.05)
        assert stopped.server._residency._uses[stopped.served.digests["one"]] == 2
        stopped.go.set()
        await running
        await stopped.server.describe()
        assert stopped.ended == ["score"]


class TestEngine:
    def test_refuses_to_take_out_what_a_pass_gives_way_with(self, served: Served) -> None:
        engine = TorchEngine(served.base, EngineOptions(max_batch=2, step_tokens=16))
        one, two = (served.digests[name] for name in ("one", "two"))
        for name in ("one", "two"):
            engine.load(served.digests[name], served.folders[name])
        told: list[str] = []

        def people() -> None:
            try:
                engine.unload(one)
            except Conflict as error:
                told.append(error.code)

        expected = engine.embed([prompt_of(100)], one).vectors_KH
        engine.give_way_to(people)
        vectors = engine.embed([prompt_of(100)], one).vectors_KH
        assert told
        assert set(told) == {"adapter_in_use"}
        assert np.array_equal(vectors, expected)
        engine.unload(two)
        engine.unload(one)
        assert engine.resident() == ()
