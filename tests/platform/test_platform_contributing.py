"""Large contributions are prepared beside the Datanets, small ones are not; the answer is the same."""

import asyncio
from typing import Any

import pytest

from openledger.core.errors import Forbidden, InvalidInput
from openledger.core.signing import SigningKey
from openledger.core.values import Contribution, ContributionReceipt, RowDraft
from openledger.datanets.contribution import sign_contribution
from openledger.datanets.gate import NO_RULES, Rules
from openledger.datanets.preparing import Announced, Prepared, announced, prepare
from openledger.platform import contributing
from openledger.platform.contributing import MAX_AT_ONCE, MIN_ROWS, Contributing


def contribution(num_rows: int, nonce: str = "1") -> Contribution:
    drafts = [RowDraft(prompt=f"What is {number}?", completion="A number.") for number in range(num_rows)]
    return sign_contribution(SigningKey(b"a" * 32), "docs", drafts, nonce)


class Handle:
    """As the actor's: its methods have `remote`, which gives what is awaited."""

    def __init__(self) -> None:
        self.sent: list[tuple[Any, ...]] = []
        self.asked: list[Announced] = []
        self.refusal: Exception | None = None
        self.rules: Rules | None = NO_RULES
        self.at_once = self.most_at_once = 0
        self.lost: list[Exception] = []

    def __getattr__(self, name: str) -> Any:
        class Method:
            @staticmethod
            async def remote(*arguments: Any) -> Any:
                return await getattr(self, f"on_{name}")(*arguments)

        return Method()

    async def on_admit(self, announced: Announced) -> Rules | None:
        self.asked.append(announced)
        if self.refusal is not None:
            raise self.refusal
        return self.rules

    async def on_contribute(self, given: Contribution, *prepared: Any) -> ContributionReceipt:
        self.sent.append((given, *prepared))
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await asyncio.sleep(0)
        self.at_once -= 1
        if prepared and self.lost:
            raise self.lost.pop()
        return ContributionReceipt(contribution_id="", datanet="docs", contributor_id="", verdicts=())


def prepared_here(given: Contribution, rules: Rules) -> Prepared:
    return prepare(given, rules=rules)


async def test_a_large_contribution_comes_prepared_and_a_small_one_does_not() -> None:
    handle = Handle()
    small, large = contribution(MIN_ROWS - 1), contribution(MIN_ROWS)
    way = Contributing(handle, prepared_here)
    await way.send(small)
    await way.send(large)
    (only,), (given, prepared) = handle.sent
    assert (only, given) == (small, large)
    assert prepared.fits(large, {}, NO_RULES)


def never(given: Contribution, rules: Rules) -> Prepared:
    raise AssertionError("it was prepared")


async def test_one_that_may_not_come_is_not_prepared_and_not_sent() -> None:
    handle, large = Handle(), contribution(MIN_ROWS)
    handle.refusal = Forbidden("no", code="not_permitted")
    with pytest.raises(Forbidden):
        await Contributing(handle, never).send(large)
    assert handle.sent == []
    assert handle.asked == [announced(large)]


async def test_one_that_was_judged_before_is_not_prepared_again() -> None:
    handle, large = Handle(), contribution(MIN_ROWS)
    handle.rules = None
    await Contributing(handle, never).send(large)
    assert handle.sent == [(large,)]


async def test_waiting_to_hear_whether_it_may_come_takes_no_place() -> None:
    handle, silence = Handle(), asyncio.Event()

    async def silent(_: Announced) -> Rules | None:
        await silence.wait()
        return NO_RULES

    handle.on_admit, answering = silent, handle.on_admit  # type: ignore[method-assign]
    way = Contributing(handle, prepared_here)
    waiting = [asyncio.ensure_future(way.send(contribution(MIN_ROWS, str(n)))) for n in range(2 * MAX_AT_ONCE)]
    await asyncio.sleep(0)
    handle.on_admit = answering  # type: ignore[method-assign]
    await way.send(contribution(MIN_ROWS, "other"))
    assert len(handle.sent) == 1
    silence.set()
    await asyncio.gather(*waiting)


async def test_a_lost_task_costs_no_contribution() -> None:
    import ray.exceptions

    handle = Handle()
    handle.lost = [ray.exceptions.WorkerCrashedError()]
    await Contributing(handle, prepared_here).send(contribution(MIN_ROWS))
    assert [len(arguments) for arguments in handle.sent] == [2, 1]


async def test_what_is_refused_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    handle = Handle()
    handle.lost = [InvalidInput("no", code="invalid_signature")]
    with pytest.raises(InvalidInput):
        await Contributing(handle, prepared_here).send(contribution(MIN_ROWS))
    assert len(handle.sent) == 1


async def test_only_so_many_large_ones_are_on_their_way_at_once() -> None:
    handle = Handle()
    way = Contributing(handle, prepared_here)
    await asyncio.gather(*(way.send(contribution(MIN_ROWS, str(number))) for number in range(3 * MAX_AT_ONCE)))
    assert handle.most_at_once == MAX_AT_ONCE


@pytest.mark.cluster
async def test_a_task_of_rays_prepares_and_refuses_as_the_actor_would(cluster: Any) -> None:
    import ray

    sent = contribution(MIN_ROWS)
    found = await contributing._prepared_by_ray(sent, NO_RULES)
    assert found.row_ids == prepare(sent).row_ids

    class Echo:
        def contribute(self, given: Contribution, prepared: Prepared) -> Prepared:
            return prepared

        def admit(self, announced: Announced) -> Rules:
            return NO_RULES

    echo = ray.remote(Echo).options(num_cpus=0).remote()
    other = sign_contribution(SigningKey(b"b" * 32), "docs", sent.drafts, "1")
    forged = Contribution(**{name: getattr(sent, name) for name in sent.__slots__} | {"signature": other.signature})
    with pytest.raises(InvalidInput) as caught:
        await Contributing(echo).send(forged)
    assert caught.value.code == "invalid_signature"
    ray.kill(echo)
