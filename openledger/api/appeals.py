"""/v1/datanets/{name}/appeals and /reviewers: verdicts of the gate, judged again.

Appeals and decisions are signed by whose they are, and stand in the log: no key needed to send or to list them. The
row's text is in neither; it is told to the Datanet's owner and reviewers alone, by API key. The owner names reviewers.
"""

from dataclasses import asdict
from typing import Annotated

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from openledger.api.access import AccountOf, ServiceOf
from openledger.api.datanets import DraftBody
from openledger.api.idempotency import IdempotencyKeyOf
from openledger.api.responses import json_response, listing
from openledger.core.appealing import MAX_REASON, Appeal, Decision, check_appeal_signature, check_decision_signature
from openledger.core.ids import check_name
from openledger.ledger.signers import Signer

router = APIRouter(tags=["appeals"])
Name = Annotated[str, Field(max_length=128)]
Account = Annotated[str, Field(max_length=300)]
Hex = Annotated[str, Field(pattern=r"^[0-9a-f]*$", max_length=128)]
Text = Annotated[str, Field(max_length=MAX_REASON)]


class _Body(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class AppealBody(_Body):
    contributor_id: Name
    public_key: Hex
    contribution_id: Name
    row_id: Name
    ordinal: Annotated[int, Field(ge=0, lt=2**31)]
    draft: DraftBody
    path: Annotated[list[Hex], Field(max_length=64)]
    reason: Text
    signature: Hex

    def appeal(self, datanet: str) -> Appeal:
        values = {name: value for name, value in self if name not in ("draft", "path")}
        return Appeal(datanet=datanet, draft=self.draft.draft(), path=tuple(self.path), **values)


class DecisionBody(_Body):
    account: Account
    public_key: Hex
    overturned: bool
    note: Text = ""
    signature: Hex

    def decision(self, datanet: str, row_id: str) -> Decision:
        return Decision(datanet=datanet, row_id=row_id, **dict(self))


class ReviewerBody(_Body):
    account: Account
    public_key: Hex
    signature: Hex


@router.get("/v1/datanets/{name}/appeals")
async def list_appeals(name: str, service: ServiceOf) -> Response:
    return listing([{"object": "appeal", **one} for one in await service.appeals(check_name(name, "name"))])


@router.post("/v1/datanets/{name}/appeals")
async def open_appeal(name: str, body: AppealBody, service: ServiceOf, key: IdempotencyKeyOf) -> Response:
    """The same appeal again is told as it stands."""
    appeal = body.appeal(check_name(name, "name"))
    check_appeal_signature(asdict(appeal), lambda _: appeal.contributor_id)  # whose key it is, Datanets and log say
    await key.check(service, body.public_key, body.model_dump())
    return json_response({"object": "appeal", **await service.appeal(appeal)})


@router.get("/v1/datanets/{name}/appeals/{row_id}")
async def get_appeal(name: str, row_id: str, service: ServiceOf) -> Response:
    found = await service.find_appeal(check_name(name, "name"), check_name(row_id, "row_id"))
    return json_response({"object": "appeal", **found})


@router.get("/v1/datanets/{name}/appeals/{row_id}/row")
async def get_appealed_row(name: str, row_id: str, service: ServiceOf, account: AccountOf) -> Response:
    """What is to be judged, while the appeal is open."""
    found = await service.appealed_row(account, check_name(name, "name"), check_name(row_id, "row_id"))
    return json_response({"object": "row", **found})


@router.post("/v1/datanets/{name}/appeals/{row_id}/decision")
async def decide(name: str, row_id: str, body: DecisionBody, service: ServiceOf, key: IdempotencyKeyOf) -> Response:
    """The same decision again is told as it was taken."""
    decision = body.decision(check_name(name, "name"), check_name(row_id, "row_id"))
    check_decision_signature(asdict(decision))
    await key.check(service, body.public_key, body.model_dump())
    return json_response({"object": "appeal", **await service.decide(decision)})


@router.post("/v1/datanets/{name}/reviewers")
async def add_reviewer(
    name: str, body: ReviewerBody, service: ServiceOf, account: AccountOf, key: IdempotencyKeyOf
) -> Response:
    """The reviewer's own signature shows that he has the key."""
    await key.check(service, account, body.model_dump())
    added = await service.add_reviewer(account, name, _reviewer(name, body.account, body.public_key), body.signature)
    return json_response({"object": "reviewer", **added})


@router.delete("/v1/datanets/{name}/reviewers/{reviewer}/{public_key}")
async def end_reviewer(name: str, reviewer: str, public_key: str, service: ServiceOf, account: AccountOf) -> Response:
    """The key decides nothing from now on; what it decided stays."""
    ended = await service.end_reviewer(account, name, _reviewer(name, reviewer, public_key))
    return json_response({"object": "reviewer", **ended})


def _reviewer(datanet: str, account: str, public_key: str) -> Signer:
    return Signer(role="reviewer", account=account, public_key=public_key, datanet=check_name(datanet, "name"))
