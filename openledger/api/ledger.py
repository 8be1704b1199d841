"""/v1/ledger: what a stranger needs to check the books. Public but for the audit, which costs a pass over the log."""

from fastapi import APIRouter
from starlette.responses import PlainTextResponse, Response

from openledger.api.access import AccountOf, ServiceOf
from openledger.api.responses import json_response
from openledger.core.ids import check_name

router = APIRouter(tags=["ledger"])


@router.get("/v1/ledger/checkpoint")
async def get_checkpoint(service: ServiceOf) -> Response:
    """The signed note as it is: its bytes are what the signature covers."""
    return PlainTextResponse(await service.checkpoint())


@router.get("/v1/ledger/audit")
async def get_audit(service: ServiceOf, account: AccountOf) -> Response:
    return json_response({"object": "audit", **await service.audit()})


@router.get("/v1/ledger/proofs/{transfer_id}")
async def get_proof(transfer_id: str, service: ServiceOf) -> Response:
    """The proof file byte for byte, as a download."""
    name = check_name(transfer_id, "transfer_id")
    headers = {"Content-Disposition": f'attachment; filename="{name}.proof.json"'}
    return Response(await service.proof(name), media_type="application/json", headers=headers)
