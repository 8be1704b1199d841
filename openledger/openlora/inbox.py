"""A gateway's end of the lines from replicas: where their connections come in, and the calls whose events they bring.

Used on one asyncio loop; it listens from its first call on. A connection that doesn't soon begin with the
secret is closed.
"""

import asyncio
import hmac
import itertools
import secrets
from collections.abc import AsyncGenerator
from typing import Any

from openledger.core.errors import Unavailable
from openledger.core.values import TokenEvent
from openledger.openlora.streams import join
from openledger.openlora.wire import SECRET_BYTES, Frames, Line, frame, unpack_event

_GREET_WITHIN_S = 5.0


def engine_lost() -> Unavailable:
    return Unavailable(
        "the replica that made this answer is gone",
        code="engine_lost",
        fix="ask again with the same key: another replica answers, and nothing was charged for this one",
    )


class EventInbox:
    """`host` is an address of this machine that replicas can reach."""

    def __init__(self, host: str):
        self._host, self._secret = host, secrets.token_hex(SECRET_BYTES // 2)
        self._starting: asyncio.Task[asyncio.Server] | None = None
        self._numbers = itertools.count()
        self._calls: dict[int, Call] = {}

    async def call(self, request_id: str, whole: bool) -> "Call":
        """A place for the events of a call that is about to be made; close it. Raises OSError where it can't listen:
        the next call tries again."""
        if self._starting is None or _has_failed(self._starting):
            self._starting = asyncio.ensure_future(self._start())
        server = await asyncio.shield(self._starting)
        number = next(self._numbers)
        port = server.sockets[0].getsockname()[1]
        line = Line(host=self._host, port=port, secret=self._secret, number=number, whole=whole)
        self._calls[number] = Call(self, request_id, line)
        return self._calls[number]

    def find(self, number: int) -> "Call | None":
        return self._calls.get(number)

    def forget(self, number: int) -> None:
        self._calls.pop(number, None)

    def close(self) -> None:
        if self._starting is not None and self._starting.done() and not _has_failed(self._starting):
            self._starting.result().close()

    async def _start(self) -> asyncio.Server:
        loop = asyncio.get_running_loop()
        return await loop.create_server(lambda: _Connection(self, self._secret.encode()), self._host, 0)


class Call:
    """The events of one call, in order. What comes while the reader is busy is joined."""

    def __init__(self, inbox: EventInbox, request_id: str, line: Line):
        self.request_id, self.line = request_id, line
        self.ended = False
        self._inbox = inbox
        self._unread: dict[int, TokenEvent] = {}
        self._failure: BaseException | None = None
        self._news = asyncio.Event()
        self._connection: _Connection | None = None

    @property
    def begun(self) -> bool:
        """Whether a replica has said something, so that it can be told to stop."""
        return self._connection is not None

    @property
    def is_lost(self) -> bool:
        """Whether nothing more will come: it has failed, or its connection is closing."""
        return self._failure is not None or (self._connection is not None and self._connection.is_closing)

    async def events(self) -> AsyncGenerator[TokenEvent]:
        """Until the request's last. Raises what `fail` was given."""
        while not (self.ended and not self._unread):
            await self._news.wait()
            self._news.clear()
            unread, self._unread = self._unread, {}
            for event in unread.values():
                yield event
            if self._failure is not None and not self.ended:
                raise self._failure

    def leave(self) -> None:
        """Have the replica end the request; its last event follows."""
        if self._connection is not None and not self._connection.is_closing:
            self._connection.leave(self.line.number)

    def fail(self, error: BaseException) -> None:
        self._failure = self._failure or error
        self._news.set()

    def close(self) -> None:
        self._inbox.forget(self.line.number)
        if self._connection is not None:
            self._connection.calls.discard(self)

    def take(self, event: TokenEvent, connection: "_Connection") -> None:
        self._connection = connection
        connection.calls.add(self)
        held = self._unread.pop(event.index, None)
        self._unread[event.index] = event if held is None else join(held, event)
        self.ended = self.ended or event.is_last
        self._news.set()


class _Connection(asyncio.Protocol):
    """From one replica."""

    def __init__(self, inbox: EventInbox, secret: bytes):
        self._inbox, self._secret = inbox, secret
        self._greeting, self._is_known = b"", False
        self._frames = Frames()
        self._transport: Any = None
        self._giving_up: asyncio.TimerHandle | None = None
        self.calls: set[Call] = set()

    @property
    def is_closing(self) -> bool:
        return bool(self._transport.is_closing())

    def leave(self, number: int) -> None:
        self._transport.write(frame([number]))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._giving_up = asyncio.get_running_loop().call_later(_GREET_WITHIN_S, self._transport.abort)

    def data_received(self, data: bytes) -> None:
        data = data if self._is_known else self._greeted(data)
        for items in self._frames.feed(data) if data else ():
            for item in items:
                if (call := self._inbox.find(item[0])) is not None:
                    call.take(unpack_event(call.request_id, item), self)

    def connection_lost(self, error: Exception | None) -> None:
        self._stop_waiting()
        for call in self.calls:
            call.fail(engine_lost())

    def _greeted(self, data: bytes) -> bytes:
        """What follows the secret. One that isn't ours closes the connection."""
        self._greeting += data
        greeting, rest = self._greeting[:SECRET_BYTES], self._greeting[SECRET_BYTES:]
        if len(greeting) < SECRET_BYTES:
            return b""
        self._greeting = b""
        if not hmac.compare_digest(greeting, self._secret):
            self._transport.abort()
            return b""
        self._is_known = True
        self._stop_waiting()
        return rest

    def _stop_waiting(self) -> None:
        if self._giving_up is not None:
            self._giving_up.cancel()


def _has_failed(starting: "asyncio.Task[asyncio.Server]") -> bool:
    return starting.done() and (starting.cancelled() or starting.exception() is not None)
