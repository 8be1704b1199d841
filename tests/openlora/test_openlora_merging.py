"""A hot adapter in weights of its own: the same answers, nothing changed for anybody else, and only while it is hot."""

import asyncio
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from openlora_models import (
    Served,
    assert_same_greedy,
    generate_alone,
    make_served,
    peft_model,
    prompt_of,
    request,
    run,
    tokens_of,
)  # fmt: skip

from openledger.adapters.registry import AdapterRegistry
from openledger.core.errors import InvalidInput, NotFound, Unavailable
from openledger.core.values import GenerationRequest, TokenEvent
from openledger.openlora import merging, native
from openledger.openlora.deployment import ReplicaOptions, ScalingOptions, build_openlora
from openledger.openlora.merging import Fullness, MergeOptions, check_memory
from openledger.openlora.server import AdapterServer, ServingOptions
from openledger.openlora.torch_engine import EngineOptions, TorchEngine
from openledger.openlora.vllm_engine import VllmEngine

WITHIN_S = 120


@pytest.fixture(scope="module", params=["llama", "qwen2", "gpt2", "phi3", "gpt_neox"])
def family(request: pytest.FixtureRequest, served: Served, tmp_path_factory: pytest.TempPathFactory) -> Served:
    return served if request.param == "llama" else make_served(tmp_path_factory.mktemp("family"), request.param)


def make_engine(served: Served, **options: Any) -> TorchEngine:
    engine = TorchEngine(served.base, EngineOptions(**{"max_batch": 8, **options}))
    for name, folder in served.folders.items():
        engine.load(served.digests[name], folder)
    return engine


def watched(engine: TorchEngine) -> list[bool]:
    """Of each step from now on, whether it was computed with merged weights."""
    told, plain = list[bool](), engine._model.logits

    def logits(step: Any, plan: Any = None, merged: Any = None) -> torch.Tensor:
        told.append(merged is not None)
        return plain(step, plan, merged)

    engine._model.logits = logits  # type: ignore[method-assign]
    return told


def asked(served: Served, *names: str | None, max_tokens: int = 12) -> list[GenerationRequest]:
    return [
        request(str(number), prompt_of(3 + 5 * number), served.digests[name] if name else "", max_tokens=max_tokens)
        for number, name in enumerate(names)
    ]


def scored(served: Served, engine: TorchEngine, name: str | None) -> tuple[TokenEvent, ...]:
    """An answer with its log-probabilities, to the last bit, and without what it took."""
    digest = served.digests[name] if name else ""
    events = run(engine, request("scored", prompt_of(9), digest, logprobs=2))["scored"]
    return tuple((event.token_ids, event.logprobs, event.finish_reason) for event in events)  # type: ignore[misc]


