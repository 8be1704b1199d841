"""/v1/stakes: the caller's stake, and who votes with it."""

from typing import Annotated

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from openledger.api.access import AccountOf, ServiceOf
from openledger.api.callers import KeyOf
from openledger.api.responses import json_response

router = APIRouter(tags=["stakes"])


class StakeBody(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    object: Annotated[str, Field(max_length=300)]
    amount_nano: int


class DelegateBody(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    delegate: Annotated[str, Field(max_length=300)]


@router.get("/v1/stakes")
async def get_stakes(service: ServiceOf, account: AccountOf) -> Response:
    return json_response({"object": "stakes", **await service.desk.stakes(account)})


@router.post("/v1/stakes")
async def stake(body: StakeBody, service: ServiceOf, account: AccountOf, key: KeyOf) -> Response:
    told = await service.desk.stake(account, body.object, body.amount_nano, key)
    return json_response({**told, "staked_on": told["object"], "object": "stake"})


@router.post("/v1/stakes/removals")
async def unstake(body: StakeBody, service: ServiceOf, account: AccountOf, key: KeyOf) -> Response:
    told = await service.desk.unstake(account, body.object, body.amount_nano, key)
    return json_response({**told, "staked_on": told["object"], "object": "stake_removal"})


@router.post("/v1/stakes/delegate")
async def delegate(body: DelegateBody, service: ServiceOf, account: AccountOf) -> Response:
    await service.desk.delegate(account, body.delegate)
    return json_response({"object": "delegation", "account": account, "delegate": body.delegate})
