"""The engine behind its thread and its asyncio face: streams, cancellation, loading on demand, scoring, failure."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
from openlora_models import Served, prompt_of, request, run, tokens_of

from openledger.adapters.registry import AdapterRegistry
from openledger.core.errors import Conflict, Corrupt, NotFound, Unavailable
from openledger.core.values import GenerationRequest, TokenEvent
from openledger.openlora.server import AdapterServer, ServingOptions
from openledger.openlora.torch_engine import EngineOptions, TorchEngine


@pytest_asyncio.fixture
async def server(served: Served, registry: AdapterRegistry) -> AsyncIterator[AdapterServer]:
    """Room for two of the three adapters."""
    options = ServingOptions(max_resident=2)
    server = AdapterServer(TorchEngine(served.base, EngineOptions(max_batch=4)), registry, options)
    yield server
    server.close()


async def _collect(server: AdapterServer, each: GenerationRequest) -> list[TokenEvent]:
    return [event async for event in server.generate(each)]


class TestGenerate:
    async def test_many_at_once_equal_the_bare_engine(
        self, served: Served, server: AdapterServer, engine: TorchEngine
    ) -> None:
        """More adapters than places, more requests than slots."""
        digests = ["", *served.digests.values()] * 3
        requests = [request(str(number), prompt_of(9), digest) for number, digest in enumerate(digests)]
        got = await asyncio.gather(*(_collect(server, each) for each in requests))
        expected = run(engine, *requests)
        assert [tokens_of(events) for events in got] == [tokens_of(expected[each.request_id]) for each in requests]

    async def test_events_come_one_by_one(self, server: AdapterServer) -> None:
        events = await _collect(server, request("r", prompt_of(9)))
        assert [len(event.token_ids) for event in events] == [1] * len(events)
        assert len(events) > 3

    async def test_an_unknown_adapter_is_an_error_event(self, server: AdapterServer) -> None:
        events = await _collect(server, request("r", prompt_of(9), "0" * 64))
        assert [(event.error or {}).get("code") for event in events] == ["unknown_adapter"]

    async def test_a_bad_request_is_an_error_event(self, server: AdapterServer) -> None:
        events = await _collect(server, request("r", prompt_of(200)))
        assert [(event.error or {}).get("code") for event in events] == ["context_length_exceeded"]

    async def test_a_reader_that_leaves_cancels(self, served: Served, server: AdapterServer) -> None:
        async with aclosing(
            server.generate(request("r", prompt_of(5), served.digests["one"], max_tokens=100))
        ) as events:
            async for _ in events:
                break
        description = await server.describe()
        assert (description["running"], description["waiting"], description["free_slots"]) == (0, 0, 4)
        await server.unload(served.digests["one"])

    async def test_a_task_that_is_cancelled_at_any_moment_leaves_nothing(
        self, served: Served, server: AdapterServer
    ) -> None:
        for number in range(12):
            digest = list(served.digests.values())[number % 3]
            task = asyncio.create_task(_collect(server, request(str(number), prompt_of(5), digest, max_tokens=100)))
            await asyncio.sleep(number * 0.003)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await asyncio.sleep(0.05)
        description = await server.describe()
        assert (description["running"], description["waiting"], description["free_slots"]) == (0, 0, 4)

    async def test_the_same_id_twice_is_an_error_for_the_second(self, server: AdapterServer) -> None:
        each = request("r", prompt_of(5), max_tokens=20)
        first, second = await asyncio.gather(_collect(server, each), _collect(server, each))
        assert first[-1].finish_reason in ("stop", "length")
        assert [(event.error or {}).get("code") for event in second] == ["duplicate_request"]


class TestAdapters:
    async def test_are_loaded_when_named_and_leave_when_others_come(
        self, served: Served, server: AdapterServer
    ) -> None:
        for name in ("one", "two", "three"):
            await _collect(server, request(name, prompt_of(5), served.digests[name]))
        assert set((await server.describe())["resident"]) == {served.digests["two"], served.digests["three"]}

    async def test_a_corrupt_one_is_refused_and_the_others_answer(
        self, served: Served, server: AdapterServer, corrupt_folder: Path
    ) -> None:
        running = asyncio.create_task(_collect(server, request("r", prompt_of(9), served.digests["two"])))
        with pytest.raises(Corrupt):
            await server.load("new", str(corrupt_folder))
        events = await _collect(server, request("bad", prompt_of(9), "new"))
        assert (events[0].error or {})["code"] == "unknown_adapter"
        assert (await running)[-1].finish_reason in ("stop", "length")

    async def test_loaded_from_a_folder_it_comes_back_after_eviction(
        self, served: Served, server: AdapterServer, registry: AdapterRegistry
    ) -> None:
        digest = served.digests["one"]
        registry.remove("one")
        await server.load(digest, str(served.folders["one"]))
        for name in ("two", "three"):
            await _collect(server, request(name, prompt_of(5), served.digests[name]))
        assert digest not in (await server.describe())["resident"]
        events = await _collect(server, request("r", prompt_of(5), digest))
        assert events[-1].error is None

    async def test_one_in_use_is_not_unloaded(self, served: Served, server: AdapterServer) -> None:
        digest = served.digests["one"]
        async with aclosing(server.generate(request("r", prompt_of(5), digest, max_tokens=100))) as events:
            async for _ in events:
                with pytest.raises(Conflict):
                    await server.unload(digest)
                break


class TestEnsembles:
    """Room for two adapters."""

    async def test_adapters_come_into_slots_together_beside_others_requests(
        self, served: Served, server: AdapterServer, engine: TorchEngine
    ) -> None:
        pairs = [(("one", 0.5), ("two", 1.0)), (("three", 1.0), ("one", 2.0))] * 2
        asked = [ensemble(f"e{number}", served, *pair) for number, pair in enumerate(pairs)]
        asked += [request(f"s{name}", prompt_of(9), digest) for name, digest in served.digests.items()]
        got = await asyncio.gather(*(_collect(server, each) for each in asked))
        expected = run(engine, *asked)
        assert [tokens_of(events) for events in got] == [tokens_of(expected[each.request_id]) for each in asked]
        assert not server._residency._uses

    async def test_one_with_an_unknown_adapter_is_an_error_event_and_holds_nothing(
        self, served: Served, server: AdapterServer
    ) -> None:
        bad = replace(request("e", prompt_of(4)), ensemble=((served.digests["one"], 1.0), ("0" * 64, 1.0)))
        assert [(event.error or {}).get("code") for event in await _collect(server, bad)] == ["unknown_adapter"]
        assert not server._residency._uses
        assert (await _collect(server, ensemble("after", served, ("two", 1.0))))[-1].error is None

    async def test_of_more_adapters_than_slots_is_refused(self, served: Served, server: AdapterServer) -> None:
        all_three = ensemble("e", served, *((name, 1.0) for name in served.digests))
        assert [(event.error or {}).get("code") for event in await _collect(server, all_three)] == ["too_many_adapters"]

    async def test_a_reader_that_leaves_gives_all_slots_back(self, served: Served, server: AdapterServer) -> None:
        long = ensemble("e", served, ("one", 1.0), ("two", 1.0), max_tokens=90, ignore_end=True)
        async with aclosing(server.generate(long)) as events:
            await anext(events)
        assert not server._residency._uses
        assert (await _collect(server, request("after", prompt_of(4), served.digests["three"])))[-1].error is None


def ensemble(name: str, served: Served, *parts: tuple[str, float], **sampling: Any) -> GenerationRequest:
    members = tuple((served.digests[each], weight) for each, weight in parts)
    return replace(request(name, prompt_of(9), **sampling), ensemble=members)


class TestScore:
    async def test_equals_the_bare_engine_beyond_the_places(
        self, served: Served, server: AdapterServer, engine: TorchEngine
    ) -> None:
        digests = ["", *served.digests.values(), served.digests["one"]]
        got = await server.score(prompt_of(5), prompt_of(6), digests)
        np.testing.assert_allclose(got, engine.score(prompt_of(5), prompt_of(6), digests), atol=1e-5)

    async def test_runs_beside_answers(self, served: Served, server: AdapterServer, engine: TorchEngine) -> None:
        each = request("r", prompt_of(9), served.digests["one"])
        events, _ = await asyncio.gather(
            _collect(server, each), server.score(prompt_of(50), prompt_of(6), list(served.digests.values()))
        )
        assert tokens_of(events) == tokens_of(run(engine, each)["r"])

    async def test_of_an_unknown_adapter_raises(self, server: AdapterServer) -> None:
        with pytest.raises(NotFound):
            await server.score([5], [6], ["0" * 64])


class TestFailure:
    async def test_a_broken_engine_ends_every_answer_and_says_so(
        self, server: AdapterServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        server.check_health()

        def broken(*_: object) -> None:
            raise RuntimeError("a bug")

        running = asyncio.create_task(_collect(server, request("r", prompt_of(5), max_tokens=100)))
        await asyncio.sleep(0.02)
        monkeypatch.setattr(server._engine, "_compute", broken)
        assert ((await running)[-1].error or {})["code"] == "engine_stopped"
        with pytest.raises(Unavailable):
            server.check_health()
        later = await _collect(server, request("later", prompt_of(5)))
        assert (later[0].error or {})["code"] == "engine_stopped"

    async def test_closing_ends_what_runs(self, server: AdapterServer) -> None:
        running = asyncio.create_task(_collect(server, request("r", prompt_of(5), max_tokens=100)))
        await asyncio.sleep(0.02)
        server.close()
        assert (await running)[-1].finish_reason is not None
