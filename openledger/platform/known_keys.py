"""Whose API key it is, remembered for a moment: asked of the economy each time, it is a third of an answer's calls.

A key that the economy has forgotten is good for `KEPT_S` more. What is kept is the key's SHA-256, and only of keys that
were good.
"""

import time
from collections.abc import Callable
from typing import Any

from openledger.core.hashing import digest_bytes
from openledger.platform.calls import answered

KEPT_S = 5.0
_MAX_KEPT = 4096


class KnownKeys:
    """`economy` is an actor's handle, `now_s` a monotonic clock."""

    def __init__(self, economy: Any, now_s: Callable[[], float] = time.monotonic):
        self._economy, self._now_s = economy, now_s
        self._known: dict[str, tuple[str, float]] = {}  # account, and until when; the oldest first

    async def account_of(self, api_key: str) -> str:
        """Raises Unauthenticated."""
        digest = digest_bytes(api_key.encode("utf-8", "surrogatepass"))
        account, until_s = self._known.get(digest, ("", 0.0))
        if self._now_s() < until_s:
            return account
        account = str(await answered(self._economy.authenticate.remote(api_key)))
        self._known.pop(digest, None)
        self._known[digest] = (account, self._now_s() + KEPT_S)
        if len(self._known) > _MAX_KEPT:
            del self._known[next(iter(self._known))]
        return account
