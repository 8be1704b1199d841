"""/v1/answers/{id}/verdict: what the customer who paid for an answer says of it."""

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict
from starlette.responses import Response

from openledger.api.access import AccountOf, ServiceOf
from openledger.api.responses import json_response
from openledger.core.ids import check_name

router = APIRouter(tags=["answers"])


class VerdictBody(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    verdict: str


@router.post("/v1/answers/{answer_id}/verdict")
async def mark(answer_id: str, body: VerdictBody, service: ServiceOf, account: AccountOf) -> Response:
    name = check_name(answer_id, "answer_id")
    transfer_id = await service.mark(account, name, body.verdict)
    told = {"answer_id": name, "verdict": body.verdict, "transfer_id": transfer_id}
    return json_response({"object": "verdict", **told})
