import asyncio
from collections.abc import Sequence

import pytest

from openledger.core.errors import Corrupt, TooLarge
from openledger.openlora.residency import Residency


class Memory:
    """Stands for an engine: what is in it, and what was asked of it. Adapters called bad can't be loaded."""

    def __init__(self, places: int):
        self.inside: set[str] = set()
        self.loads: list[str] = []
        self.most = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.residency = Residency(self._load, self._unload, places)

    async def _load(self, digest: str) -> None:
        self.loads.append(digest)
        await self.gate.wait()
        await asyncio.sleep(0)
        if digest.startswith("bad"):
            raise Corrupt("cut short", code="corrupt_adapter")
        self.inside.add(digest)
        self.most = max(self.most, len(self.inside))

    async def _unload(self, digest: str) -> None:
        await asyncio.sleep(0)
        self.inside.remove(digest)

    async def use(self, *digests: str) -> None:
        async with self.residency.use(digests):
            assert set(digests) - {""} <= self.inside


class TestLoading:
    async def test_the_base_needs_nothing(self) -> None:
        memory = Memory(1)
        await memory.use("")
        assert memory.loads == []

    async def test_twice_named_once_loaded(self) -> None:
        memory = Memory(2)
        await memory.use("a")
        await memory.use("a")
        assert memory.loads == ["a"]

    async def test_at_the_same_time_is_one_load(self) -> None:
        memory = Memory(2)
        await asyncio.gather(*(memory.use("a") for _ in range(5)))
        assert memory.loads == ["a"]

    async def test_one_that_fails_fails_for_all_who_wait_and_is_tried_again(self) -> None:
        memory = Memory(1)
        results = await asyncio.gather(memory.use("bad"), memory.use("bad"), return_exceptions=True)
        assert [type(result) for result in results] == [Corrupt, Corrupt]
        with pytest.raises(Corrupt):
            await memory.use("bad")
        assert memory.loads == ["bad", "bad"]
        await memory.use("a")
        assert memory.residency.resident() == ("a",)

    async def test_more_at_once_than_places_is_refused(self) -> None:
        with pytest.raises(TooLarge):
            await Memory(2).use("a", "b", "c")


class TestEviction:
    async def test_the_least_recently_used_leaves(self) -> None:
        memory = Memory(2)
        for digest in "abac":
            await memory.use(digest)
        assert memory.inside == {"a", "c"}

    async def test_one_in_use_stays_and_others_wait_for_it(self) -> None:
        memory = Memory(1)
        async with memory.residency.use(("a",)):
            waiting = asyncio.create_task(memory.use("b"))
            await asyncio.sleep(0.01)
            assert memory.inside == {"a"}
            assert not waiting.done()
        await waiting
        assert memory.inside == {"b"}

    async def test_one_that_is_held_stays_after_its_user_has_left(self) -> None:
        memory = Memory(1)
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        async with memory.residency.use(("a",)):
            memory.residency.hold(("a", "a", ""), ended)
        other = asyncio.create_task(memory.use("b"))
        await asyncio.sleep(0.01)
        assert (memory.inside, await memory.residency.forget("a")) == ({"a"}, False)
        ended.set_result(None)
        await other
        assert (memory.inside, memory.residency._uses) == ({"b"}, {})

    async def test_forgetting_one_in_use_is_refused(self) -> None:
        memory = Memory(1)
        async with memory.residency.use(("a",)):
            assert not await memory.residency.forget("a")
        assert await memory.residency.forget("a")
        assert memory.inside == set()

    async def test_two_that_need_two_places_each_do_not_block_each_other(self) -> None:
        memory = Memory(2)
        async with asyncio.timeout(5):
            await asyncio.gather(*(memory.use(*pair) for pair in ("ab", "cd", "ba", "dc") * 5))

    @pytest.mark.parametrize("places", [1, 2, 5])
    async def test_a_crowd_never_exceeds_the_places(self, places: int) -> None:
        memory = Memory(places)

        async def one(digests: Sequence[str]) -> None:
            async with memory.residency.use(digests):
                assert set(digests) <= memory.inside
                await asyncio.sleep(0.001)

        async with asyncio.timeout(20):
            await asyncio.gather(*(one((f"a{number * 7 % 11}",)) for number in range(60)))
        assert memory.most <= places


class TestLeaving:
    async def test_a_client_that_leaves_during_a_load_frees_its_place(self) -> None:
        memory = Memory(1)
        memory.gate.clear()
        left, stayed = asyncio.create_task(memory.use("a")), asyncio.create_task(memory.use("a"))
        await asyncio.sleep(0.01)
        left.cancel()
        memory.gate.set()
        await stayed
        assert memory.loads == ["a"]
        await memory.use("b")
        assert memory.inside == {"b"}

    async def test_clients_that_leave_at_any_moment_leak_nothing(self) -> None:
        memory = Memory(2)
        for delay in range(30):
            task = asyncio.create_task(memory.use(f"a{delay % 5}"))
            for _ in range(delay % 9):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        async with asyncio.timeout(5):
            await memory.use("x", "y")
        await asyncio.sleep(0.01)
        assert memory.inside == {"x", "y"}
        assert memory.most <= 2
