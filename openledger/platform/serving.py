"""Ray Serve: started once, with gateway and engine deployed by import path (the API lies above this package)."""

import importlib
import logging
from typing import Any
from urllib.parse import urlsplit

from openledger.adapters.registry import AdapterRegistry
from openledger.core.errors import Unavailable
from openledger.platform.scoring import EngineScorer
from openledger.platform.workdir import Workdir

APPLICATION = "openledger"
GATEWAY = "openledger.console.deployment:build"
ENGINE = "OpenLoRA"


def start_serving(workdir: Workdir, base_model: str, url: str, **settings: Any) -> Any:
    """Deploy the application at `url` and wait until it answers; the engine's handle. The gateway listens there by
    itself, on this node: Serve's proxy is not started. `settings` are further `GatewayArguments`.

    Raises Unavailable (`serve_failed`) when a replica doesn't come up.
    """
    import ray
    from ray import serve
    from ray.serve.schema import LoggingConfig

    address = urlsplit(url)
    module, _, name = GATEWAY.partition(":")
    build = importlib.import_module(module).__dict__[name]
    arguments = importlib.import_module(module).GatewayArguments(
        workdir=str(workdir.root),
        base_model=base_model,
        http_host=address.hostname,
        http_port=address.port,
        http_node=ray.get_runtime_context().get_node_id(),
        **settings,
    )
    logging.getLogger("ray.serve").addFilter(lambda record: record.levelno >= logging.WARNING)
    serve.start(
        proxy_location="Disabled",
        logging_config=LoggingConfig(log_level="WARNING", enable_access_log=False),
    )
    try:
        serve.run(build(arguments), name=APPLICATION, route_prefix="/")
    except RuntimeError as error:
        raise Unavailable(
            f"the gateway or the engine didn't start: {error}",
            code="serve_failed",
            fix="the replica's traceback is in the Ray dashboard under Serve",
        ) from error
    return engine_handle()


def engine_handle() -> Any:
    from ray import serve

    return serve.get_deployment_handle(ENGINE, app_name=APPLICATION)


def engine_score(registry: AdapterRegistry | None = None) -> EngineScorer:
    """The running engines as a scorer: by `registry` it is known which base's engine an adapter was served by; without
    one the first base's scores all. Raises Unavailable (`not_serving`)."""
    from ray import serve

    if APPLICATION not in serve.status().applications:
        raise Unavailable(
            "no engine is serving on this cluster",
            code="not_serving",
            fix="deploy it first: serve deploy serve_apps/openledger.yaml",
        )
    return EngineScorer(_engines_by_base() if registry is not None else {"": engine_handle()}, registry)


def _engines_by_base() -> dict[str, Any]:
    """The handles of the engines' deployments by their bases' digests; under "" the first."""
    from ray import serve

    names = (name for name in serve.status().applications[APPLICATION].deployments if name.startswith(ENGINE))
    handles = [serve.get_deployment_handle(name, app_name=APPLICATION) for name in names]
    by_base = {handle.describe.remote().result()["base_digest"]: handle for handle in handles}
    return {"": engine_handle(), **by_base}
