"""/v1/report and /v1/answers/{id}/attribution: what was made of the data, and which rows made one answer."""

from fastapi import APIRouter
from starlette.responses import Response

from openledger.api.access import AccountOf, ServiceOf
from openledger.api.responses import json_response
from openledger.core.ids import check_name

router = APIRouter(tags=["report"])


@router.get("/v1/report")
async def get_report(service: ServiceOf, account: AccountOf) -> Response:
    return json_response(await service.report())


@router.get("/v1/answers/{answer_id}/attribution")
async def get_attribution(answer_id: str, service: ServiceOf, account: AccountOf) -> Response:
    return json_response(await service.attribution(check_name(answer_id, "answer_id")))
