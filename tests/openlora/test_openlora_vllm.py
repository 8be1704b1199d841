"""The vllm engine keeps what `Engine` promises: the suites of the torch engine that hold for any engine, and what is
vLLM's own.

vLLM is an extra with an environment of its own; benchmarks/vllm_requirements.txt has one for a CPU, and says how to run
these tests in it. The base has heads of 32, the smallest that vLLM's attention computes on a CPU.
"""

import importlib.util
import json
import re
import shutil
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
import torch

if importlib.util.find_spec("vllm") is None:
    pytest.skip(
        "vllm is not installed here; benchmarks/vllm_requirements.txt says how these tests run", allow_module_level=True
    )

import test_openlora_against_peft as against_peft
import test_openlora_requests as requests_suite
import test_openlora_sampling as sampling_suite
import test_openlora_server as server_suite
from openlora_models import (
    Served,
    assert_same_greedy,
    generate_alone,
    make_served,
    peft_model,
    prompt_of,
    request,
    run,
    text_of,
    tokens_of,
)  # fmt: skip
from safetensors.torch import save_file

from openledger.adapters.base_model import load_model
from openledger.adapters.card import adapter_digest
from openledger.adapters.checks import AdapterLimits
from openledger.adapters.registry import AdapterRegistry
from openledger.core.errors import Corrupt, InvalidInput, OpenLedgerError, TooLarge
from openledger.core.values import GenerationRequest, Grammar, SamplingParameters
from openledger.openlora import vllm_engine
from openledger.openlora.server import AdapterServer, ServingOptions
from openledger.openlora.torch_engine import EngineOptions, TorchEngine
from openledger.openlora.vllm_engine import VllmEngine, VllmOptions

pytestmark = pytest.mark.filterwarnings("ignore")  # vLLM's and its many packages' own
OPTIONS = VllmOptions(
    max_batch=4, max_context=128, kv_bytes=1 << 26, dtype="float32", compiled=False, ensemble_slots=1
)  # fmt: skip


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Served:
    return make_served(tmp_path_factory.mktemp("served_by_vllm"), hidden_size=128)


@pytest.fixture(scope="session")
def only_engine(served: Served) -> VllmEngine:
    """It takes seconds to start, and memory: one for all tests."""
    return VllmEngine(served.base, OPTIONS, num_slots=4)


@pytest.fixture
def bare(only_engine: VllmEngine) -> Iterator[VllmEngine]:
    """Without adapters and requests, before and after."""
    _empty(only_engine)
    yield only_engine
    _empty(only_engine)


@pytest.fixture
def engine(served: Served, bare: VllmEngine) -> VllmEngine:
    """With all three adapters resident."""
    for name, folder in served.folders.items():
        bare.load(served.digests[name], folder)
    return bare


def _empty(engine: VllmEngine) -> None:
    for request_id in list(engine._open):
        engine.cancel(request_id)
    while engine.has_work():
        engine.step()
    for digest in engine.resident():
        engine.unload(digest)


def together(name: str, served: Served, *parts: tuple[str, float], **sampling: Any) -> GenerationRequest:
    ensemble = tuple((served.digests[adapter], weight) for adapter, weight in parts)
    return replace(request(name, prompt_of(9), **sampling), ensemble=ensemble)


