"""How large a request may be, how slowly it may come, and all that are under way together. Reads the body before
anything parses it, and refuses the first byte too many.

A body is in memory until its request is answered, as one piece: an application server hands over a message for each
read, which takes many times the bytes in it where they come one by one. Large bodies share a number of bytes, and take
of it what has come, as an announcement costs nothing; small ones need none of it, so that questions are answered
whatever else comes in. A body that doesn't arrive in time, or too slowly, is ended and gives its part back.

Bodies that are on their way have a number of places, fewer than the door has. Where all are taken, whoever has waited
longest for its next STEP_BYTES makes way for the newcomer, unless it came just now. So senders that only dribble keep
nobody out, whatever addresses they come from: proxies hide those. What came whole with the request's head, as one
without a body did, needs no place. Where the bytes are all taken, the slowest of the others that have some makes way.
"""

import asyncio
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from openledger.api.errors import error_response
from openledger.core.errors import InvalidInput, OpenLedgerError, TooLarge, Unavailable

MAX_BODY_BYTES = 16 * 1024 * 1024
SMALL_BYTES = 64 * 1024
MAX_BYTES_TOGETHER = 256 * 1024 * 1024  # parsed, a body takes several times its bytes
BODY_S = 300
STALLED_S = 10
STEP_BYTES = 64 * 1024  # what a body has to bring in that time, or its end
MAX_ARRIVING = 512  # half of what the door lets in: the others are at work
YOUNG_S = 1.0  # what has come so lately is not called slow
RETRY_AFTER_S = 5


@dataclass(slots=True, eq=False)
class _Arriving:
    """A body on its way, which has waited since `since_s` to be `awaited_bytes` long, and has `taken` of what large
    ones share. `refusal` is told when `timeout` ends it."""

    since_s: float
    timeout: asyncio.Timeout
    refusal: InvalidInput
    body: bytearray = field(default_factory=bytearray)
    awaited_bytes: int = STEP_BYTES
    taken: int = 0


class BodyLimit:
    def __init__(
        self,
        app: ASGIApp,
        max_bytes: int = MAX_BODY_BYTES,
        max_bytes_together: int = MAX_BYTES_TOGETHER,
        body_s: float = BODY_S,
        stalled_s: float = STALLED_S,
        max_arriving: int = MAX_ARRIVING,
    ):
        self._app = app
        self._max_bytes = max_bytes
        self._left = max_bytes_together
        self._body_s = body_s
        self._stalled_s = stalled_s
        self._max_arriving = max_arriving
        self._arriving = set[_Arriving]()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        try:
            async with self._body(scope, receive) as message:
                await self._app(scope, _replay(message, receive), send)
        except _Refused as refused:
            await refuse(refused.error, scope, receive, send, refused.status)

    @asynccontextmanager
    async def _body(self, scope: Scope, receive: Receive) -> AsyncIterator[Message]:
        """The whole body in one message, which has its part of the bytes for as long as the request is under way; or
        that its sender has gone."""
        if self._announced(scope) > self._max_bytes:
            raise _Refused(_too_large(self._max_bytes))
        arriving = self._newcomer()
        try:
            async with _in_time(self._body_s, _late(self._body_s)):
                message = await self._last(arriving, receive)
            if message["type"] == "http.request":
                message = {"type": "http.request", "body": bytes(arriving.body), "more_body": False}
            arriving.body.clear()
            yield message
        finally:
            self._left += arriving.taken

    async def _last(self, arriving: _Arriving, receive: Receive) -> Message:
        """The last message of a body. All have come by then."""
        first = asyncio.ensure_future(receive())
        try:
            await asyncio.sleep(0)  # one turn of the loop: what came with the head is here
            if _is_whole(first):
                return self._grown(arriving, await first)
            return await self._last_of_many(arriving, first, receive)
        finally:
            first.cancel()

    async def _last_of_many(self, arriving: _Arriving, first: asyncio.Future[Message], receive: Receive) -> Message:
        """As `_last`, with a place among those that arrive."""
        if len(self._arriving) >= self._max_arriving and not self._end_slowest(self._arriving):
            raise _Refused(_crowded())
        self._arriving.add(arriving)
        try:
            async with arriving.timeout:
                message = self._grown(arriving, await first)
                while message.get("more_body"):
                    message = self._grown(arriving, await receive())
                return message
        except TimeoutError as error:
            raise _Refused(arriving.refusal, status=408) from error
        finally:
            self._arriving.discard(arriving)

    def _newcomer(self) -> _Arriving:
        now_s = asyncio.get_running_loop().time()
        return _Arriving(now_s, asyncio.timeout(self._stalled_s), _stalled(self._stalled_s))

    def _grown(self, arriving: _Arriving, message: Message) -> Message:
        """The body longer by a message, which gives it time for its next step: not where it had to make way."""
        arriving.body += message.get("body", b"")
        self._take(arriving)
        if len(arriving.body) >= arriving.awaited_bytes and arriving in self._arriving:
            arriving.awaited_bytes = len(arriving.body) + STEP_BYTES
            arriving.since_s = asyncio.get_running_loop().time()
            arriving.timeout.reschedule(arriving.since_s + self._stalled_s)
        return message

    def _take(self, arriving: _Arriving) -> None:
        """What a body needs of the bytes that are left. Where it is more, the slowest of the others that have some
        makes way for who comes next."""
        size = len(arriving.body)
        if size > self._max_bytes:
            raise _Refused(_too_large(self._max_bytes))
        more = size - arriving.taken if size > SMALL_BYTES else 0
        if more > self._left:
            self._end_slowest([one for one in self._arriving if one.taken and one is not arriving])
            raise _Refused(_full())
        self._left -= more
        arriving.taken += more

    def _end_slowest(self, among: Collection[_Arriving]) -> bool:
        """End the body that has waited longest for its next bytes. Not if that was a moment: all of them come fast."""
        now_s = asyncio.get_running_loop().time()
        slowest = min(among, key=lambda one: one.since_s, default=None)
        if slowest is None or now_s - slowest.since_s < YOUNG_S:
            return False
        self._arriving.discard(slowest)
        if not slowest.timeout.expired():
            slowest.refusal = _outrun()
            slowest.timeout.reschedule(now_s)
        return True

    def _announced(self, scope: Scope) -> int:
        length = Headers(scope=scope).get("content-length", "0")
        return int(length) if length.isascii() and length.isdigit() else 0


