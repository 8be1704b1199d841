"""/v1/withdrawals and /v1/claims: taking OPEN out, and what a round hands over; /v1/payouts as CSV and explained."""

from typing import Annotated

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import PlainTextResponse, Response

from openledger.api.access import AccountOf, ServiceOf
from openledger.api.callers import KeyOf
from openledger.api.responses import json_response
from openledger.core.ids import check_name

router = APIRouter(tags=["withdrawals"])
_CSV = "text/csv; charset=utf-8"


class WithdrawalBody(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    amount_nano: int
    address: Annotated[str, Field(max_length=64)]


@router.post("/v1/withdrawals")
async def withdraw(body: WithdrawalBody, service: ServiceOf, account: AccountOf, key: KeyOf) -> Response:
    told = await service.desk.withdraw(account, body.amount_nano, body.address, key)
    return json_response({"object": "withdrawal", **told})


@router.get("/v1/claims/{number}")
async def get_claims(number: int, service: ServiceOf) -> Response:
    claims = await service.desk.claims(number)
    data = [{"address": address, "amount_nano": amount_nano} for address, amount_nano in claims]
    return json_response({"object": "claims", "round": number, "data": data})


@router.get("/v1/claims/{number}/csv")
async def get_claims_csv(number: int, service: ServiceOf) -> Response:
    return PlainTextResponse(await service.desk.claims_csv(number), media_type=_CSV)


@router.get("/v1/payouts/csv")
async def get_payouts_csv(service: ServiceOf, account: AccountOf) -> Response:
    return PlainTextResponse(await service.desk.payouts_csv(account), media_type=_CSV)


@router.get("/v1/payouts/{transfer_id}/explanation")
async def explain(transfer_id: str, service: ServiceOf) -> Response:
    """Public, as its proof is: it says what the log says."""
    name = check_name(transfer_id, "transfer_id")
    lines = await service.desk.explain(name)
    return json_response({"object": "explanation", "transfer_id": name, "lines": lines})
