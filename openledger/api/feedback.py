"""/v1/answers/{id}/feedback and /rating: what people say of answers, as rows and as numbers that they sign.

The API key is that of the account that paid for the answer; the signature says who is credited.
"""

from typing import Annotated, Literal

from fastapi import APIRouter
from pydantic import Field
from starlette.responses import Response

from openledger.api.access import AccountOf, ServiceOf
from openledger.api.datanets import ContributionBody, Hex, StrictBody, contribution_object
from openledger.api.responses import json_response
from openledger.core.ids import check_name

router = APIRouter(tags=["answers"])


class FeedbackBody(StrictBody):
    """`consent` says that the rows, which hold what was asked, may be kept, shown and trained on. `salt` opens their
    source, which doesn't name the answer to anybody else (`core.rating.feedback_source`)."""

    kind: Literal["correction", "edge_case"]
    salt: Hex
    consent: bool = False
    datanet: Annotated[str, Field(max_length=128)]
    contribution: ContributionBody


class RatingBody(StrictBody):
    """1 (bad) to 5 (good). No word of the answer is kept with it."""

    rating: int
    public_key: Hex
    signature: Hex


@router.post("/v1/answers/{answer_id}/feedback")
async def give_feedback(answer_id: str, body: FeedbackBody, account: AccountOf, service: ServiceOf) -> Response:
    """A contribution to the Datanet of the adapter that answered. The same again gives the first receipt."""
    contribution = body.contribution.contribution(check_name(body.datanet, "datanet"))
    given = check_name(answer_id, "answer_id"), body.kind, contribution
    receipt = await service.give_feedback(account, *given, salt=body.salt, consent=body.consent)
    return json_response(contribution_object(receipt))


@router.post("/v1/answers/{answer_id}/rating")
async def rate(answer_id: str, body: RatingBody, account: AccountOf, service: ServiceOf) -> Response:
    """Once for each contributor. The same again changes nothing."""
    given = check_name(answer_id, "answer_id"), body.rating, body.public_key, body.signature
    return json_response({"object": "rating", **await service.rate(account, *given)})
