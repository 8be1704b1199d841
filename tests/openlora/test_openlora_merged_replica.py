"""On Ray Serve: the replica that one adapter fills merges it, the others go to the other replica, and back."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from openlora_models import (
    Served,
    assert_same_greedy,
    generate_alone,
    make_served,
    peft_model,
    prompt_of,
    request,
    tokens_of,
)  # fmt: skip
from ray.serve._private.common import DeploymentID, ReplicaID

from openledger.adapters.registry import AdapterRegistry
from openledger.openlora.deployment import NAME, ReplicaOptions, ScalingOptions, build_openlora
from openledger.openlora.merging import MergeOptions
from openledger.openlora.routing import Homes, RoutingOptions
from openledger.openlora.server import ServingOptions
from openledger.openlora.torch_engine import EngineOptions

pytestmark = pytest.mark.cluster
APPLICATION = "openlora-merging"
NUM_AT_ONCE = 5  # of a batch of 4
WITHIN_S = 240  # for what takes seconds on a machine that nobody else uses

Told = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Served:
    return make_served(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="module")
def handle(cluster: Any, served: Served) -> Iterator[Any]:
    """Two replicas; each adapter has one home, which is passed by only with far more to do than the other."""
    from ray import serve

    root = served.folders["one"].parent
    registry = AdapterRegistry(root)
    for name, folder in served.folders.items():
        registry.register(name, folder, served.digests[name])
    serving = ServingOptions(max_resident=4, merge=MergeOptions(after_s=1.0, fill=0.6, keep=0.1))
    replica = ReplicaOptions(engine=EngineOptions(max_batch=4), serving=serving)
    routing = RoutingOptions(max_homes=1, bound=2.0, slack=8.0)
    scaling = ScalingOptions(num_replicas=2, num_cpus=0.5, drain_s=5, routing=routing)
    application = build_openlora(served.base.path, str(root), replica=replica, scaling=scaling)
    serve.start(proxy_location="Disabled")
    yield serve.run(application, name=APPLICATION, route_prefix=None)
    serve.delete(APPLICATION)


async def test_the_replica_that_one_adapter_fills_is_its_own_until_the_heat_falls(handle: Any, served: Served) -> None:
    replicas = await described(handle)
    hot, other = with_one_home(served, list(replicas))
    async with kept_busy(handle, served.digests[hot]):
        replicas = await until(handle, lambda told: any(each["merged"] for each in told.values()))
        (own,) = [name for name, each in replicas.items() if each["merged"] == served.digests[hot]]
        assert replicas[own]["merged_bytes"] > 0

        async def asked_elsewhere() -> bool:
            """The other adapter, whose home this replica is too; routers hear of it within seconds."""
            assert await greedy(handle, served, other)
            told = await described(handle)
            return any(served.digests[other] in each["resident"] for name, each in told.items() if name != own)

        await eventually(asked_elsewhere)
        assert await greedy(handle, served, hot)
        scores = await handle.score.remote(prompt_of(4), prompt_of(5), ["", served.digests[other]])
        assert scores.shape == (2, 5)
    replicas = await until(handle, lambda told: not any(each["merged"] for each in told.values()))
    assert {each["merged_bytes"] for each in replicas.values()} == {0}
    assert await greedy(handle, served, hot)


def with_one_home(served: Served, replicas: list[str]) -> tuple[str, str]:
    """Two of the three adapters that have the same home: there are two."""
    deployment = DeploymentID(name=NAME, app_name=APPLICATION)
    names = [str(ReplicaID(unique_id=name, deployment_id=deployment)) for name in replicas]
    homes = {name: Homes(lambda: 0.0).homes(digest, names)[0] for name, digest in served.digests.items()}
    return next(pair for pair in itertools.combinations(homes, 2) if homes[pair[0]] == homes[pair[1]])


async def greedy(handle: Any, served: Served, name: str) -> bool:
    """One answer under an adapter, which is PEFT's."""
    each = request(f"{name}-{next(_numbers)}", prompt_of(9), served.digests[name])
    events = [event async for event in handle.options(stream=True).generate.remote(each)]
    assert_same_greedy(tokens_of(events), generate_alone(peft_model(served, name), prompt_of(9), 12))
    return True


async def described(handle: Any) -> Told:
    """What both replicas tell. Asked many at a time: a lone call always goes to the less busy one."""
    found: Told = {}
    async with asyncio.timeout(WITHIN_S):
        while len(found) < 2:
            told = await asyncio.gather(*(handle.describe.remote() for _ in range(48)))
            found |= {each["replica"]: each for each in told}
    return found


async def until(handle: Any, is_so: Callable[[Told], bool]) -> Told:
    async with asyncio.timeout(WITHIN_S):
        while not is_so(told := await described(handle)):
            await asyncio.sleep(0.2)
    return told


async def eventually(is_so: Any) -> None:
    async with asyncio.timeout(WITHIN_S):
        while not await is_so():
            await asyncio.sleep(0.2)


@asynccontextmanager
async def kept_busy(handle: Any, digest: str) -> AsyncIterator[None]:
    """Requests under one adapter at every moment, none of which may fail."""
    ending = asyncio.Event()

    async def keep_asking() -> None:
        while not ending.is_set():
            each = request(f"busy-{next(_numbers)}", prompt_of(5), digest, max_tokens=60, ignore_end=True)
            events = [event async for event in handle.options(stream=True).generate.remote(each)]
            assert (events[-1].error, events[-1].finish_reason) == (None, "length")

    asking = [asyncio.create_task(keep_asking()) for _ in range(NUM_AT_ONCE)]
    try:
        yield
    finally:
        ending.set()
        await asyncio.gather(*asking)


_numbers = itertools.count()
