"""/v1/models: the adapters that can be asked, in OpenAI's shape with terms under `openledger`."""

from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from openledger.api.access import AccountOf, ServiceOf
from openledger.api.responses import json_response, listing
from openledger.core.errors import NotFound
from openledger.platform.service import ModelEntry

router = APIRouter(tags=["models"])


@router.get("/v1/models")
async def list_models(service: ServiceOf, account: AccountOf) -> Response:
    return listing([_object(entry) for entry in await service.models()])


@router.get("/v1/models/{model_id}")
async def get_model(model_id: str, service: ServiceOf, account: AccountOf) -> Response:
    for entry in await service.models():
        if entry.id == model_id:
            return json_response(_object(entry))
    raise NotFound(
        f"there is no model {model_id!r}", code="unknown_model", param="model", fix="GET /v1/models lists them"
    )


def _object(entry: ModelEntry) -> dict[str, Any]:
    return {
        "id": entry.id,
        "object": "model",
        "created": entry.created_ms // 1000,
        "owned_by": entry.owned_by,
        "openledger": {
            "datanet": entry.datanet,
            "datanet_version": entry.datanet_version,
            "adapter_digest": entry.adapter_digest,
            "prompt_price_nano": entry.prompt_price_nano,
            "completion_price_nano": entry.completion_price_nano,
        },
    }
