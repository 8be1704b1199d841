"""/v1/withdrawals and /v1/claims: taking OPEN out, and what a round hands over; /v1/payouts as CSV and explained."""

from typing import Annotated

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import PlainTextResponse, Response

from openledger.api.access import HolderOf, ServiceOf, account_of
from openledger.api.callers import KeyOf
from openledger.api.responses import json_response
from openledger.core.drawing import drawer
from openledger.core.errors import InvalidInput
from openledger.core.ids import check_name
from openledger.ledger.withdrawals import MAX_ADDRESS
from openledger.platform.service import Service

router = APIRouter(tags=["withdrawals"])
_CSV = "text/csv; charset=utf-8"
Hex = Annotated[str, Field(pattern=r"^[0-9a-f]*$", max_length=128)]


class WithdrawalBody(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    amount_nano: int
    address: Annotated[str, Field(max_length=MAX_ADDRESS)]
    public_key: Hex | None = None
    signature: Hex | None = None


@router.post("/v1/withdrawals")
async def withdraw(body: WithdrawalBody, request: Request, service: ServiceOf, key: KeyOf) -> Response:
    """By API key, or signed with a contributor's own key: then from his account, under the key that he signed."""
    account = await _drawer(body, request, service, key)
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
async def get_payouts_csv(service: ServiceOf, account: HolderOf) -> Response:
    return PlainTextResponse(await service.desk.payouts_csv(account), media_type=_CSV)


@router.get("/v1/payouts/{transfer_id}/explanation")
async def explain(transfer_id: str, service: ServiceOf) -> Response:
    """Public, as its proof is: it says what the log says."""
    name = check_name(transfer_id, "transfer_id")
    lines = await service.desk.explain(name)
    return json_response({"object": "explanation", "transfer_id": name, "lines": lines})


async def _drawer(body: WithdrawalBody, request: Request, service: Service, key: str) -> str:
    """The account that the money is taken from."""
    if body.public_key is None and body.signature is None:
        return await account_of(request, service)
    if body.public_key is None or body.signature is None:
        raise InvalidInput(
            "a signed withdrawal has a public key and a signature",
            code="missing_field",
            param="signature" if body.signature is None else "public_key",
        )
    held = await service.key_holder(body.public_key)
    signed = body.public_key, body.signature, body.amount_nano, body.address, key
    return f"contributor:{drawer(*signed, lambda _: held)}"
