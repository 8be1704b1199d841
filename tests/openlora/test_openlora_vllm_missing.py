"""What the default installation does about the extra `vllm`: nothing until it is asked for, and then it says so."""

import importlib.util
import sys

import pytest
from openlora_models import Served

from openledger.adapters.checks import AdapterLimits
from openledger.core.errors import InvalidInput, Unavailable
from openledger.openlora.deployment import ReplicaOptions, make_engine
from openledger.openlora.torch_engine import EngineOptions
from openledger.openlora.vllm_engine import VllmEngine, VllmOptions


def test_the_engine_says_how_to_have_it(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(Unavailable) as caught:
        make_engine(served.base, ReplicaOptions(engine=VllmOptions()))
    assert caught.value.code == "vllm_not_installed"


@pytest.mark.parametrize(
    ("options", "code", "param"),
    [
        (VllmOptions(max_batch=0), "invalid_limit", "max_batch"),
        (VllmOptions(device_memory=1.5), "invalid_limit", "device_memory"),
        (VllmOptions(adapter_limits=AdapterLimits(max_rank=1024)), "invalid_limit", "adapter_limits"),
        (VllmOptions(dtype="int4"), "unknown_dtype", "dtype"),
    ],
)
def test_options_are_checked_before_vllm_is_looked_for(
    served: Served, options: VllmOptions, code: str, param: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        VllmEngine(served.base, options)
    assert (caught.value.code, caught.value.param) == (code, param)


def test_embeddings_are_refused_by_name_whether_vllm_is_there_or_not() -> None:
    with pytest.raises(InvalidInput) as caught:
        VllmEngine.embed(object.__new__(VllmEngine), [[5, 6]], "")
    assert (caught.value.code, caught.value.param) == ("embeddings_unsupported", "model")


def test_the_default_engine_needs_nothing_of_it(served: Served) -> None:
    engine = make_engine(served.base, ReplicaOptions(engine=EngineOptions(max_batch=2)))
    assert engine.options.max_batch == 2
    assert "vllm" not in sys.modules
