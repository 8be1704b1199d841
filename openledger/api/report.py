"""/v1/report, /v1/answers/{id}/attribution, /v1/row_scores: what was made of the data, which rows made one answer, and
what each row did to all that an adapter sold in a period."""

from typing import Annotated

from fastapi import APIRouter, Query
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


@router.get("/v1/row_scores")
async def get_row_scores(
    adapter: str,
    period: str,
    service: ServiceOf,
    account: AccountOf,
    contributor: str = "",
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    after: Annotated[str, Query(max_length=256)] = "",
) -> Response:
    """Those that moved most first; `after` is the `next` of the page before."""
    pool = check_name(adapter, "adapter"), check_name(period, "period")
    found = await service.row_scores(*pool, account=account, contributor=contributor, limit=limit, after=after)
    return json_response(found)
