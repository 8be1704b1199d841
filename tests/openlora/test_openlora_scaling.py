"""Replicas that follow the load on Ray Serve: more while tokens wait, fewer after, and no request lost either way."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from openlora_models import Served, make_served, prompt_of, request

from openledger.adapters.registry import AdapterRegistry
from openledger.openlora.deployment import NAME, ReplicaOptions, ScalingOptions, build_openlora
from openledger.openlora.server import ServingOptions
from openledger.openlora.torch_engine import EngineOptions

pytestmark = [pytest.mark.cluster, pytest.mark.slow]
APPLICATION = "openlora-scaling"
NUM_AT_ONCE = 24
WITHIN_S = 300  # for a replica to start or to leave on a machine that others use


@pytest.fixture
def handle(cluster: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Served]]:
    """One replica that may become two: two requests at once, others wait; 64 waiting tokens are one replica's load."""
    from ray import serve

    served = make_served(tmp_path_factory.mktemp("served"))
    root = served.folders["one"].parent
    registry = AdapterRegistry(root)
    for name, folder in served.folders.items():
        registry.register(name, folder, served.digests[name])
    replica = ReplicaOptions(engine=EngineOptions(max_batch=2), serving=ServingOptions(max_resident=4))
    scaling = ScalingOptions(
        num_replicas=1, max_replicas=2, num_cpus=0.5, drain_s=60, target_queued_tokens=64, interval_s=1,
        downscale_delay_s=4,
    )  # fmt: skip
    application = build_openlora(served.base.path, str(root), replica=replica, scaling=scaling)
    serve.start(proxy_location="Disabled")
    yield serve.run(application, name=APPLICATION, route_prefix=None), served
    serve.delete(APPLICATION)


def test_replicas_come_with_waiting_tokens_and_leave_after_and_every_request_is_answered(
    handle: tuple[Any, Served], capsys: pytest.CaptureFixture[str]
) -> None:
    told = asyncio.run(rise_and_fall(*handle))
    with capsys.disabled():
        print("\n" + "\n".join(told))


async def rise_and_fall(handle: Any, served: Served) -> list[str]:
    """What happened, line by line. Raises where a request fails or is cut short, or replicas don't follow."""
    begun_s, told, numbers = time.monotonic(), list[str](), iter(range(10**6))
    digests = list(served.digests.values())

    def note(what: str) -> None:
        told.append(f"{time.monotonic() - begun_s:6.1f} s  {num_running()} replicas  {what}")

    async def ask() -> None:
        number = next(numbers)
        each = request(f"r{number}", prompt_of(20), digests[number % 3], max_tokens=40, ignore_end=True)
        events = [event async for event in handle.options(stream=True).generate.remote(each)]
        assert events[-1].error is None
        assert sum(len(event.token_ids) for event in events) == 40

    note("idle")
    async with kept_busy(ask, NUM_AT_ONCE):
        await until(lambda: num_running() == 2)
        note(f"after {NUM_AT_ONCE} at once")
    note(f"all {next(numbers)} answered")
    async with kept_busy(ask, 1):  # one at a time: whoever is taken away may be answering it
        await until(lambda: num_running() == 1)
        note("after one at a time")
    note(f"all {next(numbers) - 1} answered")
    return told


@asynccontextmanager
async def kept_busy(ask: Any, num_at_once: int) -> AsyncIterator[None]:
    """So many requests at every moment; at the end those under way are waited for."""
    ending = asyncio.Event()

    async def keep_asking() -> None:
        while not ending.is_set():
            await ask()

    asking = [asyncio.create_task(keep_asking()) for _ in range(num_at_once)]
    try:
        yield
    finally:
        ending.set()
        await asyncio.gather(*asking)


async def until(is_so: Any) -> None:
    end_s = time.monotonic() + WITHIN_S
    while not is_so():
        assert time.monotonic() < end_s, "the replicas don't follow the load"
        await asyncio.sleep(0.5)


def num_running() -> int:
    from ray import serve

    states = serve.status().applications[APPLICATION].deployments[NAME].replica_states
    return sum(number for state, number in states.items() if getattr(state, "value", state) == "RUNNING")
