"""POST /v1/chat/completions: shapes, refusals, streams, cancelling."""

import asyncio
import hashlib
import json
from typing import Any, ClassVar

import httpx
import pytest
from memory_service import API_KEY, POOR_KEY, SIGNED, MemoryService, SlowToStart, wait_until
from served_app import served

from openledger.api import create_app
from openledger.core.clock import ManualClock
from openledger.core.errors import TooManyRequests
from openledger.core.values import Grammar, SamplingParameters

QUESTION = {"model": "os-docs", "messages": [{"role": "user", "content": "What does os.path.join do?"}]}
TEXT = "Join one or more path segments."
USAGE = {
    "prompt_tokens": 7, "completion_tokens": 6, "total_tokens": 13, "prompt_tokens_details": {"cached_tokens": 3},
}  # fmt: skip


async def ask(service: MemoryService, body: dict[str, Any], key: str = API_KEY, **headers: str) -> httpx.Response:
    transport = httpx.ASGITransport(create_app(service, ManualClock()), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        headers = {"Authorization": f"Bearer {key}", **headers}
        return await client.post("/v1/chat/completions", json=body, headers=headers)


def events(response: httpx.Response) -> list[str]:
    assert response.headers["content-type"].startswith("text/event-stream")
    blocks = response.text.split("\n\n")
    assert blocks.pop() == ""
    assert all(block.startswith("data: ") and "\n" not in block for block in blocks)
    return [block.removeprefix("data: ") for block in blocks]


class TestAnswerAtOnce:
    async def test_goes_under_the_digest_of_the_key_that_asked(self):
        service = MemoryService()
        await ask(service, QUESTION)
        assert service.asked[-1]["key_digest"] == hashlib.sha256(API_KEY.encode()).hexdigest()

    async def test_has_openais_shape_and_our_receipt(self):
        told = (await ask(MemoryService(), QUESTION, **{"Idempotency-Key": "k1"})).json()
        identity = told.pop("id")
        assert identity.startswith("chatcmpl_")
        assert told == {
            "object": "chat.completion",
            "created": 1_700_000_000,
            "model": "os-docs",
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": TEXT, "refusal": None},
                    "logprobs": None,
                    "finish_reason": "stop",
                }
            ],
            "usage": USAGE,
            "openledger": {
                "answer_id": "ans_1",
                "prompt_tokens": 7,
                "completion_tokens": 6,
                "fee_nano": 310,
                "parts": {"pool:os-docs:p1": 155, "user:owner": 62, "treasury": 93},
                "cached_tokens": 3,
                "engine_ms": 0.0,
                "signed": SIGNED,
            },
        }

    async def test_that_breaks_off_is_an_error(self):
        service = MemoryService(words=())
        service.chat = MemoryService(words=("a", "b", "c"), failure=RuntimeError("secret path")).chat  # type: ignore
        response = await ask(service, QUESTION)
        assert response.status_code == 500
        assert "secret" not in response.text


class TestStream:
    async def test_says_the_same_text_and_ends_with_done(self):
        *chunks, done = events(await ask(MemoryService(), {**QUESTION, "stream": True}))
        assert done == "[DONE]"
        parsed = [json.loads(chunk) for chunk in chunks]
        assert parsed[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
        assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in parsed) == TEXT
        assert [chunk["choices"][0]["finish_reason"] for chunk in parsed] == [None] * 4 + ["stop"]
        assert {chunk["object"] for chunk in parsed} == {"chat.completion.chunk"}
        assert len({chunk["id"] for chunk in parsed}) == 1
        assert parsed[-1]["openledger"]["fee_nano"] == 310
        assert parsed[-1]["openledger"]["signed"] == SIGNED

    async def test_tells_usage_in_a_chunk_without_choices_where_asked(self):
        body = {**QUESTION, "stream": True, "stream_options": {"include_usage": True}}
        *_, usage, _done = events(await ask(MemoryService(), body))
        assert json.loads(usage)["choices"] == []
        assert json.loads(usage)["usage"] == USAGE

    async def test_tells_no_usage_where_not_asked(self):
        chunks = events(await ask(MemoryService(), {**QUESTION, "stream": True}))
        assert not any("usage" in json.loads(chunk) for chunk in chunks[:-1])

    async def test_refuses_before_its_headers(self):
        response = await ask(MemoryService(), {**QUESTION, "stream": True}, key=POOR_KEY)
        assert response.status_code == 402
        assert response.json()["error"]["code"] == "insufficient_funds"

    async def test_that_breaks_off_ends_with_the_error_and_no_done(self, caplog: pytest.LogCaptureFixture):
        service = MemoryService(failure=RuntimeError("secret path"))
        *_, last = events(await ask(service, {**QUESTION, "stream": True}))
        assert json.loads(last)["error"]["code"] == "internal_error"
        assert "secret" not in last
        assert "broke off" in caplog.text

    async def test_without_a_receipt_is_told_as_incomplete(self):
        class NoReceipt(MemoryService):
            async def chat(self, **_: Any):  # type: ignore
                from openledger.platform.service import AnswerEvent

                yield AnswerEvent(text="half", token_count=1)

        *_, last = events(await ask(NoReceipt(), {**QUESTION, "stream": True}))
        assert json.loads(last)["error"]["code"] == "answer_incomplete"
        assert (await ask(NoReceipt(), QUESTION)).json()["error"]["code"] == "answer_incomplete"