class TestEnsembles:
    @pytest.fixture
    def torch_engine(self, served: Served) -> TorchEngine:
        """Whose ensembles are compared with PEFT's merges."""
        engine = TorchEngine(served.base, EngineOptions(max_batch=4))
        for name, folder in served.folders.items():
            engine.load(served.digests[name], folder)
        return engine

    def test_answer_as_those_of_the_torch_engine_whatever_is_in_the_batch(
        self, served: Served, engine: VllmEngine, torch_engine: TorchEngine
    ) -> None:
        asked = [
            together("e", served, ("one", 0.7), ("two", 0.5), ("three", 1.5), logprobs=2),
            request("one", prompt_of(9), served.digests["one"], logprobs=2),
            request("base", prompt_of(9), logprobs=2),
        ]
        got, expected = run(engine, *asked), run(torch_engine, *asked)
        for name in ("e", "one", "base"):
            ours, theirs = (
                [(entry.token_id, entry.logprob) for event in events[name] for entry in event.logprobs]
                for events in (expected, got)
            )
            assert [token for token, _ in theirs] == [token for token, _ in ours]
            np.testing.assert_allclose([p for _, p in theirs], [p for _, p in ours], atol=1e-3)
        assert tokens_of(got["e"]) != tokens_of(got["one"])

    def test_take_turns_in_a_slot(self, served: Served, engine: VllmEngine, torch_engine: TorchEngine) -> None:
        for turn, parts in enumerate([(("one", 1.0), ("two", 1.0)), (("one", 0.3), ("two", 2.0))] * 2):
            each = together(str(turn), served, *parts)
            assert tokens_of(run(engine, each)[str(turn)]) == tokens_of(run(torch_engine, each)[str(turn)])

    def test_one_more_than_there_are_slots_is_refused_and_the_others_go_on(
        self, served: Served, engine: VllmEngine
    ) -> None:
        first = together("first", served, ("one", 1.0), ("two", 1.0), ignore_end=True)
        same = together("same", served, ("one", 1.0), ("two", 1.0), ignore_end=True)
        other = together("other", served, ("one", 1.0), ("two", 0.5))
        events = run(engine, first, same, other)
        assert [(event.error or {})["code"] for event in events["other"]] == ["ensemble_slots_full"]
        assert [events[name][-1].finish_reason for name in ("first", "same")] == ["length", "length"]

    def test_members_stay_while_they_are_used_and_take_the_ensemble_along(
        self, served: Served, engine: VllmEngine
    ) -> None:
        each = together("e", served, ("one", 1.0), ("two", 1.0), ignore_end=True)
        engine.add(each)
        with pytest.raises(OpenLedgerError) as caught:
            engine.unload(served.digests["two"])
        assert caught.value.code == "adapter_in_use"
        before = [event for events in iter(engine.step, []) for event in events]
        engine.unload(served.digests["two"])
        assert [(event.error or {})["code"] for event in run(engine, each)["e"]] == ["unknown_adapter"]
        engine.load(served.digests["two"], served.folders["two"])
        assert tokens_of(run(engine, each)["e"]) == tokens_of(before)

    def test_of_more_rank_than_a_slot_has_are_refused(
        self, served: Served, engine: VllmEngine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(engine._slots, "_limits", AdapterLimits(max_rank=8))
        events = run(engine, together("e", served, ("one", 1.0), ("two", 1.0)))["e"]
        assert [(event.error or {})["code"] for event in events] == ["ensemble_too_wide"]


class TestBadRequests(requests_suite.TestBadRequests):
    def test_the_queue_is_bounded(  # type: ignore[override]
        self, engine: VllmEngine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(engine, "options", replace(OPTIONS, max_waiting=2))
        events = run(engine, *(request(str(number), prompt_of(4)) for number in range(4)))
        codes = [(events[str(number)][-1].error or {}).get("code") for number in range(4)]
        assert codes == [None, None, "queue_full", "queue_full"]

    def test_a_temperature_that_vllm_has_not_is_refused(self, engine: VllmEngine) -> None:
        events = run(engine, request("r", prompt_of(4), temperature=2.5))["r"]
        assert [(event.error or {}).get("param") for event in events] == ["temperature"]

    def test_several_adapters_are_refused_where_there_are_no_slots_for_them(
        self, served: Served, engine: VllmEngine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(engine, "options", replace(OPTIONS, ensemble_slots=0))
        ensemble = tuple((digest, 0.5) for digest in served.digests.values())
        events = run(engine, GenerationRequest(request_id="r", prompt_ids=(5,), ensemble=ensemble))["r"]
        assert [(event.error or {})["code"] for event in events] == ["invalid_ensemble"]
        assert "vLLM" in str((events[0].error or {})["message"])

    def test_embeddings_are_refused_by_name(self, engine: VllmEngine) -> None:
        with pytest.raises(InvalidInput) as caught:
            engine.embed([[5, 6]], "")
        assert caught.value.code == "embeddings_unsupported"


class TestBadAdapters(requests_suite.TestBadAdapters):
    def test_another_digest_than_named_is_refused(  # type: ignore[override]
        self, served: Served, bare: VllmEngine
    ) -> None:
        with pytest.raises(Corrupt) as caught:
            bare.load(served.digests["one"], served.folders["two"])
        assert caught.value.code == "adapter_digest_mismatch"
        assert bare.resident() == ()

    def test_one_whose_logits_overflow_spoils_nothing(  # type: ignore[override]
        self, served: Served, engine: VllmEngine, tmp_path: Path
    ) -> None:
        digest = requests_suite._filled(served, tmp_path, 1e30)
        engine.load(digest, tmp_path)
        good = [request(str(number), prompt_of(9), served.digests["one"]) for number in range(5)]
        expected = run(engine, *good)
        events = run(engine, request("bad", prompt_of(30), digest), *good)
        assert (events["bad"][-1].error or {})["code"] == "non_finite_logits"
        assert {name: tokens_of(events[name]) for name in expected} == {
            name: tokens_of(each) for name, each in expected.items()
        }

    def test_one_that_overflows_spoils_nothing_by_being_scored(
        self, served: Served, engine: VllmEngine, tmp_path: Path
    ) -> None:
        """And what it computed is not found by its next request, whose answer would then be finite and wrong."""
        digest = requests_suite._filled(served, tmp_path, 1e30)
        engine.load(digest, tmp_path)
        good = [request(str(number), prompt_of(9), served.digests["one"]) for number in range(5)]
        expected = run(engine, *good)
        _assert_overflows(engine, digest)
        assert {name: tokens_of(each) for name, each in run(engine, *good).items()} == {
            name: tokens_of(each) for name, each in expected.items()
        }
        for number in range(2):
            events = run(engine, request(f"bad {number}", prompt_of(60), digest, num_answers=2))[f"bad {number}"]
            assert [(event.error or {}).get("code") for event in events] == ["non_finite_logits"]

    def test_one_that_overflows_in_a_part_of_a_score_has_none(
        self, served: Served, engine: VllmEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What it computed is made finite after the step: a further step would read that, and tell a wrong number."""
        bad, other = 20, 30
        digest = _overflowing_at(served, tmp_path, bad, other)
        engine.load(digest, tmp_path)
        monkeypatch.setattr(engine._scheduler, "max_num_scheduled_tokens", 32)
        with pytest.raises(Corrupt, match=digest) as caught:
            engine.score([other] * 3 + [bad] + [other] * 60, [other] * 4, [digest])
        assert caught.value.code == "non_finite_logits"
        assert not engine._vllm.has_unfinished_requests()
        assert np.isfinite(engine.score([other] * 64, [other] * 4, [digest])).all()

    def test_one_that_overflows_while_it_gives_way_has_no_score(
        self, served: Served, engine: VllmEngine, tmp_path: Path
    ) -> None:
        """The steps of people compute it as well. They keep their answers."""
        digest, events = requests_suite._filled(served, tmp_path, 1e30), []
        engine.load(digest, tmp_path)
        asked = request("r", prompt_of(9), served.digests["one"], max_tokens=3, ignore_end=True)
        expected = tokens_of(run(engine, asked)["r"])

        def people() -> None:
            if not events:
                engine.add(asked)
            while engine.has_work():
                events.extend(engine.step())

        engine.give_way_to(people)
        try:
            _assert_overflows(engine, digest)
        finally:
            engine.give_way_to(lambda: None)
        assert tokens_of(events) == expected

    def test_one_more_than_slots_is_refused(self, served: Served, engine: VllmEngine, tmp_path: Path) -> None:
        digests = [_varied(served, tmp_path / str(number), number) for number in (1, 2)]
        engine.load(digests[0], tmp_path / "1")
        with pytest.raises(TooLarge) as caught:
            engine.load(digests[1], tmp_path / "2")
        assert caught.value.code == "vllm_slots_full"
        assert set(engine.resident()) == {*served.digests.values(), digests[0]}

    def test_one_that_vllm_refuses_ends_its_request_alone(
        self, served: Served, engine: VllmEngine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        expected = run(engine, request("good", prompt_of(9), served.digests["two"]))["good"]
        written = Path(engine._slots._requests[served.digests["one"]].lora_path)
        (written / "adapter_config.json").write_text('{"r": 4}')
        events = run(
            engine,
            request("good", prompt_of(9), served.digests["two"]),
            request("bad", prompt_of(9), served.digests["one"]),
        )
        assert [(event.error or {}).get("code") for event in events["bad"]] == ["adapter_not_for_vllm"]
        assert events["good"] == expected
        again = run(engine, request("again", prompt_of(9), served.digests["one"]))["again"]
        assert [(event.error or {}).get("code") for event in again] == ["adapter_not_for_vllm"]
        with pytest.raises(InvalidInput) as caught:
            engine.score([5], [6], [served.digests["one"]])
        assert caught.value.code == "adapter_not_for_vllm"
        assert served.digests["one"] in engine.resident()  # whoever loaded it counts on that
        engine.unload(served.digests["one"])
        engine.load(served.digests["one"], served.folders["one"])
        assert run(engine, request("r", prompt_of(9), served.digests["one"]))["r"][-1].error is None


class TestSlots:
    @pytest.mark.parametrize(("ensemble_slots", "left"), [(0, 0), (1, 3)])
    def test_of_an_adapter_that_is_used_stays_what_ensembles_are_made_of(
        self, served: Served, engine: VllmEngine, ensemble_slots: int, left: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(engine._slots, "_num_ensembles", ensemble_slots)
        folder = engine._slots._folder.path
        assert len(list(folder.iterdir())) == 3
        run(engine, *(request(name, prompt_of(4), digest) for name, digest in served.digests.items()))
        assert len(list(folder.iterdir())) == left
        for digest in engine.resident():
            engine.unload(digest)
        assert list(folder.iterdir()) == []

    def test_vllm_holds_what_is_resident_and_no_more(self, served: Served, engine: VllmEngine) -> None:
        run(engine, *(request(name, prompt_of(4), digest) for name, digest in served.digests.items()))
        held = len(engine._vllm.list_loras())
        engine.unload(served.digests["two"])
        assert len(engine._vllm.list_loras()) == held - 1
        engine.load(served.digests["two"], served.folders["two"])
        run(engine, request("r", prompt_of(4), served.digests["two"]))
        assert len(engine._vllm.list_loras()) == held

    def test_an_adapter_that_took_anothers_slot_computes_its_own(self, served: Served, bare: VllmEngine) -> None:
        """`one` is on all modules, `two` on some: nothing of `one` may stay in its slot."""
        bare.load(served.digests["one"], served.folders["one"])
        run(bare, request("r", prompt_of(9), served.digests["one"]))
        bare.unload(served.digests["one"])
        bare.load(served.digests["two"], served.folders["two"])
        events = run(bare, request("r", prompt_of(9), served.digests["two"]))["r"]
        assert_same_greedy(tokens_of(events), generate_alone(peft_model(served, "two"), prompt_of(9), 12))


class TestAgainstPeft:
    def test_a_mixed_batch_equals_one_by_one(self, served: Served, engine: VllmEngine) -> None:
        """Rows of the base beside rows of adapters, which vLLM alone gets wrong on a CPU; ranks and alphas by module,
        which it ignores."""
        batch = against_peft._mixed_batch(served, engine)  # type: ignore[arg-type]
        for tokens, length, name in zip(batch, against_peft.LENGTHS, against_peft.ADAPTERS, strict=True):
            assert_same_greedy(tokens, generate_alone(peft_model(served, name), prompt_of(length), 12))

    def test_adapters_change_the_answers(self, served: Served, engine: VllmEngine) -> None:
        names = ("", *served.digests.values())
        events = run(engine, *(request(name or "base", prompt_of(9), name) for name in names))
        assert len({tuple(tokens_of(each)) for each in events.values()}) == len(names)

    def test_scores_equal_a_plain_forward(
        self, served: Served, engine: VllmEngine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(engine, "options", replace(OPTIONS, score_tokens=60))  # two adapters at a time
        prompt, completion = prompt_of(11), prompt_of(14)
        names = (None, "one", "two", "three", "one")
        got = engine.score(prompt, completion, [served.digests[name] if name else "" for name in names])
        expected = [against_peft._forward_scores(served, name, prompt, completion) for name in names]
        np.testing.assert_allclose(got, np.stack(expected), atol=1e-4)
        assert (got.dtype, engine.has_work()) == (np.float32, False)

    @pytest.mark.parametrize("num_prompt", [1, 120, 127])
    def test_an_answer_that_filled_the_context_is_scored(
        self, served: Served, engine: VllmEngine, num_prompt: int
    ) -> None:
        """As the torch engine does: what was sold must be payable."""
        prompt = prompt_of(num_prompt)
        asked = request("r", prompt, served.digests["one"], max_tokens=200, ignore_end=True, logprobs=0)
        events = run(engine, asked)["r"]
        answer = tokens_of(events)
        assert (len(prompt) + len(answer), events[-1].finish_reason) == (128, "length")
        of_answer, of_base = engine.score(prompt, answer, [served.digests["one"], ""])
        told = [one.logprob for event in events for one in event.logprobs]
        np.testing.assert_allclose(of_answer, told, atol=1e-4)
        np.testing.assert_allclose(of_base, against_peft._forward_scores(served, None, prompt, answer), atol=1e-4)

    def test_what_is_over_the_context_is_not_scored(self, engine: VllmEngine) -> None:
        with pytest.raises(InvalidInput) as caught:
            engine.score(prompt_of(120), prompt_of(9), [""])
        assert caught.value.code == "context_length_exceeded"

    def test_scores_change_no_answer_in_flight(self, served: Served, engine: VllmEngine) -> None:
        asked = request("r", prompt_of(9), served.digests["one"])
        expected = tokens_of(run(engine, asked)["r"])
        engine.add(asked)
        tokens: list[int] = []
        while engine.has_work():
            tokens += [token for event in engine.step() for token in event.token_ids]
            engine.score(prompt_of(20), prompt_of(6), list(served.digests.values()))
        assert tokens == expected

    def test_scoring_gives_way_and_what_it_scores_under_stays(self, served: Served, engine: VllmEngine) -> None:
        """Whoever comes meanwhile is answered before the scores are there."""
        digest, seen = served.digests["one"], []

        def people() -> None:
            if not seen:
                engine.add(request("r", prompt_of(9), digest, max_tokens=3, ignore_end=True))
                with pytest.raises(OpenLedgerError, match="in use"):
                    engine.unload(digest)
            while engine.has_work():
                seen.extend(engine.step())

        engine.give_way_to(people)
        try:
            scores = engine.score(prompt_of(20), prompt_of(6), [digest, ""])
        finally:
            engine.give_way_to(lambda: None)
        assert [event.is_last for event in seen] == [False, False, True]
        np.testing.assert_allclose(scores, engine.score(prompt_of(20), prompt_of(6), [digest, ""]), atol=1e-5)

    def test_scores_of_no_adapters_are_empty(self, engine: VllmEngine) -> None:
        assert engine.score([5], [6, 7], []).shape == (0, 2)


class TestFinish(requests_suite.TestFinish):
    def test_end_token_is_counted_and_not_shown(  # type: ignore[override]
        self, engine: VllmEngine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        plain = tokens_of(run(engine, request("r", prompt_of(9)))["r"])
        monkeypatch.setattr(engine, "_ends", frozenset({plain[2]}))
        events = run(engine, request("r", prompt_of(9)))["r"]
        assert (tokens_of(events), events[-1].finish_reason, events[-1].text) == (plain[:3], "stop", "")

    def test_nothing_is_left_in_vllm_after_a_stop_string(self, engine: VllmEngine) -> None:
        plain = text_of(run(engine, request("r", prompt_of(9), max_tokens=40))["r"])
        run(engine, request("r", prompt_of(9), max_tokens=40, stop=(plain[9:14],)))
        assert not engine._vllm.has_unfinished_requests()
        assert (engine.describe()["running"], engine.describe()["waiting"]) == (0, 0)

    def test_the_context_is_used_to_its_end(self, served: Served, engine: VllmEngine) -> None:
        events = run(engine, request("r", prompt_of(120), served.digests["one"], max_tokens=50, ignore_end=True))["r"]
        assert (len(tokens_of(events)), events[-1].finish_reason) == (8, "length")

    def test_cancelled_it_says_so_once_and_frees_its_adapter(self, served: Served, engine: VllmEngine) -> None:
        engine.add(request("r", prompt_of(9), served.digests["one"], max_tokens=100, ignore_end=True))
        engine.step()
        engine.cancel("r")
        engine.cancel("r")
        assert [(event.finish_reason, event.is_last) for event in engine.step()] == [("cancelled", True)]
        assert not engine.has_work()
        engine.unload(served.digests["one"])


class TestScoringInput(requests_suite.TestScoringInput):
    pass


class TestUsage(requests_suite.TestUsage):
    @pytest.fixture(autouse=True)
    def clock(self, monkeypatch: pytest.MonkeyPatch) -> None:
        ticks = iter(range(1_000_000))
        monkeypatch.setattr(vllm_engine, "time", SimpleNamespace(perf_counter=ticks.__next__))

    def test_what_one_tenant_or_adapter_computed_is_not_found_by_another(
        self, served: Served, engine: VllmEngine
    ) -> None:
        def cached(tenant: str, digest: str) -> int:
            asked = GenerationRequest(
                request_id="r",
                prompt_ids=tuple(prompt_of(100)),
                adapter_digest=digest,
                tenant=tenant,
                sampling=SamplingParameters(max_tokens=1),
            )
            usage = run(engine, asked)["r"][-1].usage
            assert usage is not None
            return usage.cached_tokens

        one = served.digests["one"]
        assert [cached("anna", one), cached("anna", one), cached("ben", one), cached("anna", "")] == [0, 96, 0, 0]


class TestPenalties:
    def test_they_change_an_answer_and_no_other(self, engine: VllmEngine) -> None:
        sampling_suite.TestPenalties().test_they_change_an_answer_and_no_other(engine)  # type: ignore[arg-type]


class TestLogprobs(sampling_suite.TestLogprobs):
    def test_are_of_the_model_whatever_is_sampled(self, engine: VllmEngine) -> None:  # type: ignore[override]
        asked = request("r", prompt_of(9), temperature=2.0, seed=1, frequency_penalty=1.0, logprobs=0)
        events = run(engine, asked)["r"]
        scores = engine.score(prompt_of(9), tokens_of(events), [""])[0]
        assert max(abs(e.logprobs[0].logprob - s) for e, s in zip(events, scores, strict=True)) < 1e-4
        assert events[0].logprobs[0].top == ()

    def test_of_the_prompt_equal_a_plain_forward(self, engine: VllmEngine) -> None:  # type: ignore[override]
        prompt = prompt_of(40)
        scores = engine.score(prompt[:1], prompt[1:], [""])[0]
        for name in ("first", "again"):
            events = run(engine, request(name, prompt, prompt_logprobs=2, max_tokens=3))[name]
            got = events[0].prompt_logprobs
            assert (len(got), got[0]) == (40, None)
            assert [(each.token_id, len(each.top)) for each in got[1:] if each] == [(token, 2) for token in prompt[1:]]
            assert max(abs(each.logprob - s) for each, s in zip(got[1:], scores, strict=True) if each) < 1e-4
            assert {event.prompt_logprobs for event in events[1:]} <= {()}


class TestManyAnswers(sampling_suite.TestManyAnswers):
    def test_the_prompt_is_computed_once(self, engine: VllmEngine) -> None:
        events = run(engine, request("r", prompt_of(50), temperature=1.0, seed=5, num_answers=3))["r"]
        ends = {event.index: event.usage for event in events if event.finish_reason}
        assert [ends[index].cached_tokens for index in range(3) if ends[index]] == [0, 32, 32]

    def test_more_than_places_wait_for_their_turn(self, engine: VllmEngine) -> None:  # type: ignore[override]
        events = run(engine, request("r", prompt_of(20), temperature=1.0, seed=5, num_answers=6))["r"]
        assert set(self._by_index(events)) == set(range(6))


class TestSeeds(sampling_suite.TestSeeds):
    def test_the_same_seed_gives_the_same_answer_in_any_batch(self, engine: VllmEngine) -> None:  # type: ignore[override]
        mine = request("r", prompt_of(9), temperature=1.0, top_p=0.9, seed=11)
        others = [request(str(number), prompt_of(4), temperature=1.0, seed=number) for number in range(3)]
        alone = run(engine, mine)["r"]
        assert tokens_of(run(engine, *others, mine)["r"]) == tokens_of(alone)


class TestGrammars:
    def _answer(self, engine: VllmEngine, grammar: Grammar, **sampling: Any) -> tuple[str, str | None]:
        asked = request("r", prompt_of(9), grammar=grammar, max_tokens=100, **sampling)
        events = run(engine, asked)["r"]
        return text_of(events), (events[-1].error or {}).get("code")

    def test_a_regular_expression_is_kept(self, engine: VllmEngine) -> None:
        text, error = self._answer(engine, Grammar(kind="regex", text="[a-e]{5}"))
        assert error is None
        assert re.fullmatch("[a-e]{5}", text)

    def test_a_schema_is_kept(self, engine: VllmEngine) -> None:
        schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"]}
        schema["additionalProperties"] = False
        text, error = self._answer(engine, Grammar(kind="json_schema", text=json.dumps(schema)))
        assert error is None
        assert json.loads(text)["a"] in (1, 2)

    def test_a_lark_grammar_is_kept(self, engine: VllmEngine) -> None:
        text, error = self._answer(engine, Grammar(kind="lark", text='start: "ab" | "ba"'))
        assert (text in ("ab", "ba"), error) == (True, None)

    @pytest.mark.parametrize("grammar", [Grammar(kind="regex", text="(a"), Grammar(kind="lark", text="start: nothing")])
    def test_one_that_is_none_is_refused(self, engine: VllmEngine, grammar: Grammar) -> None:
        assert self._answer(engine, grammar) == ("", "invalid_grammar")


@pytest_asyncio.fixture
async def server(bare: VllmEngine, registry: AdapterRegistry) -> AsyncIterator[AdapterServer]:
    """Room for two of the three adapters."""
    server = AdapterServer(bare, registry, ServingOptions(max_resident=2))
    yield server
    server.close()


class BesideTorch:
    """The embedded engine is what the suite compares with: these tests compare the two engines."""

    @pytest.fixture
    def engine(self, served: Served) -> TorchEngine:
        engine = TorchEngine(served.base, EngineOptions(max_batch=8))
        for name, folder in served.folders.items():
            engine.load(served.digests[name], folder)
        return engine


class TestGenerate(BesideTorch, server_suite.TestGenerate):
    pass


class TestAdapters(BesideTorch, server_suite.TestAdapters):
    pass


class TestScore(BesideTorch, server_suite.TestScore):
    pass


def _overflowing_at(served: Served, folder: Path, bad: int, other: int) -> str:
    """An adapter of the first layer's queries that overflows at the token `bad`, and is finite at `other`."""
    model = load_model(served.base)
    layer, name = model.model.layers[0], "base_model.model.model.layers.0.self_attn.q_proj"
    with torch.no_grad():
        hidden_TH = layer.input_layernorm(model.get_input_embeddings().weight[[bad, other]]).double()
    at_bad_H, at_other_H = hidden_TH
    only_bad_H = at_bad_H - at_other_H * (at_bad_H @ at_other_H) / (at_other_H @ at_other_H)
    a_H = 1e20 * only_bad_H / (only_bad_H @ at_bad_H)
    weights = {f"{name}.lora_A.weight": a_H.float()[None], f"{name}.lora_B.weight": torch.full((len(a_H), 1), 1e20)}
    save_file(weights, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": ["q_proj"], "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps({**config, "layers_to_transform": [0]}))
    return adapter_digest(folder)


def _assert_overflows(engine: VllmEngine, digest: str) -> None:
    with pytest.raises(Corrupt, match=digest) as caught:
        engine.score(prompt_of(60), prompt_of(6), [digest, ""])
    assert caught.value.code == "non_finite_logits"


def _varied(served: Served, folder: Path, number: int) -> str:
    """The first adapter with all weights a little larger."""
    shutil.copytree(served.folders["one"], folder)
    return requests_suite._filled(served, folder, number / 100)
