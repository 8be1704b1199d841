"""OpenLoRA on Ray Serve: the replica that holds one engine, its request router, its meters. No logic of its own; see
`server`, `routing`, `scaling`, `labels`."""

import os
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from ray import serve
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy, RequestRouterConfig
from ray.serve.request_router import FIFOMixin, PendingRequest, ReplicaID, RequestRouter, RunningReplica
from ray.util.metrics import Counter, Gauge, Histogram

from openledger.adapters.base_model import BaseModel, find_base_model
from openledger.adapters.registry import AdapterRegistry
from openledger.adapters.sources import SourceRules
from openledger.core.errors import InvalidInput
from openledger.core.values import EmbeddingRequest, GenerationRequest, TokenEvent
from openledger.openlora.devices import find_device
from openledger.openlora.engine import Engine, Vectors
from openledger.openlora.ensembles import Places, home_of, identity_of
from openledger.openlora.labels import AdapterLabels
from openledger.openlora.outbox import EventOutbox
from openledger.openlora.routing import Homes, RoutingOptions, replica_state, routing_stats
from openledger.openlora.server import AdapterServer, ServingOptions
from openledger.openlora.streams import coalesced
from openledger.openlora.tiers import AdapterTiers, TierOptions
from openledger.openlora.torch_engine import EngineOptions, TorchEngine
from openledger.openlora.vllm_engine import VllmEngine, VllmOptions
from openledger.openlora.wire import Line

