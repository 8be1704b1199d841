"""A stock openai client over HTTP, economy and a real engine: what it is told, what it pays, and that nothing is left.

In this folder, for its models; the stack is `tests/serving_stack.py`.
"""

import base64
import json
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
import torch
from openlora_models import Served, peft_model, prompt_of, request, run, text_of
from serving_stack import Stack, running_stack

from openledger.adapters.base_model import load_tokenizer
from openledger.core.values import TokenEvent
from openledger.ledger.receipts import check_receipt, encode_receipt
from openledger.openlora.torch_engine import TorchEngine

ALICE = "user:alice"
SOAK_S = float(os.environ.get("OPENLEDGER_SOAK_S", "600"))  # as of the engine's soak


@pytest.fixture(scope="module")
def stack(served: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    from openledger.openlora.torch_engine import EngineOptions

    with running_stack(
        served.base, served.folders, served.digests, tmp_path_factory.mktemp("stack"),
        engine=EngineOptions(max_batch=8), max_resident=2,
    ) as stack:  # fmt: skip
        yield stack


@pytest.fixture(autouse=True)
def nothing_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """After each test no request, slot use, block or hold is."""
    yield
    if "stack" in request.fixturenames:
        stack = request.getfixturevalue("stack")
        assert settled(stack), "something of a request is left"


def settled(stack: Stack, seconds: float = 60.0) -> bool:
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s:
        server = stack.engine.server
        idle = server is None or not (
            server._num_running or len(server._queue) or server._turns or server._residency._uses or server._in_flight
        )
        if idle and not any(stack.held_nano(account) for account in stack.keys):
            return True
        time.sleep(0.02)
    return False


def own_logprobs(served: Served, name: str, ids: list[int]) -> torch.Tensor:
    """PEFT's log-probabilities of each next token, `[len(ids) - 1, V]`."""
    with torch.inference_mode():
        logits = peft_model(served, name)(input_ids=torch.tensor([ids])).logits[0]
    return torch.log_softmax(logits[:-1].float(), -1)


class TestEnsembles:
    """`one` and `two` cost the same a token."""

    WEIGHTS = (("one", 1.5), ("two", 0.5))

    def ask(self, stack: Stack, *, key: str = "", adapters: Any = WEIGHTS, model: str = "base", **more: Any) -> Any:
        return stack.client().completions.create(
            model=model, prompt=[prompt_of(9)], max_tokens=8, temperature=0,
            extra_body={"adapters": [{"model": name, "weight": weight} for name, weight in adapters]},
            extra_headers={"Idempotency-Key": key} if key else {}, **more,
        )  # fmt: skip

    def test_answer_as_the_engine_does_under_all_of_them(
        self, served: Served, stack: Stack, engine: TorchEngine
    ) -> None:
        members = tuple((served.digests[name], weight) for name, weight in self.WEIGHTS)
        expected = run(engine, replace(request("e", prompt_of(9), max_tokens=8), ensemble=members))["e"]
        assert self.ask(stack).choices[0].text == text_of(expected)

    def test_each_adapters_pool_is_paid_by_its_weight(self, served: Served, stack: Stack) -> None:
        before, period = stack.spent_nano(), stack.economy.current_period()
        receipt = self.ask(stack).openledger
        assert stack.spent_nano() - before == receipt["fee_nano"] == sum(receipt["parts"].values())
        told = {each["adapter"]: each for each in receipt["adapters"]}
        num_tokens = receipt["prompt_tokens"], receipt["completion_tokens"]
        assert {name: each["fee_nano"] for name, each in told.items()} == {
            "one": num_tokens[0] * 100 + num_tokens[1] * 1000,
            "two": num_tokens[0] * 50 + num_tokens[1] * 500,
        }
        members = {(served.digests[name], weight) for name, weight in self.WEIGHTS}
        for name, each in told.items():
            (answer,) = [a for a in stack.economy.pool(name, period).answers if a.answer_id == each["answer_id"]]
            assert (answer.adapter_digest, set(answer.ensemble)) == (served.digests[name], members)
            assert answer.pool_nano == each["parts"][f"pool:{name}:{period}"]
            assert each["signed"]["transfer"]["amount_nano"] == each["fee_nano"]
        stack.economy._ledger.audit()

    def test_a_retry_is_told_the_first_answer_and_pays_nothing(self, stack: Stack) -> None:
        first = self.ask(stack, key="together")
        before = stack.spent_nano()
        again = self.ask(stack, key="together")
        assert (again.choices[0].text, again.openledger) == (first.choices[0].text, first.openledger)
        assert stack.spent_nano() == before

    def test_the_same_key_with_other_weights_is_a_conflict(self, stack: Stack) -> None:
        self.ask(stack, key="weights")
        with pytest.raises(openai.ConflictError):
            self.ask(stack, key="weights", adapters=(("one", 1.0), ("two", 1.0)))

    @pytest.mark.parametrize(
        ("adapters", "model", "code", "param"),
        [
            ((("one", 1.0), ("nothing", 1.0)), "base", "unknown_model", "model"),
            ((("one", 1.0), ("one", 1.0)), "base", "invalid_ensemble", "adapters"),
            ((("one", 1.0),), "one", "invalid_ensemble", "model"),
            ((("one", 0.0),), "base", "invalid_field", "adapters.0.weight"),
            ((("one", -1.0),), "base", "invalid_field", "adapters.0.weight"),
            ((("one", 1.0),) * 9, "base", "invalid_field", "adapters"),
        ],
    )
    def test_what_can_not_be_is_refused_by_name_and_costs_nothing(
        self, stack: Stack, adapters: Any, model: str, code: str, param: str
    ) -> None:
        stack.client()
        before = stack.spent_nano()
        with pytest.raises(openai.APIStatusError) as caught:
            self.ask(stack, adapters=adapters, model=model)
        assert (caught.value.code, caught.value.param, stack.spent_nano()) == (code, param, before)

    def test_of_more_adapters_than_slots_costs_nothing(self, stack: Stack) -> None:
        stack.client()
        before = stack.spent_nano()
        with pytest.raises(openai.APIStatusError) as caught:
            self.ask(stack, adapters=(("one", 1.0), ("two", 1.0), ("three", 1.0)))
        assert caught.value.code == "too_many_adapters"
        assert settled(stack)
        assert stack.spent_nano() == before

    def test_they_stream(self, stack: Stack) -> None:
        told = list(self.ask(stack, stream=True))
        assert "".join(chunk.choices[0].text for chunk in told) == self.ask(stack).choices[0].text
        assert [each["adapter"] for each in told[-1].openledger["adapters"]] == ["one", "two"]


class TestTextCompletions:
    def test_echoed_logprobs_are_transformers_own(self, served: Served, stack: Stack) -> None:
        ids = prompt_of(12)
        answer = stack.client().completions.create(
            model="one", prompt=[ids], echo=True, logprobs=3, max_tokens=1, temperature=0, seed=1
        )
        told = answer.choices[0].logprobs
        assert told is not None
        assert told.token_logprobs is not None
        expected = own_logprobs(served, "one", ids).gather(-1, torch.tensor(ids[1:])[:, None])[:, 0]
        assert told.token_logprobs[0] is None
        assert torch.allclose(torch.tensor(told.token_logprobs[1:-1]), expected, atol=1e-4)

    def test_lm_evals_sums_and_greedy_marks_are_right(self, served: Served, stack: Stack) -> None:
        """As lm-eval's local-completions reads them: from the context's end to before the one generated token."""
        context, greedy = prompt_of(6), prompt_of(6)
        for _ in range(4):
            greedy = [*greedy, int(own_logprobs(served, "two", [*greedy, 0])[-1].argmax())]
        other = [*context, *prompt_of(4, seed=5)]
        answer = stack.client().completions.create(
            model="two", prompt=[greedy, other], echo=True, logprobs=1, max_tokens=1, temperature=0, seed=1
        )
        marks = []
        for choice, ids in zip(answer.choices, (greedy, other), strict=True):
            told: Any = choice.logprobs
            logprobs = told.token_logprobs[len(context) : -1]
            tops = told.top_logprobs[len(context) : -1]
            expected = own_logprobs(served, "two", ids)[len(context) - 1 :]
            chosen = expected.gather(-1, torch.tensor(ids[len(context) :])[:, None]).sum()
            assert sum(logprobs) == pytest.approx(float(chosen), abs=1e-3)
            marks.append(all(logprob == max(top.values()) for logprob, top in zip(logprobs, tops, strict=True)))
        assert marks == [True, False]

    def test_text_and_its_token_ids_are_answered_alike(self, served: Served, stack: Stack) -> None:
        tokenizer = load_tokenizer(served.base)
        text = "What does alpha do?"
        asked = [text, tokenizer(text)["input_ids"]]
        told = [
            stack.client().completions.create(model="one", prompt=prompt, max_tokens=8).choices[0].text
            for prompt in asked
        ]
        assert told[0] == told[1]

    def test_are_paid_as_their_receipts_say(self, stack: Stack) -> None:
        client, before = stack.client(), stack.spent_nano()
        answer: Any = client.completions.create(model="one", prompt=["alpha", "beta gamma"], n=2, max_tokens=5, seed=1)
        receipts = answer.openledger["answers"]
        assert len({receipt["answer_id"] for receipt in receipts}) == len(answer.choices) == 4
        assert stack.spent_nano() - before == sum(receipt["fee_nano"] for receipt in receipts)
        assert answer.usage.prompt_tokens == sum(receipt["prompt_tokens"] for receipt in receipts)

    def test_a_retry_under_the_same_key_is_told_again_and_pays_nothing(self, stack: Stack) -> None:
        def ask() -> Any:
            return stack.client().completions.create(
                model="one", prompt="alpha", n=2, max_tokens=5, seed=1, temperature=1,
                extra_headers={"Idempotency-Key": "again"},
            )  # fmt: skip

        first = ask()
        before = stack.spent_nano()
        again = ask()
        assert [choice.text for choice in again.choices] == [choice.text for choice in first.choices]
        assert (again.openledger, stack.spent_nano()) == (first.openledger, before)

    def test_of_all_prompts_none_is_held_where_one_cannot_be_paid(self, stack: Stack) -> None:
        stack.economy.grant("user:poor", 40_000, "grant-poor")
        stack.keys["user:poor"] = stack.economy.create_key("user:poor")
        poor = openai.OpenAI(base_url=f"{stack.url}/v1", api_key=stack.keys["user:poor"], max_retries=0)
        with pytest.raises(openai.APIStatusError) as caught:
            poor.completions.create(model="one", prompt=["alpha beta"] * 8, max_tokens=20)
        assert caught.value.code == "insufficient_funds"
        assert stack.economy.balance("user:poor").available_nano == 40_000


class TestEmbeddings:
    def test_the_stock_client_gets_the_mean_of_the_last_hidden_states(self, served: Served, stack: Stack) -> None:
        inputs = [prompt_of(9), prompt_of(3), prompt_of(40)]
        told = stack.client().embeddings.create(model="two", input=inputs)
        model = peft_model(served, "two")
        for ids, entry in zip(inputs, told.data, strict=True):
            with torch.inference_mode():
                hidden = model(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states[-1][0]
            expected = torch.nn.functional.normalize(hidden.mean(0), dim=0)
            assert torch.allclose(torch.tensor(entry.embedding), expected, atol=1e-4)
        assert [entry.index for entry in told.data] == [0, 1, 2]
        assert (told.usage.prompt_tokens, told.usage.total_tokens) == (52, 52)

    def test_both_encodings_say_the_same(self, stack: Stack) -> None:
        asked: Any = {"model": "one", "input": "What does alpha do?"}
        floats, encoded = (
            stack.client().embeddings.with_raw_response.create(**asked, encoding_format=name).http_response.json()
            for name in ("float", "base64")
        )
        numbers = np.frombuffer(base64.b64decode(encoded["data"][0]["embedding"]), "<f4")
        assert numbers.tolist() == floats["data"][0]["embedding"]

    def test_its_receipt_is_signed_as_an_answers_is(self, stack: Stack) -> None:
        told: Any = stack.client().embeddings.create(model="one", input="alpha")
        receipt = check_receipt(encode_receipt(told.openledger["signed"]), stack.economy._ledger.verification_key())
        transfer = receipt["transfer"]
        assert (transfer["reference"], transfer["amount_nano"]) == (
            told.openledger["answer_id"],
            told.openledger["fee_nano"],
        )

    def test_its_tokens_are_paid_as_a_prompts_and_a_retry_pays_nothing(self, stack: Stack) -> None:
        def ask() -> Any:
            return stack.client().embeddings.create(
                model="one", input=[prompt_of(7), prompt_of(5)], extra_headers={"Idempotency-Key": "embed"}
            )

        before = stack.spent_nano()
        first, again = ask(), ask()
        assert first.openledger["fee_nano"] == 12 * 100
        assert first.openledger["engine_ms"] > 0
        assert (stack.spent_nano() - before, again.openledger) == (12 * 100, first.openledger)
        assert again.data[1].embedding == first.data[1].embedding

    def test_the_same_tokens_cut_otherwise_are_another_request(self, stack: Stack) -> None:
        ids, headers = prompt_of(8), {"Idempotency-Key": "embed-cut"}
        stack.client().embeddings.create(model="one", input=[ids[:4], ids[4:]], extra_headers=headers)
        with pytest.raises(openai.ConflictError) as caught:
            stack.client().embeddings.create(model="one", input=[ids[:5], ids[5:]], extra_headers=headers)
        assert caught.value.code == "idempotency_conflict"

    @pytest.mark.parametrize(
        ("body", "code", "param"),
        [
            ({"input": "alpha", "dimensions": 8}, "unsupported_parameter", "dimensions"),
            ({"input": ""}, "empty_prompt", "input"),
            ({"input": [[5, 10**6]]}, "invalid_token", "input"),
            ({"input": [prompt_of(4), prompt_of(400)]}, "context_length_exceeded", "input"),
            ({"input": []}, "invalid_field", None),
            ({"input": "alpha", "encoding_format": "int8"}, "invalid_field", "encoding_format"),
        ],
        ids=["dimensions", "empty", "token", "context", "none", "encoding"],
    )
    def test_what_can_not_be_done_is_refused_by_name_and_costs_nothing(
        self, stack: Stack, body: dict[str, Any], code: str, param: str | None
    ) -> None:
        before = stack.spent_nano()
        with pytest.raises(openai.BadRequestError) as caught:
            stack.client().embeddings.create(**{"model": "one", **body})
        assert (caught.value.code, stack.spent_nano()) == (code, before)
        assert param is None or caught.value.param == param

    def test_an_adapter_that_can_not_be_loaded_costs_nothing(self, stack: Stack, corrupt_folder: Path) -> None:
        from serving_stack import terms

        digest = "c" * 64
        stack.registry.register("cut", None, digest, terms("cut", digest), source=str(corrupt_folder))
        before = stack.spent_nano()
        with pytest.raises(openai.APIStatusError):
            stack.client().embeddings.create(model="cut", input="alpha")
        stack.registry.remove("cut")
        assert stack.spent_nano() == before


class TestChat:
    def test_streams_what_it_answers_at_once(self, stack: Stack) -> None:
        asked: Any = {"model": "two", "messages": [{"role": "user", "content": "alpha?"}], "max_tokens": 12}
        whole = stack.client().chat.completions.create(**asked)
        chunks = list(
            stack.client().chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
        )
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert text == whole.choices[0].message.content
        assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens

    def test_the_first_token_comes_before_the_last_is_made(self, stack: Stack) -> None:
        stream = stack.client().chat.completions.create(
            model="one", messages=[{"role": "user", "content": "alpha?"}], max_tokens=90, stream=True,
            extra_body={"ignore_eos": True},
        )  # fmt: skip
        chunks = iter(stream)
        texts = [next(chunks).choices[0].delta.content for _ in range(2)]
        assert texts[0] == ""
        assert stack.held_nano() > 0
        stream.close()

    def test_a_repeated_prompt_is_told_as_cached(self, stack: Stack) -> None:
        asked: Any = {"model": "one", "prompt": prompt_of(64, seed=9), "max_tokens": 2}
        stack.client().completions.create(**asked)
        again = stack.client().completions.create(**asked)
        assert again.usage.prompt_tokens_details.cached_tokens > 0

    def test_cached_tokens_and_engine_time_are_in_the_receipt_and_in_the_record(self, stack: Stack) -> None:
        asked: Any = {"model": "one", "prompt": prompt_of(64, seed=10), "max_tokens": 2}
        first, again = (stack.client().completions.create(**asked).openledger for _ in range(2))
        kept, _ = stack.economy.completed(again["answer_id"])
        assert (first["cached_tokens"], again["cached_tokens"] > 0) == (0, True)
        assert (kept.cached_tokens, kept.engine_us) == (again["cached_tokens"], round(1000 * again["engine_ms"]))
        assert kept.engine_us > 0
        assert again["fee_nano"] == first["fee_nano"]

    def test_another_tenants_prompt_is_not(self, stack: Stack) -> None:
        asked: Any = {"model": "one", "prompt": prompt_of(64, seed=11), "max_tokens": 2}
        stack.client().completions.create(**asked)
        other = stack.client("user:other").completions.create(**asked)
        assert other.usage.prompt_tokens_details.cached_tokens == 0

    def test_an_answer_follows_its_schema(self, stack: Stack) -> None:
        schema = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}
        answer = stack.client().chat.completions.create(
            model="one", messages=[{"role": "user", "content": "alpha?"}], max_tokens=60,
            response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}},
        )  # fmt: skip
        assert json.loads(answer.choices[0].message.content)["a"] in (True, False)


