"""The lines between replicas and gateways: real sockets, the engine's events from a list."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest

from openledger.core.errors import Unavailable
from openledger.core.values import TokenEvent, TokenLogprob, Usage
from openledger.openlora import inbox as inbox_module
from openledger.openlora import outbox as outbox_module
from openledger.openlora.inbox import Call, EventInbox
from openledger.openlora.outbox import EventOutbox
from openledger.openlora.wire import MAX_FRAME_BYTES, Frames, Line, frame, pack_event, unpack_event

HOST = "127.0.0.1"
USAGE = Usage(prompt_tokens=3, cached_tokens=1, completion_tokens=2, engine_ms=1.5)


def token(number: int, *, end: bool = False, index: int = 0, num_open: int = 0) -> TokenEvent:
    return TokenEvent(
        request_id="r", token_ids=(number,), text=f"<{number}>", index=index, num_open=num_open,
        finish_reason="length" if end else None, usage=USAGE if end else None,
    )  # fmt: skip


async def saying(*events: TokenEvent, then: asyncio.Event | None = None) -> AsyncGenerator[TokenEvent, None]:
    for event in events:
        yield event
    if then is not None:
        await then.wait()


async def read(call: Call) -> list[TokenEvent]:
    return [event async for event in call.events()]


def ids(events: list[TokenEvent]) -> list[int]:
    return [one for event in events for one in event.token_ids]


@pytest.fixture
async def inbox() -> AsyncIterator[EventInbox]:
    inbox = EventInbox(HOST)
    yield inbox
    inbox.close()


@pytest.fixture
def left() -> list[str]:
    return []


@pytest.fixture
async def outbox(left: list[str]) -> AsyncIterator[EventOutbox]:
    outbox = EventOutbox(left.append, 0.0)
    yield outbox
    outbox.close()


@pytest.mark.parametrize(
    "event",
    [
        token(1),
        token(2, end=True, index=3, num_open=2),
        replace(token(3), text='a "quote"\n\u00e9 \ud800', logprobs=(TokenLogprob(token_id=3, logprob=-0.1),)),
        replace(
            token(4),
            logprobs=(TokenLogprob(token_id=4, logprob=-1.0, top=((4, -1.0), (5, float("-inf")))),),
            prompt_logprobs=(None, TokenLogprob(token_id=1, logprob=-2.0)),
        ),
        TokenEvent(request_id="r", token_ids=(), text="", finish_reason="error", error={"code": "x", "fix": None}),
    ],
)
def test_an_event_is_the_same_at_the_other_end(event: TokenEvent) -> None:
    (items,) = Frames().feed(frame([pack_event(7, event)]))
    assert (items[0][0], unpack_event("r", items[0])) == (7, event)


def test_frames_are_the_same_however_their_bytes_are_cut() -> None:
    sent = [[1], [[2, "text"]], []]
    data, frames = b"".join(map(frame, sent)), Frames()
    assert [items for place in range(len(data)) for items in frames.feed(data[place : place + 1])] == sent


def test_a_frame_that_is_too_long_is_refused_before_it_is_read() -> None:
    frames = Frames()
    assert list(frames.feed((MAX_FRAME_BYTES).to_bytes(4, "big"))) == []
    with pytest.raises(ValueError, match="67108865 bytes"):
        list(Frames().feed((MAX_FRAME_BYTES + 1).to_bytes(4, "big")))


def test_a_line_does_not_tell_its_secret() -> None:
    assert "hush" not in repr(Line(host=HOST, port=1, secret="hush", number=0))


async def test_events_come_in_order_and_to_the_end(inbox: EventInbox, outbox: EventOutbox) -> None:
    call = await inbox.call("r", whole=False)
    await outbox.send(saying(*map(token, range(50)), token(50, end=True)), "r", call.line)
    told = await read(call)
    assert (ids(told), told[-1].usage, call.ended) == (list(range(51)), USAGE, True)


async def test_what_many_calls_have_to_say_at_once_crosses_once(
    inbox: EventInbox, outbox: EventOutbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine's step in which eight answers get their token: one frame, where Serve would carry eight messages."""
    sizes: list[int] = []

    def counted(items: list[Any]) -> bytes:
        sizes.append(len(items))
        return frame(items)

    monkeypatch.setattr(outbox_module, "frame", counted)
    step = asyncio.Event()

    async def events() -> AsyncGenerator[TokenEvent, None]:
        yield token(0)
        await step.wait()
        yield token(1, end=True)

    calls = [await inbox.call(str(number), whole=False) for number in range(8)]
    sending = [asyncio.ensure_future(outbox.send(events(), call.request_id, call.line)) for call in calls]
    for call in calls:
        await anext(call.events())
    sizes.clear()
    step.set()
    await asyncio.gather(*sending)
    assert sizes == [8]


