"""What a call brings beside its account: the key that makes it repeatable, and the API key's digest."""

import re
from typing import Annotated

from fastapi import Depends, Header, Request

from openledger.api.access import ClockOf
from openledger.core.errors import InvalidInput
from openledger.core.hashing import digest_bytes
from openledger.core.ids import new_id

_FIT_KEY = re.compile(r"[\x21-\x7e]{1,255}")


async def _sent_key(idempotency_key: Annotated[str | None, Header()] = None) -> str | None:
    """Raises InvalidInput."""
    if idempotency_key is not None and not _FIT_KEY.fullmatch(idempotency_key):
        raise InvalidInput(
            "the idempotency key is not usable",
            code="invalid_idempotency_key",
            param="Idempotency-Key",
            fix="send 1 to 255 visible ASCII characters, for example a UUID",
        )
    return idempotency_key


SentKeyOf = Annotated[str | None, Depends(_sent_key)]


async def _key(clock: ClockOf, sent: SentKeyOf) -> str:
    """The caller's own where one was sent, a fresh one otherwise."""
    return sent or new_id("key", clock.now_ms())


async def _key_digest(request: Request) -> str:
    """What the API key is known by where it may be stored."""
    api_key = request.headers.get("Authorization", "").partition(" ")[2].strip()
    return digest_bytes(api_key.encode("utf-8", "surrogatepass"))


KeyOf = Annotated[str, Depends(_key)]
KeyDigestOf = Annotated[str, Depends(_key_digest)]