class TestSeveralAnswers:
    async def test_stand_beside_each_other_and_cost_what_they_cost_together(self):
        told = (await ask(MemoryService(), {**QUESTION, "n": 2})).json()
        assert [(one["index"], one["message"]["content"]) for one in told["choices"]] == [(0, TEXT), (1, TEXT)]
        cached = {"cached_tokens": 6}
        expected = {"prompt_tokens": 14, "completion_tokens": 12, "total_tokens": 26, "prompt_tokens_details": cached}
        assert told["usage"] == expected
        assert (told["openledger"]["fee_nano"], len(told["openledger"]["answers"])) == (620, 2)

    async def test_are_told_apart_in_a_stream(self):
        body = {**QUESTION, "n": 2, "stream": True, "stream_options": {"include_usage": True}}
        *chunks, usage, _done = events(await ask(MemoryService(), body))
        choices = [json.loads(chunk)["choices"][0] for chunk in chunks]
        for index in (0, 1):
            own = [choice for choice in choices if choice["index"] == index]
            assert own[0]["delta"] == {"role": "assistant", "content": ""}
            assert "".join(choice["delta"].get("content", "") for choice in own) == TEXT
            assert own[-1]["finish_reason"] == "stop"
        assert json.loads(usage)["usage"]["total_tokens"] == 26

    async def test_of_which_one_is_missing_are_no_answer(self):
        class Half(MemoryService):
            async def chat(self, **asked: Any):  # type: ignore
                async for event in MemoryService().chat(**asked):
                    if event.index == 0:
                        yield event

        told = (await ask(Half(), {**QUESTION, "n": 2})).json()
        assert told["error"]["code"] == "answer_incomplete"


class TestLogprobs:
    BODY: ClassVar = {**QUESTION, "logprobs": True, "top_logprobs": 2}

    async def test_stand_beside_the_text(self):
        told = (await ask(MemoryService(), self.BODY)).json()
        content = told["choices"][0]["logprobs"]["content"]
        assert [entry["token"] for entry in content] == ["Join ", "one or more ", "path segments."]
        assert content[0] == {
            "token": "Join ", "logprob": -0.5, "bytes": list(b"Join "),
            "top_logprobs": [
                {"token": "Join ", "logprob": -0.5, "bytes": list(b"Join ")},
                {"token": "other", "logprob": -1.5, "bytes": list(b"other")},
            ],
        }  # fmt: skip

    async def test_come_with_their_text_in_a_stream(self):
        *chunks, _done = events(await ask(MemoryService(), {**self.BODY, "stream": True}))
        choices = [json.loads(chunk)["choices"][0] for chunk in chunks]
        scored = [choice for choice in choices if choice["logprobs"]]
        assert [one["logprobs"]["content"][0]["token"] for one in scored] == [one["delta"]["content"] for one in scored]
        assert len(scored) == 3


class TestBusy:
    async def test_says_when_to_come_back(self):
        class Busy(MemoryService):
            async def chat(self, **_: Any):  # type: ignore
                raise TooManyRequests("full", code="queue_full", retry_after_s=7)
                yield

        for stream in (False, True):
            response = await ask(Busy(), {**QUESTION, "stream": stream})
            assert (response.status_code, response.headers["Retry-After"]) == (429, "7")
            assert response.json()["error"]["code"] == "queue_full"


