"""The stock openai client against the API on a real port."""

import asyncio
from collections.abc import Iterator
from dataclasses import replace

import openai
import pytest
from memory_service import API_KEY, POOR_KEY, MemoryService
from served_app import served

from openledger.api import create_app, embeddings

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


def test_streamed_text_comes_as_it_is_whatever_is_in_it():
    words = ('a "b"\n', "\0", " \\ é", '","text":"x"', "\U0001f389 </data>", "\r\n\r\ndata: [DONE]")
    with served(create_app(MemoryService(words=words))) as url:
        stream = client(url).completions.create(model="os-docs", prompt="a", n=2, stream=True)
        told: dict[int, list[str]] = {0: [], 1: []}
        for chunk in stream:
            told[chunk.choices[0].index].append(chunk.choices[0].text)
    assert [[text for text in texts if text] for texts in told.values()] == [[*words], [*words]]


def test_embeds(url: str):
    told = client(url).embeddings.create(model="os-docs", input=["alpha", "beta"])
    assert [(entry.index, entry.embedding) for entry in told.data] == [(0, [0.5, 0.5]), (1, [0.5, 0.5])]
    assert (told.usage.prompt_tokens, told.openledger["fee_nano"]) == (2, 1)


def test_streams_with_usage(url: str):
    stream = client(url).chat.completions.create(
        model="os-docs", messages=ASKED, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    texts = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices]
    assert "".join(text or "" for text in texts) == "Join one or more path segments."
    assert chunks[-1].usage.completion_tokens == 6
    assert chunks[-1].usage.prompt_tokens_details.cached_tokens == 3


def test_lists_and_retrieves_models(url: str):
    assert [model.id for model in client(url).models.list()] == ["os-docs", "numpy-docs"]
    assert client(url).models.retrieve("numpy-docs").owned_by == "user:owner"


def test_goes_through_the_pages_of_models():
    service = MemoryService()
    names = [f"m{number:04d}" for number in range(2500)]
    service.adapters = {name: replace(service.adapters["os-docs"], id=name) for name in names}
    with served(create_app(service)) as url:
        seen: list[str] = []
        while True:
            page = client(url).get(f"/models?limit=700{f'&after={seen[-1]}' if seen else ''}", cast_to=dict)
            seen += [model["id"] for model in page["data"]]
            if not page["has_more"]:
                break
    assert seen == names


def test_several_answers_with_logprobs(url: str):
    answer = client(url).chat.completions.create(
        model="os-docs", messages=ASKED, n=2, logprobs=True, top_logprobs=2, temperature=1
    )
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert answer.choices[1].logprobs.content[0].top_logprobs[1].token == "other"


def test_completes_text(url: str):
    answer = client(url).completions.create(model="os-docs", prompt="Say: ", max_tokens=5)
    assert (answer.object, answer.choices[0].text) == ("text_completion", "Join one or more path segments.")
    assert answer.usage.total_tokens == 13


def test_completes_several_prompts_of_token_ids_with_echo(url: str):
    answer = client(url).completions.create(
        model="os-docs", prompt=[[5, 6], [7, 8]], echo=True, logprobs=1, max_tokens=1, seed=3, temperature=0
    )
    assert [choice.index for choice in answer.choices] == [0, 1]
    first = answer.choices[0]
    assert first.text == "Say: Join one or more path segments."
    assert first.logprobs.token_logprobs == [None, -0.5, -0.5, -0.5]
    assert first.logprobs.top_logprobs[1] == {"Join ": -0.5, "other": -1.5}
    assert first.logprobs.text_offset == [0, 5, 10, 22]


def test_streams_text_with_usage(url: str):
    stream = client(url).completions.create(
        model="os-docs", prompt="Say: ", stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == "Join one or more path segments."
    assert (chunks[-1].choices, chunks[-1].usage.completion_tokens) == ([], 6)


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
        client(url).chat.completions.create(model="os-docs", messages=ASKED, n=300)
    assert (caught.value.code, caught.value.param) == ("invalid_field", "n")


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


def test_vectors_are_written_off_the_loop(url: str, monkeypatch: pytest.MonkeyPatch):
    has_loop: list[bool] = []
    write = embeddings._json

    def written(value):
        try:
            asyncio.get_running_loop()
            has_loop.append(True)
        except RuntimeError:
            has_loop.append(False)
        return write(value)

    monkeypatch.setattr(embeddings, "_json", written)
    told = client(url).embeddings.create(model="os-docs", input=["alpha", "beta", "gamma"])
    assert len(told.data) == 3
    assert has_loop == [False] * 4, "a vector at a time, and the rest"
