"""How the gateway is deployed: where it may run, and how long it may take to end."""

from typing import Any
from unittest.mock import MagicMock

import pytest

from openledger.console import deployment
from openledger.console.deployment import GatewayArguments, base_prices, build, start_gateway
from openledger.core.errors import InvalidInput
from openledger.core.money import Unit
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


def test_merging_is_for_several_replicas() -> None:
    bound = build(GatewayArguments(workdir="/nowhere", merge_after_s=60, max_replicas=2))._bound_deployment
    (engine,) = bound.init_args
    assert engine._bound_deployment.init_args[2].serving.merge.after_s == 60
    with pytest.raises(InvalidInput) as caught:
        build(GatewayArguments(workdir="/nowhere", merge_after_s=60))
    assert caught.value.code == "merging_alone"


def test_an_engine_that_is_not_known_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="engine"):
        gateway(engine="tgi")


def test_a_unit_that_is_none_is_refused_before_anything_starts() -> None:
    with pytest.raises(InvalidInput) as caught:
        gateway(unit="euro")
    assert caught.value.code == "invalid_unit"


@pytest.mark.parametrize(("unit", "prices"), [("OPEN", (100_000, 500_000)), ("EUR", (100, 500))])
def test_a_base_without_prices_costs_the_same_in_any_unit(unit: str, prices: tuple[int, int]) -> None:
    assert base_prices(GatewayArguments(workdir="/nowhere"), Unit(name=unit)) == prices


def test_prices_that_are_named_are_taken_as_they_are() -> None:
    named = GatewayArguments(workdir="/nowhere", base_prompt_price_nano=7, base_completion_price_nano=0)
    assert base_prices(named, Unit(name="EUR")) == (7, 0)


def test_the_gateway_chooses_the_unit_before_its_economy_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one way in which a cluster whose gateway starts first can be in a currency."""
    chosen: list[str] = []

    def economy(workdir: Any, unit: str) -> Any:
        chosen.append(unit)
        raise InterruptedError

    for name in ("find_base_model", "serve"):
        monkeypatch.setattr(deployment, name, MagicMock())
    monkeypatch.setattr(deployment, "economy_actor", economy)
    with pytest.raises(InterruptedError):
        start_gateway(GatewayArguments(workdir="/nowhere", unit="EUR"), {"OpenLoRA": None})
    assert chosen == ["EUR"]


@pytest.mark.parametrize("asked", [{"gate_workers": 3}, {"duplicates_by_shard": True}])
def test_the_gateway_starts_the_datanets_as_its_arguments_say(
    monkeypatch: pytest.MonkeyPatch, asked: dict[str, Any]
) -> None:
    started: list[tuple[Any, ...]] = []

    def datanets(workdir: Any, *settings: Any) -> Any:
        started.append(settings)
        raise InterruptedError

    before = ("find_base_model", "serve", "ray", "economy_actor", "base_prices", "AdapterRegistry", "begin_offers")
    for name in (*before, "offer_base", "log_on_sale"):
        monkeypatch.setattr(deployment, name, MagicMock())
    monkeypatch.setattr(deployment, "datanets_actor", datanets)
    arguments = GatewayArguments(workdir="/nowhere", **asked)
    with pytest.raises(InterruptedError):
        start_gateway(arguments, {"OpenLoRA": None})
    assert started == [(arguments.gate_workers, arguments.duplicates_by_shard)]
