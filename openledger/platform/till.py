"""A gateway's till: holds and payments, which go to the economy together where they come together.

Each is a call of two actors and a handful of disk syncs, and at the end of a full batch of answers all of them come at
once. So while one call is under way, those that come wait, and the next call takes all of them. Each still has its own
outcome, and a lone one waits for nobody. Decides nothing of money: the economy does, as for single calls.

A hold that nobody waits for any more isn't placed. A payment is made, whoever left meanwhile.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

from openledger.core.errors import Unavailable
from openledger.core.values import Answer, Authorization, FeeReceipt
from openledger.economy.sales import Order
from openledger.platform.calls import answered

MOST = 8  # in one call: eight cost a third of what single ones do, more save little, and the first isn't kept waiting
Item = TypeVar("Item")
Result = TypeVar("Result")
Waiting = tuple[Item, asyncio.Future[Result]]


class Till:
    """`economy` is an actor's handle."""

    def __init__(self, economy: Any):
        self._holds = Together[Order, tuple[Authorization, tuple[Answer, FeeReceipt] | None]](
            lambda orders: economy.authorize_each.remote(orders)
        )
        self._payments = Together[Sequence[Answer], list[FeeReceipt]](
            lambda requests: economy.complete_each.remote(requests), drops=False
        )

    async def hold(self, order: Order) -> tuple[Authorization, tuple[Answer, FeeReceipt] | None]:
        """The hold, and what was sold under its key before. Raises as `SaleBook.authorize`."""
        return await self._holds(order)

    async def pay(self, parts: Sequence[Answer]) -> list[FeeReceipt]:
        """Made also where the caller leaves. Raises as `SaleBook.complete_all`."""
        return await self._payments(parts)


class Together(Generic[Item, Result]):
    """`ask` makes one call for many items: what comes back has, for each of them, its result or an error of ours. An
    item may be asked for again, by itself, where a call for several fails. Where it `drops`, one whose caller leaves
    before its call is made isn't in it."""

    def __init__(self, ask: Callable[[list[Item]], Any], drops: bool = True):
        self._ask, self._drops = ask, drops
        self._waiting: list[Waiting[Item, Result]] = []
        self._asking: asyncio.Task[None] | None = None

    async def __call__(self, item: Item) -> Result:
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask_all())
        return await future

    async def _ask_all(self) -> None:
        try:
            while self._waiting:
                group, self._waiting = self._waiting[:MOST], self._waiting[MOST:]
                await self._ask_for([one for one in group if not (self._drops and one[1].done())])
        finally:
            self._asking = None
            left, self._waiting = self._waiting, []
            _settle_all(left, _broken_off())  # there are some only where this task was ended

    async def _ask_for(self, group: list[Waiting[Item, Result]]) -> None:
        if not group:
            return
        try:
            outcomes = await answered(self._ask([item for item, _ in group]))
            if len(outcomes) != len(group):
                raise RuntimeError(f"{len(outcomes)} outcomes for {len(group)} items")
            for (_, future), outcome in zip(group, outcomes, strict=True):
                _settle(future, outcome)
        except Exception as error:  # noqa: BLE001 - raised again where the item's outcome is awaited
            if len(group) == 1 or isinstance(error, Unavailable):
                _settle_all(group, error)
                return
            for one in group:  # what one of them meets is not the others'
                await self._ask_for([one])
        finally:
            _settle_all(group, _broken_off())  # only those that have no outcome by now


def _settle_all(group: Sequence[Waiting[Item, Result]], error: Exception) -> None:
    for _, future in group:
        _settle(future, error)


def _settle(future: "asyncio.Future[Result]", outcome: Result | Exception) -> None:
    if future.done():  # whoever waited has left
        return
    if isinstance(outcome, Exception):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)


def _broken_off() -> Unavailable:
    return Unavailable("the gateway ended before the economy answered", code="actor_unavailable", fix="try again")
