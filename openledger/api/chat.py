"""POST /v1/chat/completions: answers at once or as server-sent events; hanging up cancels them."""

from functools import partial

from fastapi import APIRouter, Request
from starlette.responses import Response

from openledger.api.access import AccountOf, ClockOf, ServiceOf
from openledger.api.callers import KeyDigestOf, KeyOf
from openledger.api.chat_request import ChatRequest
from openledger.api.chat_response import Heading, chunks_of, completion, usage_chunk
from openledger.api.streams import stream_answers, whole_answers
from openledger.core.ids import derived_id

router = APIRouter(tags=["chat"])


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
        key_digest=key_digest,
        whole=not body.stream,
        adapters=body.weighted,
    )
    if body.stream:
        usage = partial(usage_chunk, heading) if body.include_usage else None
        return await stream_answers(request, events, body.n, partial(chunks_of, heading), usage)
    return await whole_answers(request, events, body.n, partial(completion, heading))
