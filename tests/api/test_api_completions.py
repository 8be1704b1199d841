"""POST /v1/completions and the adapters' own routes: shapes and refusals."""

from collections.abc import Iterator
from typing import Any

import pytest
from memory_service import API_KEY, MemoryService
from starlette.testclient import TestClient

from openledger.api import create_app
from openledger.core.values import SamplingParameters
from openledger.platform.service import NewAdapter

QUESTION = {"model": "os-docs", "prompt": "Say: "}
ADAPTER = {"name": "new", "source": "s3://bucket/new", "prompt_price_nano": 1, "completion_price_nano": 2}


@pytest.fixture
def service() -> MemoryService:
    return MemoryService()


@pytest.fixture
def client(service: MemoryService) -> Iterator[TestClient]:
    with TestClient(create_app(service), headers={"Authorization": f"Bearer {API_KEY}"}) as client:
        yield client


class TestPrompts:
    @pytest.mark.parametrize(
        ("prompt", "plain"),
        [("a", ["a"]), (["a", "b"], ["a", "b"]), ([1, 2], [[1, 2]]), ([[1], [2, 3]], [[1], [2, 3]])],
    )
    def test_of_every_kind_reach_the_service(self, client: TestClient, service: MemoryService, prompt: Any, plain: Any):
        assert client.post("/v1/completions", json={**QUESTION, "prompt": prompt}).status_code == 200
        assert service.asked[0]["prompts"] == plain

    def test_are_held_and_metered_as_any_answer(self, client: TestClient):
        told = client.post("/v1/completions", json={**QUESTION, "prompt": ["a", "b"]}).json()
        assert told["openledger"]["fee_nano"] == 620
        cached = {"cached_tokens": 6}
        expected = {"prompt_tokens": 14, "completion_tokens": 12, "total_tokens": 26, "prompt_tokens_details": cached}
        assert told["usage"] == expected

    @pytest.mark.parametrize("prompt", [[], None, 5, [[]], [["a"]], ["a", [1]], [-1], [1.5], [True], {}, ["a"] * 65])
    def test_of_no_kind_are_refused(self, client: TestClient, service: MemoryService, prompt: Any):
        response = client.post("/v1/completions", json={**QUESTION, "prompt": prompt})
        assert (response.status_code, response.json()["error"]["param"].split(".")[0]) == (400, "prompt")
        assert service.asked == []


class TestParameters:
    def test_echo_asks_for_the_prompts_logprobs_too(self, client: TestClient, service: MemoryService):
        client.post("/v1/completions", json={**QUESTION, "echo": True, "logprobs": 1, "max_tokens": 1, "seed": 5})
        expected = SamplingParameters(max_tokens=1, logprobs=1, prompt_logprobs=1, seed=5)
        assert service.asked[0]["sampling"] == expected

    def test_without_logprobs_none_are_told(self, client: TestClient):
        told = client.post("/v1/completions", json={**QUESTION, "echo": True}).json()
        assert told["choices"][0]["text"] == "Say: Join one or more path segments."
        assert told["choices"][0]["logprobs"] is None

    @pytest.mark.parametrize(
        ("change", "code", "param"),
        [
            ({"suffix": "x"}, "unsupported_parameter", "suffix"),
            ({"best_of": 3}, "unsupported_parameter", "best_of"),
            ({"logprobs": True}, "invalid_field", "logprobs"),
            ({"logprobs": 21}, "invalid_field", "logprobs"),
            ({"max_tokens": 0}, "invalid_field", "max_tokens"),
            ({"prompt": ["a"] * 33, "n": 2}, "invalid_field", "n"),
            ({"echo": True, "stream": True}, "unsupported_parameter", "echo"),
            ({"messages": []}, "unknown_field", "messages"),
        ],
    )
    def test_that_cannot_be_used_are_refused_by_name(
        self, client: TestClient, service: MemoryService, change: dict[str, Any], code: str, param: str
    ):
        response = client.post("/v1/completions", json={**QUESTION, **change})
        told = response.json()["error"]
        assert (response.status_code, told["code"], told["param"]) == (400, code, param)
        assert service.asked == []


class TestAdapters:
    def test_come_and_go(self, client: TestClient, service: MemoryService):
        added = client.post("/v1/adapters", json={**ADAPTER, "shared_with": ["user:bob"]})
        assert (added.status_code, added.json()["id"], added.json()["object"]) == (200, "new", "model")
        new = NewAdapter(
            name="new", source="s3://bucket/new", prompt_price_nano=1, completion_price_nano=2,
            shared_with=("user:bob",),
        )  # fmt: skip
        assert service.added == [("user:alice", new)]
        assert client.get("/v1/models/new").status_code == 200
        assert client.delete("/v1/models/new").json() == {"id": "new", "object": "model", "deleted": True}
        assert client.get("/v1/models/new").json()["error"]["code"] == "unknown_model"

    @pytest.mark.parametrize(
        ("change", "code", "param"),
        [
            ({"name": "../a"}, "invalid_name", "name"),
            ({"name": None}, "invalid_field", "name"),
            ({"source": ""}, "invalid_field", "source"),
            ({"prompt_price_nano": -1}, "invalid_field", "prompt_price_nano"),
            ({"completion_price_nano": 1.5}, "invalid_field", "completion_price_nano"),
            ({"path": "/etc"}, "unknown_field", "path"),
        ],
    )
    def test_that_cannot_be_are_refused(
        self, client: TestClient, service: MemoryService, change: dict[str, Any], code: str, param: str
    ):
        told = client.post("/v1/adapters", json={**ADAPTER, **change}).json()["error"]
        assert (told["code"], told["param"], service.added) == (code, param, [])

    @pytest.mark.parametrize(("method", "path"), [("POST", "/v1/adapters"), ("DELETE", "/v1/models/os-docs")])
    def test_need_a_key(self, service: MemoryService, method: str, path: str):
        response = TestClient(create_app(service)).request(method, path, json=ADAPTER)
        assert (response.status_code, len(service.adapters)) == (401, 2)


class TestPages:
    def test_of_models_have_an_end(self, client: TestClient):
        first = client.get("/v1/models?limit=1").json()
        assert ([one["id"] for one in first["data"]], first["has_more"], first["last_id"]) == (
            ["os-docs"],
            True,
            "os-docs",
        )
        rest = client.get(f"/v1/models?limit=1&after={first['last_id']}").json()
        assert ([one["id"] for one in rest["data"]], rest["has_more"]) == (["numpy-docs"], False)

    @pytest.mark.parametrize("query", ["limit=0", "limit=1001", "limit=x"])
    def test_of_no_size_are_refused(self, client: TestClient, query: str):
        response = client.get(f"/v1/models?{query}")
        assert (response.status_code, response.json()["error"]["param"]) == (400, "limit")