class TestParameters:
    async def test_reach_the_service(self):
        service = MemoryService()
        body = {**QUESTION, "max_tokens": 9, "temperature": 1, "top_p": 0.5, "seed": 3, "stop": "end"}
        await ask(service, body)
        sampling = service.asked[0]["sampling"]
        assert (sampling.max_tokens, sampling.temperature, sampling.top_p, sampling.seed) == (9, 1.0, 0.5, 3)
        assert sampling.stop == ("end",)

    async def test_of_sampling_all_reach_the_service(self):
        service = MemoryService()
        body = {
            **QUESTION, "n": 2, "logprobs": True, "top_logprobs": 3, "top_k": 5, "min_p": 0.1, "presence_penalty": 0.2,
            "frequency_penalty": -0.3, "repetition_penalty": 1.1, "ignore_eos": True,
            "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}},
        }  # fmt: skip
        assert (await ask(service, body)).status_code == 200
        assert service.asked[0]["sampling"] == SamplingParameters(
            num_answers=2, logprobs=3, top_k=5, min_p=0.1, presence_penalty=0.2, frequency_penalty=-0.3,
            repetition_penalty=1.1, ignore_end=True, grammar=Grammar(kind="json_schema", text='{"type": "object"}'),
        )  # fmt: skip

    @pytest.mark.parametrize(
        ("response_format", "grammar"),
        [
            ({"type": "text"}, None),
            ({"type": "json_object"}, Grammar(kind="json_object")),
            ({"type": "regex", "pattern": "a+"}, Grammar(kind="regex", text="a+")),
            ({"type": "lark", "grammar": 'start: "a"'}, Grammar(kind="lark", text='start: "a"')),
        ],
    )
    async def test_of_form_reach_the_service(self, response_format: dict[str, Any], grammar: Grammar | None):
        service = MemoryService()
        await ask(service, {**QUESTION, "response_format": response_format})
        assert service.asked[0]["sampling"].grammar == grammar

    async def test_max_completion_tokens_wins_over_its_old_name(self):
        service = MemoryService()
        await ask(service, {**QUESTION, "max_tokens": 9, "max_completion_tokens": 5})
        assert service.asked[0]["sampling"].max_tokens == 5

    async def test_null_means_absent(self):
        service = MemoryService()
        body = {**QUESTION, "n": None, "temperature": None, "stop": None, "tools": None, "stream_options": None}
        assert (await ask(service, body)).status_code == 200

    async def test_text_parts_are_joined(self):
        service = MemoryService()
        parts = [{"type": "text", "text": "What is "}, {"type": "text", "text": "os?"}]
        await ask(service, {**QUESTION, "messages": [{"role": "user", "content": parts}]})
        assert service.asked[0]["messages"] == [{"role": "user", "content": "What is os?"}]

    async def test_developer_is_the_system(self):
        service = MemoryService()
        messages = [{"role": "developer", "content": "Be short."}, *QUESTION["messages"]]
        await ask(service, {**QUESTION, "messages": messages})
        assert service.asked[0]["messages"][0]["role"] == "system"

    @pytest.mark.parametrize(
        ("change", "code", "param"),
        [
            ({"n": 0}, "invalid_field", "n"),
            ({"n": 65}, "invalid_field", "n"),
            ({"logprobs": 3}, "invalid_field", "logprobs"),
            ({"top_logprobs": 3}, "invalid_field", "top_logprobs"),
            ({"logprobs": True, "top_logprobs": 21}, "invalid_field", "top_logprobs"),
            ({"logit_bias": {"5": 1}}, "unsupported_parameter", "logit_bias"),
            ({"tools": [{"type": "function"}]}, "unsupported_parameter", "tools"),
            ({"response_format": {"type": "xml"}}, "invalid_field", "response_format.type"),
            ({"response_format": {"type": "json_schema"}}, "invalid_field", "response_format.json_schema"),
            ({"response_format": {"type": "regex"}}, "invalid_field", "response_format.pattern"),
            ({"presence_penalty": 2.5}, "invalid_field", "presence_penalty"),
            ({"repetition_penalty": 0}, "invalid_field", "repetition_penalty"),
            ({"min_p": 1.5}, "invalid_field", "min_p"),
            ({"top_k": -2}, "invalid_field", "top_k"),
            ({"temprature": 1}, "unknown_field", "temprature"),
            ({"messages": []}, "invalid_field", "messages"),
            ({"messages": "hi"}, "invalid_field", "messages"),
            ({"messages": [{"role": "user"}]}, "missing_field", "messages.0.content"),
            ({"messages": [{"role": "robot", "content": "x"}]}, "invalid_field", "messages.0.role"),
            ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "unsupported_content", "messages"),
            ({"messages": [{"role": "user", "content": "  "}]}, "empty_prompt", "messages"),
            ({"model": None}, "missing_field", "model"),
            ({"model": 5}, "invalid_field", "model"),
            ({"temperature": 2.5}, "invalid_field", "temperature"),
            ({"temperature": "hot"}, "invalid_field", "temperature"),
            ({"top_p": 0}, "invalid_field", "top_p"),
            ({"max_tokens": 0}, "invalid_field", "max_tokens"),
            ({"max_tokens": 2.5}, "invalid_field", "max_tokens"),
            ({"max_tokens": True}, "invalid_field", "max_tokens"),
            ({"seed": 2**63}, "invalid_field", "seed"),
            ({"stop": ["a"] * 5}, "invalid_field", "stop"),
            ({"stop": [""]}, "invalid_field", "stop.0"),
            ({"stream_options": {"include_usage": True}}, "invalid_field", "stream_options"),
            ({"stream": "yes"}, "invalid_field", "stream"),
        ],
    )
    async def test_that_cannot_be_used_are_refused_by_name(self, change: dict[str, Any], code: str, param: str):
        service = MemoryService()
        response = await ask(service, {**QUESTION, **change})
        told = response.json()["error"]
        assert (response.status_code, told["code"], told["param"]) == (400, code, param)
        assert service.asked == []