class TestAdapters:
    def test_a_private_one_does_not_exist_for_others(self, served: Served, stack: Stack) -> None:
        stack.registry.register(
            "secret", None, served.digests["one"], _terms("secret", served.digests["one"]),
            source=str(served.folders["one"]), shared_with=(ALICE,),
        )  # fmt: skip
        assert stack.client().completions.create(model="secret", prompt="alpha", max_tokens=2).choices
        other = stack.client("user:other")
        with pytest.raises(openai.NotFoundError) as private:
            other.completions.create(model="secret", prompt="alpha")
        with pytest.raises(openai.NotFoundError) as unknown:
            other.completions.create(model="nobody", prompt="alpha")
        assert private.value.body == _renamed(unknown.value.body, "nobody", "secret")
        assert "secret" not in [model.id for model in other.models.list()]
        assert "secret" in [model.id for model in stack.client().models.list()]
        stack.registry.remove("secret")

    @pytest.mark.parametrize("asks", ["chat", "vector", "ensemble", "one model"])
    def test_no_other_way_leads_to_a_private_one(self, served: Served, stack: Stack, asks: str) -> None:
        """Who asks for it by any of them is told what he is told of a name that nobody has."""
        stack.registry.register(
            "hidden", None, served.digests["one"], _terms("hidden", served.digests["one"]),
            source=str(served.folders["one"]), shared_with=(ALICE,),
        )  # fmt: skip
        other = stack.client("user:other")
        before = stack.spent_nano("user:other")
        ways: dict[str, Callable[[str], Any]] = {
            "chat": lambda name: other.chat.completions.create(
                model=name, messages=[{"role": "user", "content": "alpha?"}], max_tokens=2
            ),
            "vector": lambda name: other.embeddings.create(model=name, input="alpha"),
            "ensemble": lambda name: other.completions.create(
                model="base", prompt="alpha", max_tokens=2,
                extra_body={"adapters": [{"model": "two", "weight": 1.0}, {"model": name, "weight": 1.0}]},
            ),
            "one model": lambda name: other.models.retrieve(name),
        }  # fmt: skip
        told = []
        for name in ("hidden", "nobody"):
            with pytest.raises(openai.NotFoundError) as caught:
                ways[asks](name)
            told.append(_renamed(caught.value.body, name, "it"))
        stack.registry.remove("hidden")
        assert told[0] == told[1]
        assert stack.spent_nano("user:other") == before

    @pytest.mark.parametrize("fault", ["corrupt", "missing", "pickled", "linked"])
    def test_a_bad_one_is_refused_alone_and_costs_nothing(
        self, served: Served, stack: Stack, tmp_path: Path, fault: str
    ) -> None:
        folder, digest = _bad_adapter(served, tmp_path, fault), fault.encode().hex().ljust(64, "0")
        stack.registry.register(fault, None, digest, _terms(fault, digest), source=str(folder))
        client, before = stack.client(), stack.spent_nano()
        with ThreadPoolExecutor(4) as pool:
            good = [pool.submit(client.completions.create, model="two", prompt="alpha", max_tokens=8) for _ in range(3)]
            with pytest.raises(openai.APIStatusError) as caught:
                client.completions.create(model=fault, prompt="alpha")
        expected = {
            "corrupt": "corrupt_adapter", "missing": "missing_adapter", "pickled": "pickled_adapter",
            "linked": "linked_adapter",
        }  # fmt: skip
        assert caught.value.code == expected[fault]
        fees = [each.result().openledger["fee_nano"] for each in good]
        assert settled(stack)
        assert stack.spent_nano() - before == sum(fees)
        stack.registry.remove(fault)

    def test_a_name_can_be_switched_while_it_is_asked(self, served: Served, stack: Stack) -> None:
        """To the adapter that never saw a withdrawn contributor's rows, say."""
        stack.registry.register(
            "alias", None, served.digests["one"], _terms("alias", served.digests["one"]),
            source=str(served.folders["one"]),
        )  # fmt: skip

        def said(model: str) -> str:
            return stack.client().completions.create(model=model, prompt="alpha", max_tokens=8).choices[0].text

        assert said("alias") == said("one")
        digest = served.digests["three"]
        stack.registry.switch("alias", None, digest, _terms("alias", digest), source=str(served.folders["three"]))
        assert said("alias") == said("three") != said("one")
        stack.registry.remove("alias")


