"""A gateway's till: holds and payments, which go to the economy together where they come together.

Each is a call of two actors and a handful of disk syncs, and at the end of a full batch of answers all of them come at
once. So while one call is under way, those that come wait, and the next call takes all of them. Each still has its own
outcome, and a lone one waits for nobody. Decides nothing of money: the economy does, as for single calls.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

from openledger.core.errors import OpenLedgerError
from openledger.core.values import Answer, Authorization, FeeReceipt
from openledger.economy.sales import Order
from openledger.platform.calls import answered

MOST = 8  # in one call: eight cost a third of what single ones do, more save little, and the first isn't kept waiting
Item = TypeVar("Item")
Result = TypeVar("Result")


class Till:
    """`economy` is an actor's handle."""

    def __init__(self, economy: Any):
        self._holds = Together[Order, tuple[Authorization, tuple[Answer, FeeReceipt] | None]](
            lambda orders: economy.authorize_each.remote(orders)
        )
        self._payments = Together[Sequence[Answer], list[FeeReceipt]](
            lambda requests: economy.complete_each.remote(requests)
        )

    async def hold(self, order: Order) -> tuple[Authorization, tuple[Answer, FeeReceipt] | None]:
        """The hold, and what was sold under its key before. Raises as `SaleBook.authorize`."""
        return await self._holds(order)

    async def pay(self, parts: Sequence[Answer]) -> list[FeeReceipt]:
        """Raises as `SaleBook.complete_all`."""
        return await self._payments(parts)


class Together(Generic[Item, Result]):
    """`ask` makes one call for many items: what comes back has, for each of them, its result or an error of ours."""

    def __init__(self, ask: Callable[[list[Item]], Any]):
        self._ask = ask
        self._waiting: list[tuple[Item, asyncio.Future[Result]]] = []
        self._asking: asyncio.Task[None] | None = None

    async def __call__(self, item: Item) -> Result:
        """An item whose caller leaves before its call is made isn't in it."""
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        if self._asking is None:
            self._asking = asyncio.create_task(self._ask_all())
        return await future

    async def _ask_all(self) -> None:
        try:
            while self._waiting:
                group, self._waiting = self._waiting[:MOST], self._waiting[MOST:]
                await self._ask_for([one for one in group if not one[1].done()])
        finally:
            self._asking = None

    async def _ask_for(self, group: list[tuple[Item, asyncio.Future[Result]]]) -> None:
        if not group:
            return
        try:
            outcomes = await answered(self._ask([item for item, _ in group]))
        except asyncio.CancelledError:
            for _, future in group:
                future.cancel()
            raise
        except OpenLedgerError as error:
            outcomes = [error] * len(group)
        except Exception as error:  # noqa: BLE001 - raised again where the item's outcome is awaited
            if len(group) > 1:  # a bug that one of them meets is not the others'
                for one in group:
                    await self._ask_for([one])
                return
            outcomes = [error]
        for (_, future), outcome in zip(group, outcomes, strict=True):
            _settle(future, outcome)


def _settle(future: "asyncio.Future[Result]", outcome: Result | Exception) -> None:
    if future.done():  # whoever waited has left
        return
    if isinstance(outcome, Exception):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)
