"""/v1/disputes: a contributor contests a period's share, a registered scorer decides by signed scores.

What is listed stands in the log, which is public: no key needed. A claim comes with the API key of the account that the
settlement paid, or signed with the contributor's own key. A recomputation's signature says who makes it.
"""

from typing import Annotated

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field, model_validator
from starlette.responses import Response

from openledger.api.access import ServiceOf, account_of
from openledger.api.idempotency import IdempotencyKeyOf
from openledger.api.responses import json_response, listing
from openledger.core.claiming import claimant
from openledger.core.errors import InvalidInput
from openledger.core.ids import check_name
from openledger.ledger.disputes import MAX_REASON, Basis, Recomputation, Scores, check_recomputation_signature
from openledger.platform.service import Service

router = APIRouter(tags=["disputes"])
Name = Annotated[str, Field(max_length=128)]
Hex = Annotated[str, Field(pattern=r"^[0-9a-f]*$", max_length=128)]
Whole = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Count = Annotated[int, Field(ge=0, lt=2**63)]


class _Body(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class ClaimBody(_Body):
    adapter: Name
    period: Name
    claimed_nano: Count
    reason: Annotated[str, Field(max_length=MAX_REASON)] = ""
    contributor_id: Name | None = None
    public_key: Hex | None = None
    signature: Hex | None = None

    @model_validator(mode="after")
    def _signed_whole(self) -> "ClaimBody":
        if (self.public_key is None) != (self.signature is None):
            raise InvalidInput(
                "a signed claim has a public key and a signature",
                code="missing_field",
                param="signature" if self.signature is None else "public_key",
            )
        return self


class ScoresBody(_Body):
    method: Annotated[str, Field(max_length=256)]
    scores_nano: dict[str, Whole]
    errors_nano: dict[str, Whole]
    gain_nano: Whole
    ceilings: list[tuple[Whole, Whole]] = Field(default_factory=list)
    unpaid_nano: dict[str, Whole] | None = None
    repeats: list[tuple[str, str, str, Whole] | tuple[str, str, Whole]] = Field(default_factory=list)


class RecomputationBody(_Body):
    adapter: Name
    period: Name
    scorer: Annotated[str, Field(max_length=300)]
    num_answers: Count
    answers_nano: Count
    scores: dict[str, ScoresBody]
    public_key: Hex
    signature: Hex

    def recomputation(self) -> Recomputation:
        return Recomputation(
            adapter=self.adapter,
            period=self.period,
            scorer=self.scorer,
            basis=Basis(num_answers=self.num_answers, answers_nano=self.answers_nano),
            scores={name: Scores(**part.model_dump()) for name, part in self.scores.items()},
            public_key=self.public_key,
            signature=self.signature,
        )


@router.get("/v1/disputes")
async def list_disputes(adapter: str, period: str, service: ServiceOf) -> Response:
    """Of one settled pool, by contributor."""
    found = await service.disputes(check_name(adapter, "adapter"), check_name(period, "period"))
    return listing([{"object": "dispute", **one} for one in found])


@router.get("/v1/disputes/{dispute_id}")
async def get_dispute(dispute_id: str, service: ServiceOf) -> Response:
    return json_response({"object": "dispute", **await service.find_dispute(check_name(dispute_id, "dispute_id"))})


@router.post("/v1/disputes")
async def open_dispute(body: ClaimBody, request: Request, service: ServiceOf, key: IdempotencyKeyOf) -> Response:
    """The same claim again gives the dispute as it stands."""
    account, contributor = await _claimant(body, request, service)
    await key.check(service, account, body.model_dump())
    pool = check_name(body.adapter, "adapter"), check_name(body.period, "period")
    opened = await service.open_dispute(account, *pool, contributor, body.claimed_nano, body.reason)
    return json_response({"object": "dispute", **opened})


@router.post("/v1/disputes/{dispute_id}/recomputation")
async def resolve_dispute(
    dispute_id: str, body: RecomputationBody, service: ServiceOf, key: IdempotencyKeyOf
) -> Response:
    """The same scores again give the first decision."""
    found = body.recomputation()
    check_recomputation_signature(found)
    await key.check(service, body.public_key, body.model_dump())
    decided = await service.resolve_dispute(check_name(dispute_id, "dispute_id"), found)
    return json_response({"object": "dispute", **decided})


async def _claimant(body: ClaimBody, request: Request, service: Service) -> tuple[str, str]:
    """The account that claims, and the contributor for whom. By default an account's own contributor."""
    if body.public_key is not None and body.signature is not None:
        claim = body.adapter, body.period, body.claimed_nano, body.reason
        held = await service.key_holder(body.public_key)
        signer = claimant(body.public_key, body.signature, *claim, lambda _: held)
        return f"contributor:{signer}", body.contributor_id or signer
    account = await account_of(request, service)
    return account, body.contributor_id or account.partition(":")[2]
