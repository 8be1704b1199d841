"""Who is asking, and of which service: what routes declare as dependencies."""

from typing import Annotated

from fastapi import Depends, Header, Request

from openledger.api.idempotency import checked_key
from openledger.core.clock import Clock
from openledger.core.errors import Unauthenticated
from openledger.core.hashing import digest_bytes
from openledger.core.ids import new_id
from openledger.platform.service import Service

_FIX = "send the header 'Authorization: Bearer API_KEY'; on the command line set --api-key or OPENLEDGER_API_KEY"


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


def _clock(request: Request) -> Clock:
    clock: Clock = request.app.state.clock
    return clock


ServiceOf = Annotated[Service, Depends(_service)]
ClockOf = Annotated[Clock, Depends(_clock)]


async def _account(request: Request, service: ServiceOf) -> str:
    """Raises Unauthenticated for a missing, malformed or unknown key."""
    return await service.authenticate(_api_key(request))


def _api_key(request: Request) -> str:
    scheme, _, api_key = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not api_key.strip():
        raise Unauthenticated("no API key was sent", code="missing_api_key", param="Authorization", fix=_FIX)
    return api_key.strip()


def _key_digest(request: Request) -> str:
    """What the API key is known by where it may be stored."""
    return digest_bytes(_api_key(request).encode("utf-8", "surrogatepass"))


def _key(clock: ClockOf, idempotency_key: Annotated[str | None, Header()] = None) -> str:
    return checked_key(idempotency_key) or new_id("key", clock.now_ms())


AccountOf = Annotated[str, Depends(_account)]
KeyDigestOf = Annotated[str, Depends(_key_digest)]
KeyOf = Annotated[str, Depends(_key)]