class TestIdempotencyKey:
    async def test_reaches_the_service_and_fixes_the_id(self):
        service = MemoryService()
        first = await ask(service, QUESTION, **{"Idempotency-Key": "k1"})
        again = await ask(service, QUESTION, **{"Idempotency-Key": "k1"})
        other = await ask(service, QUESTION, **{"Idempotency-Key": "k2"})
        assert [asked["key"] for asked in service.asked] == ["k1", "k1", "k2"]
        assert first.json()["id"] == again.json()["id"] != other.json()["id"]

    async def test_is_made_where_none_was_sent(self):
        service = MemoryService()
        await ask(service, QUESTION)
        await ask(service, QUESTION)
        assert len({asked["key"] for asked in service.asked}) == 2

    async def test_that_is_not_printable_is_refused(self):
        response = await ask(MemoryService(), QUESTION, **{"Idempotency-Key": "two words"})
        assert response.json()["error"]["code"] == "invalid_idempotency_key"


class TestHangingUp:
    @pytest.mark.parametrize("hang_up", ["before the headers", "within the stream"])
    def test_cancels_the_answer(self, hang_up: str):
        service = MemoryService(words=("word ",) * 1000, pause_s=0.02)
        with served(create_app(service)) as url:
            {"before the headers": _give_up_waiting, "within the stream": _read_one_line}[hang_up](url)
            assert wait_until(lambda: service.num_closed == 1)
        assert service.num_finished == 0

    async def test_before_the_first_word_cancels_too(self):
        service = SlowToStart()
        sent: list[Any] = []
        body = json.dumps({**QUESTION, "stream": True}).encode()
        waiting = iter([{"type": "http.request", "body": body, "more_body": False}, {"type": "http.disconnect"}])

        async def receive() -> Any:
            await asyncio.sleep(0)
            return next(waiting)

        async def send(message: Any) -> None:
            sent.append(message)

        await create_app(service)(_scope(), receive, send)
        assert service.num_closed == 1
        assert sent[0]["status"] == 499

    async def test_while_the_connection_is_blocked_closes_the_answer_at_once(self):
        service = MemoryService()
        blocked = asyncio.Event()
        body = json.dumps({**QUESTION, "stream": True}).encode()
        waiting = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def receive() -> Any:
            if (message := next(waiting, None)) is not None:
                return message
            await blocked.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            if b"content" in message.get("body", b""):
                blocked.set()
                await asyncio.sleep(3600)

        await create_app(service)(_scope(), receive, send)
        assert (service.num_closed, service.num_finished) == (1, 0)

    async def test_is_not_seen_where_the_client_stays(self):
        service = MemoryService()
        await ask(service, {**QUESTION, "stream": True})
        assert (service.num_finished, service.num_closed) == (1, 1)


HEADERS = {"Authorization": f"Bearer {API_KEY}"}


def _give_up_waiting(url: str) -> None:
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{url}/v1/chat/completions", json=QUESTION, headers=HEADERS, timeout=0.5)


def _read_one_line(url: str) -> None:
    body = {**QUESTION, "stream": True}
    with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, headers=HEADERS) as response:
        assert "assistant" in next(response.iter_lines())


def _scope() -> dict[str, Any]:
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": "/v1/chat/completions",
        "raw_path": b"/v1/chat/completions",
        "root_path": "",
        "query_string": b"",
        "headers": [(b"authorization", f"Bearer {API_KEY}".encode()), (b"content-type", b"application/json")],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
    }
