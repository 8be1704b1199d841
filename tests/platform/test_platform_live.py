"""Paid answers on LiveService: over a real economy, ledger and tokenizer, with an engine that says what it is told."""

import asyncio
import inspect
from contextlib import suppress

import pytest
from tiny_model import make_tiny_base

from openledger.adapters.base_model import load_tokenizer
from openledger.adapters.registry import AdapterRegistry
from openledger.core.errors import Conflict, InsufficientFunds, InvalidInput, NotFound, Unavailable
from openledger.core.values import AdapterTerms, SamplingParameters, TokenEvent
from openledger.economy import Economy
from openledger.ledger import Ledger
from openledger.platform.live import LiveService
from openledger.platform.workdir import Workdir

DIGEST, ACCOUNT, FUNDS = "ab" * 32, "user:alice", 10**9


class Remote:
    """An object as Ray hands it out: every method is called by `.remote`, and awaited."""

    def __init__(self, target):
        self._target = target

    def __getattr__(self, name):
        method = getattr(self._target, name)

        class Call:
            @staticmethod
            async def remote(*arguments):
                return method(*arguments)

        return Call


class Engine:
    """Says `pieces`, each of one token; fails or waits after as many as it is told."""

    def __init__(self, tokenizer):
        self.tokens = [*tokenizer("It joins alpha with beta.", add_special_tokens=False)["input_ids"]]
        self.tokenizer, self.fail_after, self.wait_after, self.calls = tokenizer, None, None, 0
        self.waiting = asyncio.Event()

    @property
    def generate(self):
        return self

    def options(self, **_):
        return self

    async def remote(self, request):
        self.calls += 1
        for number, token in enumerate([*self.tokens, self.tokenizer.eos_token_id]):
            if number == self.wait_after:
                self.waiting.set()
                await asyncio.Event().wait()
            if number == self.fail_after:
                error = Unavailable("the engine broke", code="engine_failed").to_dict()
                yield TokenEvent(request_id="", token_ids=(), text="", finish_reason="error", error=error)
                return
            last = token == self.tokenizer.eos_token_id
            text = "" if last else self.tokenizer.decode([token])
            yield TokenEvent(request_id="", token_ids=(token,), text=text, finish_reason="stop" if last else None)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture
def economy(tmp_path):
    ledger = Ledger(tmp_path / "ledger" / "ledger.db") if (tmp_path / "ledger").mkdir() is None else None
    economy = Economy(ledger, tmp_path / "ledger")
    economy.grant(ACCOUNT, FUNDS, "grant")
    yield economy
    economy.close()
    ledger.close()


@pytest.fixture
def engine(base):
    return Engine(load_tokenizer(base))


@pytest.fixture
def service(tmp_path, base, economy, engine):
    workdir = Workdir(tmp_path / "work")
    (workdir.adapters / "greek").mkdir()
    terms = AdapterTerms(
        adapter="greek", adapter_digest=DIGEST, datanet="greek", datanet_version=1, row_root="aa",
        owner_account="user:owner", prompt_price_nano=100, completion_price_nano=1000,
    )  # fmt: skip
    AdapterRegistry(workdir.adapters).register("greek", workdir.adapters / "greek", DIGEST, terms)
    return LiveService(workdir, base, engine, None, None, Remote(economy))


def chat(service, text="What does alpha do?", key="k1", model="greek"):
    messages = [{"role": "user", "content": text}]
    return service.chat(
        account=ACCOUNT, model=model, messages=messages, sampling=SamplingParameters(max_tokens=40), idempotency_key=key
    )


async def said(stream):
    events = [event async for event in stream]
    return "".join(event.text for event in events), events[-1].receipt


def spent(economy):
    return FUNDS - economy.balance(ACCOUNT).available_nano


async def test_an_answer_costs_what_its_receipt_says(service, economy):
    text, receipt = await said(chat(service))
    assert text == "It joins alpha with beta."
    assert spent(economy) == receipt.fee_nano == sum(receipt.parts.values()) > 0


async def test_a_retry_is_told_the_first_answer_and_pays_nothing(service, economy, engine):
    first = await said(chat(service))
    before = spent(economy)
    assert await said(chat(service)) == first
    assert (spent(economy), engine.calls) == (before, 1)


async def test_a_paid_key_opens_no_other_question(service, engine):
    await said(chat(service, "What does alpha do?"))
    with pytest.raises(Conflict) as caught:
        await said(chat(service, "What does gamma do?"))
    assert (caught.value.code, engine.calls) == ("idempotency_conflict", 1)


async def test_a_second_request_with_the_same_key_does_not_free_the_first(service, economy, engine):
    engine.wait_after = 2
    first = chat(service)
    reading = asyncio.create_task(said(first))
    await engine.waiting.wait()
    with pytest.raises(Conflict) as caught:
        await said(chat(service))
    assert caught.value.code == "request_in_flight"
    reading.cancel()
    with suppress(asyncio.CancelledError):
        await reading
    await asyncio.sleep(0.05)
    assert spent(economy) > 0  # the two tokens that were made are paid for, though nobody read on


async def test_a_client_that_leaves_pays_for_what_was_made(service, economy):
    stream = chat(service)
    await anext(stream)
    await anext(stream)
    await stream.aclose()
    assert 0 < spent(economy) < 3000 + 40 * 100


async def test_a_failed_generation_costs_nothing_and_its_key_can_be_used_again(service, economy, engine):
    engine.fail_after = 3
    with pytest.raises(Unavailable, match="the engine broke"):
        await said(chat(service))
    assert spent(economy) == 0
    engine.fail_after = None
    text, receipt = await said(chat(service))
    assert (text, spent(economy)) == ("It joins alpha with beta.", receipt.fee_nano)


async def test_what_can_be_refused_is_refused_before_the_engine_is_asked(service, economy, engine):
    with pytest.raises(NotFound):
        await said(chat(service, model="nope"))
    with pytest.raises(InvalidInput, match="empty"):
        await said(chat(service, "  "))
    with pytest.raises(InvalidInput, match="context"):
        await said(chat(service, "alpha " * 300))
    stream = service.chat(
        account="user:poor", model="greek", messages=[{"role": "user", "content": "alpha"}],
        sampling=SamplingParameters(), idempotency_key="k",
    )  # fmt: skip
    economy.create_key("user:poor")
    with pytest.raises(InsufficientFunds):
        await said(stream)
    assert (engine.calls, spent(economy)) == (0, 0)
    assert inspect.isasyncgen(stream)
