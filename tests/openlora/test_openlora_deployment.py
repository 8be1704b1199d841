"""On Ray Serve: the same answers through a handle, streamed."""

from typing import Any

import pytest
from openlora_models import Served, prompt_of, request, run

from openledger.adapters.registry import AdapterRegistry
from openledger.core.errors import NotFound
from openledger.openlora.deployment import build_openlora
from openledger.openlora.torch_engine import EngineOptions, TorchEngine

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def handle(cluster: Any, served: Served) -> Any:
    from ray import serve

    root = served.folders["one"].parent
    registry = AdapterRegistry(root)
    for name, folder in served.folders.items():
        registry.register(name, folder, served.digests[name])
    application = build_openlora(served.base.path, str(root), options=EngineOptions(max_batch=4), num_cpus=0.5)
    yield serve.run(application, name="openlora-test", route_prefix=None)
    serve.delete("openlora-test")


class TestDeployment:
    def test_streams_what_the_engine_gives(self, handle: Any, served: Served, engine: TorchEngine) -> None:
        each = request("r", prompt_of(9), served.digests["one"])
        events = list(handle.options(stream=True).generate.remote(each))
        assert events == run(engine, each)["r"]

    def test_a_bad_request_is_an_error_event(self, handle: Any) -> None:
        events = list(handle.options(stream=True).generate.remote(request("bad", [])))
        assert [event.error["code"] for event in events] == ["empty_prompt"]

    def test_scores(self, handle: Any, served: Served) -> None:
        scores = handle.score.remote(prompt_of(4), prompt_of(5), ["", served.digests["two"]]).result(timeout_s=60)
        assert scores.shape == (2, 5)

    def test_errors_keep_their_kind(self, handle: Any) -> None:
        with pytest.raises(NotFound) as caught:
            handle.score.remote([5], [6], ["0" * 64]).result(timeout_s=60)
        assert caught.value.code == "unknown_adapter"

    def test_describes_itself(self, handle: Any, served: Served) -> None:
        description = handle.describe.remote().result(timeout_s=60)
        assert (description["base_digest"], description["engine"]) == (served.base.digest, "torch")
