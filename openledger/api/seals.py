"""/v1/datanets/{name}/seals: keeping a place for rows before anybody sees them. The seal's signature says whose it is:
no key needed."""

from dataclasses import asdict
from typing import Annotated

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from openledger.api.access import ServiceOf
from openledger.api.idempotency import IdempotencyKeyOf
from openledger.api.responses import json_response
from openledger.core.ids import check_name
from openledger.core.sealing import Seal, SealReceipt, check_seal

router = APIRouter(tags=["datanets"])
Hex = Annotated[str, Field(pattern=r"^[0-9a-f]*$", max_length=128)]


class SealBody(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    contributor_id: Annotated[str, Field(max_length=128)]
    public_key: Hex
    digest: Hex
    signature: Hex

    def seal(self, datanet: str) -> Seal:
        return Seal(datanet=datanet, **self.model_dump())


@router.post("/v1/datanets/{name}/seals")
async def seal(name: str, body: SealBody, service: ServiceOf, key: IdempotencyKeyOf) -> Response:
    """The same seal again gives the first answer."""
    given = body.seal(check_name(name, "name"))
    check_seal(given)
    await key.check(service, body.public_key, body.model_dump())
    return json_response(_object(await service.seal(given)))


@router.get("/v1/datanets/{name}/seals/{contributor_id}/{digest}")
async def get_seal(name: str, contributor_id: str, digest: str, service: ServiceOf) -> Response:
    checked = check_name(name, "name"), check_name(contributor_id, "contributor_id"), check_name(digest, "digest")
    return json_response(_object(await service.find_seal(*checked)))


def _object(receipt: SealReceipt) -> dict[str, object]:
    return {"object": "seal", **asdict(receipt)}
