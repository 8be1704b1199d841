"""A replica's end of the lines to gateways: one connection to each, on which the events of all its calls go.

What is said in one turn of the loop (all of one step of the engine) goes as one frame: one crossing for a batch, not
one for each token. Frames are `coalesce_s` apart, and wait while the connection is full; what an answer has to say
meanwhile is joined. An answer's first event and its last don't wait for the time, nor does any while there are few
calls: frames that would be joined are then few, and people see each token as it comes. Used on one asyncio loop.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from typing import Any

from openledger.core.errors import Unavailable
from openledger.core.values import TokenEvent
from openledger.openlora.streams import join
from openledger.openlora.wire import Frames, Line, frame, pack_event

_CONNECT_WITHIN_S = 2.0
_FEW_CALLS = 4


class EventOutbox:
    """`leave` ends a request of this replica early, by its id."""

    def __init__(self, leave: Callable[[str], None], coalesce_s: float):
        self._leave, self._coalesce_s = leave, coalesce_s
        self._connections: dict[tuple[str, int, str], asyncio.Task[_Connection]] = {}

    async def send(self, events: AsyncGenerator[TokenEvent, None], request_id: str, line: Line) -> None:
        """All `events` over `line`. Raises Unavailable: `line_unreachable` before anything was read of `events`,
        `line_broken` once the gateway is gone; then the request was left, be it in the engine or still in the
        queue."""
        connection = await self._connected(line)
        async with aclosing(events), aclosing(_said(events, line.whole)) as said:
            connection.begin(line.number, request_id)
            try:
                if (first := await connection.first_of(said)) is not None:
                    connection.say(line.number, first)
                async for event in said:
                    connection.check()
                    connection.say(line.number, event)
                await connection.drained(line.number)
            finally:
                connection.end(line.number)

    def close(self) -> None:
        for connecting in self._connections.values():
            if connecting.done() and not connecting.cancelled() and connecting.exception() is None:
                connecting.result().close()
            connecting.cancel()

    async def _connected(self, line: Line) -> "_Connection":
        place = (line.host, line.port, line.secret)
        connecting = self._connections.get(place)
        if connecting is None or (connecting.done() and _is_useless(connecting)):
            connecting = self._connections[place] = asyncio.ensure_future(self._connect(line))
        return await asyncio.shield(connecting)

    async def _connect(self, line: Line) -> "_Connection":
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(_CONNECT_WITHIN_S):
                _, connection = await loop.create_connection(
                    lambda: _Connection(line.secret, self._leave, self._coalesce_s), line.host, line.port
                )
        except OSError as error:  # TimeoutError is one
            raise Unavailable(
                f"the gateway can't be reached at {line.host}:{line.port}: {error or 'no answer'}",
                code="line_unreachable",
                fix="let the nodes reach each other's ports, as Ray needs; the answer comes through Serve meanwhile",
            ) from error
        return connection


class _Connection(asyncio.Protocol):
    def __init__(self, secret: str, leave: Callable[[str], None], coalesce_s: float):
        self._secret, self._leave, self._coalesce_s = secret, leave, coalesce_s
        self._transport: Any = None
        self._frames = Frames()
        self._requests: dict[int, str] = {}
        self._begun: set[int] = set()
        self._unsaid: dict[tuple[int, int], TokenEvent] = {}  # by call and answer
        self._flushing: asyncio.Handle | None = None
        self._is_urgent = False
        self._said_s = 0.0
        self._can_write, self.is_lost = asyncio.Event(), False
        self._can_write.set()
        self._lost = asyncio.Event()

    def begin(self, number: int, request_id: str) -> None:
        self._requests[number] = request_id

    def end(self, number: int) -> None:
        self._requests.pop(number, None)
        self._begun.discard(number)

    def say(self, number: int, event: TokenEvent) -> None:
        if self.is_lost:
            return
        key = (number, event.index)
        self._unsaid[key] = join(self._unsaid[key], event) if key in self._unsaid else event
        urgent = number not in self._begun or event.finish_reason is not None
        self._begun.add(number)
        self._schedule(urgent)

    def check(self) -> None:
        """Raises Unavailable (`line_broken`)."""
        if self.is_lost:
            raise Unavailable("the gateway has hung up", code="line_broken", fix="ask again with the same key")

    async def first_of(self, events: AsyncGenerator[TokenEvent, None]) -> TokenEvent | None:
        """The first event, for which a request may wait long in the queue; not once the connection is lost. Raises
        Unavailable (`line_broken`)."""
        reading, lost = asyncio.ensure_future(_next(events)), asyncio.ensure_future(self._lost.wait())
        try:
            await asyncio.wait((reading, lost), return_when=asyncio.FIRST_COMPLETED)
            self.check()
            return await reading
        finally:
            reading.cancel()
            lost.cancel()
            await asyncio.gather(reading, lost, return_exceptions=True)

    async def drained(self, number: int) -> None:
        """Until all of a call that has ended is written. Raises Unavailable (`line_broken`)."""
        while any(number == call for call, _ in self._unsaid):
            await self._can_write.wait()
            await asyncio.sleep(0)  # what is urgent is written then
        self.check()

    def close(self) -> None:
        self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._transport.write(self._secret.encode())

    def data_received(self, data: bytes) -> None:
        """A gateway says only which calls nobody waits for any more."""
        for numbers in self._frames.feed(data):
            for number in numbers:
                if number in self._requests:
                    self._leave(self._requests[number])

    def connection_lost(self, error: Exception | None) -> None:
        self.is_lost = True
        self._lost.set()
        self._can_write.set()
        self._unsaid.clear()
        for request_id in list(self._requests.values()):
            self._leave(request_id)

    def pause_writing(self) -> None:
        self._can_write.clear()

    def resume_writing(self) -> None:
        self._can_write.set()
        self._schedule(urgent=True)

    def _schedule(self, urgent: bool) -> None:
        if not self._can_write.is_set() or (self._flushing is not None and (self._is_urgent or not urgent)):
            return
        if self._flushing is not None:
            self._flushing.cancel()
        loop = asyncio.get_running_loop()
        urgent = urgent or len(self._requests) <= _FEW_CALLS
        wait_s = 0.0 if urgent else self._said_s + self._coalesce_s - loop.time()
        self._is_urgent = wait_s <= 0
        self._flushing = loop.call_soon(self._flush) if self._is_urgent else loop.call_later(wait_s, self._flush)

    def _flush(self) -> None:
        if self._flushing is not None:
            self._flushing.cancel()
            self._flushing = None
        if self._unsaid and self._can_write.is_set() and not self.is_lost:
            self._said_s = asyncio.get_running_loop().time()
            told = [pack_event(number, event) for (number, _), event in self._unsaid.items()]
            self._unsaid.clear()
            self._transport.write(frame(told))


async def _next(events: AsyncGenerator[TokenEvent, None]) -> TokenEvent | None:
    return await anext(events, None)


async def _said(events: AsyncGenerator[TokenEvent, None], whole: bool) -> AsyncGenerator[TokenEvent, None]:
    """`events`; of those that are to come whole, each answer's first and all others as one."""
    unsaid: dict[int, TokenEvent] = {}
    begun: set[int] = set()
    async for event in events:
        if not whole or (event.index not in begun and event.finish_reason is None):
            begun.add(event.index)
            yield event
            continue
        unsaid[event.index] = join(unsaid[event.index], event) if event.index in unsaid else event
        if event.finish_reason is not None:
            yield unsaid.pop(event.index)


def _is_useless(connecting: "asyncio.Task[_Connection]") -> bool:
    if connecting.cancelled():
        return True
    with suppress(Exception):  # why it failed was told to who waited for it
        return connecting.result().is_lost
    return True
