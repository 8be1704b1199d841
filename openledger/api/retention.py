"""/v1/retention: what is kept of the caller's own prompts and answers, and how to be rid of it."""

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict
from starlette.responses import Response

from openledger.api.access import AccountOf, ServiceOf
from openledger.api.idempotency import IdempotencyKeyOf
from openledger.api.responses import json_response

router = APIRouter(tags=["retention"])


class RetentionBody(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    keep: bool


@router.get("/v1/retention")
async def get_retention(service: ServiceOf, account: AccountOf) -> Response:
    return json_response({"object": "retention", **await service.retention(account)})


@router.post("/v1/retention")
async def set_retention(body: RetentionBody, service: ServiceOf, account: AccountOf, key: IdempotencyKeyOf) -> Response:
    """From now on; what is kept already stays until it is deleted below, or its time is up."""
    await key.check(service, account, body.model_dump())
    return json_response({"object": "retention", **await service.set_retention(account, body.keep)})


@router.delete("/v1/retention/content")
async def forget_content(service: ServiceOf, account: AccountOf) -> Response:
    """Delete the caller's key and all that was kept under it. What it paid stays."""
    return json_response({"object": "retention", **await service.forget_content(account)})
