"""A mixed batch gives what PEFT and transformers give one by one."""

from pathlib import Path
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

from openledger.openlora import lora, torch_engine
from openledger.openlora.torch_engine import EngineOptions, TorchEngine

LENGTHS = (3, 17, 9, 26, 5, 40, 2, 1)
ADAPTERS = ("one", "two", None, "three", "two", "one", None, "three")


@pytest.fixture(scope="module", params=["llama", "qwen2", "mistral", "gpt2", "gemma2", "phi3", "gpt_neox", "olmo2"])
def family(request: pytest.FixtureRequest, served: Served, tmp_path_factory: pytest.TempPathFactory) -> Served:
    return served if request.param == "llama" else make_served(tmp_path_factory.mktemp("family"), request.param)


def _engine(served: Served, **options: Any) -> TorchEngine:
    engine = TorchEngine(served.base, EngineOptions(**options))
    for name, folder in served.folders.items():
        engine.load(served.digests[name], folder)
    return engine


def _mixed_batch(served: Served, engine: TorchEngine, max_tokens: int = 12) -> list[list[int]]:
    requests = [
        request(str(index), prompt_of(length), served.digests[name] if name else "", max_tokens=max_tokens)
        for index, (length, name) in enumerate(zip(LENGTHS, ADAPTERS, strict=True))
    ]
    events = run(engine, *requests)
    return [tokens_of(events[each.request_id]) for each in requests]


class TestGreedy:
    @pytest.mark.parametrize("kernels", ["auto", "torch"])
    def test_equals_one_by_one(self, family: Served, kernels: str) -> None:
        """A step of 512 tokens takes all prompts whole; with 7 they go in pieces, mixed with others' answers."""
        batches = [_mixed_batch(family, _engine(family, kernels=kernels, step_tokens=size)) for size in (512, 7)]
        models = {name: peft_model(family, name) for name in set(ADAPTERS)}
        for *got, length, name in zip(*batches, LENGTHS, ADAPTERS, strict=True):
            expected = generate_alone(models[name], prompt_of(length), 12)
            for tokens in got:
                assert_same_greedy(tokens, expected)

    def test_adapters_change_the_answers(self, served: Served, engine: TorchEngine) -> None:
        """The control: were adapters ignored, the comparison above would compare the base with itself."""
        names = ("", *served.digests.values())
        events = run(engine, *(request(name or "base", prompt_of(9), name) for name in names))
        assert len({tuple(tokens_of(each)) for each in events.values()}) == len(names)

    def test_alone_or_in_a_batch_is_the_same(self, served: Served) -> None:
        assert _mixed_batch(served, _engine(served, max_batch=1)) == _mixed_batch(served, _engine(served, max_batch=8))

    def test_the_context_is_used_to_its_end(self, served: Served, engine: TorchEngine) -> None:
        events = run(engine, request("r", prompt_of(120), served.digests["one"], max_tokens=50))["r"]
        expected = generate_alone(peft_model(served, "one"), prompt_of(120), 8)
        assert_same_greedy(tokens_of(events), expected)
        assert len(tokens_of(events)) == 8 or expected.tokens[-1] == 1


class TestScores:
    def test_equal_a_plain_forward(self, family: Served, monkeypatch: pytest.MonkeyPatch) -> None:
        """With layers as small as these in parts as well, and the softmax: as large ones are computed."""
        monkeypatch.setattr(lora, "_PART_PRODUCTS", 1)
        monkeypatch.setattr(lora, "_PART_LEAST", 7)
        monkeypatch.setattr(torch_engine, "_SOFTMAX_ROWS", 5)
        prompt, completion = prompt_of(11), prompt_of(14)
        engine = _engine(family, score_tokens=60)  # two adapters at a time
        names = (None, "one", "two", "three", "one")
        got = engine.score(prompt, completion, [family.digests[name] if name else "" for name in names])
        expected = [_forward_scores(family, name, prompt, completion) for name in names]
        np.testing.assert_allclose(got, np.stack(expected), atol=1e-4)
        assert got.dtype == np.float32

    def test_adapters_differ(self, served: Served, engine: TorchEngine) -> None:
        scores = engine.score(prompt_of(5), prompt_of(6), ["", *served.digests.values()])
        assert np.abs(scores - scores[0])[1:].max(axis=1).min() > 0.01

    def test_change_no_answer_in_flight(self, served: Served) -> None:
        engine, alone = _engine(served), _engine(served)
        engine.add(request("r", prompt_of(9), served.digests["one"]))
        tokens = []
        while engine.has_work():
            tokens += [token for event in engine.step() for token in event.token_ids]
            engine.score(prompt_of(20), prompt_of(6), list(served.digests.values()))
        assert tokens == tokens_of(run(alone, request("r", prompt_of(9), served.digests["one"]))["r"])

    def test_of_no_adapters_are_empty(self, engine: TorchEngine) -> None:
        assert engine.score([5], [6, 7], []).shape == (0, 2)


def _forward_scores(served: Served, name: str | None, prompt: list[int], completion: list[int]) -> np.ndarray:
    with torch.inference_mode():
        logits = peft_model(served, name)(input_ids=torch.tensor([prompt + completion])).logits[0]
    chosen = torch.log_softmax(logits, -1)[len(prompt) - 1 : -1].gather(1, torch.tensor(completion)[:, None])
    return chosen[:, 0].numpy()


class TestShapes:
    def test_are_the_same_with_and_without_weights(self, family: Served, tmp_path: Path) -> None:
        from openledger.adapters.base_model import load_model
        from openledger.adapters.checks import read_shapes, shapes_of

        shapes = read_shapes(family.base)
        assert shapes == shapes_of(load_model(family.base), family.base.digest)
        assert not any("head" in name or "embed" in name for name in shapes.modules)
