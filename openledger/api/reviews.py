"""/v1/datanets/{name}/reviews and /known-answers: rows in review, looked at by the owner and the reviewers he named.

By API key. Every review gets the same reply: which items were of known answer, and what became of a row, isn't told.
"""

from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from openledger.api.access import AccountOf, ServiceOf
from openledger.api.datanets import DraftBody, Hex
from openledger.api.responses import json_response, listing
from openledger.core.ids import check_name

router = APIRouter(tags=["datanets"])
MAX_QUEUE = 100


class ReviewBody(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    row_id: Annotated[str, Field(max_length=128)]
    accept: bool


class CommitmentBody(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    row_id: Annotated[str, Field(max_length=128)]
    digest: Hex


class RevealBody(ReviewBody):
    nonce: Hex


class KnownAnswerBody(DraftBody):
    accept: bool


@router.get("/v1/datanets/{name}/reviews")
async def review_queue(
    name: str, account: AccountOf, service: ServiceOf, limit: Annotated[int, Query(ge=1, le=MAX_QUEUE)] = 20
) -> Response:
    """What this account has yet to look at."""
    found = await service.review_queue(account, check_name(name, "name"), limit)
    return listing([{"object": "row", **one} for one in found])


@router.post("/v1/datanets/{name}/reviews")
async def review(name: str, body: ReviewBody, account: AccountOf, service: ServiceOf) -> Response:
    """The same again changes nothing; another verdict on the same item is refused."""
    place = check_name(name, "name"), check_name(body.row_id, "row_id")
    return json_response({"object": "review", **await service.review(account, *place, accept=body.accept)})


@router.get("/v1/datanets/{name}/reviews/panels")
async def panels(name: str, account: AccountOf, service: ServiceOf) -> Response:
    """This account's own seats: what it committed to, and by when it reveals."""
    return json_response({"object": "panels", **await service.panels(account, check_name(name, "name"))})


@router.post("/v1/datanets/{name}/reviews/commitments")
async def commit(name: str, body: CommitmentBody, account: AccountOf, service: ServiceOf) -> Response:
    """A verdict's digest, before anybody tells his. The same again changes nothing."""
    place = check_name(name, "name"), check_name(body.row_id, "row_id")
    return json_response({"object": "commitment", **await service.commit_review(account, *place, body.digest)})


@router.post("/v1/datanets/{name}/reviews/reveals")
async def reveal(name: str, body: RevealBody, account: AccountOf, service: ServiceOf) -> Response:
    """The verdict behind it, once the panel is full. The same again changes nothing."""
    place = check_name(name, "name"), check_name(body.row_id, "row_id")
    told = await service.reveal_review(account, *place, body.nonce, accept=body.accept)
    return json_response({"object": "review", **told})


@router.post("/v1/datanets/{name}/known-answers")
async def add_known_answer(name: str, body: KnownAnswerBody, account: AccountOf, service: ServiceOf) -> Response:
    """By the owner: an item that is shown among rows, to measure who reviews them. It is in no version."""
    draft = DraftBody(**body.model_dump(exclude={"accept"})).draft()
    made = await service.add_known_answer(account, check_name(name, "name"), draft, accept=body.accept)
    return json_response({"object": "known_answer", **made})


@router.get("/v1/datanets/{name}/reviewers/records")
async def reviewers(name: str, account: AccountOf, service: ServiceOf) -> Response:
    """How much each reviewer looked at, and how well. By the owner."""
    found = await service.reviewers(account, check_name(name, "name"))
    return listing([{"object": "reviewer_record", **one} for one in found])
