"""/v1/datanets/NAME/versions: what was published, for anybody: from the rows' ids he recomputes a version's roots."""

from typing import Annotated

from fastapi import APIRouter, Path, Query
from starlette.responses import Response

from openledger.api.access import ServiceOf
from openledger.api.responses import json_response, listing
from openledger.core.ids import check_name

router = APIRouter(tags=["datanets"])
MOST_ROWS = 10_000
Number = Annotated[int, Path(ge=1, lt=2**31)]


@router.get("/v1/datanets/{name}/versions")
async def list_versions(name: str, service: ServiceOf) -> Response:
    """Oldest first."""
    found = await service.versions(check_name(name, "name"))
    return listing([{"object": "version", **one} for one in found])


@router.get("/v1/datanets/{name}/versions/{number}")
async def get_version(name: str, number: Number, service: ServiceOf) -> Response:
    """What the version says of itself: its roots, and the terms and statistics that it was published with."""
    return json_response({"object": "version", **await service.manifest(check_name(name, "name"), number)})


@router.get("/v1/datanets/{name}/versions/{number}/rows")
async def list_version_rows(
    name: str,
    number: Number,
    service: ServiceOf,
    after: Annotated[str, Query(max_length=128)] = "",
    limit: Annotated[int, Query(ge=1, le=MOST_ROWS)] = 1_000,
) -> Response:
    """Ids of its rows, sorted, with their places in the order of credit, and of removed ones the tombstone; no text.
    `after` is the last `row_id` of the page before."""
    found = await service.manifest_rows(check_name(name, "name"), number, after, limit + 1)
    return json_response({"object": "list", "data": found[:limit], "has_more": len(found) > limit})
