"""Large contributions are prepared beside the Datanets, small ones are not; the answer is the same."""

import asyncio
from typing import Any

import pytest

from openledger.core.errors import InvalidInput
from openledger.core.signing import SigningKey
from openledger.core.values import Contribution, ContributionReceipt, RowDraft
from openledger.datanets.contribution import sign_contribution
from openledger.datanets.gate import NO_RULES, Rules
from openledger.datanets.preparing import Prepared, prepare
from openledger.platform import contributing
from openledger.platform.contributing import MAX_AT_ONCE, MIN_ROWS, Contributing


def contribution(num_rows: int, nonce: str = "1") -> Contribution:
    drafts = [RowDraft(prompt=f"What is {number}?", completion="A number.") for number in range(num_rows)]
    return sign_contribution(SigningKey(b"a" * 32), "docs", drafts, nonce)


class Handle:
    """As the actor's: its methods have `remote`, which gives what is awaited."""

    def __init__(self) -> None:
        self.sent: list[tuple[Any, ...]] = []
        self.asked_rules = 0
        self.at_once = self.most_at_once = 0
        self.lost: list[Exception] = []

    def __getattr__(self, name: str) -> Any:
        class Method:
            @staticmethod
            async def remote(*arguments: Any) -> Any:
                return await getattr(self, f"on_{name}")(*arguments)

        return Method()

    async def on_rules(self, name: str) -> Rules:
        self.asked_rules += 1
        return NO_RULES

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


async def test_rules_are_asked_for_once_in_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    handle = Handle()
    way = Contributing(handle, prepared_here)
    for nonce in "ab":
        await way.send(contribution(MIN_ROWS, nonce))
    assert handle.asked_rules == 1
    monkeypatch.setattr(contributing, "RULES_S", -1.0)
    again = Contributing(handle, prepared_here)
    for nonce in "ab":
        await again.send(contribution(MIN_ROWS, nonce))
    assert handle.asked_rules == 3


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

        def rules(self, name: str) -> Rules:
            return NO_RULES

    echo = ray.remote(Echo).options(num_cpus=0).remote()
    other = sign_contribution(SigningKey(b"b" * 32), "docs", sent.drafts, "1")
    forged = Contribution(**{name: getattr(sent, name) for name in sent.__slots__} | {"signature": other.signature})
    with pytest.raises(InvalidInput) as caught:
        await Contributing(echo).send(forged)
    assert caught.value.code == "invalid_signature"
    ray.kill(echo)
