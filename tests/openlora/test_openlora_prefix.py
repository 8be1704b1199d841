"""The prefix cache: what is known isn't computed again, and nobody is answered with another's state."""

from dataclasses import replace
from typing import Any

import pytest
from openlora_models import Served, prompt_of, request, run, tokens_of

from openledger.core.values import GenerationRequest, TokenEvent
from openledger.openlora import torch_engine
from openledger.openlora.torch_engine import EngineOptions, TorchEngine

PROMPT = prompt_of(70)


def _cached(events: list[TokenEvent]) -> int:
    assert events[-1].usage is not None
    return events[-1].usage.cached_tokens


def _asked(name: str, prompt: list[int], digest: str = "", tenant: str = "", **sampling: Any) -> GenerationRequest:
    return replace(request(name, prompt, digest, **sampling), tenant=tenant)


class TestHits:
    def test_a_known_beginning_is_not_computed_again(self, engine: TorchEngine) -> None:
        first = run(engine, _asked("a", PROMPT))["a"]
        again = run(engine, _asked("b", PROMPT))["b"]
        assert (_cached(first), _cached(again)) == (0, 64)
        assert tokens_of(again) == tokens_of(first)

    def test_only_the_common_beginning_is_taken(self, engine: TorchEngine) -> None:
        run(engine, _asked("a", PROMPT))
        other = PROMPT[:40] + prompt_of(30, 9)
        fresh = TorchEngine(engine._model.base, EngineOptions())
        got = run(engine, _asked("b", other))["b"]
        assert _cached(got) == 32
        assert tokens_of(got) == tokens_of(run(fresh, _asked("b", other))["b"])

    def test_an_answer_can_be_gone_on_from(self, engine: TorchEngine) -> None:
        """The next turn of a conversation begins with prompt and answer."""
        first = run(engine, _asked("a", PROMPT, max_tokens=30, ignore_end=True))["a"]
        turn = [*PROMPT, *tokens_of(first), 5, 6]
        assert _cached(run(engine, _asked("b", turn))["b"]) == (70 + 29) // 16 * 16

    def test_the_last_token_is_always_computed(self, engine: TorchEngine) -> None:
        run(engine, _asked("a", PROMPT[:64]))
        assert _cached(run(engine, _asked("b", PROMPT[:64]))["b"]) == 48

    def test_while_the_first_still_runs(self, engine: TorchEngine) -> None:
        engine.add(_asked("a", PROMPT, max_tokens=20))
        engine.step()
        events = run(engine, _asked("b", PROMPT))
        assert _cached(events["b"]) == 64

    def test_what_is_known_makes_room_for_what_is_new(self, served: Served) -> None:
        engine = TorchEngine(served.base, EngineOptions(max_batch=2, kv_bytes=16 * 16 * 384))
        for number in range(12):
            run(engine, _asked(str(number), prompt_of(70, number)))
        counts = engine.describe()
        assert (counts["free_blocks"], counts["running"]) == (16, 0)
        assert counts["known_blocks"] <= 16


class TestSeparation:
    """The same tokens under another adapter or for another tenant: computed anew, whatever is known."""

    @pytest.mark.parametrize("kernels", ["auto", "torch"])
    def test_of_adapters(self, served: Served, kernels: str) -> None:
        def fresh() -> TorchEngine:
            engine = TorchEngine(served.base, EngineOptions(kernels=kernels))
            for name, folder in served.folders.items():
                engine.load(served.digests[name], folder)
            return engine

        shared = fresh()
        for digest in ("", *served.digests.values()) * 2:
            got = run(shared, _asked(f"{digest}", PROMPT, digest))[digest]
            assert tokens_of(got) == tokens_of(run(fresh(), _asked("r", PROMPT, digest))["r"])
        for digest in served.digests.values():
            assert _cached(run(shared, _asked("again", PROMPT, digest))["again"]) == 64

    def test_of_adapters_in_one_batch(self, served: Served, engine: TorchEngine) -> None:
        events = run(engine, *(_asked(digest, PROMPT, digest) for digest in served.digests.values()))
        assert [_cached(each) for each in events.values()] == [0, 0, 0]

    def test_of_tenants(self, served: Served, engine: TorchEngine) -> None:
        digest = served.digests["one"]
        run(engine, _asked("a", PROMPT, digest, "alice"))
        assert _cached(run(engine, _asked("b", PROMPT, digest, "bob"))["b"]) == 0
        assert _cached(run(engine, _asked("c", PROMPT, digest, ""))["c"]) == 0
        assert _cached(run(engine, _asked("d", PROMPT, digest, "alice"))["d"]) == 64

    def test_a_reloaded_adapter_is_the_same_one(self, served: Served, engine: TorchEngine) -> None:
        """Identity is the digest of its content: what was computed under it holds."""
        digest = served.digests["one"]
        first = run(engine, _asked("a", PROMPT, digest))["a"]
        engine.unload(digest)
        engine.load(digest, served.folders["one"])
        again = run(engine, _asked("b", PROMPT, digest))["b"]
        assert (_cached(again), tokens_of(again)) == (64, tokens_of(first))

    def test_the_mutation_that_must_be_seen(
        self, served: Served, engine: TorchEngine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The control: were the adapter not part of the key, the answer would be another one's."""
        expected = tokens_of(run(engine, _asked("a", PROMPT, served.digests["one"]))["a"])
        monkeypatch.setattr(torch_engine, "root_key", lambda *_: b"one for all")
        run(engine, _asked("b", PROMPT, ""))
        assert tokens_of(run(engine, _asked("c", PROMPT, served.digests["one"]))["c"]) != expected
