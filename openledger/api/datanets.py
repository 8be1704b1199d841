"""/v1/datanets: what there is, and contributions to it. A contribution's signature says who sends it: no key needed."""

from collections import Counter
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from openledger.api.access import AccountOf, ReaderOf, ServiceOf
from openledger.api.responses import json_response, listing
from openledger.core.ids import check_name
from openledger.core.values import Contribution, ContributionReceipt, RowDraft, Withdrawal
from openledger.platform.service import MOST_SHOWN

router = APIRouter(tags=["datanets"])
_SHORT = ("name", "summary", "version", "row_root", "rows_in", "accepted", "rejected", "review")
Hex = Annotated[str, Field(pattern=r"^[0-9a-f]*$", max_length=128)]


class StrictBody(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class DraftBody(StrictBody):
    prompt: str
    completion: str
    source: str = ""
    extra: str = ""

    def draft(self) -> RowDraft:
        return RowDraft(**self.model_dump())


class ContributionBody(StrictBody):
    contributor_id: Annotated[str, Field(max_length=128)]
    public_key: Hex
    nonce: Annotated[str, Field(max_length=256)]
    drafts: Annotated[list[DraftBody], Field(min_length=1)]
    content_root: Hex
    signature: Hex

    def contribution(self, datanet: str) -> Contribution:
        return Contribution(
            datanet=datanet,
            contributor_id=self.contributor_id,
            public_key=self.public_key,
            nonce=self.nonce,
            drafts=tuple(draft.draft() for draft in self.drafts),
            content_root=self.content_root,
            signature=self.signature,
        )


class WithdrawalBody(StrictBody):
    contributor_id: Annotated[str, Field(max_length=128)]
    public_key: Hex
    row_ids: Annotated[list[Annotated[str, Field(max_length=128)]], Field(min_length=1)]
    nonce: Annotated[str, Field(max_length=128)]
    signature: Hex

    def withdrawal(self, datanet: str) -> Withdrawal:
        return Withdrawal(
            datanet=datanet,
            contributor_id=self.contributor_id,
            public_key=self.public_key,
            row_ids=tuple(self.row_ids),
            nonce=self.nonce,
            signature=self.signature,
        )


class RemovalBody(StrictBody):
    row_ids: Annotated[list[Annotated[str, Field(max_length=128)]], Field(min_length=1)]
    reason: Annotated[str, Field(max_length=64)]


@router.get("/v1/datanets")
async def list_datanets(service: ServiceOf) -> Response:
    """In short; one Datanet asked for by name comes with its contributors and its adapter."""
    return listing([_short(datanet) for datanet in await service.datanets()])


@router.get("/v1/datanets/{name}/leaderboard")
async def leaderboard(
    name: str,
    service: ServiceOf,
    after: Annotated[str, Query(max_length=128)] = "",
    limit: Annotated[int, Query(ge=1, le=MOST_SHOWN)] = MOST_SHOWN,
) -> Response:
    """Who contributes, how fast, whether they come back, and what it earned them. Most accepted rows first; `after` is
    the last `contributor_id` of the page before."""
    found = await service.leaderboard(check_name(name, "name"), after=after, limit=limit)
    return json_response({"object": "leaderboard", **found})


@router.get("/v1/datanets/{name}")
async def get_datanet(name: str, service: ServiceOf) -> Response:
    return json_response({"object": "datanet", **await service.datanet(check_name(name, "name"))})


@router.post("/v1/datanets/{name}/contributions")
async def contribute(name: str, body: ContributionBody, service: ServiceOf) -> Response:
    return json_response(contribution_object(await service.contribute(body.contribution(check_name(name, "name")))))


@router.get("/v1/datanets/{name}/contributions/{contribution_id}")
async def get_contribution(name: str, contribution_id: str, service: ServiceOf, reader: ReaderOf) -> Response:
    """Whether a contribution is stored, and what the gate said: who was cut off asks before sending it again. No key
    needed; `duplicate_of` names a row of a Datanet that isn't public to those alone who have a permission on it."""
    found = await service.contribution(check_name(name, "name"), contribution_id, reader)
    return json_response(contribution_object(found))


@router.post("/v1/datanets/{name}/previews")
async def preview(name: str, body: ContributionBody, service: ServiceOf) -> Response:
    verdicts = await service.preview(body.contribution(check_name(name, "name")))
    return json_response({"object": "preview", "verdicts": [asdict(verdict) for verdict in verdicts]})


@router.post("/v1/datanets/{name}/withdrawals")
async def withdraw(name: str, body: WithdrawalBody, service: ServiceOf) -> Response:
    """Signed by the rows' contributor: no key needed."""
    return json_response({"object": "removal", **await service.withdraw(body.withdrawal(check_name(name, "name")))})


@router.post("/v1/datanets/{name}/removals")
async def remove_rows(name: str, body: RemovalBody, account: AccountOf, service: ServiceOf) -> Response:
    """By the Datanet's owner."""
    found = await service.remove_rows(account, check_name(name, "name"), body.row_ids, body.reason)
    return json_response({"object": "removal", **found})


def _short(datanet: dict[str, Any]) -> dict[str, Any]:
    return {"object": "datanet", **{key: datanet.get(key) for key in _SHORT}}


def contribution_object(receipt: ContributionReceipt) -> dict[str, Any]:
    counts = Counter(verdict.outcome for verdict in receipt.verdicts)
    totals = {"accepted": counts["accept"], "rejected": counts["reject"], "review": counts["review"]}
    return {"object": "contribution", **totals, **asdict(receipt)}
