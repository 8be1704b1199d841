"""/v1/proposals and /v1/parameters: what can be voted on, what was, and what it would do. Reading is public."""

from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from openledger.api.access import AccountOf, ServiceOf
from openledger.api.callers import KeyOf
from openledger.api.responses import json_response, listing
from openledger.core.ids import check_name

router = APIRouter(tags=["governance"])


class _Body(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class ProposalBody(_Body):
    title: Annotated[str, Field(max_length=200)]
    text: Annotated[str, Field(max_length=20_000)] = ""
    action: dict[str, Any]


class VoteBody(_Body):
    support: Annotated[str, Field(max_length=16)]


class SimulationBody(_Body):
    changes: dict[str, Any]
    period: Annotated[str, Field(max_length=16)] = ""


@router.get("/v1/parameters")
async def get_parameters(service: ServiceOf) -> Response:
    return json_response({"object": "parameters", **await service.desk.parameters()})


@router.post("/v1/parameters/simulations")
async def simulate(body: SimulationBody, service: ServiceOf, account: AccountOf) -> Response:
    """What changed parameters would have done to a settled period; nothing is written."""
    return json_response({"object": "simulation", **await service.desk.simulate(body.changes, body.period)})


@router.get("/v1/vesting")
async def get_vesting(service: ServiceOf) -> Response:
    return json_response({"object": "vesting", **await service.desk.vesting()})


@router.get("/v1/proposals")
async def list_proposals(service: ServiceOf) -> Response:
    return listing([_object(proposal) for proposal in await service.desk.proposals()])


@router.get("/v1/proposals/{proposal}")
async def get_proposal(proposal: str, service: ServiceOf) -> Response:
    return json_response(_object(await service.desk.proposal(check_name(proposal, "proposal"))))


@router.post("/v1/proposals")
async def propose(body: ProposalBody, service: ServiceOf, account: AccountOf, key: KeyOf) -> Response:
    return json_response(_object(await service.desk.propose(account, body.title, body.text, body.action, key)))


@router.post("/v1/proposals/{proposal}/votes")
async def vote(proposal: str, body: VoteBody, service: ServiceOf, account: AccountOf) -> Response:
    name = check_name(proposal, "proposal")
    power_nano = await service.desk.vote(account, name, body.support)
    told = {"proposal": name, "voter": account, "support": body.support, "power_nano": power_nano}
    return json_response({"object": "vote", **told})


@router.post("/v1/proposals/{proposal}/cancel")
async def cancel(proposal: str, service: ServiceOf, account: AccountOf) -> Response:
    return json_response(_object(await service.desk.cancel(account, check_name(proposal, "proposal"))))


def _object(proposal: dict[str, Any]) -> dict[str, Any]:
    return {"object": "proposal", **proposal}
