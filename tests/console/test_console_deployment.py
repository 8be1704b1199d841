"""How the gateway is deployed: where it may run, and how long it may take to end."""

from typing import Any

import pytest

from openledger.console.deployment import GatewayArguments, build
from openledger.core.errors import InvalidInput
from openledger.openlora.torch_engine import EngineOptions
from openledger.openlora.vllm_engine import VllmOptions


def gateway(**arguments: Any) -> Any:
    return build(GatewayArguments(workdir="/nowhere", **arguments))._bound_deployment


def test_a_gateway_that_listens_by_itself_stays_on_the_node_whose_address_it_has() -> None:
    options = gateway(http_port=8000, http_node="ab" * 28).ray_actor_options
    assert options["label_selector"] == {"ray.io/node-id": "ab" * 28}


def test_the_node_may_be_named_by_a_label() -> None:
    options = gateway(http_port=8000, http_node="openledger.io/gateway=here").ray_actor_options
    assert options["label_selector"] == {"openledger.io/gateway": "here"}


@pytest.mark.parametrize("arguments", [{"http_port": 8000}, {"http_node": "ab" * 28}, {}])
def test_any_other_runs_where_there_is_room(arguments: dict[str, Any]) -> None:
    assert "label_selector" not in gateway(**arguments).ray_actor_options


def test_it_may_take_as_long_to_end_as_draining_and_paying_take() -> None:
    assert gateway()._deployment_config.graceful_shutdown_timeout_s >= 130


def test_each_base_has_engines_of_its_own() -> None:
    bound = build(GatewayArguments(workdir="/nowhere", base_models=("/models/Large", "org/small")))
    engines = {each._bound_deployment.name: each._bound_deployment.init_args[0] for each in bound_arguments(bound)}
    assert engines == {"OpenLoRA": None, "OpenLoRA-large": "/models/Large", "OpenLoRA-small": "org/small"}


def test_two_bases_of_one_name_are_refused() -> None:
    with pytest.raises(InvalidInput) as caught:
        build(GatewayArguments(workdir="/nowhere", base_model="/a/llama", base_models=("/b/llama",)))
    assert (caught.value.code, caught.value.param) == ("base_named_twice", "base_models")


def bound_arguments(application: Any) -> Any:
    return application._bound_deployment.init_args


@pytest.mark.parametrize(("name", "options"), [("torch", EngineOptions), ("vllm", VllmOptions)])
def test_the_engine_is_the_one_named(name: str, options: type) -> None:
    [engine] = gateway(engine=name, max_rank=8).init_args
    given = engine._bound_deployment.init_args[2].engine
    assert isinstance(given, options)
    assert given.adapter_limits.max_rank == 8


def test_an_engine_that_is_not_known_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="engine"):
        gateway(engine="tgi")