NAME = "OpenLoRA"
_STATS_PERIOD_S = 2.0
_QUIET = {"log_level": "WARNING", "enable_access_log": False}  # Serve would write a line for each call
_SECONDS = [0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaOptions:
    """What one replica holds and does. The engine is the one whose options are given. Without `tiers` adapters are read
    from where they lie, which must be a local folder."""

    engine: EngineOptions | VllmOptions = field(default_factory=EngineOptions)
    serving: ServingOptions = field(default_factory=ServingOptions)
    tiers: TierOptions | None = None
    sources: SourceRules = field(default_factory=SourceRules)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalingOptions:
    """How many replicas, and what each takes. With `max_replicas` over `num_replicas` their number follows the load;
    Serve looks every `interval_s`."""

    num_replicas: int = 1
    max_replicas: int = 1
    num_cpus: float = 1
    num_gpus: float = 0
    max_ongoing_requests: int = 1024
    drain_s: float = 60.0
    target_queued_tokens: float = 4096.0
    target_busy: float = 0.8
    interval_s: float = 2.0
    downscale_delay_s: float = 120.0
    routing: RoutingOptions = field(default_factory=RoutingOptions)


class OpenLoRA:
    """Call `generate` with `handle.options(stream=True)`; everything else returns one value, `send` when all was
    said."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it: a replica is ready when it is warm
        self, base_path: str | None, registry_folder: str, options: ReplicaOptions
    ) -> None:
        base = find_base_model(base_path)
        self._server = AdapterServer(
            make_engine(base, options),
            AdapterRegistry(Path(registry_folder)),
            options.serving,
            None if options.tiers is None else AdapterTiers(options.tiers, options.sources),
        )
        self._base_digest = base.digest
        self._coalesce_s = options.serving.coalesce_s
        self._outbox = EventOutbox(self._server.leave, options.serving.coalesce_s)
        self._meters = Meters()
        on_cpu = _is_on_cpu(options.engine)  # where a step's cost is measured
        await self._server.start(Path(base.path) if on_cpu else None)

    async def generate(self, request: GenerationRequest, source: Places = "") -> AsyncGenerator[TokenEvent, None]:
        events = self._meters.metered(request, self._server.generate(request, source))
        async with aclosing(coalesced(events, self._coalesce_s)) as joined:
            async for event in joined:
                yield event

    async def send(self, request: GenerationRequest, source: Places, line: Line) -> None:
        """As `generate`, the events over `line`. Raises what `EventOutbox.send` raises."""
        await self._outbox.send(
            self._meters.metered(request, self._server.generate(request, source)), request.request_id, line
        )

    async def embed(self, request: EmbeddingRequest, source: str = "") -> Vectors:
        vectors = await self._server.embed(request, source)
        self._meters.count_embedding(request)
        return vectors

    async def score(
        self,
        prompt_ids: Sequence[int],
        completion_ids: Sequence[int],
        adapter_digests: Sequence[str],
        places: Mapping[str, str] | None = None,
        precision: str = "",
    ) -> npt.NDArray[np.float32]:
        return await self._server.score(prompt_ids, completion_ids, adapter_digests, places, precision)

    async def load(self, digest: str, place: str) -> None:
        await self._server.load(digest, place)

    async def unload(self, digest: str) -> None:
        await self._server.unload(digest)

    async def pin(self, digest: str, place: str = "") -> None:
        await self._server.pin(digest, place)

    async def unpin(self, digest: str) -> None:
        self._server.unpin(digest)

    async def describe(self) -> dict[str, Any]:
        told = await self._server.describe()
        return {
            **told,
            "base_digest": self._base_digest,
            "replica": serve.get_replica_context().replica_id.unique_id,
            "pid": os.getpid(),
        }

    def check_health(self) -> None:
        self._server.check_health()

    async def record_routing_stats(self) -> dict[str, Any]:
        """Every few seconds in any deployment; `record_autoscaling_stats` only where replicas come and go."""
        self._meters.gauge(await self._server.pressure(), len(self._server.resident()))
        return routing_stats(self._server.resident(), self._server.load_stats(), self._server.merged())

    async def record_autoscaling_stats(self) -> dict[str, float]:
        return await self._server.pressure()

    def __del__(self) -> None:
        if hasattr(self, "_server"):  # it isn't there where the engine could not be made
            self._server.close()


def _is_on_cpu(engine: EngineOptions | VllmOptions) -> bool:
    return isinstance(engine, EngineOptions) and find_device(engine.device, engine.kernels).type == "cpu"


def make_engine(base: BaseModel, options: ReplicaOptions) -> Engine:
    if isinstance(options.engine, VllmOptions):
        return VllmEngine(base, options.engine, options.serving.max_resident)
    return TorchEngine(base, options.engine)


class Meters:
    """What Prometheus scrapes of a replica. No label is an adapter's id but for the few that `AdapterLabels` gives."""

    def __init__(self) -> None:
        self._labels = AdapterLabels()
        by_adapter = ("adapter", "outcome")
        self._requests = Counter("openlora_requests", "Requests that ended, by how", tag_keys=by_adapter)
        self._tokens = Counter("openlora_tokens", "Tokens: prompt, cached, completion", tag_keys=("adapter", "kind"))
        self._first_s = Histogram("openlora_time_to_first_token_s", "Queue, load and prefill", boundaries=_SECONDS)
        self._gauges = {
            name: Gauge(f"openlora_{name}", description)
            for name, description in (
                ("queued", "Requests that wait for their turn"),
                ("queued_tokens", "Their prompt tokens"),
                ("running", "Requests in the engine"),
                ("busy", "Requests in the engine over its batch"),
                ("kv", "Part of the memory for keys and values that is in use"),
                ("resident", "Adapters in slots"),
                ("merged", "1 while the replica has an adapter merged"),
            )
        }

    async def metered(
        self, request: GenerationRequest, events: AsyncGenerator[TokenEvent, None]
    ) -> AsyncGenerator[TokenEvent, None]:
        begun_s, first = time.monotonic(), True
        label = self._labels.of(identity_of(request))
        outcome = "left"
        try:
            async with aclosing(events):
                async for event in events:
                    if first and event.token_ids:
                        first = False
                        self._first_s.observe(time.monotonic() - begun_s)
                    if event.usage is not None:
                        self._count_tokens(label, event)
                    if event.is_last:
                        outcome = str((event.error or {}).get("code") or event.finish_reason)
                    yield event
        finally:
            self._requests.inc(1, {"adapter": label, "outcome": outcome})

    def count_embedding(self, request: EmbeddingRequest) -> None:
        label = self._labels.of(request.adapter_digest)
        self._requests.inc(1, {"adapter": label, "outcome": "embedded"})
        self._tokens.inc(max(1, request.num_tokens), {"adapter": label, "kind": "prompt"})

    def gauge(self, stats: dict[str, float], num_resident: int) -> None:
        for name, value in {**stats, "resident": float(num_resident)}.items():
            if name in self._gauges:
                self._gauges[name].set(value)

    def _count_tokens(self, label: str, event: TokenEvent) -> None:
        assert event.usage is not None
        told = asdict(event.usage)
        for kind in ("prompt", "cached", "completion"):
            if number := told[f"{kind}_tokens"]:
                self._tokens.inc(number, {"adapter": label, "kind": kind})


class AdapterRouter(FIFOMixin, RequestRouter):
    """Sends a request to a home of its adapter; see `routing.Homes`. One in each process that holds a handle.

    Requests are told apart by what they are, not by Serve's id: all calls that a gateway makes for one HTTP request
    through Serve's proxy share it, and `RequestRouter` alone routes the first of them and leaves the others for ever.
    """

    def initialize_state(self, **options: Any) -> None:
        self._homes = Homes(time.monotonic, RoutingOptions(**options))
        self._in_flight: dict[str, int] = {}

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        super().update_replicas(replicas)
        self._homes.update({str(r.replica_id): replica_state(r.routing_stats or {}) for r in replicas})
        there = {str(replica.replica_id) for replica in replicas}
        self._in_flight = {name: number for name, number in self._in_flight.items() if name in there}

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        by_name = {str(replica.replica_id): replica for replica in candidate_replicas}
        requests = {name: self._requests(replica) for name, replica in by_name.items()}
        if pending_request is not None:
            pending_request.routing_context.should_backoff = True
        digest = _digest_of(pending_request)
        return [[by_name[name] for name in rank] for rank in self._homes.rank(digest, requests)]

    def _get_pending_request_matching_metadata(self, request_metadata: Any = None) -> PendingRequest | None:
        same = (one for one in self._pending_requests_to_fulfill if one.metadata is request_metadata)
        return next((one for one in same if not one.future.done()), None)

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any) -> None:
        name = str(replica_id)
        self._in_flight[name] = self._in_flight.get(name, 0) + 1
        if digest := _digest_of(pending_request):
            self._homes.count(digest)

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        name = str(replica_id)
        self._in_flight[name] = max(0, self._in_flight.get(name, 0) - 1)

    def _requests(self, replica: RunningReplica) -> float:
        known = self.replica_queue_len_cache.get(replica.replica_id)
        return float(max(known or 0, self._in_flight.get(str(replica.replica_id), 0)))