def _is_whole(first: asyncio.Future[Message]) -> bool:
    return first.done() and first.exception() is None and not first.result().get("more_body")


class _Refused(Exception):
    def __init__(self, error: OpenLedgerError, status: int | None = None):
        super().__init__(error.message)
        self.error, self.status = error, status


async def refuse(error: OpenLedgerError, scope: Scope, receive: Receive, send: Send, status: int | None = None) -> None:
    """The answer to a request whose body, or its rest, is not read."""
    response = error_response(error, status)
    response.headers["Connection"] = "close"
    if isinstance(error, Unavailable):
        response.headers["Retry-After"] = str(RETRY_AFTER_S)
    await response(scope, receive, send)


@asynccontextmanager
async def _in_time(seconds: float, refusal: InvalidInput) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as error:
        raise _Refused(refusal, status=408) from error


def _too_large(max_bytes: int) -> TooLarge:
    return TooLarge(
        f"the body is larger than {max_bytes} bytes",
        code="body_too_large",
        param="body",
        fix="send fewer rows in one contribution, or shorter messages",
    )


def _full() -> Unavailable:
    return Unavailable(
        "the gateway has as many large requests under way as it holds",
        code="large_requests_full",
        param="body",
        fix="send it again after the seconds that Retry-After says, or fewer rows at a time",
    )


def _crowded() -> Unavailable:
    return Unavailable(
        "the gateway has as many requests on their way as it takes",
        code="gateway_full",
        fix="send it again after the seconds that Retry-After says",
    )


def _outrun() -> InvalidInput:
    return InvalidInput(
        "the gateway is full, and this body came slowest of all",
        code="body_timeout",
        param="body",
        fix="send the same again, over a slow line with fewer rows at a time",
    )


def _late(seconds: float) -> InvalidInput:
    return InvalidInput(
        f"the body didn't arrive within {seconds:g} seconds",
        code="body_timeout",
        param="body",
        fix="send fewer rows in one contribution",
    )


def _stalled(seconds: float) -> InvalidInput:
    return InvalidInput(
        f"the body came to a halt: in {seconds:g} seconds it brings {STEP_BYTES} bytes, or its end",
        code="body_timeout",
        param="body",
        fix="send the same again, over a slow line with fewer rows at a time",
    )


def _replay(message: Message, receive: Receive) -> Receive:
    """The message that was read, then whatever comes: a later disconnect stays visible."""
    waiting = iter((message,))

    async def replay() -> Message:
        first = next(waiting, None)
        return first if first is not None else await receive()

    return replay
