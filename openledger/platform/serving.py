"""Ray Serve: started once, with gateway and engine deployed by import path (the API lies above this package)."""

import importlib
import logging
from typing import Any
from urllib.parse import urlsplit

from openledger.core.errors import Unavailable
from openledger.platform.workdir import Workdir

APPLICATION = "openledger"
GATEWAY = "openledger.console.deployment:build"
ENGINE = "OpenLoRA"


def start_serving(workdir: Workdir, base_model: str, url: str) -> Any:
    """Deploy the application at `url` and wait until it answers; the engine's handle. The gateway listens there by
    itself, on this node: Serve's proxy is not started.

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


def engine_score() -> Any:
    """The running engine as a `core.Scorer`'s method. Raises Unavailable (`not_serving`) where none is deployed."""
    from ray import serve

    if APPLICATION not in serve.status().applications:
        raise Unavailable(
            "no engine is serving on this cluster",
            code="not_serving",
            fix="deploy it first: serve deploy serve_apps/openledger.yaml",
        )
    engine = engine_handle()
    return lambda prompt, completion, digests: engine.score.remote(prompt, completion, digests).result()
