"""POST /v1/completions: text or token ids as they are, without a chat template; held and metered like any answer."""

from functools import partial

from fastapi import APIRouter, Request
from starlette.responses import Response

from openledger.api.access import AccountOf, ClockOf, ServiceOf
from openledger.api.callers import KeyDigestOf, KeyOf
from openledger.api.chat_response import Heading
from openledger.api.completion_request import CompletionRequest
from openledger.api.completion_response import chunks_of, completion, usage_chunk
from openledger.api.streams import stream_answers, whole_answers
from openledger.core.ids import derived_id

router = APIRouter(tags=["completions"])


@router.post("/v1/completions")
async def create_text_completion(
    body: CompletionRequest,
    request: Request,
    service: ServiceOf,
    account: AccountOf,
    clock: ClockOf,
    key: KeyOf,
    key_digest: KeyDigestOf,
) -> Response:
    heading = Heading(
        id=derived_id("cmpl", account, key),
        created_s=clock.now_ms() // 1000,
        model=body.model,
        scored=body.logprobs is not None,
    )
    prompts = body.prompts()
    events = service.complete(
        account=account,
        model=body.model,
        prompts=prompts,
        sampling=body.sampling(),
        idempotency_key=key,
        key_digest=key_digest,
        whole=not body.stream,
        adapters=body.weighted,
        echo=body.echo,
    )
    num_answers = len(prompts) * body.n
    if body.stream:
        usage = partial(usage_chunk, heading) if body.include_usage else None
        return await stream_answers(request, events, num_answers, partial(chunks_of, heading), usage)
    return await whole_answers(request, events, num_answers, partial(completion, heading))
