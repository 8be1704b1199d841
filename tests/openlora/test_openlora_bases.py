"""Two base models side by side on Ray Serve: answers and scores come from the engine of an adapter's own base."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from openlora_models import Served, make_served, prompt_of
from ray.util import get_node_ip_address
from serving_stack import Local, terms

from openledger.adapters.registry import AdapterRegistry
from openledger.core.values import SamplingParameters
from openledger.economy import Economy
from openledger.ledger import Ledger
from openledger.openlora.deployment import ScalingOptions, build_openlora
from openledger.openlora.inbox import EventInbox
from openledger.openlora.torch_engine import TorchEngine
from openledger.platform.bases import offer_base
from openledger.platform.live import LiveService
from openledger.platform.serving import APPLICATION, ENGINE, engine_score
from openledger.platform.workdir import Workdir

pytestmark = pytest.mark.cluster
ALICE = "user:alice"


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Served]:
    """A Llama and a Qwen, each with adapters."""
    root = tmp_path_factory.mktemp("worlds")
    return {name: make_served(root / name, family) for name, family in (("small", "llama"), ("other", "qwen2"))}


@pytest.fixture(scope="module")
def house(cluster: Any, worlds: dict[str, Served], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from ray import serve

    class Ingress:
        """What holds the engines together as one application. In here, as replicas can't import a test."""

        def __init__(self, *engines: Any):
            self.engines = engines

    workdir = Workdir(tmp_path_factory.mktemp("house"))
    registry = AdapterRegistry(workdir.adapters)
    for name, world in worlds.items():
        told = terms(f"on-{name}", world.digests["one"])
        registry.register(
            told.adapter, None, told.adapter_digest, told, source=str(world.folders["one"]),
            base_digest=world.base.digest,
        )  # fmt: skip
    names = {f"{ENGINE}{suffix}": world.base for suffix, world in zip(("", "-other"), worlds.values(), strict=True)}
    scaling = ScalingOptions(num_cpus=0.5, drain_s=2)
    engines = [build_openlora(base.path, str(workdir.adapters), scaling=scaling, name=n) for n, base in names.items()]
    serve.start(proxy_location="Disabled")
    ingress = serve.deployment(Ingress).options(ray_actor_options={"num_cpus": 0})
    serve.run(ingress.bind(*engines), name=APPLICATION, route_prefix=None)
    handles = {base: serve.get_deployment_handle(name, app_name=APPLICATION) for name, base in names.items()}
    ledger = Ledger(workdir.ledger / "ledger.db")
    economy = Economy(ledger, workdir.ledger)
    economy.grant(ALICE, 10**12, "first")
    yield handles, registry, Workdir(workdir.root), ledger, economy
    serve.delete(APPLICATION)
    economy.close()
    ledger.close()


def test_each_is_answered_and_scored_by_its_own_base(house: Any, worlds: dict[str, Served]) -> None:
    """Asked at the same time, by adapter and by base: what each says is what an engine of that base alone says."""
    handles, registry, workdir, ledger, economy = house
    for world in worlds.values():
        named = type(world.base)(**{**_fields(world.base), "name": Path(world.base.path).parent.name})
        offer_base(registry, named, "user:operator", (1, 1))
    prompt = prompt_of(9)

    async def ask_all() -> dict[str, str]:
        inbox = EventInbox(get_node_ip_address())
        service = LiveService(workdir, handles, Local(None), Local(ledger), Local(economy), inbox=inbox)

        async def ask(model: str) -> str:
            asked = service.complete(
                account=ALICE, model=model, prompts=[prompt], sampling=SamplingParameters(max_tokens=8),
                idempotency_key="",
            )  # fmt: skip
            return "".join([event.text async for event in asked])

        models = [entry.id for entry in await service.models()]
        told = dict(zip(models, await asyncio.gather(*map(ask, models)), strict=True))
        inbox.close()
        return told

    told, score = asyncio.run(ask_all()), engine_score(registry)
    for name, world in worlds.items():
        engine = TorchEngine(world.base)
        engine.load(world.digests["one"], world.folders["one"])
        assert told[f"on-{name}"] == _text(engine, prompt, world.digests["one"])
        assert told[name] == _text(engine, prompt, "")
        digests = ["", world.digests["one"]]
        expected = engine.score(prompt, prompt_of(5), digests)
        assert np.allclose(score(prompt, prompt_of(5), digests), expected, atol=1e-4)
    assert len(set(told.values())) == 4


def _text(engine: TorchEngine, prompt: list[int], digest: str) -> str:
    from openlora_models import request, run, text_of

    return text_of(run(engine, request("r", prompt, digest, max_tokens=8))["r"])


def _fields(base: Any) -> dict[str, Any]:
    return {name: getattr(base, name) for name in ("name", "path", "digest", "max_positions")}