class TestAnswers:
    @pytest.mark.parametrize("kernels", ["auto", "torch"])
    def test_are_pefts(self, family: Served, kernels: str) -> None:
        """Three requests under the merged adapter: prompts and decode steps, all with its weights."""
        for name in ("one", "three"):
            engine = make_engine(family, kernels=kernels)
            engine.merge(family.digests[name])
            merged = watched(engine)
            requests = asked(family, name, name, name)
            events = run(engine, *requests)
            model = peft_model(family, name)
            for each in requests:
                expected = generate_alone(model, list(each.prompt_ids), 12)
                assert_same_greedy(tokens_of(events[each.request_id]), expected)
            assert merged
            assert all(merged)

    def test_of_others_in_the_same_batch_are_pefts_too(self, family: Served) -> None:
        engine = make_engine(family)
        engine.merge(family.digests["one"])
        merged = watched(engine)
        names = ("one", "two", None, "three", "one")
        requests = asked(family, *names)
        events = run(engine, *requests)
        for name, each in zip(names, requests, strict=True):
            expected = generate_alone(peft_model(family, name), list(each.prompt_ids), 12)
            assert_same_greedy(tokens_of(events[each.request_id]), expected)
        assert not merged[0]

    def test_turn_to_the_merged_weights_when_the_others_have_ended(self, served: Served, engine: TorchEngine) -> None:
        engine.merge(served.digests["one"])
        merged = watched(engine)
        first, second = asked(served, "one", "two")
        short = request("short", second.prompt_ids, second.adapter_digest, max_tokens=2, ignore_end=True)  # type: ignore[arg-type]
        long = request("long", first.prompt_ids, first.adapter_digest, max_tokens=6, ignore_end=True)  # type: ignore[arg-type]
        events = run(engine, long, short)
        assert merged == [False, False, True, True, True, True]
        assert_same_greedy(
            tokens_of(events["long"])[:4], generate_alone(peft_model(served, "one"), list(long.prompt_ids), 4)
        )

    def test_of_all_others_don_t_change_by_a_bit(self, served: Served, engine: TorchEngine) -> None:
        before = [scored(served, engine, name) for name in ("two", "three", None)]
        weights = {name: value.clone() for name, value in engine._model.model.state_dict().items()}
        engine.merge(served.digests["one"])
        assert [scored(served, engine, name) for name in ("two", "three", None)] == before
        assert all(torch.equal(value, weights[name]) for name, value in engine._model.model.state_dict().items())

    def test_of_an_ensemble_that_holds_it_don_t_change_by_a_bit(self, served: Served, engine: TorchEngine) -> None:
        members = ((served.digests["one"], 0.5), (served.digests["two"], 0.7))
        each = GenerationRequest(
            request_id="both", prompt_ids=tuple(prompt_of(9)), ensemble=members,
            sampling=request("both", [1], logprobs=1).sampling,
        )  # fmt: skip
        before = [event.logprobs for event in run(engine, each)["both"]]
        engine.merge(served.digests["one"])
        assert [event.logprobs for event in run(engine, each)["both"]] == before

    def test_unmerged_it_answers_what_it_didn_t_see_as_before_to_the_last_bit(self, served: Served) -> None:
        engine, fresh = make_engine(served), make_engine(served)
        engine.merge(served.digests["one"])
        run(engine, *asked(served, "one"))
        engine.unmerge()
        run(fresh, *asked(served, "one"))
        assert scored(served, engine, "one") == scored(served, fresh, "one")

    def test_from_known_blocks_are_the_same_up_to_rounding(self, served: Served) -> None:
        """The prompt's blocks were computed with merged weights, what comes after them isn't."""
        engine, fresh = make_engine(served), make_engine(served)
        engine.merge(served.digests["one"])
        long = prompt_of(40)
        run(engine, request("warm", long, served.digests["one"], max_tokens=1))
        engine.unmerge()
        told = [run(each, request("r", long, served.digests["one"], logprobs=1))["r"] for each in (engine, fresh)]
        assert told[0][-1].usage is not None
        assert told[0][-1].usage.cached_tokens >= 32
        assert_same_greedy(tokens_of(told[0]), generate_alone(peft_model(served, "one"), long, 12))
        first, other = (events[0].logprobs[0].logprob for events in told)
        assert first == pytest.approx(other, abs=1e-4)

    def test_are_those_of_the_factors_as_they_are_kept(self, served: Served) -> None:
        """Adapters in bfloat16 on a base in fp32: what is merged is what is rounded, not what was read."""
        apart, merged = (make_engine(served, adapter_dtype="bfloat16") for _ in range(2))
        merged.merge(served.digests["one"])
        for (ids, a, _), (other_ids, b, _) in zip(
            scored(served, apart, "one"), scored(served, merged, "one"), strict=True
        ):
            assert ids == other_ids
            assert a[0].logprob == pytest.approx(b[0].logprob, abs=1e-4)


class TestScores:
    def test_don_t_change_by_a_bit(self, served: Served, engine: TorchEngine) -> None:
        digests = ["", *served.digests.values()]
        before = engine.score(prompt_of(11), prompt_of(14), digests)
        engine.merge(served.digests["one"])
        assert np.array_equal(engine.score(prompt_of(11), prompt_of(14), digests), before)
        assert np.array_equal(engine.score(prompt_of(11), prompt_of(14), digests[1:2]), before[1:2])

    def test_give_way_to_steps_with_merged_weights(self, served: Served) -> None:
        """The steps are computed between two layers of the scoring: neither may see the other's weights."""
        engine, digests = make_engine(served), list(served.digests.values())
        expected = engine.score(prompt_of(11), prompt_of(14), digests)
        each = request("r", prompt_of(9), served.digests["one"], max_tokens=40, ignore_end=True)
        alone = tokens_of(run(make_engine(served), each)["r"])
        engine.merge(served.digests["one"])
        merged, tokens = watched(engine), list[int]()
        engine.give_way_to(lambda: tokens.extend(token for event in engine.step() for token in event.token_ids))
        engine.add(each)
        while engine.has_work():
            assert np.array_equal(engine.score(prompt_of(11), prompt_of(14), digests), expected)
        assert tokens == alone
        assert sum(merged) == len(alone)


