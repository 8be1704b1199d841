"""POST /v1/chat/completions: answers at once or as server-sent events; hanging up cancels them."""

from functools import partial
from typing import Annotated

from fastapi import APIRouter, Header, Request
from starlette.responses import Response

from openledger.api.access import AccountOf, ClockOf, ServiceOf
from openledger.api.chat_request import ChatRequest
from openledger.api.chat_response import Heading, chunks_of, completion, usage_chunk
from openledger.api.disconnect import ClientGone
from openledger.api.responses import json_response
from openledger.api.streams import CLIENT_GONE_STATUS, checked_key, stream_answers, whole_answers
from openledger.core.ids import derived_id, new_id

router = APIRouter(tags=["chat"])


@router.post("/v1/chat/completions")
async def create_completion(
    body: ChatRequest,
    request: Request,
    service: ServiceOf,
    account: AccountOf,
    clock: ClockOf,
    idempotency_key: Annotated[str | None, Header()] = None,
) -> Response:
    key = checked_key(idempotency_key) or new_id("key", clock.now_ms())
    heading = Heading(
        id=derived_id("chatcmpl", account, key),
        created_s=clock.now_ms() // 1000,
        model=body.model,
        scored=body.logprobs,
    )
    events = service.chat(
        account=account,
        model=body.model,
        messages=[message.plain() for message in body.messages],
        sampling=body.sampling(),
        idempotency_key=key,
    )
    try:
        if body.stream:
            usage = partial(usage_chunk, heading) if body.include_usage else None
            return await stream_answers(request, events, body.n, partial(chunks_of, heading), usage)
        return json_response(completion(heading, await whole_answers(request, events, body.n)))
    except ClientGone:
        return Response(status_code=CLIENT_GONE_STATUS)
