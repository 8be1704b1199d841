"""/v1/receipts/{answer_id}: the signed receipt of an answer, for whoever paid for it, also after the answer is gone."""

from fastapi import APIRouter
from starlette.responses import Response

from openledger.api.access import AccountOf, ServiceOf
from openledger.core.ids import check_name

router = APIRouter(tags=["answers"])


@router.get("/v1/receipts/{answer_id}")
async def get_receipt(answer_id: str, service: ServiceOf, account: AccountOf) -> Response:
    """The receipt file byte for byte, as a download: its bytes are what the signature covers."""
    name = check_name(answer_id, "answer_id")
    headers = {"Content-Disposition": f'attachment; filename="{name}.receipt.json"'}
    return Response(await service.receipt(account, name), media_type="application/json", headers=headers)
