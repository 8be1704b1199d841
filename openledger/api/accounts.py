"""/v1/balance and /v1/payouts: the caller's own account, nobody else's. By API key, or signed by a contributor."""

from fastapi import APIRouter
from starlette.responses import Response

from openledger.api.access import HolderOf, ServiceOf
from openledger.api.responses import json_response, listing

router = APIRouter(tags=["accounts"])


@router.get("/v1/balance")
async def get_balance(service: ServiceOf, account: HolderOf) -> Response:
    return json_response({"object": "balance", "account": account, **await service.balance(account)})


@router.get("/v1/payouts")
async def list_payouts(service: ServiceOf, account: HolderOf) -> Response:
    return listing([{"object": "payout", **payout} for payout in await service.payouts(account)])
