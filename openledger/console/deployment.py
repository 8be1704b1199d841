"""The gateway on Ray Serve: one application of API and console in front of the engine's deployment.

serve run serve_apps.openledger_app:app
"""

from typing import Any

from pydantic import BaseModel as Arguments
from ray import serve

from openledger.adapters.base_model import find_base_model
from openledger.console.app import create_full_app
from openledger.openlora.deployment import build_openlora
from openledger.platform.actors import datanets_actor, economy_actor, ledger_actor
from openledger.platform.live import LiveService
from openledger.platform.workdir import Workdir

APPLICATION = "openledger"
ENGINE = "OpenLoRA"


class GatewayArguments(Arguments):
    """`workdir` is the installation's folder, `base_model` a folder or hub id (empty: the embedded one)."""

    workdir: str
    base_model: str = ""


def build(arguments: GatewayArguments) -> serve.Application:
    """The Serve application; `serve deploy` calls this with the `args` of its YAML."""

    def gateway_app() -> Any:
        from pathlib import Path

        workdir = Workdir(Path(arguments.workdir))
        service = LiveService(
            workdir,
            find_base_model(arguments.base_model or None),
            serve.get_deployment_handle(ENGINE, app_name=APPLICATION),
            datanets_actor(workdir),
            ledger_actor(workdir),
            economy_actor(workdir),
        )
        return create_full_app(service)

    engine = build_openlora(arguments.base_model or None, f"{arguments.workdir}/adapters")
    gateway = serve.deployment(serve.ingress(gateway_app)()).options(
        name="Gateway",
        num_replicas=1,
        max_ongoing_requests=256,
        ray_actor_options={"num_cpus": 0},
    )
    return gateway.bind(engine)
