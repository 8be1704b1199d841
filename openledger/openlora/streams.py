"""Fewer and larger events where tokens come faster than anybody can read: the first at once, then by time or backlog.

Each event that crosses Ray Serve and HTTP costs some hundred microseconds of CPU, whatever is in it.
"""

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace

from openledger.core.values import TokenEvent


def join(first: TokenEvent, second: TokenEvent) -> TokenEvent:
    """Two events of one answer as one."""
    return replace(
        second,
        token_ids=first.token_ids + second.token_ids,
        text=first.text + second.text,
        logprobs=first.logprobs + second.logprobs,
        prompt_logprobs=first.prompt_logprobs or second.prompt_logprobs,
    )


async def coalesced(events: AsyncGenerator[TokenEvent, None], window_s: float) -> AsyncGenerator[TokenEvent, None]:
    """`events`, but of those that come within `window_s` of the last one told, or while the reader is busy, the ones of
    one answer joined. Closing it closes `events`."""
    queue: asyncio.Queue[TokenEvent | BaseException | None] = asyncio.Queue()
    pumping = asyncio.ensure_future(_pump(events, queue))
    begun: set[int] = set()
    told_s = -window_s
    try:
        while (item := await queue.get()) is not None:
            if isinstance(item, TokenEvent) and item.index in begun and item.finish_reason is None:
                await asyncio.sleep(max(0.0, told_s + window_s - time.monotonic()))
            joined, end = _take_all(item, queue)
            for event in joined.values():
                begun.add(event.index)
                yield event
            told_s = time.monotonic()
            if isinstance(end, BaseException):
                raise end
    finally:
        pumping.cancel()
        await asyncio.gather(pumping, return_exceptions=True)


def _take_all(
    item: TokenEvent | BaseException | None, queue: "asyncio.Queue[TokenEvent | BaseException | None]"
) -> tuple[dict[int, TokenEvent], BaseException | None]:
    """What there is now, joined by answer, and what ended it. The end itself stays in the queue."""
    joined: dict[int, TokenEvent] = {}
    while isinstance(item, TokenEvent):
        joined[item.index] = join(joined[item.index], item) if item.index in joined else item
        if queue.empty():
            return joined, None
        item = queue.get_nowait()
    if item is None:
        queue.put_nowait(None)
    return joined, item


async def _pump(
    events: AsyncGenerator[TokenEvent, None], queue: "asyncio.Queue[TokenEvent | BaseException | None]"
) -> None:
    try:
        async with aclosing(events):
            async for event in events:
                queue.put_nowait(event)
        queue.put_nowait(None)
    except Exception as error:  # noqa: BLE001  raised again where the events are read
        queue.put_nowait(error)
