"""What a request may ask, and that a bad one is refused alone."""

import itertools
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from openlora_models import Served, prompt_of, request, run, text_of, tokens_of
from safetensors.torch import load_file, save_file

from openledger.adapters.base_model import load_tokenizer
from openledger.adapters.card import adapter_digest
from openledger.core.errors import Conflict, Corrupt, InvalidInput, NotFound, OpenLedgerError, TooLarge
from openledger.core.values import GenerationRequest, TokenEvent, Usage
from openledger.openlora import torch_engine
from openledger.openlora.torch_engine import EngineOptions, TorchEngine

BAD: dict[str, tuple[GenerationRequest, str]] = {
    "unknown adapter": (request("bad", [5], "0" * 64), "unknown_adapter"),
    "empty prompt": (request("bad", []), "empty_prompt"),
    "prompt fills the context": (request("bad", [5] * 128), "context_length_exceeded"),
    "token outside the vocabulary": (request("bad", [5, 100_000]), "invalid_token"),
    "negative token": (request("bad", [-1]), "invalid_token"),
    "no tokens wanted": (request("bad", [5], max_tokens=0), "invalid_sampling"),
    "negative temperature": (request("bad", [5], temperature=-0.1), "invalid_sampling"),
    "temperature not a number": (request("bad", [5], temperature=float("nan")), "invalid_sampling"),
    "top_p of zero": (request("bad", [5], top_p=0.0), "invalid_sampling"),
    "top_p over one": (request("bad", [5], top_p=1.1), "invalid_sampling"),
    "empty stop string": (request("bad", [5], stop=("",)), "invalid_sampling"),
    "many stop strings": (request("bad", [5], stop=("x",) * 17), "invalid_sampling"),
    "seed not an integer": (request("bad", [5], seed="1"), "invalid_sampling"),
    "negative top_k": (request("bad", [5], top_k=-1), "invalid_sampling"),
    "min_p over one": (request("bad", [5], min_p=1.5), "invalid_sampling"),
    "presence penalty over two": (request("bad", [5], presence_penalty=2.5), "invalid_sampling"),
    "frequency penalty not a number": (request("bad", [5], frequency_penalty=float("inf")), "invalid_sampling"),
    "repetition penalty of zero": (request("bad", [5], repetition_penalty=0.0), "invalid_sampling"),
    "too many log-probabilities": (request("bad", [5], logprobs=21), "invalid_sampling"),
    "log-probabilities by name": (request("bad", [5], prompt_logprobs=True), "invalid_sampling"),
    "no answers wanted": (request("bad", [5], num_answers=0), "invalid_sampling"),
    "a thousand answers": (request("bad", [5], num_answers=1000), "invalid_sampling"),
}


class TestBadRequests:
    @pytest.mark.parametrize("case", BAD)
    def test_get_one_error_event_and_nobody_else_notices(self, served: Served, engine: TorchEngine, case: str) -> None:
        bad, code = BAD[case]
        good = request("good", prompt_of(9), served.digests["one"])
        expected = run(engine, good)["good"]
        events = run(engine, good, bad)
        assert [(event.finish_reason, (event.error or {})["code"]) for event in events["bad"]] == [("error", code)]
        assert events["good"] == expected

    def test_an_id_in_flight_is_a_conflict(self, engine: TorchEngine) -> None:
        engine.add(request("r", prompt_of(4)))
        with pytest.raises(Conflict):
            engine.add(request("r", prompt_of(4)))
        assert len(run(engine)["r"]) == len(run(engine, request("r", prompt_of(4)))["r"])

    def test_the_queue_is_bounded(self, served: Served) -> None:
        engine = TorchEngine(served.base, EngineOptions(max_batch=1, max_waiting=2))
        events = run(engine, *(request(str(number), prompt_of(4)) for number in range(4)))
        assert [each[-1].finish_reason == "error" for each in (events[str(n)] for n in range(4))] == [
            False,
            False,
            True,
            True,
        ]
        assert events["3"][0].error is not None
        assert events["3"][0].error["code"] == "queue_full"


