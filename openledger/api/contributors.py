"""/v1/contributors/{contributor_id}/keys: who speaks for a contributor, and how that is changed.

The change's signatures say who sends it: no API key needed, and so many a day (`datanets.holders`).
"""

from typing import Annotated

from fastapi import APIRouter
from pydantic import Field
from starlette.responses import Response

from openledger.api.access import ServiceOf
from openledger.api.datanets import Hex, StrictBody
from openledger.api.responses import json_response
from openledger.core.ids import check_name
from openledger.core.rekeying import KeyChange

router = APIRouter(tags=["contributors"])
_MOST_SIGNATURES = 3  # of the key that may change keys, and of two new ones


class KeyChangeBody(StrictBody):
    number: Annotated[int, Field(ge=1)]
    replaces: Hex
    public_key: Hex
    recovery_key: Hex = ""
    by: Hex
    signatures: Annotated[dict[Hex, Hex], Field(min_length=1, max_length=_MOST_SIGNATURES)]

    def change(self, contributor: str) -> KeyChange:
        return KeyChange(contributor_id=contributor, **self.model_dump())


@router.get("/v1/contributors/{contributor_id}/keys")
async def get_keys(contributor_id: str, service: ServiceOf) -> Response:
    """The keys in force, and every change with the entry of the log that shows it. Public, as the log is."""
    found = await service.contributor_keys(check_name(contributor_id, "contributor_id"))
    return json_response({"object": "contributor_keys", **found})


@router.post("/v1/contributors/{contributor_id}/keys")
async def change_keys(contributor_id: str, body: KeyChangeBody, service: ServiceOf) -> Response:
    """The same change again is told as it stands."""
    changed = await service.change_keys(body.change(check_name(contributor_id, "contributor_id")))
    return json_response({"object": "contributor_keys", **changed})