class TestMerging:
    def test_beside_the_steps(self, served: Served, engine: TorchEngine) -> None:
        each = request("r", prompt_of(9), served.digests["one"], max_tokens=100, ignore_end=True)
        expected = generate_alone(peft_model(served, "one"), prompt_of(9), 100)
        merged = watched(engine)
        engine.add(each)
        thread = threading.Thread(target=engine.merge, args=(served.digests["one"],))
        thread.start()
        tokens = []
        while engine.has_work():
            tokens += [token for event in engine.step() for token in event.token_ids]
            if len(tokens) == 50:
                thread.join()
        until_end = tokens[: len(expected.tokens)]
        assert_same_greedy(until_end, expected)
        assert merged[-1]

    def test_takes_the_memory_of_the_weights_that_it_changes(self, served: Served, engine: TorchEngine) -> None:
        engine.merge(served.digests["two"])  # of q_proj and v_proj
        weights = engine._model.model.state_dict()
        changed = [value for name, value in weights.items() if "q_proj" in name or "v_proj" in name]
        told = engine.describe()
        assert told["merged"] == served.digests["two"]
        assert told["merged_bytes"] == sum(value.nbytes for value in changed)
        engine.unmerge()
        assert (engine.describe()["merged"], engine.describe()["merged_bytes"]) == ("", 0)

    @pytest.mark.parametrize("ends", ["unmerge", "unload"])
    def test_gives_the_memory_back_with_no_further_step(self, served: Served, engine: TorchEngine, ends: str) -> None:
        engine.merge(served.digests["one"])
        run(engine, *asked(served, "one"))
        assert engine._merged is not None
        held = [weakref.ref(weight) for weight in engine._merged.weights.values()]
        assert all(each() is not None for each in held)
        engine.unmerge() if ends == "unmerge" else engine.unload(served.digests["one"])
        assert not any(each() is not None for each in held)

    def test_is_refused_where_the_memory_isn_t_free(
        self, served: Served, engine: TorchEngine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(merging.psutil, "virtual_memory", lambda: SimpleNamespace(available=1 << 10))
        with pytest.raises(Unavailable) as caught:
            engine.merge(served.digests["one"])
        assert caught.value.code == "no_memory_to_merge"
        assert engine.merged() == ""

    @pytest.mark.parametrize(("limit", "fits"), [("1600", True), ("1400", False), ("max", True)])
    def test_counts_what_the_control_group_leaves(self, tmp_path: Path, limit: str, fits: bool) -> None:
        (tmp_path / "memory.max").write_text(f"{limit}\n")
        (tmp_path / "memory.current").write_text("100\n")
        with nullcontext() if fits else pytest.raises(Unavailable):
            check_memory(1000, tmp_path)

    def test_ends_when_the_adapter_is_unloaded(self, served: Served, engine: TorchEngine) -> None:
        engine.merge(served.digests["one"])
        engine.unload(served.digests["two"])
        assert engine.merged() == served.digests["one"]
        engine.unload(served.digests["one"])
        assert engine.merged() == ""

    def test_of_one_that_isn_t_loaded_is_refused(self, engine: TorchEngine) -> None:
        with pytest.raises(NotFound) as caught:
            engine.merge("0" * 64)
        assert caught.value.code == "unknown_adapter"

    @pytest.mark.parametrize("options", [{"dtype": "bfloat16"}, {"weights": "int8"}])
    def test_into_rounded_weights_is_refused(self, served: Served, options: dict[str, str]) -> None:
        if "weights" in options and not native.available():
            pytest.skip("no kernels and no compiler")
        engine = make_engine(served, **options)
        with pytest.raises(InvalidInput) as caught:
            engine.merge(served.digests["one"])
        assert caught.value.code == "merging_unsupported"

    def test_by_vllm_is_refused(self) -> None:
        with pytest.raises(InvalidInput) as caught:
            VllmEngine.check_merging(object.__new__(VllmEngine))
        assert caught.value.code == "merging_unsupported"


class TestFullness:
    """With looks each second and ten seconds of patience."""

    @pytest.fixture
    def looked(self) -> Callable[..., str]:
        clock = [0.0]
        full = Fullness(MergeOptions(after_s=10, fill=0.8, keep=0.25), lambda: clock[0])
        merged = [""]

        def look(seconds: int, **running: int) -> str:
            for _ in range(seconds):
                clock[0] += 1
                full.look({"": 0, **running}, 4)
                merged[0] = full.wanted(merged[0])
            return merged[0]

        return look

    def test_an_adapter_that_fills_the_batch_is_merged_after_a_while(self, looked: Callable[..., str]) -> None:
        assert looked(9, a=4) == ""
        assert looked(2, a=4) == "a"

    def test_one_that_fills_a_part_isn_t(self, looked: Callable[..., str]) -> None:
        assert looked(60, a=3, b=1) == ""

    def test_a_moment_without_it_changes_nothing(self, looked: Callable[..., str]) -> None:
        looked(10, a=4)
        looked(1)
        assert looked(1, a=4) == "a"
        looked(3)
        assert looked(8, a=4) == "a"

    def test_it_is_given_up_when_the_heat_has_fallen(self, looked: Callable[..., str]) -> None:
        looked(20, a=4)
        assert looked(20, a=2) == "a"
        assert looked(20, a=1) == "a"
        assert looked(20) == ""

    def test_another_one_takes_its_place(self, looked: Callable[..., str]) -> None:
        looked(20, a=4)
        assert looked(20, b=4) == "b"

    def test_more_than_the_batch_is_no_more_than_full(self, looked: Callable[..., str]) -> None:
        """A burst that waits in the engine must not stand for a time in which nothing came."""
        looked(5, a=40)
        assert looked(6) == ""

    def test_of_two_that_are_more_than_the_batch_together_neither_fills_it(self, looked: Callable[..., str]) -> None:
        assert looked(60, a=4, b=4) == ""

    def test_requests_of_the_base_are_nobodys(self, looked: Callable[..., str]) -> None:
        clock = [0.0]
        full = Fullness(MergeOptions(after_s=1), lambda: clock[0])
        for _ in range(20):
            clock[0] += 0.5
            full.look({"": 4}, 4)
        assert full.wanted("") == ""

    def test_forgotten_it_begins_anew(self) -> None:
        clock = [0.0]
        full = Fullness(MergeOptions(after_s=5), lambda: clock[0])
        for _ in range(8):
            clock[0] += 1
            full.look({"a": 4}, 4)
        assert full.wanted("") == "a"
        full.forget()
        full.look({"a": 4}, 4)
        assert full.wanted("") == ""

    @pytest.mark.parametrize(
        "options", [{"after_s": -1}, {"after_s": float("inf")}, {"fill": 0.5}, {"fill": 1.1}, {"keep": 0.9}]
    )
    def test_options_that_can_t_be_are_refused(self, options: dict[str, float]) -> None:
        with pytest.raises(InvalidInput) as caught:
            MergeOptions(**options)
        assert (caught.value.code, caught.value.param) == ("invalid_limit", "merge")


@asynccontextmanager
async def serving(served: Served, registry: AdapterRegistry, **options: Any) -> AsyncIterator[AdapterServer]:
    merge = MergeOptions(after_s=0.2, fill=0.8)
    engine = TorchEngine(served.base, EngineOptions(max_batch=2, **options))
    server = AdapterServer(engine, registry, ServingOptions(max_resident=2, merge=merge))
    try:
        await server.start()
        yield server
    finally:
        server.close()


@asynccontextmanager
async def kept_busy(server: AdapterServer, digest: str, num_at_once: int = 2) -> AsyncIterator[None]:
    """So many requests at every moment. Raises where one is not answered."""
    ending = asyncio.Event()

    async def keep_asking(number: int) -> None:
        turn = 0
        while not ending.is_set():
            turn += 1
            each = request(f"busy-{number}-{turn}", prompt_of(5), digest, max_tokens=40, ignore_end=True)
            events = [event async for event in server.generate(each)]
            assert events[-1].finish_reason == "length"

    tasks = [asyncio.create_task(keep_asking(number)) for number in range(num_at_once)]
    try:
        yield
    finally:
        ending.set()
        await asyncio.gather(*tasks)


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(WITHIN_S):
        while not is_so():
            await asyncio.sleep(0.01)


class TestServer:
    async def test_merges_what_fills_it_answers_others_and_unmerges(
        self, served: Served, registry: AdapterRegistry
    ) -> None:
        async with serving(served, registry) as server:
            async with kept_busy(server, served.digests["one"]):
                await until(lambda: server.merged() == served.digests["one"])
                assert server.load_stats()["merged"] == 1
                other = request("other", prompt_of(9), served.digests["two"])
                events = [event async for event in server.generate(other)]
            assert_same_greedy(tokens_of(events), generate_alone(peft_model(served, "two"), prompt_of(9), 12))
            await until(lambda: server.merged() == "")
            assert (await server.describe())["merged_bytes"] == 0

    async def test_merges_nothing_where_it_is_off(self, served: Served, registry: AdapterRegistry) -> None:
        server = AdapterServer(TorchEngine(served.base, EngineOptions(max_batch=2)), registry, ServingOptions())
        await server.start()
        async with kept_busy(server, served.digests["one"]):
            await asyncio.sleep(0.5)
        assert server.merged() == ""
        server.close()

    async def test_goes_on_where_merging_fails(
        self, served: Served, registry: AdapterRegistry, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with serving(served, registry) as server:
            plain, failures = server._engine.merge, list[str]()

            def merge(digest: str) -> None:
                if not failures:
                    failures.append(digest)
                    raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
                plain(digest)

            server._engine.merge = merge  # type: ignore[method-assign]
            async with kept_busy(server, served.digests["one"]):
                await until(lambda: server.merged() == served.digests["one"])
            assert failures == [served.digests["one"]]
            assert "can't allocate memory" in caplog.text

    async def test_looks_anew_after_a_merge_that_took_long(self, served: Served, registry: AdapterRegistry) -> None:
        """Nobody looked meanwhile: the first look after it doesn't stand for the whole time."""
        async with serving(served, registry) as server:
            merge, unmerge = server._engine.merge, server._engine.unmerge
            begun, ended, unmerged_s = threading.Event(), list[float](), list[float]()

            def slowly(digest: str) -> None:
                begun.set()
                time.sleep(3 * server.options.merge.after_s)
                merge(digest)
                ended.append(time.monotonic())

            def watched_unmerge() -> None:
                unmerged_s.append(time.monotonic())
                unmerge()

            server._engine.merge, server._engine.unmerge = slowly, watched_unmerge  # type: ignore[method-assign]
            async with kept_busy(server, served.digests["one"]):
                await until(begun.is_set)  # and then nobody asks any more
            await until(lambda: len(unmerged_s) > 1)  # the first came before the merge
            assert unmerged_s[1] - ended[0] >= server.options.merge.after_s

    async def test_a_merged_adapter_can_be_taken_away(self, served: Served, registry: AdapterRegistry) -> None:
        async with serving(served, registry) as server:
            async with kept_busy(server, served.digests["one"]):
                await until(lambda: server.merged() == served.digests["one"])
            await server.unload(served.digests["one"])
            assert server.merged() == ""
            assert served.digests["one"] not in (await server.describe())["resident"]

    async def test_does_not_start_where_its_engine_merges_nothing(
        self, served: Served, registry: AdapterRegistry
    ) -> None:
        with pytest.raises(InvalidInput) as caught:
            async with serving(served, registry, dtype="bfloat16"):
                pass
        assert caught.value.code == "merging_unsupported"


class TestDeployment:
    def test_of_one_replica_doesn_t_merge(self) -> None:
        replica = ReplicaOptions(serving=ServingOptions(merge=MergeOptions(after_s=60)))
        with pytest.raises(InvalidInput) as caught:
            build_openlora(None, "adapters", replica=replica, scaling=ScalingOptions(num_replicas=1))
        assert caught.value.code == "merging_alone"
        build_openlora(None, "adapters", replica=replica, scaling=ScalingOptions(num_replicas=1, max_replicas=2))
