"""POST /v1/chat/completions: an answer at once or as server-sent events; hanging up cancels it.

Refusals have their own status: the first event is awaited before a stream's headers are sent. What fails later comes
as an event that holds the error envelope, and no [DONE] follows.
"""

import logging
from collections.abc import AsyncGenerator, AsyncIterator

from fastapi import APIRouter, Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from openledger.api.access import AccountOf, ClockOf, ServiceOf
from openledger.api.callers import KeyDigestOf, KeyOf
from openledger.api.chat_request import ChatRequest
from openledger.api.chat_response import DONE, Heading, chunk, completion, last_chunk, server_sent, usage_chunk
from openledger.api.disconnect import ClientGone, until_disconnected
from openledger.api.errors import envelope, unexpected
from openledger.api.request_ids import request_id_of
from openledger.api.responses import json_response
from openledger.core.errors import OpenLedgerError, Unavailable
from openledger.core.ids import derived_id
from openledger.platform.service import AnswerEvent, Receipt

router = APIRouter(tags=["chat"])
_log = logging.getLogger(__name__)
_CLIENT_GONE_STATUS = 499  # nginx's number; nobody is there to read it but the access log


@router.post("/v1/chat/completions")
async def create_completion(
    body: ChatRequest,
    request: Request,
    service: ServiceOf,
    account: AccountOf,
    clock: ClockOf,
    key: KeyOf,
    key_digest: KeyDigestOf,
) -> Response:
    heading = Heading(id=derived_id("chatcmpl", account, key), created_s=clock.now_ms() // 1000, model=body.model)
    events = service.chat(
        account=account,
        model=body.model,
        messages=[message.plain() for message in body.messages],
        sampling=body.sampling(),
        idempotency_key=key,
        key_digest=key_digest,
    )
    try:
        if body.stream:
            first = await until_disconnected(request.receive, _next(events))
            return EventStream(heading, first, events, body.include_usage, request_id_of(request))
        text, last = await until_disconnected(request.receive, _collect(events))
    except ClientGone:
        return Response(status_code=_CLIENT_GONE_STATUS)
    return json_response(completion(heading, text, str(last.finish_reason), _receipt(last)))


class EventStream(StreamingResponse):
    """The chunks of one completion. The answer is closed with the connection, however that ends."""

    def __init__(
        self, heading: Heading, first: AnswerEvent, events: AsyncIterator[AnswerEvent], usage: bool, request_id: str
    ):
        chunks = _guarded(_chunks(heading, first, events, usage), request_id)
        super().__init__(
            chunks, media_type="text/event-stream", headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        )
        self._chunks = chunks
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await until_disconnected(receive, self.stream_response(send))
        except (ClientGone, OSError):
            pass  # the client hung up: there is nobody to tell
        finally:
            await self._chunks.aclose()
            await _close(self._events)


async def _chunks(
    heading: Heading, first: AnswerEvent, rest: AsyncIterator[AnswerEvent], usage: bool
) -> AsyncGenerator[bytes]:
    yield server_sent(chunk(heading, {"role": "assistant", "content": ""}))
    if first.text:
        yield server_sent(chunk(heading, {"content": first.text}))
    last = first
    async for last in rest:
        if last.text:
            yield server_sent(chunk(heading, {"content": last.text}))
    receipt = _receipt(last)
    yield server_sent(last_chunk(heading, last.finish_reason, receipt))
    if usage:
        yield server_sent(usage_chunk(heading, receipt))
    yield DONE


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


async def _collect(events: AsyncIterator[AnswerEvent]) -> tuple[str, AnswerEvent]:
    last = await _next(events)
    texts = [last.text]
    async for last in events:
        texts.append(last.text)
    return "".join(texts), last


async def _next(events: AsyncIterator[AnswerEvent]) -> AnswerEvent:
    try:
        return await anext(events)
    except StopAsyncIteration:
        raise _incomplete() from None


async def _close(events: AsyncIterator[AnswerEvent]) -> None:
    if isinstance(events, AsyncGenerator):
        await events.aclose()


def _receipt(last: AnswerEvent) -> Receipt:
    if last.receipt is None or last.finish_reason is None:
        raise _incomplete()
    return last.receipt


def _incomplete() -> Unavailable:
    return Unavailable(
        "the answer broke off before its end",
        code="answer_incomplete",
        fix="ask again with the Idempotency-Key that you sent: what was paid for is told again at no charge",
    )