class TestBadAdapters:
    def test_a_corrupt_one_is_refused_at_loading(
        self, served: Served, engine: TorchEngine, corrupt_folder: Path
    ) -> None:
        before = run(engine, request("r", prompt_of(6), served.digests["two"]))
        with pytest.raises(Corrupt):
            engine.load("new", corrupt_folder)
        assert "new" not in engine.resident()
        assert run(engine, request("r", prompt_of(6), served.digests["two"])) == before

    def test_one_with_weights_that_are_not_numbers_is_refused(
        self, served: Served, engine: TorchEngine, tmp_path: Path
    ) -> None:
        digest = _filled(served, tmp_path, float("nan"))
        with pytest.raises(Corrupt) as caught:
            engine.load(digest, tmp_path)
        assert caught.value.code == "non_finite_adapter"
        assert digest not in engine.resident()

    def test_another_digest_than_named_is_refused(self, served: Served) -> None:
        engine = TorchEngine(served.base)
        with pytest.raises(Corrupt) as caught:
            engine.load(served.digests["one"], served.folders["two"])
        assert caught.value.code == "adapter_digest_mismatch"
        assert engine.resident() == ()

    @pytest.mark.parametrize("kernels", ["auto", "torch"])
    def test_one_whose_logits_overflow_spoils_nothing(self, served: Served, tmp_path: Path, kernels: str) -> None:
        """Its weights are finite, so it loads; the blocks it leaves are used again by the next request."""
        engine = TorchEngine(served.base, EngineOptions(max_batch=4, kernels=kernels, kv_bytes=12 * 16 * 384))
        engine.load(served.digests["one"], served.folders["one"])
        digest = _filled(served, tmp_path, 1e30)
        engine.load(digest, tmp_path)
        good = [request(str(number), prompt_of(9), served.digests["one"]) for number in range(9)]
        expected = run(engine, *good)
        events = run(engine, request("bad", prompt_of(30), digest), *good)
        assert (events["bad"][-1].error or {})["code"] == "non_finite_logits"
        assert {name: tokens_of(each) for name, each in events.items() if name != "bad"} == {
            name: tokens_of(each) for name, each in expected.items()
        }

    def test_one_in_use_stays(self, served: Served, engine: TorchEngine) -> None:
        engine.add(request("r", prompt_of(4), served.digests["one"]))
        engine.step()
        with pytest.raises(Conflict):
            engine.unload(served.digests["one"])
        run(engine)
        engine.unload(served.digests["one"])
        assert served.digests["one"] not in engine.resident()

    def test_reloading_gives_the_same_answer(self, served: Served, engine: TorchEngine) -> None:
        pair = [request(name, prompt_of(6), served.digests[name]) for name in ("one", "two")]
        before = run(engine, *pair)
        engine.unload(served.digests["one"])
        engine.load(served.digests["one"], served.folders["one"])
        assert run(engine, *pair) == before


class TestFinish:
    def test_length(self, engine: TorchEngine) -> None:
        events = run(engine, request("r", prompt_of(9), max_tokens=3))["r"]
        assert (events[-1].finish_reason, len(tokens_of(events))) == ("length", 3)

    def test_end_token_is_counted_and_not_shown(self, served: Served) -> None:
        engine = TorchEngine(served.base)
        plain = tokens_of(run(engine, request("r", prompt_of(9)))["r"])
        engine._ends = frozenset({plain[2]})
        events = run(engine, request("r", prompt_of(9)))["r"]
        assert (tokens_of(events), events[-1].finish_reason, events[-1].text) == (plain[:3], "stop", "")

    def test_one_reason_and_it_comes_last(self, served: Served, engine: TorchEngine) -> None:
        events = run(engine, *(request(name, prompt_of(7), digest) for name, digest in served.digests.items()))
        for each in events.values():
            assert [event.finish_reason is not None for event in each] == [False] * (len(each) - 1) + [True]

    def test_text_is_the_tokens_text(self, served: Served, engine: TorchEngine) -> None:
        events = run(engine, request("r", prompt_of(9), max_tokens=40))["r"]
        tokenizer = load_tokenizer(served.base)
        assert text_of(events) == tokenizer.decode(tokens_of(events), skip_special_tokens=True)

    def test_stop_string_ends_the_answer_before_it(self, engine: TorchEngine) -> None:
        plain = text_of(run(engine, request("r", prompt_of(9), max_tokens=40))["r"])
        stop = plain[9:14]
        events = run(engine, request("r", prompt_of(9), max_tokens=40, stop=(stop,)))["r"]
        assert text_of(events) == plain[: plain.index(stop)]
        assert events[-1].finish_reason == "stop"

    def test_stop_strings_that_never_come_change_nothing(self, engine: TorchEngine) -> None:
        plain = run(engine, request("r", prompt_of(9)))["r"]
        events = run(engine, request("r", prompt_of(9), stop=(text_of(plain) + "x",)))["r"]
        assert (text_of(events), tokens_of(events)) == (text_of(plain), tokens_of(plain))