class TestCoalescing:
    @pytest.fixture
    async def slow(self, left: list[str], monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[EventOutbox]:
        """It waits a minute between frames, however few calls there are."""
        monkeypatch.setattr(outbox_module, "_FEW_CALLS", 0)
        outbox = EventOutbox(left.append, 60.0)
        yield outbox
        outbox.close()

    async def test_the_first_event_of_an_answer_does_not_wait(self, inbox: EventInbox, slow: EventOutbox) -> None:
        go = asyncio.Event()
        for name in ("a", "b"):
            call = await inbox.call(name, whole=False)
            sending = asyncio.ensure_future(slow.send(saying(token(1), then=go), name, call.line))
            async with asyncio.timeout(5):
                assert (await anext(call.events())).token_ids == (1,)
            sending.cancel()

    async def test_no_event_waits_for_the_time_while_there_are_few_calls(
        self, inbox: EventInbox, slow: EventOutbox, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(outbox_module, "_FEW_CALLS", 2)
        go = asyncio.Event()
        calls = [await inbox.call(name, whole=False) for name in "abc"]

        async def events() -> AsyncGenerator[TokenEvent, None]:
            yield token(1)
            await go.wait()
            yield token(2)
            await asyncio.Event().wait()

        told = [call.events() for call in calls]
        sending = [asyncio.ensure_future(slow.send(events(), call.request_id, call.line)) for call in calls]
        async with asyncio.timeout(5):
            assert [(await anext(each)).token_ids for each in told] == [(1,)] * 3
        go.set()
        with pytest.raises(TimeoutError):  # one call too many: the second tokens wait
            await asyncio.wait_for(anext(told[0]), 0.2)
        for each in sending[1:]:
            each.cancel()
        await asyncio.gather(*sending[1:], return_exceptions=True)
        call = await inbox.call("d", whole=False)
        go.clear()
        few = asyncio.ensure_future(slow.send(events(), "d", call.line))
        few_told = call.events()
        async with asyncio.timeout(5):
            assert (await anext(few_told)).token_ids == (1,)
            go.set()
            assert (await anext(few_told)).token_ids == (2,)
        for each in (few, sending[0]):
            each.cancel()

    async def test_the_last_event_does_not_wait_and_takes_the_others_along(
        self, inbox: EventInbox, slow: EventOutbox
    ) -> None:
        go = asyncio.Event()

        async def events() -> AsyncGenerator[TokenEvent, None]:
            yield token(0)
            await go.wait()
            yield token(1)
            yield token(2)
            yield token(3, end=True)

        call = await inbox.call("r", whole=False)
        sending = asyncio.ensure_future(slow.send(events(), "r", call.line))
        told = call.events()
        assert (await anext(told)).token_ids == (0,)
        go.set()
        async with asyncio.timeout(5):
            joined = await anext(told)
        await sending
        assert (joined.token_ids, joined.text, joined.finish_reason) == ((1, 2, 3), "<1><2><3>", "length")

    async def test_what_comes_while_the_reader_is_busy_is_joined(self, inbox: EventInbox, outbox: EventOutbox) -> None:
        call = await inbox.call("r", whole=False)
        await outbox.send(saying(*map(token, range(9)), token(9, end=True)), "r", call.line)
        await asyncio.sleep(0.05)
        assert [event.token_ids for event in await read(call)] == [tuple(range(10))]

    async def test_a_whole_answer_is_its_first_event_and_the_rest(self, inbox: EventInbox, outbox: EventOutbox) -> None:
        steps = [asyncio.Event() for _ in range(3)]

        async def events() -> AsyncGenerator[TokenEvent, None]:
            for number, step in enumerate(steps):
                yield token(number)
                await step.wait()
            yield token(3, end=True)

        call = await inbox.call("r", whole=True)
        sending = asyncio.ensure_future(outbox.send(events(), "r", call.line))
        told = call.events()
        assert (await anext(told)).token_ids == (0,)
        for step in steps:
            step.set()
            await asyncio.sleep(0.02)
        await sending
        assert [event.token_ids async for event in told] == [(1, 2, 3)]

    async def test_answers_of_one_request_are_not_mixed(self, inbox: EventInbox, outbox: EventOutbox) -> None:
        events = [token(n, index=n % 2, num_open=2) for n in range(6)]
        ends = [token(6, end=True, index=0, num_open=1), token(7, end=True, index=1)]
        call = await inbox.call("r", whole=True)
        await outbox.send(saying(*events, *ends), "r", call.line)
        told = await read(call)
        assert [ids([one for one in told if one.index == index]) for index in (0, 1)] == [[0, 2, 4, 6], [1, 3, 5, 7]]


class TestFaults:
    async def test_a_stranger_is_hung_up_on(self, inbox: EventInbox) -> None:
        call = await inbox.call("r", whole=False)
        reader, writer = await asyncio.open_connection(HOST, call.line.port)
        writer.write(b"0" * len(call.line.secret) + frame([pack_event(call.line.number, token(1, end=True))]))
        with suppress(ConnectionResetError):
            async with asyncio.timeout(5):
                assert await reader.read() == b""
        writer.close()
        assert (call.begun, call.ended) == (False, False)

    async def test_whoever_does_not_greet_is_hung_up_on_and_others_are_not(
        self, inbox: EventInbox, outbox: EventOutbox, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(inbox_module, "_GREET_WITHIN_S", 0.1)
        go = asyncio.Event()
        call = await inbox.call("r", whole=False)
        sending = asyncio.ensure_future(outbox.send(saying(token(1), then=go), "r", call.line))
        await anext(call.events())
        reader, writer = await asyncio.open_connection(HOST, call.line.port)
        writer.write(b"half a greeting")
        with suppress(ConnectionResetError):
            async with asyncio.timeout(5):
                assert await reader.read() == b""
        writer.close()
        assert not call.is_lost
        go.set()
        await sending

    async def test_a_frame_that_is_too_long_closes_the_connection_and_fails_its_calls(self, inbox: EventInbox) -> None:
        call = await inbox.call("r", whole=False)
        reader, writer = await asyncio.open_connection(HOST, call.line.port)
        told = frame([pack_event(call.line.number, token(1))])
        writer.write(call.line.secret.encode() + told + (MAX_FRAME_BYTES + 1).to_bytes(4, "big"))
        with suppress(ConnectionResetError):
            async with asyncio.timeout(5):
                assert await reader.read() == b""
        writer.close()
        with pytest.raises(Unavailable) as caught:
            await read(call)
        assert caught.value.code == "engine_lost"

    async def test_a_gateway_that_can_not_be_reached_is_said_before_anything_is_generated(
        self, inbox: EventInbox, outbox: EventOutbox
    ) -> None:
        line = (await inbox.call("r", whole=False)).line
        inbox.close()
        begun = []

        async def events() -> AsyncGenerator[TokenEvent, None]:
            begun.append(1)
            yield token(1, end=True)

        with pytest.raises(Unavailable) as caught:
            await outbox.send(events(), "r", line)
        assert (caught.value.code, begun) == ("line_unreachable", [])

    async def test_a_reader_that_leaves_has_the_replica_end_the_request(
        self, inbox: EventInbox, outbox: EventOutbox, left: list[str]
    ) -> None:
        go = asyncio.Event()
        call = await inbox.call("r", whole=False)
        sending = asyncio.ensure_future(outbox.send(saying(token(1), then=go), "r", call.line))
        await anext(call.events())
        call.leave()
        async with asyncio.timeout(5):
            while not left:
                await asyncio.sleep(0.01)
        go.set()
        await sending
        assert left == ["r"]

    async def test_a_gateway_that_is_lost_has_its_requests_ended_and_no_others(
        self, outbox: EventOutbox, left: list[str]
    ) -> None:
        go, inboxes = asyncio.Event(), [EventInbox(HOST), EventInbox(HOST)]
        calls = [await inbox.call(str(number), whole=False) for number, inbox in enumerate(inboxes)]
        sending = [
            asyncio.ensure_future(outbox.send(saying(token(1), then=go), call.request_id, call.line)) for call in calls
        ]
        for call in calls:
            await anext(call.events())
        calls[0]._connection._transport.abort()  # type: ignore[union-attr]
        async with asyncio.timeout(5):
            while not left:
                await asyncio.sleep(0.01)
        go.set()
        lost, fine = await asyncio.gather(*sending, return_exceptions=True)
        assert (left, getattr(lost, "code", None), fine) == (["0"], "line_broken", None)
        for inbox in inboxes:
            inbox.close()

    async def test_a_request_in_the_queue_leaves_it_with_its_gateway(
        self, inbox: EventInbox, outbox: EventOutbox
    ) -> None:
        """Nothing is generated for it when its turn would come."""
        call = await inbox.call("in engine", whole=False)
        queued = await inbox.call("queued", whole=False)
        ended, never = asyncio.Event(), asyncio.Event()

        async def waiting() -> AsyncGenerator[TokenEvent, None]:
            try:
                await never.wait()
                yield token(1)
            finally:
                ended.set()

        sending = [
            asyncio.ensure_future(outbox.send(saying(token(1), then=ended), "in engine", call.line)),
            asyncio.ensure_future(outbox.send(waiting(), "queued", queued.line)),
        ]
        await anext(call.events())
        call._connection._transport.abort()  # type: ignore[union-attr]
        async with asyncio.timeout(5):
            told = await asyncio.gather(*sending, return_exceptions=True)
        assert [getattr(error, "code", None) for error in told] == ["line_broken", "line_broken"]

    async def test_what_comes_after_the_gateway_is_gone_is_the_last(
        self, inbox: EventInbox, outbox: EventOutbox
    ) -> None:
        go, made = asyncio.Event(), []

        async def events() -> AsyncGenerator[TokenEvent, None]:
            for number in range(50):
                made.append(number)
                yield token(number)
                await go.wait()

        call = await inbox.call("r", whole=False)
        sending = asyncio.ensure_future(outbox.send(events(), "r", call.line))
        await anext(call.events())
        call._connection._transport.abort()  # type: ignore[union-attr]
        await asyncio.sleep(0.05)
        go.set()
        (error,) = await asyncio.gather(sending, return_exceptions=True)
        assert (getattr(error, "code", None), made) == ("line_broken", [0, 1])

    async def test_a_replica_that_is_lost_fails_the_answers_it_made(
        self, inbox: EventInbox, outbox: EventOutbox
    ) -> None:
        call = await inbox.call("r", whole=False)
        sending = asyncio.ensure_future(outbox.send(saying(token(1), then=asyncio.Event()), "r", call.line))
        told = call.events()
        await anext(told)
        outbox.close()
        with pytest.raises(Unavailable) as caught:
            await anext(told)
        sending.cancel()
        assert caught.value.code == "engine_lost"
