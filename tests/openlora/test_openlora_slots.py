"""Slots under pressure: who waits for whom, what is loaded how often, and what a bad adapter costs others: nothing."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pytest
from openlora_models import Served, prompt_of, request

from openledger.adapters.registry import AdapterRegistry
from openledger.adapters.sources import SourceRules
from openledger.core.errors import Unavailable
from openledger.core.values import GenerationRequest, TokenEvent
from openledger.openlora.admission import AdmissionLimits
from openledger.openlora.server import AdapterServer, ServingOptions
from openledger.openlora.tiers import AdapterTiers, TierOptions
from openledger.openlora.torch_engine import EngineOptions, TorchEngine

Serving = Callable[..., Any]


@pytest.fixture
def serving(served: Served, tmp_path: Path) -> Serving:
    registry = AdapterRegistry(tmp_path / "registry")
    options = TierOptions(disk_folder=str(tmp_path / "disk"), host_folder=str(tmp_path / "host"))
    rules = SourceRules(folders=(str(served.folders["one"].parent),), schemes=("file", "memory"))

    @asynccontextmanager
    async def serving(max_batch: int = 4, **settings: Any) -> AsyncIterator[AdapterServer]:
        engine = TorchEngine(served.base, EngineOptions(max_batch=max_batch))
        server = AdapterServer(
            engine, registry, ServingOptions(**{"max_resident": 2, **settings}), AdapterTiers(options, rules)
        )
        yield server
        server.close()

    return serving


@pytest.fixture
def hanging(served: Served, monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """While it isn't set, nothing that is opened in memory answers; then it fails."""
    hang = threading.Event()
    put_in_memory(served, "one", "/hang/a")
    monkeypatch.setattr(type(fsspec.filesystem("memory")), "open", lambda *_, **__: hang.wait(60))
    yield hang
    hang.set()


async def ask(server: AdapterServer, served: Served, name: str, number: int = 0, **more: Any) -> list[TokenEvent]:
    each = request(f"{name}-{number}-{time.monotonic_ns()}", prompt_of(5), served.digests.get(name, name), max_tokens=6)
    source = more.pop("source", str(served.folders[name]) if name in served.folders else "")
    return await collect(server, replace(each, **more), source)


async def collect(server: AdapterServer, each: GenerationRequest, source: str) -> list[TokenEvent]:
    return [event async for event in server.generate(each, source)]


def code(events: list[TokenEvent]) -> str | None:
    return (events[-1].error or {}).get("code")


def counted_loads(server: AdapterServer) -> list[str]:
    """The digests that the engine is asked to load from now on."""
    loads: list[str] = []
    load = server._loader._load_engine
    server._loader._load_engine = lambda digest, folder: (loads.append(digest), load(digest, folder))[1]
    return loads


async def idle(server: AdapterServer) -> bool:
    """Whether nothing is left of any request."""
    for _ in range(100):
        told = await server.describe()
        counts = [told[name] for name in ("queued", "queued_tokens", "in_engine", "running", "waiting")]
        if not any(counts) and not server._residency._uses and not server._turns:
            return True
        await asyncio.sleep(0.02)
    return False


