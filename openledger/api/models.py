"""/v1/models: the adapters that can be asked, in OpenAI's shape with terms under `openledger`, by pages.

POST /v1/adapters and DELETE /v1/models/{id}: an account's own adapters come and go while others are being answered.
"""

from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from openledger.api.access import AccountOf, ServiceOf
from openledger.api.responses import json_response, page
from openledger.core.ids import check_name
from openledger.core.money import SUPPLY_NANO
from openledger.platform.service import ModelEntry, NewAdapter

router = APIRouter(tags=["models"])
MAX_PAGE = 1000

Price = Annotated[int, Field(ge=0, le=SUPPLY_NANO)]
Account = Annotated[str, Field(min_length=1, max_length=256)]


class AdapterBody(BaseModel):
    """`source` is a directory of this installation, a URI or a hub id. Prices in nano-OPEN for each token."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    name: str
    source: Annotated[str, Field(min_length=1, max_length=2048)]
    prompt_price_nano: Price
    completion_price_nano: Price
    shared_with: Annotated[list[Account], Field(max_length=1024)] | None = None
    replace: bool = False

    def plain(self) -> NewAdapter:
        return NewAdapter(
            name=check_name(self.name, "name"),
            source=self.source,
            prompt_price_nano=self.prompt_price_nano,
            completion_price_nano=self.completion_price_nano,
            shared_with=None if self.shared_with is None else tuple(self.shared_with),
            replace=self.replace,
        )


@router.get("/v1/models")
async def list_models(
    service: ServiceOf,
    account: AccountOf,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = MAX_PAGE,
    after: Annotated[str, Query(max_length=256)] = "",
) -> Response:
    """By name; `after` is the last id of the page before."""
    entries = await service.models(account=account, after=after, limit=limit + 1)
    return page([_object(entry) for entry in entries[:limit]], has_more=len(entries) > limit)


@router.get("/v1/models/{model_id}")
async def get_model(model_id: str, service: ServiceOf, account: AccountOf) -> Response:
    return json_response(_object(await service.model(account, model_id)))


@router.post("/v1/adapters")
async def add_adapter(body: AdapterBody, service: ServiceOf, account: AccountOf) -> Response:
    """It can be asked when this answers. The same again changes nothing; `replace` puts another in its place."""
    return json_response(_object(await service.add_adapter(account, body.plain())))


@router.delete("/v1/models/{model_id}")
async def remove_model(model_id: str, service: ServiceOf, account: AccountOf) -> Response:
    """Answers under way end as they began."""
    await service.remove_adapter(account, model_id)
    return json_response({"id": model_id, "object": "model", "deleted": True})


def _object(entry: ModelEntry) -> dict[str, Any]:
    return {
        "id": entry.id,
        "object": "model",
        "created": entry.created_ms // 1000,
        "owned_by": entry.owned_by,
        "openledger": {
            "base_model": entry.base_model,
            "base_digest": entry.base_digest,
            "datanet": entry.datanet,
            "datanet_version": entry.datanet_version,
            "adapter_digest": entry.adapter_digest,
            "prompt_price_nano": entry.prompt_price_nano,
            "completion_price_nano": entry.completion_price_nano,
        },
    }
