"""/v1/datanets, its /terms and /permissions: creating a Datanet, on what terms it is open, and who may do what.

Owners send the API key of their account. A contributor asks to contribute by his signature: no key needed.
"""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from openledger.api.access import AccountOf, ServiceOf, account_of
from openledger.api.idempotency import IdempotencyKeyOf
from openledger.api.responses import json_response, listing
from openledger.core.errors import InvalidInput
from openledger.core.ids import check_name
from openledger.datanets.registry import DEFAULT_DISPLAY, Display
from openledger.datanets.row_schema import RowSchema

router = APIRouter(tags=["datanets"])
Action = Literal["contribute", "train"]
Party = Annotated[str, Field(min_length=1, max_length=128)]
Hex = Annotated[str, Field(pattern=r"^[0-9a-f]*$", max_length=128)]


class _Body(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class TermsBody(_Body):
    """What is left out stays as it is."""

    description: str | None = None
    tags: list[str] | None = None
    languages: list[str] | None = None
    only_languages: bool | None = None
    licence: str | None = None
    contribute: str | None = None
    train: str | None = None
    max_rows_a_day: int | None = None
    max_rows_an_hour: int | None = None
    min_reviews: int | None = None
    panel: bool | None = None

    def changes(self) -> dict[str, Any]:
        return {name: value for name, value in self.model_dump().items() if value is not None}


class DatanetBody(_Body):
    """`display` is what a customer may see of the rows that an answer rests on."""

    name: str
    summary: str
    row_schema: dict[str, Any] = {}
    terms: TermsBody = TermsBody()
    display: Display = DEFAULT_DISPLAY


class DisplayBody(_Body):
    display: Display


class RequestBody(_Body):
    """To train: by API key alone. To contribute: with the contributor's key and signature."""

    action: Action
    public_key: Hex = ""
    signature: Hex = ""


class ApprovalBody(_Body):
    """`expires_ms` is a time in milliseconds since 1970; 0 is never."""

    party: Party
    action: Action
    expires_ms: Annotated[int, Field(ge=0, lt=2**53)] = 0


class RevocationBody(_Body):
    party: Party
    action: Action


@router.post("/v1/datanets")
async def create_datanet(body: DatanetBody, account: AccountOf, service: ServiceOf, key: IdempotencyKeyOf) -> Response:
    """Owned by the API key's account. The same again changes nothing."""
    name, schema = check_name(body.name, "name"), RowSchema.from_json(body.row_schema)
    await key.check(service, account, body.model_dump())
    made = await service.create_datanet(account, name, body.summary, schema, body.terms.changes(), body.display)
    return json_response({"object": "datanet", **made})


@router.get("/v1/datanets/{name}/terms")
async def get_terms(name: str, service: ServiceOf) -> Response:
    return _terms(await service.terms(check_name(name, "name")))


@router.post("/v1/datanets/{name}/terms")
async def set_terms(name: str, body: TermsBody, account: AccountOf, service: ServiceOf) -> Response:
    """By the owner, from now on. Rows that stand already stay."""
    return _terms(await service.set_terms(account, check_name(name, "name"), body.changes()))


@router.post("/v1/datanets/{name}/display")
async def set_display(name: str, body: DisplayBody, account: AccountOf, service: ServiceOf) -> Response:
    """What a customer may see of the rows that an answer rests on. By the owner."""
    found = await service.set_display(account, check_name(name, "name"), body.display)
    return json_response({"object": "datanet", **found})


@router.get("/v1/datanets/{name}/permissions")
async def list_permissions(name: str, account: AccountOf, service: ServiceOf) -> Response:
    """All of them for the owner, its own for another account."""
    found = await service.permissions(account, check_name(name, "name"))
    return listing([{"object": "permission", **one} for one in found])


@router.post("/v1/datanets/{name}/permissions/requests")
async def request_permission(name: str, body: RequestBody, request: Request, service: ServiceOf) -> Response:
    """What was approved stays so; what was revoked is told as revoked, and the owner alone changes it."""
    check_name(name, "name")
    if body.action == "train":
        return _permission(await service.request_training(await account_of(request, service), name))
    if not body.public_key or not body.signature:
        raise InvalidInput(
            "a request to contribute is signed with the contributor's key",
            code="missing_field",
            param="signature",
            fix="send public_key and signature, as 'openledger permissions request --key' does",
        )
    return _permission(await service.request_contributing(name, body.public_key, body.signature))


@router.post("/v1/datanets/{name}/permissions/approvals")
async def approve(name: str, body: ApprovalBody, account: AccountOf, service: ServiceOf) -> Response:
    """By the owner; also of who never asked, as an invitation."""
    given = body.party, body.action, body.expires_ms
    return _permission(await service.approve(account, check_name(name, "name"), *given))


@router.post("/v1/datanets/{name}/permissions/revocations")
async def revoke(name: str, body: RevocationBody, account: AccountOf, service: ServiceOf) -> Response:
    """By the owner. What was contributed and trained until now stays."""
    return _permission(await service.revoke(account, check_name(name, "name"), body.party, body.action))


def _terms(terms: dict[str, Any]) -> Response:
    return json_response({"object": "terms", **terms})


def _permission(permission: dict[str, Any]) -> Response:
    return json_response({"object": "permission", **permission})
