"""POST /v1/embeddings: texts or token ids to vectors, held and metered like any answer; hanging up cancels."""

import asyncio
import base64
import json
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from fastapi import APIRouter, Request
from pydantic import Field, model_validator
from starlette.responses import Response

from openledger.api.access import AccountOf, ServiceOf
from openledger.api.callers import KeyDigestOf, KeyOf
from openledger.api.chat_response import receipt_object
from openledger.api.completion_request import TokenIds
from openledger.api.disconnect import ClientGone, until_disconnected
from openledger.api.responses import finite
from openledger.api.sampling_body import Body, without_nulls
from openledger.api.streams import CLIENT_GONE_STATUS
from openledger.core.errors import InvalidInput
from openledger.platform.service import Embedded

router = APIRouter(tags=["embeddings"])
MAX_INPUTS = 2048

Inputs = (
    Annotated[list[str], Field(min_length=1, max_length=MAX_INPUTS)]
    | Annotated[list[TokenIds], Field(min_length=1, max_length=MAX_INPUTS)]
)


class EmbeddingBody(Body):
    model: Annotated[str, Field(min_length=1, max_length=256)]
    input: Inputs
    encoding_format: Literal["float", "base64"] = "float"

    @model_validator(mode="before")
    @classmethod
    def _plain(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        body = without_nulls(value)
        if "dimensions" in body:
            raise InvalidInput(
                "vectors have the base model's width and no other",
                code="unsupported_parameter",
                param="dimensions",
                fix="leave dimensions out",
            )
        body.pop("user", None)
        given = body.get("input")
        single = isinstance(given, str) or (isinstance(given, list) and given and type(given[0]) is int)
        return {**body, "input": [given]} if single else body


@router.post("/v1/embeddings")
async def create_embeddings(
    body: EmbeddingBody, request: Request, service: ServiceOf, account: AccountOf, key: KeyOf, key_digest: KeyDigestOf
) -> Response:
    embedding = service.embed(
        account=account, model=body.model, inputs=body.input, idempotency_key=key, key_digest=key_digest
    )
    try:
        embedded = await until_disconnected(request.receive, embedding)
    except ClientGone:
        return Response(status_code=CLIENT_GONE_STATUS)
    return Response(await asyncio.to_thread(_told, body, embedded), media_type="application/json")


def _told(body: EmbeddingBody, embedded: Embedded) -> bytes:
    """The answer's JSON, in a thread and a vector at a time: the encoder doesn't let go of the interpreter while it is
    at one value, and others' streams wait as long."""
    encode = _base64 if body.encoding_format == "base64" else _floats
    entries = (
        _json({"object": "embedding", "index": index, "embedding": encode(vector_H)})
        for index, vector_H in enumerate(embedded.vectors_KH)
    )
    num_tokens = embedded.receipt.prompt_tokens
    rest = {
        "model": body.model,
        "usage": {"prompt_tokens": num_tokens, "total_tokens": num_tokens},
        "openledger": receipt_object([embedded.receipt]),
    }
    return f'{{"object":"list","data":[{",".join(entries)}],{_json(rest)[1:]}'.encode()


def _json(value: dict[str, Any]) -> str:
    return json.dumps(finite(value), ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def _floats(vector_H: npt.NDArray[np.float32]) -> list[float]:
    return [float(number) for number in vector_H]


def _base64(vector_H: npt.NDArray[np.float32]) -> str:
    """Little-endian float32, as OpenAI sends them."""
    return base64.b64encode(vector_H.astype("<f4").tobytes()).decode()