class TestScoringInput:
    @pytest.mark.parametrize(
        ("prompt", "completion", "digests", "error"),
        [
            ([], [5], [""], InvalidInput),
            ([5], [], [""], InvalidInput),
            ([5] * 100, [5] * 30, [""], InvalidInput),
            ([5, 10_000], [5], [""], InvalidInput),
            ([5], [5], ["", "0" * 64], NotFound),
        ],
    )
    def test_is_checked(
        self,
        engine: TorchEngine,
        prompt: list[int],
        completion: list[int],
        digests: list[str],
        error: type[OpenLedgerError],
    ) -> None:
        with pytest.raises(error):
            engine.score(prompt, completion, digests)


class TestLimits:
    def test_room_for_less_than_one_request_is_told(self, served: Served) -> None:
        with pytest.raises(TooLarge) as caught:
            TorchEngine(served.base, EngineOptions(kv_bytes=1000))
        assert caught.value.code == "kv_limit_too_small"

    def test_a_lower_context_is_kept(self, served: Served) -> None:
        engine = TorchEngine(served.base, EngineOptions(max_context=16))
        events = run(engine, request("long", prompt_of(16)), request("r", prompt_of(10)))
        assert (events["long"][0].error or {})["code"] == "context_length_exceeded"
        assert len(tokens_of(events["r"])) <= 6


def _filled(served: Served, folder: Path, value: float) -> str:
    """The first adapter with every weight the same."""
    weights = load_file(served.folders["one"] / "adapter_model.safetensors")
    save_file({name: torch.full_like(x, value) for name, x in weights.items()}, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_bytes((served.folders["one"] / "adapter_config.json").read_bytes())
    return adapter_digest(folder)


class TestUsage:
    """Each step takes one second of a clock of ours."""

    @pytest.fixture(autouse=True)
    def clock(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch_engine, "time", SimpleNamespace(perf_counter=itertools.count().__next__))

    def test_engine_time_is_all_of_the_steps_of_one_alone(self, engine: TorchEngine) -> None:
        events = run(engine, request("r", prompt_of(9), max_tokens=5, ignore_end=True))["r"]
        assert _usage(events).engine_ms == pytest.approx(5000)
        assert (_usage(events).prompt_tokens, _usage(events).completion_tokens) == (9, 5)

    def test_a_step_is_divided_by_rows(self, engine: TorchEngine) -> None:
        """The first step holds 30 and 10 rows, the three others one each."""
        events = run(engine, *(request(str(n), prompt_of(n), max_tokens=4, ignore_end=True) for n in (30, 10)))
        assert _usage(events["30"]).engine_ms == pytest.approx(1000 * 30 / 40 + 3 * 500)
        assert _usage(events["10"]).engine_ms == pytest.approx(1000 * 10 / 40 + 3 * 500)

    def test_what_was_cached_costs_nothing(self, engine: TorchEngine) -> None:
        """The second's 70 tokens are 6 to compute, beside 58 of another's."""
        run(engine, request("first", prompt_of(70), max_tokens=1, ignore_end=True))
        events = run(engine, request("r", prompt_of(70), max_tokens=1), request("other", prompt_of(58), max_tokens=1))
        assert _usage(events["r"]).cached_tokens == 64
        assert _usage(events["r"]).engine_ms == pytest.approx(1000 * 6 / 64)

    def test_a_refused_request_used_nothing(self, engine: TorchEngine) -> None:
        assert run(engine, request("r", []))["r"][0].usage is None


def _usage(events: list[TokenEvent]) -> Usage:
    usage = events[-1].usage
    assert usage is not None
    return usage
