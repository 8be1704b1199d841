"""A request under several weighted adapters gives what PEFT gives for their merge."""

from dataclasses import replace
from typing import Any

import pytest
from openlora_models import (
    Served,
    assert_same_greedy,
    generate_alone,
    peft_model,
    prompt_of,
    request,
    run,
    tokens_of,
)  # fmt: skip
from peft import PeftModel

from openledger.core.errors import Conflict
from openledger.core.values import GenerationRequest
from openledger.openlora.ensembles import home_of, identity_of
from openledger.openlora.torch_engine import EngineOptions, TorchEngine

PARTS = (("one", 0.7), ("two", -0.4), ("three", 1.5))


def _ensemble(served: Served, *parts: tuple[str, float]) -> tuple[tuple[str, float], ...]:
    return tuple((served.digests[name], weight) for name, weight in parts)


def _asked(name: str, length: int, ensemble: tuple[tuple[str, float], ...], **sampling: Any) -> GenerationRequest:
    return replace(request(name, prompt_of(length), **sampling), ensemble=ensemble)


def _merged(served: Served) -> PeftModel:
    model = peft_model(served, None)
    model = PeftModel.from_pretrained(model, served.folders["one"], adapter_name="one")
    for name in ("two", "three"):
        model.load_adapter(served.folders[name], adapter_name=name)
    names, weights = zip(*PARTS, strict=True)
    model.add_weighted_adapter(list(names), list(weights), "merged", combination_type="cat")
    model.set_adapter("merged")
    return model.eval()


class TestAnswers:
    @pytest.mark.parametrize("kernels", ["auto", "torch"])
    @pytest.mark.parametrize("step_tokens", [512, 7])
    def test_equal_the_merge(self, served: Served, kernels: str, step_tokens: int) -> None:
        """Beside others under its members, and in pieces."""
        engine = TorchEngine(served.base, EngineOptions(max_batch=8, kernels=kernels, step_tokens=step_tokens))
        for name, folder in served.folders.items():
            engine.load(served.digests[name], folder)
        others = [request(name, prompt_of(14), served.digests[name]) for name in served.digests]
        asked = [_asked(f"e{n}", n, _ensemble(served, *PARTS)) for n in (3, 26)]
        events, merged = run(engine, *others, *asked), _merged(served)
        for each in asked:
            expected = generate_alone(merged, list(each.prompt_ids), 12)
            assert_same_greedy(tokens_of(events[each.request_id]), expected)
        for other in others:
            expected = generate_alone(peft_model(served, other.request_id), prompt_of(14), 12)
            assert_same_greedy(tokens_of(events[other.request_id]), expected)

    def test_one_of_weight_one_is_that_adapter(self, served: Served, engine: TorchEngine) -> None:
        events = run(
            engine, _asked("e", 9, _ensemble(served, ("one", 1.0))), request("r", prompt_of(9), served.digests["one"])
        )
        assert tokens_of(events["e"]) == tokens_of(events["r"])

    def test_weights_matter(self, served: Served, engine: TorchEngine) -> None:
        asked = [_asked(str(w), 9, _ensemble(served, ("one", w), ("two", 1.0))) for w in (0.0, 1.0, -1.0)]
        events = run(engine, *asked)
        assert len({tuple(tokens_of(each)) for each in events.values()}) == 3


class TestIdentity:
    def test_depends_on_members_and_weights_and_not_on_their_order(self) -> None:
        ensembles = [(("a", 1.0), ("b", 2.0)), (("b", 2.0), ("a", 1.0)), (("a", 2.0), ("b", 1.0)), (("a", 1.0),)]
        found = [identity_of(replace(request("r", [5]), ensemble=each)) for each in ensembles]
        assert found[0] == found[1]
        assert len(set(found)) == 3
        assert identity_of(request("r", [5], "a")) == "a"

    def test_a_prompt_is_found_under_the_same_ensemble_only(self, served: Served, engine: TorchEngine) -> None:
        def cached(name: str, *parts: tuple[str, float]) -> int:
            usage = run(engine, _asked(name, 40, _ensemble(served, *parts), max_tokens=2))[name][-1].usage
            assert usage is not None
            return usage.cached_tokens

        assert cached("first", ("one", 1.0), ("two", 0.5)) == 0
        assert cached("same", ("two", 0.5), ("one", 1.0)) == 32
        assert cached("other weight", ("one", 1.0), ("two", 0.6)) == 0
        assert cached("member", ("one", 1.0)) == 0


class TestMembers:
    def test_are_in_use_until_the_answer_ends(self, served: Served, engine: TorchEngine) -> None:
        engine.add(_asked("e", 9, _ensemble(served, ("one", 1.0), ("two", 1.0)), ignore_end=True))
        engine.step()
        for name in ("one", "two"):
            with pytest.raises(Conflict):
                engine.unload(served.digests[name])
        engine.unload(served.digests["three"])
        run(engine)
        engine.unload(served.digests["one"])

    def test_that_are_not_there_are_told(self, served: Served, engine: TorchEngine) -> None:
        events = run(engine, _asked("e", 9, (("0" * 64, 1.0), (served.digests["one"], 1.0))))["e"]
        assert (events[0].error or {})["code"] == "unknown_adapter"


class TestBadEnsembles:
    @pytest.mark.parametrize(
        ("ensemble", "adapter"),
        [
            ((("a", 1.0),), "b"),
            ((("a", 1.0), ("a", 2.0)), ""),
            ((("", 1.0),), ""),
            ((("a", float("nan")),), ""),
            (tuple((str(n), 1.0) for n in range(17)), ""),
        ],
        ids=["an adapter beside it", "one twice", "the base", "no number", "too many"],
    )
    def test_are_refused_alone(
        self, served: Served, engine: TorchEngine, ensemble: tuple[tuple[str, float], ...], adapter: str
    ) -> None:
        good = request("good", prompt_of(9), served.digests["one"])
        bad = replace(request("bad", prompt_of(9), adapter), ensemble=ensemble)
        events = run(engine, bad, good)
        assert (events["bad"][0].error or {})["code"] == "invalid_ensemble"
        assert len(tokens_of(events["good"])) > 0


class TestHome:
    def test_is_that_of_the_adapter_with_the_largest_weight(self) -> None:
        asked = replace(request("e", [5]), ensemble=(("d1", 0.25), ("d2", -2.0), ("d3", 1.0)))
        assert home_of(asked) == "d2"

    @pytest.mark.parametrize("digest", ["d1", ""])
    def test_of_one_adapter_or_none_is_its_own(self, digest: str) -> None:
        assert home_of(request("r", [5], digest)) == digest
