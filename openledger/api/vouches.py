"""/v1/datanets/{name}/seeds and /vouches: whom the owner trusts, for whom contributors vouch. Rules quotas alone."""

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict
from starlette.responses import Response

from openledger.api.access import AccountOf, ServiceOf
from openledger.api.responses import json_response
from openledger.core.ids import check_name

router = APIRouter(tags=["datanets"])


class SeedBody(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    trusted: bool


class VouchBody(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    vouches: bool


@router.post("/v1/datanets/{name}/seeds/{contributor_id}")
async def seed(name: str, contributor_id: str, body: SeedBody, service: ServiceOf, account: AccountOf) -> Response:
    """May be repeated."""
    names = check_name(name, "name"), check_name(contributor_id, "contributor_id")
    return json_response({"object": "standing", **await service.seed_trust(account, *names, body.trusted)})


@router.post("/v1/datanets/{name}/vouches/{contributor_id}")
async def vouch(name: str, contributor_id: str, body: VouchBody, service: ServiceOf, account: AccountOf) -> Response:
    """May be repeated."""
    names = check_name(name, "name"), check_name(contributor_id, "contributor_id")
    return json_response({"object": "standing", **await service.vouch(account, *names, body.vouches)})