class TestLeaving:
    def test_in_mid_stream_pays_for_what_was_made_and_frees_all(
        self, stack: Stack, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        step = TorchEngine.step

        def slow_step(engine: TorchEngine) -> list[TokenEvent]:
            time.sleep(0.02)  # else a small model has said it all before anybody can leave
            return step(engine)

        monkeypatch.setattr(TorchEngine, "step", slow_step)
        client, before = stack.client(), stack.spent_nano()
        stream = client.chat.completions.create(
            model="one", messages=[{"role": "user", "content": "alpha?"}], max_tokens=100, stream=True,
            extra_body={"ignore_eos": True},
        )  # fmt: skip
        for _, _chunk in zip(range(4), stream, strict=False):
            pass
        stream.close()
        assert settled(stack)
        assert 0 < stack.spent_nano() - before < 100 * 1000

    def test_before_the_first_token_pays_nothing(self, stack: Stack) -> None:
        client = stack.client(timeout=0.001)
        before = stack.spent_nano()
        for _ in range(5):
            with pytest.raises(openai.APITimeoutError):
                client.completions.create(model="three", prompt="alpha " * 20, max_tokens=30)
        assert settled(stack)
        assert stack.spent_nano() - before < 5 * 31_000


class TestSoak:
    def test_random_requests_are_answered_or_refused_and_leave_nothing(self, stack: Stack) -> None:
        assert soak(stack, num_requests=80, num_threads=8, seed=1)["answered"] > 80 // 6

    @pytest.mark.slow
    def test_for_ten_minutes(self, stack: Stack) -> None:
        end_s, seed, ends = time.monotonic() + SOAK_S, 2, Counter[str]()
        while time.monotonic() < end_s:
            ends += soak(stack, num_requests=200, num_threads=12, seed=seed)
            seed += 1
        print(f"{ends.total()} requests: {dict(ends)}")
        assert ends["answered"] > ends.total() // 8


def soak(stack: Stack, num_requests: int, num_threads: int, seed: int) -> Counter[str]:
    """How the requests ended, each of them in a way that was to be expected, and with nothing left."""
    chooser = random.Random(seed)
    wishes = [_wish(chooser) for _ in range(num_requests)]
    for account in {account for account, *_ in wishes}:
        stack.client(account)
    with ThreadPoolExecutor(num_threads) as pool:
        ends = list(pool.map(lambda wish: _end_of(stack, *wish), wishes))
    unexpected = [end for end in ends if end not in EXPECTED_ENDS]
    assert unexpected == []
    assert settled(stack)
    return Counter(ends)


EXPECTED_ENDS = {
    "answered", "left", "unknown_model", "context_length_exceeded", "empty_prompt", "invalid_token", "invalid_field",
    "unsupported_parameter", "unknown_field", "tenant_queue_full", "queue_full", "invalid_sampling", "invalid_grammar",
}  # fmt: skip


def _wish(chooser: random.Random) -> tuple[str, str, dict[str, Any], bool]:
    """Account, resource, body, and whether the client leaves early."""
    body: dict[str, Any] = {"model": chooser.choice(["one", "two", "three", "one", "nobody"]), "max_tokens": 12}
    body |= chooser.choice(
        [
            {}, {}, {}, {"temperature": 0.9, "seed": 4}, {"n": 3}, {"top_k": 3, "temperature": 1.0}, {"stop": ["a"]},
            {"min_p": 0.2, "temperature": 1.2}, {"n": 0}, {"temperature": -1}, {"seed": 2**70}, {"tools": [1]},
            {"response_format": {"type": "json_object"}}, {"response_format": {"type": "regex", "pattern": "(((" * 30}},
            {"presence_penalty": 1.5}, {"stop": [""]}, {"max_tokens": 10**6}, {"logprobs": 1}, {"nonsense": 1},
        ]
    )  # fmt: skip
    body["prompt"] = chooser.choice(
        ["alpha", "beta " * 9, prompt_of(30), [prompt_of(5), prompt_of(6)], "", [], [10**6], "gamma " * 400, "猫🎉"]
    )
    stream = chooser.random() < 0.4
    return chooser.choice([ALICE, "user:other"]), "completions", {**body, "stream": stream}, chooser.random() < 0.2


def _end_of(stack: Stack, account: str, _: str, body: dict[str, Any], leaves: bool) -> str:
    import httpx

    headers = {"Authorization": f"Bearer {stack.keys[account]}"}
    timeout = 0.02 if leaves and not body["stream"] else 60
    try:
        with (
            httpx.Client(timeout=timeout, verify=False) as client,  # no TLS: no context for it
            client.stream("POST", f"{stack.url}/v1/completions", json=body, headers=headers) as response,
        ):
            if response.status_code != 200:
                response.read()
                return str(response.json()["error"]["code"])
            for number, line in enumerate(response.iter_lines()):
                if leaves and number > 2:
                    return "left"
                if body["stream"] and '"error"' in line:
                    return "broke off: " + line
    except httpx.TimeoutException:
        return "left" if leaves else "timeout"
    return "answered"


def _bad_adapter(served: Served, tmp_path: Path, fault: str) -> Path:
    folder = tmp_path / "bad"
    if fault == "missing":
        return folder
    folder.mkdir()
    for path in served.folders["one"].iterdir():
        if path.is_file():
            (folder / path.name).write_bytes(path.read_bytes())
    weights = folder / "adapter_model.safetensors"
    if fault == "corrupt":
        weights.write_bytes(weights.read_bytes()[:300])
    elif fault == "pickled":
        weights.rename(folder / "adapter_model.bin")
    else:
        weights.unlink()
        weights.symlink_to(served.folders["one"] / "adapter_model.safetensors")
    return folder


def _terms(name: str, digest: str) -> Any:
    from serving_stack import terms

    return terms(name, digest)


def _renamed(body: Any, old: str, new: str) -> Any:
    return {key: value.replace(old, new) if isinstance(value, str) else value for key, value in body.items()}
