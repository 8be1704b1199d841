"""How large a request may be. Reads the body before anything parses it and refuses the first byte too many."""

from collections.abc import Iterator

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from openledger.api.errors import error_response
from openledger.core.errors import TooLarge

MAX_BODY_BYTES = 16 * 1024 * 1024


class BodyLimit:
    def __init__(self, app: ASGIApp, max_bytes: int = MAX_BODY_BYTES):
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        if self._announced(scope) > self._max_bytes:
            return await self._refuse(scope, receive, send)
        messages, size = [], 0
        while True:
            message = await receive()
            messages.append(message)
            size += len(message.get("body", b""))
            if size > self._max_bytes:
                return await self._refuse(scope, receive, send)
            if not message.get("more_body"):
                break
        return await self._app(scope, _replay(messages, receive), send)

    def _announced(self, scope: Scope) -> int:
        length = Headers(scope=scope).get("content-length", "0")
        return int(length) if length.isascii() and length.isdigit() else 0

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        error = TooLarge(
            f"the body is larger than {self._max_bytes} bytes",
            code="body_too_large",
            param="body",
            fix="send fewer rows in one contribution, or shorter messages",
        )
        response = error_response(error)
        response.headers["Connection"] = "close"  # the rest of the body is not read
        await response(scope, receive, send)


def _replay(messages: list[Message], receive: Receive) -> Receive:
    """The messages already read, then whatever comes: a later disconnect stays visible."""
    waiting: Iterator[Message] = iter(messages)

    async def replay() -> Message:
        message = next(waiting, None)
        return message if message is not None else await receive()

    return replay
