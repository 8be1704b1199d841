"""vLLM on Ray Serve: the deployment of the torch engine with other options. In a file of its own, so that the process
that asks holds no vLLM."""

import importlib.util
from typing import Any

import numpy as np
import pytest
import test_openlora_against_peft as against_peft
from openlora_models import (
    Served,
    assert_same_greedy,
    generate_alone,
    make_served,
    peft_model,
    prompt_of,
    request,
    tokens_of,
)  # fmt: skip

from openledger.adapters.registry import AdapterRegistry
from openledger.openlora.deployment import ReplicaOptions, ScalingOptions, build_openlora
from openledger.openlora.server import ServingOptions
from openledger.openlora.vllm_engine import VllmOptions

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(
        importlib.util.find_spec("vllm") is None,
        reason="vllm is not installed here; benchmarks/vllm_requirements.txt says how these tests run",
    ),
]
OPTIONS = VllmOptions(max_batch=4, max_context=128, kv_bytes=1 << 26, dtype="float32", compiled=False)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Served:
    return make_served(tmp_path_factory.mktemp("served_by_vllm"), hidden_size=128)


@pytest.fixture(scope="module")
def handle(cluster: Any, served: Served) -> Any:
    """Room for two of the three adapters."""
    from ray import serve

    root = served.folders["one"].parent
    for name, folder in served.folders.items():
        AdapterRegistry(root).register(name, folder, served.digests[name])
    replica = ReplicaOptions(engine=OPTIONS, serving=ServingOptions(max_resident=2))
    application = build_openlora(served.base.path, str(root), replica=replica, scaling=ScalingOptions(drain_s=5))
    serve.start(proxy_location="Disabled")
    yield serve.run(application, name="openlora-vllm", route_prefix=None)
    serve.delete("openlora-vllm")


def test_answers_are_pefts_and_adapters_leave_for_others(handle: Any, served: Served) -> None:
    for name in (None, "one", "two", "three"):
        asked = request(name or "base", prompt_of(9), served.digests.get(name or "", ""))
        events = list(handle.options(stream=True).generate.remote(asked))
        assert_same_greedy(tokens_of(events), generate_alone(peft_model(served, name), prompt_of(9), 12))
    told = handle.describe.remote().result(timeout_s=60)
    assert told["engine"] == "vllm"
    assert set(told["resident"]) == {served.digests["two"], served.digests["three"]}


def test_scores_beyond_the_slots_equal_a_plain_forward(handle: Any, served: Served) -> None:
    scores = handle.score.remote(prompt_of(11), prompt_of(14), list(served.digests.values())).result(timeout_s=60)
    expected = [against_peft._forward_scores(served, name, prompt_of(11), prompt_of(14)) for name in served.digests]
    np.testing.assert_allclose(scores, np.stack(expected), atol=1e-4)
