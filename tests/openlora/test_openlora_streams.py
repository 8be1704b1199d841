"""Joining events: nothing lost, nothing late."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest

from openledger.core.values import TokenEvent, TokenLogprob
from openledger.openlora.streams import coalesced, join


def event(number: int, index: int = 0, end: bool = False) -> TokenEvent:
    return TokenEvent(
        request_id="r", token_ids=(number,), text=f"{number} ", index=index, finish_reason="stop" if end else None,
        logprobs=(TokenLogprob(token_id=number, logprob=-1.0),),
    )  # fmt: skip


async def burst(count: int, pause_s: float = 0.0) -> AsyncGenerator[TokenEvent, None]:
    for number in range(count):
        await asyncio.sleep(pause_s)
        yield event(number, end=number == count - 1)


def test_joined_has_the_tokens_of_both_and_the_end_of_the_second() -> None:
    both = join(event(1), event(2, end=True))
    assert (both.token_ids, both.text, both.finish_reason, len(both.logprobs)) == ((1, 2), "1 2 ", "stop", 2)


async def test_the_first_is_alone_and_all_arrive_in_order() -> None:
    told = [one async for one in coalesced(burst(50), 0.01)]
    assert told[0].token_ids == (0,)
    assert [token for one in told for token in one.token_ids] == list(range(50))
    assert told[-1].finish_reason == "stop"
    assert len(told) < 10


async def test_slow_tokens_are_told_one_by_one() -> None:
    told = [one async for one in coalesced(burst(5, pause_s=0.02), 0.002)]
    assert [one.token_ids for one in told] == [(number,) for number in range(5)]


async def test_answers_of_one_request_are_kept_apart() -> None:
    async def two() -> AsyncGenerator[TokenEvent, None]:
        for number in range(10):
            yield event(number, index=number % 2, end=number >= 8)

    told = [one async for one in coalesced(two(), 0.005)]
    for index in (0, 1):
        tokens = [token for one in told if one.index == index for token in one.token_ids]
        assert tokens == list(range(index, 10, 2))


async def test_what_goes_wrong_is_raised_after_what_came() -> None:
    async def broken() -> AsyncGenerator[TokenEvent, None]:
        yield event(0)
        yield event(1)
        raise RuntimeError("inside")

    told: list[int] = []
    with pytest.raises(RuntimeError, match="inside"):
        await _read(coalesced(broken(), 0.001), told)
    assert told == [0, 1]


async def test_a_reader_that_leaves_closes_the_source() -> None:
    closed = asyncio.Event()

    async def endless() -> AsyncGenerator[TokenEvent, None]:
        try:
            while True:
                await asyncio.sleep(0.001)
                yield event(0)
        finally:
            closed.set()

    async with aclosing(coalesced(endless(), 0.001)) as told:
        async for _ in told:
            break
    assert closed.is_set()


async def _read(events: AsyncGenerator[TokenEvent, None], told: list[int]) -> None:
    async for one in events:
        told += one.token_ids
