"""What a replica tells Prometheus: how requests ended and what they used, without a series for each adapter."""

from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest
from openlora_models import request

from openledger.core.values import EmbeddingRequest, TokenEvent, Usage
from openledger.openlora import deployment
from openledger.openlora.deployment import Meters

USAGE = Usage(prompt_tokens=9, cached_tokens=4, completion_tokens=2, engine_ms=1.0)
REFUSED = TokenEvent(
    request_id="r", token_ids=(), text="", finish_reason="error", error={"code": "unknown_adapter", "message": "no"}
)
ANSWER = (
    TokenEvent(request_id="r", token_ids=(5,), text="a", num_open=1),
    TokenEvent(request_id="r", token_ids=(6,), text="b", finish_reason="stop", usage=USAGE),
)


class Recorded:
    """Stands for Ray's metrics of every kind: what was counted, by the metric's name and its tags."""

    def __init__(self, counted: Counter[tuple[str, ...]], name: str):
        self._counted, self._name = counted, name

    def inc(self, value: float, tags: dict[str, str]) -> None:
        self._counted[self._name, *tags.values()] += value

    def observe(self, _: float) -> None:
        self._counted[(self._name,)] += 1


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[str, ...]]:
    counted: Counter[tuple[str, ...]] = Counter()
    for kind in ("Counter", "Histogram", "Gauge"):
        monkeypatch.setattr(deployment, kind, lambda name, *_, **__: Recorded(counted, name))
    return counted


async def said(*events: TokenEvent) -> AsyncGenerator[TokenEvent, None]:
    for event in events:
        yield event


async def test_an_answer_is_counted_with_its_tokens(counted: Counter[tuple[str, ...]]) -> None:
    told = [event async for event in Meters().metered(request("r", [5]), said(*ANSWER))]
    assert told == list(ANSWER)
    assert counted == {
        ("openlora_time_to_first_token_s",): 1,
        ("openlora_requests", "base", "stop"): 1,
        ("openlora_tokens", "base", "prompt"): 9,
        ("openlora_tokens", "base", "cached"): 4,
        ("openlora_tokens", "base", "completion"): 2,
    }


async def test_a_refusal_is_counted_under_its_code_and_has_no_first_token(counted: Counter[tuple[str, ...]]) -> None:
    async for _ in Meters().metered(request("r", [5]), said(REFUSED)):
        pass
    assert counted == {("openlora_requests", "base", "unknown_adapter"): 1}


async def test_a_reader_that_leaves_is_counted_as_that(counted: Counter[tuple[str, ...]]) -> None:
    async with aclosing(Meters().metered(request("r", [5]), said(*ANSWER))) as events:
        async for _ in events:
            break
    assert counted["openlora_requests", "base", "left"] == 1


async def test_thousands_of_adapters_make_one_series(counted: Counter[tuple[str, ...]]) -> None:
    meters = Meters()
    for number in range(3000):
        async for _ in meters.metered(request("r", [5], f"{number:064x}"), said(*ANSWER)):
            pass
    meters.count_embedding(EmbeddingRequest(inputs=((5, 6),), adapter_digest=f"{1:064x}"))
    assert {key[1] for key in counted if len(key) > 1} == {"other"}
    assert counted["openlora_requests", "other", "stop"] == 3000
    assert counted["openlora_requests", "other", "embedded"] == 1
