"""Idempotency-Key on calls that answer a retry with the same resource anyway: a key stands for one request.

It is checked before the call is made. Without the header nothing is checked, and sending the same again is as safe.
"""

from typing import Annotated, Any

from fastapi import Depends, Request

from openledger.api.callers import SentKeyOf
from openledger.core.hashing import digest_json
from openledger.platform.service import Service


class IdempotencyKey:
    """The caller's key, or none."""

    def __init__(self, key: str | None, route: str):
        self._key = key
        self._route = route

    async def check(self, service: Service, caller: str, body: Any) -> None:
        """Raises Conflict (`idempotency_conflict`) where `caller` sent this key with another request."""
        if self._key is not None:
            await service.check_request(caller, self._key, digest_json([self._route, body]))


async def _from_header(request: Request, sent: SentKeyOf) -> IdempotencyKey:
    return IdempotencyKey(sent, f"{request.method} {request.url.path}")


IdempotencyKeyOf = Annotated[IdempotencyKey, Depends(_from_header)]
