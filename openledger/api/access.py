"""Who is asking, and of which service: what routes declare as dependencies."""

from typing import Annotated

from fastapi import Depends, Request

from openledger.core.clock import Clock
from openledger.core.drawing import SCHEME, reader, reading_key
from openledger.core.errors import Unauthenticated
from openledger.platform.service import Service

_FIX = "send the header 'Authorization: Bearer API_KEY'; on the command line set --api-key or OPENLEDGER_API_KEY"


async def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


async def _clock(request: Request) -> Clock:
    clock: Clock = request.app.state.clock
    return clock


ServiceOf = Annotated[Service, Depends(_service)]
ClockOf = Annotated[Clock, Depends(_clock)]


async def account_of(request: Request, service: ServiceOf) -> str:
    """Raises Unauthenticated for a missing, malformed or unknown key."""
    scheme, _, api_key = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not api_key.strip():
        raise Unauthenticated("no API key was sent", code="missing_api_key", param="Authorization", fix=_FIX)
    return await service.authenticate(api_key.strip())


AccountOf = Annotated[str, Depends(account_of)]


async def holder_of(request: Request, service: ServiceOf, clock: ClockOf) -> str:
    """As `account_of`; or the contributor who signed for reading his own account. Raises Unauthenticated."""
    scheme, _, credentials = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != SCHEME.lower():
        return await account_of(request, service)
    credentials = credentials.strip()
    held = await service.key_holder(reading_key(credentials))
    return f"contributor:{reader(credentials, clock.now_ms(), lambda _: held)}"


HolderOf = Annotated[str, Depends(holder_of)]


async def reader_of(request: Request, service: ServiceOf, clock: ClockOf) -> str:
    """As `holder_of`, for what anybody may read and some more of: empty where no key is sent, or an unknown one."""
    if "Authorization" not in request.headers:
        return ""
    try:
        return await holder_of(request, service, clock)
    except Unauthenticated:
        return ""


ReaderOf = Annotated[str, Depends(reader_of)]
