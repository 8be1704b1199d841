"""One request at the engine: by which way its events come, what is repeated, and what is owed once it is left."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from openledger.core.errors import Unavailable
from openledger.core.values import GenerationRequest, TokenEvent
from openledger.openlora.inbox import EventInbox
from openledger.openlora.outbox import EventOutbox
from openledger.platform.asking import EngineCalls, Tail

REQUEST = GenerationRequest(request_id="r", prompt_ids=(1,))


class Replica:
    """Says `num_tokens` tokens, then waits where `waits`; left, it ends with one more. `fail` is raised by the first
    call."""

    def __init__(self, num_tokens: int = 3, *, waits: bool = False, fail: BaseException | None = None):
        self.num_tokens, self.waits, self.fail = num_tokens, waits, fail
        self.ways: list[str] = []
        self.left: list[str] = []
        self.is_stopped = False
        self._go = asyncio.Event()
        self._outbox = EventOutbox(self._leave, 0.0)

    @property
    def send(self) -> Any:
        return SimpleNamespace(remote=lambda *arguments: asyncio.ensure_future(self._send(*arguments)))

    @property
    def generate(self) -> Any:
        return SimpleNamespace(options=lambda **_: SimpleNamespace(remote=self._generate))

    def _leave(self, request_id: str) -> None:
        self.left.append(request_id)
        self._go.set()

    async def _send(self, request: GenerationRequest, place: str, line: Any) -> None:
        self.ways.append("line")
        if (fail := self.fail) is not None:
            self.fail = None
            raise fail
        await self._outbox.send(self._events(), request.request_id, line)

    async def _generate(self, request: GenerationRequest, place: str) -> Any:
        self.ways.append("stream")
        async for event in self._events():
            yield event

    async def _events(self) -> Any:
        for number in range(self.num_tokens):
            end = None if self.waits or number + 1 < self.num_tokens else "length"
            yield TokenEvent(request_id="r", token_ids=(number,), text="", finish_reason=end)
        if self.is_stopped:
            raise asyncio.CancelledError
        if self.waits:
            await self._go.wait()
            yield TokenEvent(request_id="r", token_ids=(99,), text="", finish_reason="cancelled")


@pytest.fixture
async def inbox():
    inbox = EventInbox("127.0.0.1")
    yield inbox
    inbox.close()


async def told(calls: EngineCalls) -> list[int]:
    return [token async for event in calls.asking(REQUEST, "").events() for token in event.token_ids]


@pytest.mark.parametrize(("has_inbox", "way"), [(True, "line"), (False, "stream")])
async def test_events_take_the_line_where_there_is_an_inbox(inbox, has_inbox, way):
    replica = Replica()
    assert await told(EngineCalls(replica, inbox if has_inbox else None)) == [0, 1, 2]
    assert replica.ways == [way]


async def test_a_replica_that_can_not_reach_the_gateway_is_asked_through_serve_from_then_on(inbox):
    replica = Replica(fail=Unavailable("no way", code="line_unreachable"))
    calls = EngineCalls(replica, inbox)
    assert [await told(calls), await told(calls)] == [[0, 1, 2], [0, 1, 2]]
    assert replica.ways == ["line", "stream", "stream"]


async def test_a_replica_lost_before_the_first_token_is_asked_for_again(inbox):
    replica = Replica(fail=Unavailable("gone", code="engine_lost"))
    assert await told(EngineCalls(replica, inbox)) == [0, 1, 2]
    assert replica.ways == ["line", "line"]


async def test_any_other_failure_is_raised(inbox):
    with pytest.raises(Unavailable, match="full"):
        await told(EngineCalls(Replica(fail=Unavailable("full", code="queue_full")), inbox))


async def test_one_that_is_left_ends_at_the_replica_and_all_it_generated_is_known(inbox):
    replica = Replica(waits=True)
    asking = EngineCalls(replica, inbox).asking(REQUEST, "")
    seen: list[int] = []
    events = asking.events()
    while len(seen) < 3:
        seen += (await anext(events)).token_ids
    await events.aclose()
    assert (seen, (await asking.leave()).token_ids, replica.left) == ([0, 1, 2], (99,), ["r"])
    assert await asking.leave() == Tail()


async def test_one_that_is_left_before_its_first_token_has_its_call_cancelled(inbox):
    replica = Replica(num_tokens=0, waits=True)
    asking = EngineCalls(replica, inbox).asking(REQUEST, "")
    reading = asyncio.ensure_future(anext(asking.events()))
    async with asyncio.timeout(5):
        while not replica.ways:
            await asyncio.sleep(0.01)
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    assert (await asking.leave(), replica.left) == (Tail(), [])


@pytest.mark.parametrize("way", ["line", "stream"])
async def test_a_call_that_serve_cancels_by_itself_is_an_engine_lost(inbox, way):
    """Its replica was stopped: nobody here has left."""
    replica = Replica(num_tokens=2, waits=True)
    replica.is_stopped = True
    with pytest.raises(Unavailable) as caught:
        async with asyncio.timeout(5):
            await told(EngineCalls(replica, inbox if way == "line" else None))
    assert caught.value.code == "engine_lost"


async def test_before_its_first_token_it_is_asked_for_again(inbox):
    replica = Replica(fail=asyncio.CancelledError())
    assert await told(EngineCalls(replica, inbox)) == [0, 1, 2]
    assert replica.ways == ["line", "line"]


async def test_whoever_cancels_the_reading_is_told_so(inbox):
    for calls in (EngineCalls(Replica(waits=True), inbox), EngineCalls(Replica(waits=True))):
        reading = asyncio.ensure_future(told(calls))
        await asyncio.sleep(0.05)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading


async def test_a_gateway_that_can_not_listen_gets_its_answers_through_serve():
    """192.0.2.1 is an address of documentations, and of no machine."""
    replica, inbox = Replica(), EventInbox("192.0.2.1")
    calls = EngineCalls(replica, inbox)
    assert [await told(calls), await told(calls)] == [[0, 1, 2], [0, 1, 2]]
    assert replica.ways == ["stream", "stream"]
    inbox.close()


async def test_one_that_could_not_listen_tries_again():
    inbox = EventInbox("192.0.2.1")
    with pytest.raises(OSError, match="address"):
        await inbox.call("r", whole=False)
    inbox._host = "127.0.0.1"
    assert (await inbox.call("r", whole=False)).line.port > 0
    inbox.close()


@pytest.mark.parametrize("is_told", [True, False], ids=["told", "closing"])
async def test_a_connection_that_is_gone_is_not_waited_for(inbox, is_told):
    """The client hears of it at once, not when the time for last words is over."""
    asking = EngineCalls(Replica(waits=True), inbox).asking(REQUEST, "")
    events = asking.events()
    await anext(events)
    asking._open._call._connection._transport.abort()
    async with asyncio.timeout(2):
        if is_told:
            with pytest.raises(Unavailable) as caught:
                await said_to_the_end(events)
            assert caught.value.code == "engine_lost"
        await asking.leave()


async def said_to_the_end(events):
    return [event async for event in events]