def build_openlora(
    base_path: str | None,
    registry_folder: str,
    *,
    replica: ReplicaOptions | None = None,
    scaling: ScalingOptions | None = None,
    name: str = NAME,
) -> serve.Application:
    """The application for `serve.run` or to bind into another deployment. `base_path` None is the embedded base; each
    base model is a deployment of its own `name`. Raises InvalidInput (`merging_alone`)."""
    replica, scaling = replica or ReplicaOptions(), scaling or ScalingOptions()
    if isinstance(replica.engine, EngineOptions) and replica.engine.device == "auto":
        # Ray doesn't hide a node's GPUs from those who asked for none; a GPU that nobody computes on is refused there
        device = "cuda" if scaling.num_gpus else "cpu"
        replica = replace(replica, engine=replace(replica.engine, device=device))
    if replica.serving.merge.after_s and max(scaling.num_replicas, scaling.max_replicas) < 2:
        raise InvalidInput(
            "a replica that merges an adapter leaves the others to other replicas, and there is only one",
            code="merging_alone",
            param="merge",
            fix="take two replicas or more, or leave merging off",
        )
    deployment = serve.deployment(
        OpenLoRA,
        name=name,
        max_ongoing_requests=scaling.max_ongoing_requests,
        ray_actor_options={"num_cpus": scaling.num_cpus, "num_gpus": scaling.num_gpus},
        health_check_period_s=5,
        graceful_shutdown_timeout_s=scaling.drain_s,
        request_router_config=_router(scaling.routing),
        logging_config=_QUIET,
        **_replicas(scaling),
    )
    return deployment.bind(base_path, registry_folder, replica)


def _router(routing: RoutingOptions) -> RequestRouterConfig:
    return RequestRouterConfig(
        request_router_class=f"{__name__}:AdapterRouter",
        request_router_kwargs=asdict(routing),
        request_routing_stats_period_s=_STATS_PERIOD_S,
    )


def _replicas(scaling: ScalingOptions) -> dict[str, Any]:
    if scaling.max_replicas <= scaling.num_replicas:
        return {"num_replicas": scaling.num_replicas}
    policy = AutoscalingPolicy(
        policy_function="openledger.openlora.scaling:TokenPressure",
        policy_kwargs={"target_queued_tokens": scaling.target_queued_tokens, "target_busy": scaling.target_busy},
    )
    config = AutoscalingConfig(
        min_replicas=scaling.num_replicas,
        max_replicas=scaling.max_replicas,
        initial_replicas=scaling.num_replicas,
        metrics_interval_s=scaling.interval_s,
        look_back_period_s=2 * scaling.interval_s,
        upscale_delay_s=scaling.interval_s,
        downscale_delay_s=scaling.downscale_delay_s,
        policy=policy,
    )
    return {"autoscaling_config": config}


def _digest_of(pending_request: PendingRequest | None) -> str:
    """A request's adapter; empty for the base, and for calls that are no generation."""
    asked = None if pending_request is None or not pending_request.args else pending_request.args[0]
    return home_of(asked) if isinstance(asked, GenerationRequest) else str(getattr(asked, "adapter_digest", ""))
