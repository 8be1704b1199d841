"""Vectors for texts: what they are, and that others notice nothing of them."""

import asyncio
from collections.abc import Iterator
from itertools import count
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from openlora_models import Served, peft_model, prompt_of, request, run, tokens_of

from openledger.adapters.registry import AdapterRegistry
from openledger.core.errors import InvalidInput, NotFound, TooManyRequests
from openledger.core.values import EmbeddingRequest
from openledger.openlora import torch_engine
from openledger.openlora.admission import AdmissionLimits
from openledger.openlora.engine import Vectors
from openledger.openlora.server import AdapterServer, ServingOptions, parts_of
from openledger.openlora.torch_engine import EngineOptions, TorchEngine


def mean_hidden(served: Served, name: str | None, ids: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        hidden = peft_model(served, name)(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states[-1][0]
    return torch.nn.functional.normalize(hidden.mean(0), dim=0)


@pytest.mark.parametrize("name", [None, "one", "two", "three"])
def test_they_are_pefts_own_whatever_else_is_in_the_batch(
    served: Served, engine: TorchEngine, name: str | None
) -> None:
    inputs = [prompt_of(20), prompt_of(3), prompt_of(17)]
    vectors = engine.embed(inputs, served.digests[name] if name else "").vectors_KH
    expected = torch.stack([mean_hidden(served, name, ids) for ids in inputs]).numpy()
    assert np.abs(vectors - expected).max() < 1e-4


@pytest.mark.parametrize(
    ("inputs", "code"),
    [
        ([], "empty_prompt"), ([[5], []], "empty_prompt"), ([[10**6]], "invalid_token"),
        ([[5] * 200], "context_length_exceeded"),
    ],
    ids=["none", "empty", "token", "long"],
)  # fmt: skip
def test_what_is_no_text_of_this_base_is_refused(engine: TorchEngine, inputs: list[list[int]], code: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        engine.embed(inputs, "")
    assert caught.value.code == code


def test_an_adapter_that_is_not_there_is_refused(engine: TorchEngine) -> None:
    with pytest.raises(NotFound):
        engine.embed([[5, 6]], "0" * 64)


def test_answers_under_way_are_what_they_would_have_been(served: Served, engine: TorchEngine) -> None:
    each = request("r", prompt_of(9), served.digests["one"])
    alone = tokens_of(run(engine, each)["r"])
    engine.add(each)
    tokens = [token for _ in range(5) for event in engine.step() for token in event.token_ids]
    engine.embed([prompt_of(30), prompt_of(4)], served.digests["two"])
    while engine.has_work():
        tokens += [token for event in engine.step() for token in event.token_ids]
    assert tokens == alone


@pytest.mark.parametrize(
    ("lengths", "parts"), [([3, 3, 3], [[3, 3], [3]]), ([9, 1], [[9], [1]]), ([6], [[6]]), ([], [])]
)
def test_inputs_are_taken_as_many_at_a_time_as_a_step_has_tokens(lengths: list[int], parts: list[list[int]]) -> None:
    told = parts_of([[0] * length for length in lengths], 6)
    assert [[len(each) for each in part] for part in told] == parts


class TestTime:
    """By a clock that goes a second forward each time it is looked at."""

    @pytest.fixture(autouse=True)
    def clock(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
        seconds = count()
        monkeypatch.setattr(torch_engine, "time", SimpleNamespace(perf_counter=seconds.__next__))
        return seconds

    def test_of_a_short_one_is_all_that_passes(self, engine: TorchEngine) -> None:
        assert engine.embed([prompt_of(9)], "").engine_ms == 1000

    def test_given_to_people_is_theirs(self, served: Served, clock: "Iterator[int]") -> None:
        """What remains are the spans between."""
        engine, given = TorchEngine(served.base, EngineOptions(max_batch=2, step_tokens=16)), []

        def people() -> None:
            given.append([next(clock) for _ in range(50)])

        engine.give_way_to(people)
        taken_ms = engine.embed([prompt_of(30)], "").engine_ms
        assert given
        assert taken_ms == 1000 * (len(given) + 1)


class TestServer:
    @pytest.fixture
    def engine(self, served: Served) -> TorchEngine:
        return TorchEngine(served.base, EngineOptions(max_batch=4, step_tokens=16))

    async def test_long_and_short_inputs_come_in_their_order(self, served: Served, engine: TorchEngine) -> None:
        """Parts of a step's tokens, and one that is longer and gives way."""
        inputs = [prompt_of(length) for length in (5, 9, 100, 4)]
        server = AdapterServer(engine, AdapterRegistry(served.folders["one"].parent), ServingOptions(max_resident=2))
        asked = EmbeddingRequest(inputs=tuple(map(tuple, inputs)), adapter_digest=served.digests["one"])
        streamed = [
            event
            async for event in server.generate(
                request("r", prompt_of(6), served.digests["two"], max_tokens=20, ignore_end=True),
                str(served.folders["two"]),
            )
        ]
        vectors, again = await asyncio.gather(
            server.embed(asked, str(served.folders["one"])),
            _tokens(server, request("s", prompt_of(6), served.digests["two"], max_tokens=20, ignore_end=True)),
        )
        server.close()
        assert again == tokens_of(streamed)
        expected = torch.stack([mean_hidden(served, "one", ids) for ids in inputs]).numpy()
        assert np.abs(vectors.vectors_KH - expected).max() < 1e-4

    async def test_too_many_at_once_are_refused_and_nothing_is_left(self, served: Served, engine: TorchEngine) -> None:
        server = AdapterServer(
            engine,
            AdapterRegistry(served.folders["one"].parent),
            ServingOptions(admission=AdmissionLimits(max_waiting=2)),
        )
        asked = EmbeddingRequest(inputs=(tuple(prompt_of(8)),))
        told = await asyncio.gather(*(server.embed(asked) for _ in range(3)), return_exceptions=True)
        assert [type(one) for one in told] == [Vectors, Vectors, TooManyRequests]
        assert (server.load_stats()["queued_tokens"], server._num_embedding) == (0.0, 0)
        server.close()


async def _tokens(server: AdapterServer, each) -> list[int]:  # type: ignore[no-untyped-def]
    return [token async for event in server.generate(each) for token in event.token_ids]