class TestWaiting:
    async def test_those_of_one_adapter_go_together_rather_than_by_turns(
        self, served: Served, serving: Serving
    ) -> None:
        async with serving(max_resident=1) as server:
            loads = counted_loads(server)
            names = ["one", "two", "three"] * 6
            events = await asyncio.gather(*(ask(server, served, name, n) for n, name in enumerate(names)))
            assert all(each[-1].error is None for each in events)
            assert len(loads) <= 4
            assert await idle(server)

    async def test_one_that_waited_longer_than_patience_gets_a_slot_from_those_in_use(
        self, served: Served, serving: Serving
    ) -> None:
        """Requests for `one` overlap without end: nobody would ever leave the only slot."""
        async with serving(max_resident=1, admission=AdmissionLimits(patience_s=0.05)) as server:
            stop = asyncio.Event()

            async def keep_asking() -> None:
                while not stop.is_set():
                    await ask(server, served, "one")

            busy = [asyncio.create_task(keep_asking()) for _ in range(3)]
            await asyncio.sleep(0.1)
            async with asyncio.timeout(20):
                assert code(await ask(server, served, "two")) is None
            stop.set()
            await asyncio.gather(*busy)
            assert await idle(server)

    async def test_one_that_has_not_begun_in_time_is_refused(
        self, served: Served, serving: Serving, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The only slot is in use for as long as it takes."""
        limits = AdmissionLimits(start_within_s=0.2, patience_s=10)
        async with serving(max_batch=1, max_resident=1, admission=limits) as server:
            await server.load(served.digests["one"], str(served.folders["one"]))
            step = server._engine.step
            monkeypatch.setattr(server._engine, "step", lambda: (time.sleep(0.02), step())[1])
            long = request("long", prompt_of(5), served.digests["one"], max_tokens=60, ignore_end=True)
            running = asyncio.create_task(collect(server, long, str(served.folders["one"])))
            await asyncio.sleep(0.03)
            assert code(await ask(server, served, "two")) == "not_begun_in_time"
            assert code(await running) is None
            assert await idle(server)

    async def test_a_tenant_over_its_part_of_the_queue_is_told_when_to_come_back(
        self, served: Served, serving: Serving
    ) -> None:
        async with serving(max_batch=1, admission=AdmissionLimits(max_waiting_per_tenant=2)) as server:
            crowd = await asyncio.gather(*(ask(server, served, "one", n, tenant="crowd") for n in range(8)))
            refused = [events for events in crowd if code(events)]
            assert {code(events) for events in refused} == {"tenant_queue_full"}
            assert refused[0][0].error["retry_after_s"] >= 1
            assert 0 < len(refused) < 8
            assert await idle(server)

    async def test_a_crowd_does_not_hold_up_another_tenant(self, served: Served, serving: Serving) -> None:
        async with serving(max_batch=1) as server:
            ended: list[str] = []

            async def one(tenant: str, number: int) -> None:
                await ask(server, served, "one", number, tenant=tenant)
                ended.append(tenant)

            crowd = [asyncio.create_task(one("crowd", n)) for n in range(20)]
            await asyncio.sleep(0.01)
            await one("other", 0)
            assert ended.index("other") < 8
            await asyncio.gather(*crowd)

    async def test_distinct_adapters_in_the_engine_are_bounded(self, served: Served, serving: Serving) -> None:
        async with serving(max_resident=3, max_distinct=1) as server:
            most = []
            begin = server._begin

            def watched(*arguments: Any) -> None:
                begin(*arguments)
                most.append(len(server._running.keys() - {""}))

            server._begin = watched
            await asyncio.gather(*(ask(server, served, name, n) for n in range(3) for name in served.folders))
            assert max(most) == 1

    async def test_readers_that_leave_while_waiting_leave_nothing(self, served: Served, serving: Serving) -> None:
        async with serving(max_batch=1, max_resident=1) as server:
            tasks = [
                asyncio.create_task(ask(server, served, name, n)) for n in range(10) for name in ("one", "two", "three")
            ]
            for number, task in enumerate(tasks):
                await asyncio.sleep(0.001 * (number % 4))
                if number % 3:
                    task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            assert await idle(server)


class TestPressure:
    async def test_is_what_waits_beside_what_runs(self, served: Served, serving: Serving) -> None:
        """What autoscaling and routing go by, while one answer runs and two wait."""
        async with serving(max_batch=1) as server:
            server._max_running = 1  # else one more would wait in the engine
            go_on, step = threading.Event(), server._engine.step
            server._engine.step = lambda: (go_on.wait(60), step())[1]
            asked = [asyncio.create_task(ask(server, served, "one", number)) for number in range(3)]
            async with asyncio.timeout(20):
                while not server._num_running:
                    await asyncio.sleep(0.01)
            stats = server.load_stats()
            assert stats == {"queued_tokens": 10, "queued": 2, "running": 1, "busy": 1, "merged": 0}
            go_on.set()
            assert all(code(events) is None for events in await asyncio.gather(*asked))
            assert await idle(server)

    async def test_of_keys_and_values_is_the_part_in_use(self, served: Served, serving: Serving) -> None:
        """Looked at when two steps of a long answer have been made, and after its end."""
        async with serving(max_batch=1) as server:
            await server.start()
            permits, step = [2], server._engine.step

            def permitted() -> list[TokenEvent]:
                if not permits[0]:
                    return time.sleep(0.001) or []
                permits[0] -= 1
                return step()

            server._engine.step = permitted
            each = request("long", prompt_of(5), max_tokens=60, ignore_end=True)
            answer = asyncio.create_task(collect(server, each, ""))
            async with asyncio.timeout(20):
                while permits[0]:
                    await asyncio.sleep(0.01)
            assert 0 < (await server.pressure())["kv"] <= 1
            permits[0] = 1000
            assert code(await answer) is None
            assert (await server.pressure())["kv"] == 0


class TestPins:
    async def test_a_pinned_one_stays_whoever_comes(self, served: Served, serving: Serving) -> None:
        async with serving() as server:
            await server.pin(served.digests["one"], str(served.folders["one"]))
            for name in ("two", "three", "two"):
                await ask(server, served, name)
            assert served.digests["one"] in server.resident()
            server.unpin(served.digests["one"])
            for name in ("two", "three") * 2:
                await ask(server, served, name)
            assert served.digests["one"] not in server.resident()

    async def test_one_asked_often_stays_while_many_are_asked_once(self, served: Served, serving: Serving) -> None:
        async with serving() as server:
            for _ in range(4):
                await ask(server, served, "one")
            loads = counted_loads(server)
            for name in ("two", "three", "two", "three", "one"):
                await ask(server, served, name)
            assert served.digests["one"] not in loads


class TestSpare:
    async def test_of_many_slots_one_is_free_for_the_next(self, served: Served, serving: Serving) -> None:
        async with serving(max_resident=16) as server:
            residency = server._residency
            residency.max_resident = 3
            for name in served.folders:
                await ask(server, served, name)
            await asyncio.sleep(0.05)
            assert len(server.resident()) == 2
            assert served.digests["three"] in server.resident()


class TestLoading:
    async def test_that_takes_long_holds_up_its_own_request_and_no_other(
        self, served: Served, serving: Serving
    ) -> None:
        """What is held up is the engine's own `load`, which a step must not wait for."""
        async with serving() as server:
            load, go_on = server._loader._load_engine, threading.Event()
            server._loader._load_engine = lambda digest, folder: (
                digest == served.digests["two"] and go_on.wait(60),
                load(digest, folder),
            )
            slow = asyncio.create_task(ask(server, served, "two"))
            await asyncio.sleep(0.02)
            others = await asyncio.gather(*(ask(server, served, "one", number) for number in range(3)))
            assert [code(events) for events in others] == [None] * 3
            assert not slow.done()
            go_on.set()
            assert code(await slow) is None

    async def test_what_waits_for_a_slot_is_fetched_meanwhile(
        self, served: Served, serving: Serving, tmp_path: Path
    ) -> None:
        """One slot, in use until `two` lies in this node's memory: it comes there while it waits."""
        put_in_memory(served, "two", "/ahead/two")
        async with serving(max_resident=1, admission=AdmissionLimits(patience_s=60)) as server:
            await server.load(served.digests["one"], str(served.folders["one"]))
            async with server._residency.use((served.digests["one"],)):
                waits = asyncio.create_task(ask(server, served, "two", source="memory://ahead/two"))
                async with asyncio.timeout(20):
                    while not (tmp_path / "disk" / served.digests["two"]).exists():
                        await asyncio.sleep(0.01)
                assert not waits.done()
                assert server.resident() == (served.digests["one"],)
            server._pump()
            assert code(await waits) is None


class TestStorage:
    async def test_that_hangs_holds_up_its_own_request_and_no_other(
        self, served: Served, serving: Serving, hanging: threading.Event
    ) -> None:
        async with serving() as server:
            stuck = asyncio.create_task(ask(server, served, "a" * 64, source="memory://hang/a"))
            await asyncio.sleep(0.02)
            others = await asyncio.gather(*(ask(server, served, name) for name in ("one", "two")))
            assert [code(events) for events in others] == [None, None]
            assert not stuck.done()
            hanging.set()
            assert code(await stuck) == "adapter_storage_unavailable"
            assert await idle(server)

    async def test_that_hangs_is_given_up_in_time(
        self, served: Served, serving: Serving, hanging: threading.Event
    ) -> None:
        async with serving(fetch_within_s=0.1) as server:
            events = await ask(server, served, "a" * 64, source="memory://hang/a")
            assert code(events) == "adapter_storage_unavailable"
            assert not hanging.is_set()
            assert await idle(server)

    async def test_that_fails_in_the_middle_leaves_nothing_and_is_asked_again(
        self, served: Served, serving: Serving, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The first part of the weights comes, and then the connection breaks."""
        put_in_memory(served, "one", "/breaks/a")
        memory = type(fsspec.filesystem("memory"))
        opened = memory.open

        class Broken:
            def __init__(self, stream: Any):
                self._stream, self._read = stream, False

            def __enter__(self) -> "Broken":
                return self

            def __exit__(self, *_: object) -> None:
                self._stream.close()

            def read(self, _: int) -> bytes:
                if self._read:
                    raise ConnectionResetError("connection reset by peer")
                self._read = True
                return self._stream.read(100)

        monkeypatch.setattr(memory, "open", lambda *arguments, **named: Broken(opened(*arguments, **named)))
        async with serving() as server:
            broken = asyncio.gather(*(ask(server, served, "one", n, source="memory://breaks/a") for n in range(3)))
            assert code(await ask(server, served, "two")) is None
            assert {code(events) for events in await broken} == {"adapter_storage_unavailable"}
            assert not [path for path in (tmp_path / "disk").iterdir() if path.is_dir()]
            monkeypatch.setattr(memory, "open", opened)
            assert code(await ask(server, served, "one", source="memory://breaks/a")) is None
            assert await idle(server)

    async def test_that_gives_another_content_is_refused(self, served: Served, serving: Serving) -> None:
        put_in_memory(served, "one", "/wrong/a")
        async with serving() as server:
            events = await ask(server, served, "b" * 64, source="memory://wrong/a")
            assert code(events) == "adapter_digest_mismatch"

    async def test_an_adapter_from_object_storage_answers_as_the_local_one(
        self, served: Served, serving: Serving, tmp_path: Path
    ) -> None:
        put_in_memory(served, "two", "/good/two")
        async with serving() as server:
            local = await ask(server, served, "two")
            await server.unload(served.digests["two"])
            remote = await ask(server, served, "two", source="memory://good/two")
            assert [event.token_ids for event in remote] == [event.token_ids for event in local]

    async def test_a_copy_damaged_on_this_node_is_fetched_again(
        self, served: Served, serving: Serving, tmp_path: Path
    ) -> None:
        digest = served.digests["two"]
        put_in_memory(served, "two", "/again/two")
        async with serving() as server:
            for _ in range(2):  # the second time it comes to memory
                assert code(await ask(server, served, "two", source="memory://again/two")) is None
                await server.unload(digest)
            for tier in ("disk", "host"):
                weights = tmp_path / tier / digest / "adapter_model.safetensors"
                weights.write_bytes(weights.read_bytes()[:100])
            assert code(await ask(server, served, "two", source="memory://again/two")) == "corrupt_adapter"
            assert code(await ask(server, served, "two", source="memory://again/two")) is None

    async def test_all_who_wait_for_a_bad_adapter_hear_why(self, served: Served, serving: Serving) -> None:
        async with serving() as server:
            bad = asyncio.gather(*(ask(server, served, "c" * 64, n, source="/no/such/folder") for n in range(5)))
            good = await ask(server, served, "one")
            assert {code(events) for events in await bad} == {"missing_adapter"}
            assert code(good) is None
            assert await idle(server)


class TestLife:
    async def test_starting_warms_up_and_loads_what_is_pinned(self, served: Served, tmp_path: Path) -> None:
        registry = AdapterRegistry(served.folders["one"].parent)
        registry.register("one", served.folders["one"], served.digests["one"])
        options = ServingOptions(pinned=(served.digests["one"],))
        server = AdapterServer(TorchEngine(served.base, EngineOptions(max_batch=2)), registry, options)
        await server.start(Path(served.base.path))
        assert server.resident() == (served.digests["one"],)
        assert 1 <= (await server.describe())["max_distinct"] <= 2
        assert (await server.describe())["pinned"] == [served.digests["one"]]
        server.close()

    async def test_starting_computes_tokens_of_the_base_before_anybody_comes(
        self, served: Served, serving: Serving, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async with serving() as server:
            told: list[TokenEvent] = []
            step = server._engine.step
            monkeypatch.setattr(server._engine, "step", lambda: (told.extend(events := step()), events)[1])
            await server.start()
            assert [len(event.token_ids) for event in told] == [1, 1]
            assert await idle(server)

    async def test_an_engine_that_does_not_answer_does_not_start(
        self, served: Served, serving: Serving, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken() -> list[TokenEvent]:
            raise RuntimeError("no kernel")

        async with serving() as server:
            monkeypatch.setattr(server._engine, "step", broken)
            with pytest.raises(Unavailable) as caught:
                await server.start()
            assert caught.value.code == "engine_stopped"
            assert "no kernel" in str(caught.value)

    async def test_draining_ends_what_runs_and_takes_nothing_new(self, served: Served, serving: Serving) -> None:
        async with serving() as server:
            running = asyncio.create_task(ask(server, served, "one"))
            await asyncio.sleep(0.02)
            draining = asyncio.create_task(server.drain(within_s=20))
            await asyncio.sleep(0)
            assert code(await ask(server, served, "two")) == "engine_draining"
            assert await draining
            assert code(await running) is None


def put_in_memory(served: Served, name: str, folder: str) -> None:
    memory = fsspec.filesystem("memory")
    for path in served.folders[name].iterdir():
        memory.pipe(f"{folder}/{path.name}", path.read_bytes())
