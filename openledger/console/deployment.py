"""The gateway on Ray Serve: one application of API and console in front of the engine's deployment.

serve run serve_apps.openledger_app:app
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import ray
from pydantic import BaseModel as Arguments
from pydantic import NonNegativeInt
from ray import serve
from ray.util import get_node_ip_address

from openledger.adapters.base_model import base_name, find_base_model
from openledger.adapters.checks import AdapterLimits
from openledger.adapters.registry import AdapterRegistry
from openledger.adapters.sources import SourceRules
from openledger.api.door import Door
from openledger.console.app import create_full_app
from openledger.core.money import Unit
from openledger.datanets.actor import GATE_WORKERS
from openledger.openlora.deployment import ReplicaOptions, ScalingOptions, build_openlora
from openledger.openlora.inbox import EventInbox
from openledger.openlora.merging import MergeOptions
from openledger.openlora.server import ServingOptions
from openledger.openlora.tiers import HOST_FOLDER, TierOptions
from openledger.openlora.torch_engine import EngineOptions
from openledger.openlora.vllm_engine import VllmOptions
from openledger.platform.actors import datanets_actor, economy_actor, ledger_actor
from openledger.platform.bases import offer_base, twice
from openledger.platform.live import LiveService
from openledger.platform.point_of_sale import begin_offers, log_on_sale
from openledger.platform.prices import BASE_PRICES, prices_in
from openledger.platform.workdir import Workdir

APPLICATION = "openledger"
ENGINE = "OpenLoRA"
_DRAIN_S = 60
_NODE_LABEL = "ray.io/node-id"  # Ray gives it to each node


class GatewayArguments(Arguments):
    """`workdir` is the installation's folder, `base_model` a folder or hub id (empty: the embedded one), and
    `base_models` further ones beside it, each with a deployment of its own. What follows holds for each of them. With a
    `base_owner`, an account, they are sold by themselves under their names, at prices for each token in the smallest
    part of the unit; without prices, at 0.0001 and 0.0005 of it. `unit` is the unit of account of a new installation, a
    currency's code; empty: as the log has it, which begins in OPEN. One that the log contradicts is refused
    (`unit_chosen`).

    `engine` is `torch`, which comes with the package and computes on the CPU, or `vllm` for nodes with GPUs, where the
    extra of that name must be installed. `slots` adapters are in an engine's memory at once, none of a rank over
    `max_rank`; vLLM's slots take memory for that rank. With `max_replicas` over `replicas` their number follows the
    load. With `merge_after_s` over 0 a replica that one adapter has filled for so long merges it, which takes two
    replicas. `gate_workers` processes prepare large contributions beside the Datanets; with 0 these do it themselves.
    With `duplicates_by_shard` each shard has the duplicate index of its own rows, under a key.
    `host_memory_mb` keeps adapters in memory that a node's replicas share, for nodes with several. Adapters may be
    added from the folder `incoming` and, by `adapter_schemes`, from elsewhere. With an `http_port` the gateway also
    listens by itself, at `http_host`; streams cost less than through Serve's proxy. It then stays on the Ray node
    that `http_node` names by id or by a label (KEY=VALUE), where it does, as its address is that node's.
    """

    workdir: str
    base_model: str = ""
    base_models: tuple[str, ...] = ()
    base_owner: str = ""
    base_prompt_price_nano: int | None = None
    base_completion_price_nano: int | None = None
    unit: str = ""
    engine: Literal["torch", "vllm"] = "torch"
    slots: int = 64
    max_rank: int = 64
    replicas: int = 1
    max_replicas: int = 1
    merge_after_s: float = 0
    gpus_per_replica: float = 0
    gate_workers: NonNegativeInt = GATE_WORKERS
    duplicates_by_shard: bool = False
    host_memory_mb: int = 0
    adapter_schemes: tuple[str, ...] = ()
    http_host: str = "127.0.0.1"
    http_port: int = 0
    http_node: str = ""


def build(arguments: GatewayArguments) -> serve.Application:
    """The Serve application; `serve deploy` calls this with the `args` of its YAML."""

    def gateway_app() -> Any:
        return start_gateway(arguments, names)

    names = _deployments(arguments)
    if arguments.unit:
        Unit(name=arguments.unit)  # what can't be one is refused before anything starts
    replica = ReplicaOptions(
        engine=_engine(arguments),
        serving=ServingOptions(max_resident=arguments.slots, merge=MergeOptions(after_s=arguments.merge_after_s)),
        tiers=_tiers(arguments),
        sources=_sources(arguments),
    )
    scaling = ScalingOptions(
        num_replicas=arguments.replicas,
        max_replicas=arguments.max_replicas,
        num_gpus=arguments.gpus_per_replica,
    )
    engines = [
        build_openlora(named, f"{arguments.workdir}/adapters", replica=replica, scaling=scaling, name=name)
        for name, named in names.items()
    ]
    gateway = serve.deployment(serve.ingress(gateway_app)()).options(
        name="Gateway",
        num_replicas=1,
        max_ongoing_requests=1024,
        graceful_shutdown_timeout_s=2 * _DRAIN_S + 10,
        ray_actor_options={"num_cpus": 0, **_place(arguments)},
    )
    return gateway.bind(*engines)


def start_gateway(arguments: GatewayArguments, names: Mapping[str, str | None]) -> Any:
    """The gateway's application, in the process that serves it; `names` are the engines' deployments by name."""
    workdir = Workdir(Path(arguments.workdir))
    engines = {
        find_base_model(named): serve.get_deployment_handle(name, app_name=APPLICATION) for name, named in names.items()
    }
    economy = economy_actor(workdir, arguments.unit)
    prices, registry = base_prices(arguments, ray.get(economy.unit.remote())), AdapterRegistry(workdir.adapters)
    begin_offers(economy, registry)
    for base in engines:
        offer_base(registry, base, arguments.base_owner, prices)
    log_on_sale(economy, registry)
    service = LiveService(
        workdir,
        engines,
        datanets_actor(workdir, arguments.gate_workers, arguments.duplicates_by_shard),
        ledger_actor(workdir),
        economy,
        _sources(arguments),
        _inbox(),
    )
    return create_full_app(service, door=_door(arguments))


def base_prices(arguments: GatewayArguments, unit: Unit) -> tuple[int, int]:
    given = arguments.base_prompt_price_nano, arguments.base_completion_price_nano
    return prices_in(unit, given, BASE_PRICES)


def _deployments(arguments: GatewayArguments) -> dict[str, str | None]:
    """The base models by the names of their deployments, the first one's without its own. Raises InvalidInput
    (`base_named_twice`)."""
    first, further = arguments.base_model or None, arguments.base_models
    if len({base_name(named) for named in (first, *further)}) <= len(further):
        raise twice(", ".join(base_name(named) for named in (first, *further)))
    return {ENGINE: first, **{f"{ENGINE}-{base_name(named)}": named for named in further}}


def _engine(arguments: GatewayArguments) -> EngineOptions | VllmOptions:
    limits = AdapterLimits(max_rank=arguments.max_rank)
    return VllmOptions(adapter_limits=limits) if arguments.engine == "vllm" else EngineOptions(adapter_limits=limits)


def _place(arguments: GatewayArguments) -> dict[str, Any]:
    if not (arguments.http_port and arguments.http_node):
        return {}
    name, _, value = arguments.http_node.rpartition("=")
    return {"label_selector": {name or _NODE_LABEL: value}}


def _door(arguments: GatewayArguments) -> Door | None:
    if not arguments.http_port:
        return None
    return Door(host=arguments.http_host, port=arguments.http_port, drain_s=_DRAIN_S, installation=arguments.workdir)


def _inbox() -> EventInbox | None:
    """Lines are not encrypted: where Ray's own traffic is, events go with it."""
    return None if os.environ.get("RAY_USE_TLS", "0") == "1" else EventInbox(get_node_ip_address())


def _sources(arguments: GatewayArguments) -> SourceRules:
    return SourceRules(folders=(f"{arguments.workdir}/incoming",), schemes=("file", *arguments.adapter_schemes))


def _tiers(arguments: GatewayArguments) -> TierOptions:
    return TierOptions(
        disk_folder=f"{arguments.workdir}/cache",
        host_folder=HOST_FOLDER if arguments.host_memory_mb else "",
        host_bytes=arguments.host_memory_mb << 20,
    )
