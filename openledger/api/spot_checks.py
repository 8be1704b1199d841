"""/v1/datanets/{name}/spot-checks: accepted rows that were drawn to be looked at again, for owner and reviewers.

Each comes with its text, as rows in review do. A row that is to go its owner removes from the Datanet. No
payout waits for them; docs/concepts/economy.md says why.
"""

from typing import Annotated

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from openledger.api.access import AccountOf, ServiceOf
from openledger.api.responses import json_response, listing
from openledger.core.ids import check_name

router = APIRouter(tags=["datanets"])


class FindingBody(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    finding: Annotated[str, Field(max_length=32)]


@router.get("/v1/datanets/{name}/spot-checks")
async def list_spot_checks(name: str, service: ServiceOf, account: AccountOf) -> Response:
    found = await service.spot_checks(account, check_name(name, "name"))
    return listing([{"object": "spot_check", **one} for one in found])


@router.post("/v1/datanets/{name}/spot-checks/{row_id}")
async def spot_check(name: str, row_id: str, body: FindingBody, service: ServiceOf, account: AccountOf) -> Response:
    """The same finding again is told as it stands."""
    names = check_name(name, "name"), check_name(row_id, "row_id")
    return json_response({"object": "spot_check", **await service.spot_check(account, *names, body.finding)})
