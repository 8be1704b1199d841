"""Calls that come while another is under way go together, and each has its own outcome."""

import asyncio
from types import SimpleNamespace

import pytest

from openledger.core.errors import Corrupt, InvalidInput, Unavailable
from openledger.platform.till import MOST, Till, Together


class Counter:
    """Doubles numbers, once its gate is open. A string is a bug that it trips over, an error of ours it raises for the
    whole call; 13 it refuses."""

    def __init__(self):
        self.calls, self.gate = [], asyncio.Event()

    async def ask(self, items):
        self.calls.append(items)
        await self.gate.wait()
        if any(isinstance(item, str) for item in items):
            raise TypeError(items)
        for error in (item for item in items if isinstance(item, Exception)):
            raise error
        return [InvalidInput("unlucky") if item == 13 else 2 * item for item in items]


async def begun(together, *items):
    """The items' calls, as far as they come by themselves."""
    asking = [asyncio.ensure_future(together(item)) for item in items]
    await asyncio.sleep(0.01)
    return asking


async def test_a_lone_one_waits_for_nobody():
    counter = Counter()
    counter.gate.set()
    together = Together(counter.ask)
    assert [await together(1), await together(2)] == [2, 4]
    assert counter.calls == [[1], [2]]


async def test_what_comes_while_a_call_is_under_way_goes_together_in_the_next():
    counter = Counter()
    together = Together(counter.ask)
    asking = [*await begun(together, 1), *await begun(together, 2, 3, 4)]
    counter.gate.set()
    assert await asyncio.gather(*asking) == [2, 4, 6, 8]
    assert counter.calls == [[1], [2, 3, 4]]


async def test_no_call_has_more_than_its_most():
    counter = Counter()
    together = Together(counter.ask)
    asking = await begun(together, *range(100, 102 + MOST))
    counter.gate.set()
    await asyncio.gather(*asking)
    assert [len(call) for call in counter.calls] == [MOST, 2]


async def test_each_has_its_own_outcome():
    counter = Counter()
    together = Together(counter.ask)
    asking = await begun(together, 1, 13, 3)
    counter.gate.set()
    first, second, third = await asyncio.gather(*asking, return_exceptions=True)
    assert (first, str(second), third) == (2, "unlucky", 6)


@pytest.mark.parametrize(("item", "error"), [("x", TypeError), (Corrupt("damaged"), Corrupt)], ids=["a bug", "ours"])
async def test_what_one_of_them_meets_is_not_the_others(item, error):
    counter = Counter()
    together = Together(counter.ask)
    asking = await begun(together, 1, item, 3)
    counter.gate.set()
    first, second, third = await asyncio.gather(*asking, return_exceptions=True)
    assert (first, type(second), third) == (2, error, 6)


async def test_where_nobody_answers_all_hear_it_and_the_next_call_is_made():
    calls = []

    async def ask(items):
        calls.append(items)
        if len(calls) == 1:
            raise Unavailable("no answer", code="actor_unavailable")
        return items

    together = Together(ask)
    told = await asyncio.gather(together(1), together(2), return_exceptions=True)
    assert [error.code for error in told] == ["actor_unavailable"] * 2
    assert await together(3) == 3


async def test_an_item_whose_caller_left_before_its_call_is_not_in_it():
    counter = Counter()
    together = Together(counter.ask)
    asking = [*await begun(together, 1), *await begun(together, 2, 3)]
    asking[1].cancel()
    counter.gate.set()
    assert await asking[2] == 6
    assert counter.calls == [[1], [3]]
    with pytest.raises(asyncio.CancelledError):
        await asking[1]


async def test_a_caller_that_leaves_a_call_under_way_leaves_the_others_in_it():
    counter = Counter()
    together = Together(counter.ask)
    asking = await begun(together, 1, 2)
    asking[0].cancel()
    counter.gate.set()
    assert await asking[1] == 4


async def test_what_does_not_drop_is_asked_for_though_its_caller_left():
    counter = Counter()
    together = Together(counter.ask, drops=False)
    asking = [*await begun(together, 1), *await begun(together, 2, 3)]
    asking[1].cancel()
    counter.gate.set()
    assert await asking[2] == 6
    assert counter.calls == [[1], [2, 3]]


async def test_a_till_drops_holds_and_no_payments():
    made, gate = [], asyncio.Event()

    def call(name):
        async def remote(items):
            await gate.wait()
            made.append((name, items))
            return items

        return SimpleNamespace(remote=remote)

    till = Till(SimpleNamespace(authorize_each=call("hold"), complete_each=call("pay")))
    for asked in (till.hold, till.pay):
        asking = [*await begun(asked, "first"), *await begun(asked, "second")]
        asking[1].cancel()
        await asyncio.sleep(0)
        gate.set()
        await asking[0]
        await asyncio.sleep(0.01)
        gate.clear()
    assert made == [("hold", ["first"]), ("pay", ["first"]), ("pay", ["second"])]


@pytest.mark.parametrize("told", [[], [2, 4, 6], None], ids=["too few", "too many", "none at all"])
async def test_outcomes_that_can_not_be_the_items_are_told_to_nobody(told):
    async def ask(items):
        return told

    together = Together(ask)
    async with asyncio.timeout(5):
        outcomes = await asyncio.gather(together(1), together(2), return_exceptions=True)
    assert all(isinstance(outcome, RuntimeError | TypeError) for outcome in outcomes)


async def test_where_asking_is_ended_all_hear_it_and_the_next_call_is_made():
    counter = Counter()
    together = Together(counter.ask)
    asking = [*await begun(together, 1), *await begun(together, 2)]
    together._asking.cancel()
    async with asyncio.timeout(5):
        told = await asyncio.gather(*asking, return_exceptions=True)
    assert [error.code for error in told] == ["actor_unavailable"] * 2
    counter.gate.set()
    assert await together(3) == 6
