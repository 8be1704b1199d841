"""OpenLoRA on Ray Serve: the replica that holds one engine. No logic of its own; see `server`."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from ray import serve

from openledger.adapters.base_model import find_base_model
from openledger.adapters.registry import AdapterRegistry
from openledger.core.values import GenerationRequest, TokenEvent
from openledger.openlora.server import AdapterServer, ServingOptions
from openledger.openlora.torch_engine import EngineOptions, TorchEngine

NAME = "OpenLoRA"


class OpenLoRA:
    """Call `generate` with `handle.options(stream=True)`; everything else returns one value."""

    def __init__(self, base_path: str | None, registry_folder: str, options: EngineOptions, max_resident: int):
        engine = TorchEngine(find_base_model(base_path), options)
        self._server = AdapterServer(
            engine, AdapterRegistry(Path(registry_folder)), ServingOptions(max_resident=max_resident)
        )

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenEvent, None]:
        async with aclosing(self._server.generate(request)) as events:
            async for event in events:
                yield event

    async def score(
        self, prompt_ids: Sequence[int], completion_ids: Sequence[int], adapter_digests: Sequence[str]
    ) -> npt.NDArray[np.float32]:
        return await self._server.score(prompt_ids, completion_ids, adapter_digests)

    async def load(self, digest: str, folder: str) -> None:
        await self._server.load(digest, folder)

    async def unload(self, digest: str) -> None:
        await self._server.unload(digest)

    async def describe(self) -> dict[str, Any]:
        return await self._server.describe()

    def check_health(self) -> None:
        self._server.check_health()


def build_openlora(
    base_path: str | None,
    registry_folder: str,
    *,
    options: EngineOptions | None = None,
    max_resident: int = 64,
    num_replicas: int = 1,
    num_cpus: float = 1,
    max_ongoing_requests: int = 256,
) -> serve.Application:
    """The application for `serve.run` or to bind into another deployment. `base_path` None is the embedded base."""
    deployment = serve.deployment(
        OpenLoRA,
        name=NAME,
        num_replicas=num_replicas,
        max_ongoing_requests=max_ongoing_requests,
        ray_actor_options={"num_cpus": num_cpus},
        health_check_period_s=5,
    )
    return deployment.bind(base_path, registry_folder, options or EngineOptions(), max_resident)
