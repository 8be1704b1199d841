"""Answers as server-sent events: shared by chat and text completions.

Refusals have their own status: the first event is awaited before a stream's headers are sent. What fails later comes
as an event that holds the error envelope, and no [DONE] follows. The answer is closed with the connection, however
that ends.
"""

import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from typing import Any

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from openledger.api.disconnect import ClientGone, until_disconnected
from openledger.api.errors import envelope, unexpected
from openledger.api.request_ids import request_id_of
from openledger.api.responses import json_response
from openledger.core.errors import OpenLedgerError, Unavailable
from openledger.platform.service import AnswerEvent, Receipt, TokenScore

DONE = b"data: [DONE]\n\n"
_PLACE = "\0"  # where an event's text goes; nothing after it is a caller's
CLIENT_GONE_STATUS = 499  # nginx's number; nobody is there to read it but the access log
_log = logging.getLogger(__name__)

Events = AsyncIterator[AnswerEvent]
Chunk = Callable[[AnswerEvent, bool], list[dict[str, Any]]]


@dataclass(slots=True)
class Collected:
    """One whole answer."""

    index: int
    text: str = ""
    finish_reason: str = ""
    receipt: Receipt | None = None
    scores: list[TokenScore] = field(default_factory=list)
    prompt_text: str = ""
    prompt_scores: tuple[TokenScore, ...] = ()

    def add(self, event: AnswerEvent) -> None:
        self.text += event.text
        self.scores += event.scores
        self.prompt_text = self.prompt_text or event.prompt_text
        self.prompt_scores = self.prompt_scores or event.prompt_scores
        if event.finish_reason is not None:
            self.finish_reason, self.receipt = event.finish_reason, event.receipt


async def whole_answers(
    request: Request, events: Events, num_answers: int, whole: Callable[[list[Collected]], Any]
) -> Response:
    """What `whole` makes of all answers, once the last has ended. Raises Unavailable (`answer_incomplete`)."""
    try:
        answers = await until_disconnected(request.receive, _collect(events, num_answers))
    except ClientGone:
        return Response(status_code=CLIENT_GONE_STATUS)
    return json_response(whole(answers))


async def stream_answers(
    request: Request, events: Events, num_answers: int, chunks: Chunk, usage: Callable[[list[Collected]], Any] | None
) -> Response:
    """The events as they come. `chunks` makes of each what is sent (told whether it is its answer's first), `usage` the
    chunk after the last, where it was asked for."""
    try:
        first = await until_disconnected(request.receive, _next(events))
    except ClientGone:
        return Response(status_code=CLIENT_GONE_STATUS)
    return EventStream(_told(first, events, num_answers, chunks, usage), events, request_id_of(request))


class EventStream(StreamingResponse):
    def __init__(self, data: AsyncGenerator[bytes], events: Events, request_id: str):
        chunks = _guarded(data, request_id)
        super().__init__(
            chunks, media_type="text/event-stream", headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        )
        self._chunks, self._events = chunks, events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await until_disconnected(receive, self.stream_response(send))
        except (ClientGone, OSError):
            pass  # the client hung up: there is nobody to tell
        finally:
            await self._chunks.aclose()
            await close(self._events)


def server_sent(value: dict[str, Any]) -> bytes:
    """One server-sent event. JSON escapes line ends, so the data stays on its one line."""
    return b"data: " + json.dumps(value, separators=(",", ":")).encode() + b"\n\n"


def receipts(answers: list[Collected]) -> list[Receipt]:
    return [_receipt(answer.receipt) for answer in answers]


def usage_of(answers: list[Collected]) -> dict[str, Any]:
    """As it is paid: each answer with its prompt, whatever of it was cached."""
    told = receipts(answers)
    prompt_tokens = sum(receipt.prompt_tokens for receipt in told)
    completion_tokens = sum(receipt.completion_tokens for receipt in told)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": sum(receipt.cached_tokens for receipt in told)},
    }


async def close(events: Events) -> None:
    if isinstance(events, AsyncGenerator):
        await events.aclose()


class _Told:
    """Events as they are sent. Those of text alone, nearly all, are alike but for it: the rest is encoded once for each
    answer."""

    def __init__(self, chunks: Chunk):
        self._chunks = chunks
        self._around: dict[int, tuple[bytes, bytes]] = {}

    def of(self, event: AnswerEvent, is_first: bool) -> list[bytes]:
        if is_first or event.finish_reason is not None or event.scores or not event.text:
            return [server_sent(chunk) for chunk in self._chunks(event, is_first)]
        if event.index not in self._around:
            self._around[event.index] = self._cut(event)
        before, after = self._around[event.index]
        return [before + json.dumps(event.text).encode() + after]

    def _cut(self, event: AnswerEvent) -> tuple[bytes, bytes]:
        (chunk,) = self._chunks(replace(event, text=_PLACE), False)
        before, _, after = server_sent(chunk).rpartition(json.dumps(_PLACE).encode())
        return before, after


async def _told(
    first: AnswerEvent, rest: Events, num_answers: int, chunks: Chunk, usage: Callable[[list[Collected]], Any] | None
) -> AsyncGenerator[bytes]:
    answers: dict[int, Collected] = {}
    told = _Told(chunks)
    async for event in _all(first, rest):
        is_first = event.index not in answers
        answers.setdefault(event.index, Collected(event.index)).add(event)
        for data in told.of(event, is_first):
            yield data
    ended = _whole(answers, num_answers)
    if usage is not None:
        yield server_sent(usage(ended))
    yield DONE


async def _all(first: AnswerEvent, rest: Events) -> AsyncGenerator[AnswerEvent]:
    yield first
    async for event in rest:
        yield event


async def _guarded(chunks: AsyncGenerator[bytes], request_id: str) -> AsyncGenerator[bytes]:
    """`chunks`, and where they break off, the error as a last event."""
    try:
        async for data in chunks:
            yield data
    except OpenLedgerError as error:
        yield server_sent(envelope(error))
    except Exception:  # noqa: BLE001 - the headers are out: no handler above can turn this into an answer
        _log.exception("a streamed answer broke off, request %s", request_id)
        yield server_sent(envelope(unexpected()))
    finally:
        await chunks.aclose()


async def _collect(events: Events, num_answers: int) -> list[Collected]:
    answers: dict[int, Collected] = {}
    async for event in events:
        answers.setdefault(event.index, Collected(event.index)).add(event)
    return _whole(answers, num_answers)


def _whole(answers: dict[int, Collected], num_answers: int) -> list[Collected]:
    if len(answers) != num_answers or any(answer.receipt is None for answer in answers.values()):
        raise _incomplete()
    return [answers[index] for index in sorted(answers)]


async def _next(events: Events) -> AnswerEvent:
    try:
        return await anext(events)
    except StopAsyncIteration:
        raise _incomplete() from None


def _receipt(receipt: Receipt | None) -> Receipt:
    if receipt is None:
        raise _incomplete()
    return receipt


def _incomplete() -> Unavailable:
    return Unavailable(
        "the answer broke off before its end",
        code="answer_incomplete",
        fix="ask again with the Idempotency-Key that you sent: what was paid for is told again at no charge",
    )
