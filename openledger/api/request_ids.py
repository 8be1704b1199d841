"""X-Request-Id: the caller's own where it is fit to print, a fresh one otherwise; on every answer, errors too."""

import re

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from openledger.core.clock import Clock
from openledger.core.ids import new_id

HEADER = "X-Request-Id"
_FIT = re.compile(r"[A-Za-z0-9._:-]{1,128}")


class RequestIds:
    def __init__(self, app: ASGIApp, clock: Clock):
        self._app = app
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        request_id = self._choose(Headers(scope=scope).get(HEADER, ""))
        scope.setdefault("state", {})["request_id"] = request_id

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[HEADER] = request_id
            await send(message)

        return await self._app(scope, receive, send_with_id)

    def _choose(self, offered: str) -> str:
        return offered if _FIT.fullmatch(offered) else new_id("req", self._clock.now_ms())


def request_id_of(request: Request) -> str:
    return str(request.scope["state"]["request_id"])
