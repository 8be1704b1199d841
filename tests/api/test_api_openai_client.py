"""The stock openai client against the API on a real port."""

from collections.abc import Iterator

import openai
import pytest
from memory_service import API_KEY, POOR_KEY, MemoryService
from served_app import served

from openledger.api import create_app

ASKED = [{"role": "user", "content": "What does os.path.join do?"}]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with served(create_app(MemoryService())) as url:
        yield url


def client(url: str, key: str = API_KEY) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0)


def test_answers(url: str):
    answer = client(url).chat.completions.create(model="os-docs", messages=ASKED, temperature=0, n=1)
    assert answer.choices[0].message.content == "Join one or more path segments."
    assert answer.usage.total_tokens == 13


def test_streams_with_usage(url: str):
    stream = client(url).chat.completions.create(
        model="os-docs", messages=ASKED, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    texts = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices]
    assert "".join(text or "" for text in texts) == "Join one or more path segments."
    assert chunks[-1].usage.completion_tokens == 6


def test_lists_and_retrieves_models(url: str):
    assert [model.id for model in client(url).models.list()] == ["os-docs", "numpy-docs"]
    assert client(url).models.retrieve("numpy-docs").owned_by == "user:owner"


def test_knows_a_wrong_key(url: str):
    with pytest.raises(openai.AuthenticationError) as caught:
        client(url, "wrong").models.list()
    assert caught.value.code == "invalid_api_key"


def test_knows_an_unknown_model(url: str):
    with pytest.raises(openai.NotFoundError) as caught:
        client(url).chat.completions.create(model="no-such", messages=ASKED)
    assert (caught.value.code, caught.value.param) == ("unknown_model", "model")


def test_knows_a_bad_parameter(url: str):
    with pytest.raises(openai.BadRequestError) as caught:
        client(url).chat.completions.create(model="os-docs", messages=ASKED, n=3)
    assert (caught.value.code, caught.value.param) == ("unsupported_parameter", "n")


@pytest.mark.parametrize("stream", [True, False])
def test_knows_an_empty_account(url: str, stream: bool):
    with pytest.raises(openai.APIStatusError) as caught:
        client(url, POOR_KEY).chat.completions.create(model="os-docs", messages=ASKED, stream=stream)
    assert (caught.value.status_code, caught.value.code) == (402, "insufficient_funds")


def test_knows_a_stream_that_broke_off():
    with served(create_app(MemoryService(failure=RuntimeError("inside")))) as url:
        stream = client(url).chat.completions.create(model="os-docs", messages=ASKED, stream=True)
        with pytest.raises(openai.APIError, match="our side"):
            list(stream)
