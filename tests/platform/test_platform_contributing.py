"""Of a large contribution, whether it may come is asked before it is sent."""

import asyncio
from typing import Any

import pytest

from openledger.core.errors import Forbidden
from openledger.core.signing import SigningKey
from openledger.core.values import Contribution, ContributionReceipt, RowDraft, Verdict
from openledger.datanets.contribution import sign_contribution
from openledger.datanets.ingest import PREPARED_ROWS
from openledger.datanets.preparing import Announced, announced
from openledger.platform.contributing import MAX_AT_ONCE, MAX_PREVIEWS_AT_ONCE, Contributing


def contribution(num_rows: int, nonce: str = "1") -> Contribution:
    drafts = [RowDraft(prompt=f"What is {number}?", completion="A number.") for number in range(num_rows)]
    return sign_contribution(SigningKey(b"a" * 32), "docs", drafts, nonce)


class Handle:
    """As the actor's: its methods have `remote`, which gives what is awaited."""

    def __init__(self) -> None:
        self.sent: list[Contribution] = []
        self.asked: list[Announced] = []
        self.asked_dry: list[Announced] = []
        self.refusal: Exception | None = None
        self.silence: asyncio.Event | None = None
        self.previewed: list[Contribution] = []
        self.go: asyncio.Event | None = None
        self.at_once = self.most_at_once = 0

    def __getattr__(self, name: str) -> Any:
        class Method:
            @staticmethod
            async def remote(*arguments: Any, **options: Any) -> Any:
                return await getattr(self, f"on_{name}")(*arguments, **options)

        return Method()

    async def on_admit(self, announced: Announced, is_dry_run: bool = False) -> None:
        (self.asked_dry if is_dry_run else self.asked).append(announced)
        if self.silence is not None:
            await self.silence.wait()
        if self.refusal is not None:
            raise self.refusal

    async def on_contribute(self, given: Contribution) -> ContributionReceipt:
        self.sent.append(given)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await asyncio.sleep(0)
        self.at_once -= 1
        return ContributionReceipt(contribution_id="", datanet="docs", contributor_id="", verdicts=())

    async def on_preview(self, given: Contribution) -> tuple[Verdict, ...]:
        self.previewed.append(given)
        if self.go is not None:
            await self.go.wait()
        return ()


async def test_a_small_contribution_is_sent_at_once() -> None:
    handle, small = Handle(), contribution(PREPARED_ROWS - 1)
    await Contributing(handle).send(small)
    await Contributing(handle).preview(small)
    assert (handle.asked, handle.sent, handle.previewed) == ([], [small], [small])


async def test_a_large_one_that_may_not_come_is_not_sent() -> None:
    handle, large = Handle(), contribution(PREPARED_ROWS)
    handle.refusal = Forbidden("no", code="not_permitted")
    with pytest.raises(Forbidden):
        await Contributing(handle).send(large)
    with pytest.raises(Forbidden):
        await Contributing(handle).preview(large)
    assert (handle.asked, handle.asked_dry) == ([announced(large)], [announced(large)])
    assert (handle.sent, handle.previewed) == ([], [])


async def test_waiting_to_hear_whether_it_may_come_takes_no_place() -> None:
    handle = Handle()
    handle.silence = silence = asyncio.Event()
    way = Contributing(handle)
    waiting = [asyncio.ensure_future(way.send(contribution(PREPARED_ROWS, str(n)))) for n in range(2 * MAX_AT_ONCE)]
    await asyncio.sleep(0)
    handle.silence = None
    await way.send(contribution(PREPARED_ROWS, "other"))
    assert len(handle.sent) == 1
    silence.set()
    await asyncio.gather(*waiting)


async def test_only_so_many_large_ones_are_on_their_way_at_once() -> None:
    handle = Handle()
    way = Contributing(handle)
    await asyncio.gather(*(way.send(contribution(PREPARED_ROWS, str(number))) for number in range(3 * MAX_AT_ONCE)))
    assert handle.most_at_once == MAX_AT_ONCE


async def test_of_large_dry_runs_few_are_on_their_way_and_keep_no_contribution_back() -> None:
    handle = Handle()
    handle.go = asyncio.Event()
    way = Contributing(handle)
    dry = [asyncio.ensure_future(way.preview(contribution(PREPARED_ROWS, str(n)))) for n in range(2 * MAX_AT_ONCE)]
    await way.send(contribution(PREPARED_ROWS, "other"))
    assert (len(handle.previewed), len(handle.sent)) == (MAX_PREVIEWS_AT_ONCE, 1)
    handle.go.set()
    await asyncio.gather(*dry)
    assert len(handle.previewed) == 2 * MAX_AT_ONCE
