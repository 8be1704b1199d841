"""LiveService over a real economy, ledger, Datanets and tokenizer, with an engine that says what it is told."""

import asyncio
import hashlib
import inspect
import json
import threading
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from ray.exceptions import ActorDiedError
from tiny_model import make_tiny_base

from openledger.adapters.base_model import load_tokenizer
from openledger.adapters.registry import AdapterRegistry
from openledger.core.clock import ManualClock, SystemClock
from openledger.core.errors import (
    Conflict,
    Corrupt,
    Forbidden,
    InsufficientFunds,
    InvalidInput,
    NotFound,
    TooLarge,
    Unavailable,
)
from openledger.core.hashing import digest_bytes
from openledger.core.signing import SigningKey
from openledger.core.values import AdapterTerms, ContributorScores, RowDraft, SamplingParameters, TokenEvent, Usage
from openledger.datanets.contribution import sign_contribution
from openledger.datanets.datanets import Datanets
from openledger.datanets.shard import ShardHost
from openledger.economy import Economy
from openledger.ledger import Ledger
from openledger.ledger.receipts import check_receipt, encode_receipt
from openledger.openlora.engine import Vectors
from openledger.openlora.inbox import EventInbox
from openledger.openlora.outbox import EventOutbox
from openledger.openlora.text import TextStream, decoder
from openledger.platform.answering import _Fate, _merged
from openledger.platform.asking import EngineCalls
from openledger.platform.live import LiveService
from openledger.platform.replaying import rows_path
from openledger.platform.report_file import changing
from openledger.platform.workdir import Workdir

DIGEST, ACCOUNT, FUNDS = "ab" * 32, "user:alice", 10**9


class Remote:
    """An object as Ray hands it out: every method is called by `.remote`, and awaited.

    `away` names methods whose next call gets no answer: it isn't made, or (`done`) it is and its answer is lost.
    """

    def __init__(self, target):
        self._target, self.away, self.done, self.gate = target, set(), False, asyncio.Event()
        self.gate.set()

    def __getattr__(self, name):
        method = getattr(self._target, name)

        class Call:
            @staticmethod
            async def remote(*arguments):
                await self.gate.wait()
                lost = name in self.away
                self.away.discard(name)
                result = method(*arguments) if self.done or not lost else None
                if lost:
                    raise Unavailable("no answer", code="actor_unavailable")
                return result

        return Call


class Engine:
    """Says `pieces`, each of one token; fails or waits after as many as it is told."""

    def __init__(self, tokenizer):
        self.tokens = [*tokenizer("It joins alpha with beta.", add_special_tokens=False)["input_ids"]]
        self.tokenizer, self.calls = tokenizer, 0
        self.fail_after = self.wait_after = self.break_after = self.die_after = self.stop_after = None
        self.places = []
        self.waiting = asyncio.Event()

    @property
    def generate(self):
        return self

    def options(self, **_):
        return self

    async def remote(self, request, place=""):
        self.calls += 1
        self.places.append(place)
        stream = TextStream(decoder(self.tokenizer), request.sampling.stop)
        for number, token in enumerate([*self.tokens, self.tokenizer.eos_token_id]):
            if number == self.break_after:
                return
            if number == self.stop_after:
                raise asyncio.CancelledError
            if number == self.die_after:
                self.die_after = None
                raise ActorDiedError
            if number == self.wait_after:
                self.waiting.set()
                await asyncio.Event().wait()
            if number == self.fail_after:
                error = Unavailable("the engine broke", code="engine_failed").to_dict()
                yield TokenEvent(request_id="", token_ids=(), text="", finish_reason="error", error=error)
                return
            text, reason = stream.push(token), None
            if stream.stopped or token == self.tokenizer.eos_token_id:
                reason = "stop"
            elif number + 1 == request.sampling.max_tokens:
                reason = "length"
            text += stream.finish() if reason else ""
            usage = Usage(prompt_tokens=1, cached_tokens=7, completion_tokens=1, engine_ms=2.5) if reason else None
            yield TokenEvent(request_id="", token_ids=(token,), text=text, finish_reason=reason, usage=usage)
            if reason:
                return


class LineEngine:
    """Says a token over a line, as a replica does; nineteen more once it may."""

    def __init__(self):
        self.may_go_on, self._outbox = asyncio.Event(), EventOutbox(lambda _: None, 0.0)
        self.send = SimpleNamespace(remote=lambda *asked: asyncio.ensure_future(self._send(*asked)))

    async def _send(self, request, place, line):
        await self._outbox.send(self._events(), request.request_id, line)

    async def _events(self):
        for number in range(20):
            reason = "length" if number == 19 else None
            yield TokenEvent(request_id="", token_ids=(5,), text="a", finish_reason=reason)
            await self.may_go_on.wait()


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
def datanets(tmp_path):
    datanets = Datanets(tmp_path / "datanets", [ShardHost(tmp_path / "datanets" / "shard-0")], ManualClock())
    datanets.create("greek", "What letters do", "user:owner")
    yield datanets
    datanets.close()


@pytest.fixture
def actor(economy):
    return Remote(economy)


@pytest.fixture
def service(tmp_path, base, actor, engine, datanets, economy):
    workdir = Workdir(tmp_path / "work")
    (workdir.adapters / "greek").mkdir()
    terms = AdapterTerms(
        adapter="greek", adapter_digest=DIGEST, datanet="greek", datanet_version=1, row_root="aa",
        owner_account="user:owner", prompt_price_nano=100, completion_price_nano=1000,
    )  # fmt: skip
    AdapterRegistry(workdir.adapters).register("greek", workdir.adapters / "greek", DIGEST, terms)
    return LiveService(workdir, {base: engine}, Remote(datanets), Remote(economy._ledger), actor)


def chat(service, text="What does alpha do?", key="k1", model="greek", adapters=(), **sampling):
    messages = [{"role": "user", "content": text}]
    chosen = SamplingParameters(**{"max_tokens": 40, **sampling})
    return service.chat(
        account=ACCOUNT, model=model, messages=messages, sampling=chosen, idempotency_key=key, adapters=adapters
    )


async def said(stream):
    events = [event async for event in stream]
    return "".join(event.text for event in events), events[-1].receipt


async def ended(stream):
    """The whole text, and why it ended."""
    events = [event async for event in stream]
    return "".join(event.text for event in events), events[-1].finish_reason


async def hang_up(reading):
    reading.cancel()
    with suppress(asyncio.CancelledError):
        await reading


async def leave(stream, engine):
    """Ask, and hang up once the engine waits."""
    reading = asyncio.create_task(said(stream))
    await engine.waiting.wait()
    await hang_up(reading)


def spent(economy):
    return FUNDS - economy.balance(ACCOUNT).available_nano


async def test_an_answer_costs_what_its_receipt_says(service, economy):
    text, receipt = await said(chat(service))
    assert text == "It joins alpha with beta."
    assert spent(economy) == receipt.fee_nano == sum(receipt.parts.values()) > 0


async def test_who_was_not_paid_yet_has_no_payouts(service):
    assert await service.payouts("contributor:ctr_new") == []


async def test_an_answer_comes_with_a_signed_receipt_that_can_be_checked_and_had_again(service, economy):
    _, receipt = await said(chat(service))
    data, key = encode_receipt(receipt.signed), economy._ledger.verification_key()
    told = check_receipt(data, key)
    assert (told["transfer"]["amount_nano"], told["transfer"]["debit"]) == (receipt.fee_nano, ACCOUNT)
    assert told["transfer"]["reference"] == receipt.answer_id
    assert await service.receipt(ACCOUNT, receipt.answer_id) == data
    again = (await said(chat(service)))[1]
    assert (again.answer_id, again.signed) == (receipt.answer_id, receipt.signed)


@pytest.mark.parametrize(("account", "answer"), [("user:bob", None), (ACCOUNT, "ans_none")])
async def test_a_receipt_is_for_who_paid_and_for_nobody_else(service, account, answer):
    _, receipt = await said(chat(service))
    with pytest.raises(NotFound) as caught:
        await service.receipt(account, answer or receipt.answer_id)
    assert caught.value.code == "answer_not_sold"


async def test_the_signed_receipt_comes_with_the_payment_in_one_call(service, monkeypatch):
    monkeypatch.setattr(service, "_ledger", None)
    assert (await said(chat(service)))[1].signed["format"] == "openledger.receipt/1"


async def test_the_last_words_of_a_stream_do_not_wait_for_their_payment(service, actor):
    events = chat(service, max_tokens=2)
    first = await anext(events)
    actor.gate.clear()
    async with asyncio.timeout(10):
        last_words = await anext(events)
    assert (first.token_count, last_words.token_count, last_words.finish_reason) == (1, 1, None)
    actor.gate.set()
    (end,) = [event async for event in events]
    assert (end.text, end.finish_reason, end.receipt.completion_tokens) == ("", "length", 2)


async def test_who_reads_nothing_before_the_end_gets_last_words_and_receipt_in_one(service):
    asked = {"model": "greek", "prompts": ["alpha"], "sampling": SamplingParameters(max_tokens=1)}
    (end,) = [event async for event in service.complete(account=ACCOUNT, idempotency_key="k1", whole=True, **asked)]
    assert (end.token_count, end.finish_reason, end.receipt.completion_tokens) == (1, "length", 1)


async def test_a_client_that_leaves_after_the_last_words_has_paid_for_all_of_them(service, economy):
    events = chat(service, max_tokens=2)
    await anext(events), await anext(events)
    await events.aclose()
    (stored,) = economy._answers.waiting() or [economy._answers.find(economy._answers.last_posted())]
    assert (stored.state, stored.usage["num_completion_tokens"]) == ("posted", 2)
    assert spent(economy) == stored.usage["fee_nano"]


class TestAReaderWhoStandsStill:
    """What he was told is paid for, whether he reads on or not."""

    @staticmethod
    def expire(service, economy, monkeypatch):
        """Let all holds' time be up; their economy releases them."""
        later = ManualClock(SystemClock().now_ms() + 15 * 60_000 + 1_000)
        monkeypatch.setattr(economy._sales, "_clock", later)
        monkeypatch.setattr(service._answering, "_clock", later)
        economy._sales.release_expired()

    @staticmethod
    def timers(monkeypatch):
        """What is done just before a hold ends, to be done by hand."""
        loop, noted = asyncio.get_running_loop(), []
        call_at = loop.call_at

        def note(when_s, callback, *arguments, **more):
            if getattr(callback, "__name__", "") == "_end_unread":
                noted.append(partial(callback, *arguments))
            return call_at(when_s, callback, *arguments, **more)

        monkeypatch.setattr(loop, "call_at", note)
        return noted

    @staticmethod
    def paid_tokens(economy):
        """Of the last answer that was paid for."""
        stored = economy._answers.find(economy._answers.last_posted())
        return 0 if stored is None else stored.usage["num_completion_tokens"]

    async def test_after_the_last_words_has_paid_for_them(self, service, economy, monkeypatch):
        events = chat(service, max_tokens=2)
        await anext(events), await anext(events)
        async with asyncio.timeout(10):
            while not self.paid_tokens(economy):
                await asyncio.sleep(0.01)
        self.expire(service, economy, monkeypatch)
        (end,) = [event async for event in events]
        assert (end.receipt.completion_tokens, spent(economy)) == (2, end.receipt.fee_nano)

    async def test_beyond_his_holds_time_is_not_told_what_can_not_be_paid(self, service, economy, monkeypatch):
        events = chat(service, max_tokens=2)
        await anext(events)
        self.expire(service, economy, monkeypatch)
        with pytest.raises(Conflict) as caught:
            await anext(events)
        assert (caught.value.code, spent(economy)) == ("hold_released", 0)

    async def test_is_told_his_last_words_when_they_are_paid_where_the_hold_ends_soon(
        self, service, actor, monkeypatch
    ):
        events = chat(service, max_tokens=2)
        await anext(events)
        soon = ManualClock(SystemClock().now_ms() + 15 * 60_000 - 5_000)
        monkeypatch.setattr(service._answering, "_clock", soon)
        actor.gate.clear()
        reading = asyncio.ensure_future(anext(events))
        done, _ = await asyncio.wait({reading}, timeout=0.1)
        actor.gate.set()
        end = await reading
        assert (done, end.token_count, end.finish_reason, end.receipt.completion_tokens) == (set(), 1, "length", 2)

    async def test_while_the_engine_ends_pays_all_before_the_hold_ends(self, service, economy, monkeypatch):
        """What is unread is one event by then."""
        timers, engine, inbox = self.timers(monkeypatch), LineEngine(), EventInbox("127.0.0.1")
        next(iter(service._bases)).calls = EngineCalls(engine, inbox)
        events = chat(service, max_tokens=20)
        assert (await anext(events)).token_count == 1
        engine.may_go_on.set()
        (end_unread,) = timers
        end_unread()
        async with asyncio.timeout(10):
            while not self.paid_tokens(economy):
                await asyncio.sleep(0.01)
        self.expire(service, economy, monkeypatch)
        with pytest.raises(Unavailable) as caught:
            await anext(events)
        assert (caught.value.code, self.paid_tokens(economy)) == ("answer_late", 20)
        before = spent(economy)
        _, receipt = await said(chat(service, max_tokens=20))
        assert (receipt.completion_tokens, receipt.fee_nano, spent(economy)) == (20, before, before)
        inbox.close()

    async def test_keeps_his_key_until_he_has_gone(self, service, economy, monkeypatch):
        timers = self.timers(monkeypatch)
        events = chat(service)
        await anext(events)
        timers[0]()
        await service.close()
        with pytest.raises(Conflict) as caught:
            await said(chat(service))
        assert (caught.value.code, self.paid_tokens(economy)) == ("request_in_flight", 1)
        await events.aclose()
        assert (await said(chat(service)))[1].completion_tokens == 1

    async def test_is_charged_at_the_end_of_his_reading_where_it_could_not_be_done_before(
        self, service, economy, actor, monkeypatch
    ):
        timers = self.timers(monkeypatch)
        events = chat(service)
        await anext(events)
        actor.away = {"complete_each"}
        timers[0]()
        await service.close()
        assert self.paid_tokens(economy) == 0
        with pytest.raises(Unavailable):
            await anext(events)
        assert self.paid_tokens(economy) == 1


class TestAnEngineThatIsSlowerThanTheHold:
    @pytest.fixture
    def soon(self, service, engine, monkeypatch):
        clock = ManualClock(SystemClock().now_ms() + 15 * 60_000 - 10_500)
        monkeypatch.setattr(service._answering, "_clock", clock)
        engine.wait_after = 2

    @pytest.mark.parametrize("number", [1, 2])
    async def test_has_what_was_told_paid_in_time(self, service, economy, soon, number):
        told = []

        async def read():
            async for event in chat(service, num_answers=number):
                told.append(event.token_count)

        async with asyncio.timeout(20):
            with pytest.raises(Unavailable) as caught:
                await read()
        stored = [json.loads(row[0]) for row in economy._db.execute("SELECT statement FROM answers")]
        assert caught.value.code == "answer_late"
        assert sum(told) == sum(usage["num_completion_tokens"] for usage in stored)
        assert spent(economy) == sum(usage["fee_nano"] for usage in stored)

    @pytest.mark.parametrize("number", [1, 2])
    async def test_costs_nothing_where_nobody_was_told_anything(self, service, economy, soon, number):
        chosen = SamplingParameters(max_tokens=40, num_answers=number)
        asked = service.complete(
            account=ACCOUNT, model="greek", prompts=["alpha"], sampling=chosen, idempotency_key="k1", whole=True
        )
        async with asyncio.timeout(20):
            with pytest.raises(Unavailable) as caught:
                await said(asked)
        assert (caught.value.code, economy.balance(ACCOUNT).available_nano) == ("answer_late", FUNDS)


@pytest.mark.parametrize("away", [set(), {"complete_each"}], ids=["paid at once", "paid at the second try"])
async def test_who_leaves_after_the_last_words_has_their_usage_kept(service, economy, actor, away):
    events = chat(service, max_tokens=2)
    await anext(events), await anext(events)
    actor.away = away
    await events.aclose()
    answer, _ = economy.completed(economy._answers.last_posted())
    assert (answer.cached_tokens, answer.engine_us) == (7, 2500)


async def test_told_again_while_the_ledger_does_not_answer_the_receipt_comes_later(service, economy):
    await said(chat(service))
    service._ledger.away = {"receipt"}
    text, receipt = await said(chat(service))
    assert (text, receipt.signed, spent(economy)) == ("It joins alpha with beta.", None, receipt.fee_nano)
    data = await service.receipt(ACCOUNT, receipt.answer_id)
    assert check_receipt(data, economy._ledger.verification_key())["transfer"]["reference"] == receipt.answer_id


async def test_a_key_with_a_cap_is_refused_by_what_is_missing_and_nothing_is_held(service, economy):
    digest = hashlib.sha256(economy.create_key(ACCOUNT, 1).encode()).hexdigest()
    with pytest.raises(InsufficientFunds) as caught:
        await said(
            service.chat(
                account=ACCOUNT,
                model="greek",
                messages=[{"role": "user", "content": "What does alpha do?"}],
                sampling=SamplingParameters(max_tokens=40),
                idempotency_key="k1",
                key_digest=digest,
            )
        )
    assert (caught.value.code, spent(economy)) == ("spending_cap_reached", 0)


async def test_a_retry_is_told_the_first_answer_and_pays_nothing(service, economy, engine):
    first = await said(chat(service))
    before = spent(economy)
    assert await said(chat(service)) == first
    assert (spent(economy), engine.calls) == (before, 1)


async def test_what_of_an_ensemble_was_not_paid_when_it_was_cut_off_is_paid_by_the_retry(
    service, economy, engine, monkeypatch, base
):
    terms = replace(service._registry.get("greek").terms, adapter="latin", adapter_digest="cd" * 32)
    service._registry.register("latin", None, terms.adapter_digest, terms, source="/here")
    complete_each, weights = economy.complete_each, (("greek", 1.0), ("latin", 3.0))

    def only_greek(requests):
        complete_each([[part for part in parts if part.adapter == "greek"] for parts in requests])
        raise Unavailable("no answer", code="actor_unavailable")

    monkeypatch.setattr(economy, "complete_each", only_greek)
    with pytest.raises(Unavailable):
        await said(chat(service, model=base.name, adapters=weights))
    monkeypatch.setattr(economy, "complete_each", complete_each)
    text, receipt = await said(chat(service, model=base.name, adapters=weights))
    assert (text, engine.calls) == ("It joins alpha with beta.", 1)
    assert spent(economy) == receipt.fee_nano == sum(each.fee_nano for each in receipt.adapters)
    pools = [economy.pool(name, economy.current_period()) for name in ("greek", "latin")]
    assert [len(pool.answers) for pool in pools] == [1, 1]
    assert economy.balance(ACCOUNT).posted_nano == economy.balance(ACCOUNT).available_nano


async def test_a_gateway_that_ends_while_it_sells_an_ensembles_answer_leaves_no_adapter_unpaid(
    service, economy, monkeypatch, base
):
    terms = replace(service._registry.get("greek").terms, adapter="latin", adapter_digest="cd" * 32)
    service._registry.register("latin", None, terms.adapter_digest, terms, source="/here")
    sold = []

    def its_last(method):
        def call(*arguments):
            if sold:
                raise Unavailable("no answer", code="actor_unavailable")
            sold.append(arguments)
            return method(*arguments)

        return call

    for name in ("complete", "complete_each", "cancel"):
        monkeypatch.setattr(economy, name, its_last(getattr(economy, name)))
    with suppress(Unavailable):
        await said(chat(service, model=base.name, adapters=(("greek", 1.0), ("latin", 3.0))))
    pools = [economy.pool(name, economy.current_period()) for name in ("greek", "latin")]
    assert [len(pool.answers) for pool in pools] == [1, 1]
    assert economy.balance(ACCOUNT).posted_nano == economy.balance(ACCOUNT).available_nano


async def test_an_ensemble_that_fails_costs_nothing_by_any_of_its_adapters(service, economy, engine, base):
    terms = replace(service._registry.get("greek").terms, adapter="latin", adapter_digest="cd" * 32)
    service._registry.register("latin", None, terms.adapter_digest, terms, source="/here")
    engine.fail_after = 2
    with pytest.raises(Unavailable):
        await said(chat(service, model=base.name, adapters=(("greek", 1.0), ("latin", 1.0))))
    assert spent(economy) == 0


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


@pytest.mark.parametrize(
    ("sampling", "text", "reason"),
    [
        ({}, "It joins alpha with beta.", "stop"),
        ({"stop": (" with",)}, "It joins alpha", "stop"),
        ({"max_tokens": 1}, "It", "length"),
    ],
    ids=["to its end", "stop string", "token limit"],
)
async def test_a_retry_is_told_the_same_text_and_the_same_end(service, engine, sampling, text, reason):
    first = await ended(chat(service, **sampling))
    assert first[0].startswith(text[:2])
    assert first[1] == reason
    assert text == first[0] or reason == "length"
    assert (await ended(chat(service, **sampling)), engine.calls) == (first, 1)


@pytest.mark.parametrize("other", [{"max_tokens": 39}, {"temperature": 0.5}, {"seed": 1}, {"stop": ("x",)}], ids=str)
async def test_a_paid_key_opens_no_other_sampling(service, engine, other):
    await said(chat(service))
    with pytest.raises(Conflict) as caught:
        await said(chat(service, **other))
    assert (caught.value.code, engine.calls) == ("idempotency_conflict", 1)


async def test_a_settled_answer_is_not_told_again_and_not_made_again(service, economy, engine):
    await said(chat(service))
    before = spent(economy)
    measured = {"scores_nano": {"ctr_a": 1}, "errors_nano": {"ctr_a": 0}, "gain_nano": 1}
    economy.settle(ContributorScores(adapter="greek", period="p0001", method="test/1", **measured), {})
    with pytest.raises(Conflict) as caught:
        await said(chat(service))
    assert (caught.value.code, engine.calls, spent(economy)) == ("answer_settled", 1, before)


async def test_the_customer_can_mark_an_answer_wrong(service, economy):
    _, receipt = await said(chat(service))
    assert await service.mark(ACCOUNT, receipt.answer_id, "wrong") == f"{receipt.answer_id}.verdict"
    assert [answer.counted for answer in economy.pool("greek", "p0001").answers] == [False]
    with pytest.raises(Forbidden):
        await service.mark("user:bob", receipt.answer_id, "wrong")


async def test_of_two_requests_at_once_one_is_answered(service, economy, engine, actor):
    actor.gate.clear()
    asking = asyncio.gather(said(chat(service)), said(chat(service)), return_exceptions=True)
    await asyncio.sleep(0)
    actor.gate.set()
    both = await asking
    (refused,) = [one for one in both if isinstance(one, Conflict)]
    (answered,) = [one for one in both if isinstance(one, tuple)]
    assert (refused.code, engine.calls, spent(economy)) == ("request_in_flight", 1, answered[1].fee_nano)


async def test_a_client_that_leaves_before_the_first_token_pays_nothing(service, economy, engine):
    engine.wait_after = 0
    await leave(chat(service), engine)
    assert spent(economy) == 0
    engine.wait_after = None
    assert (await said(chat(service)))[0] == "It joins alpha with beta."


async def test_a_client_that_left_and_comes_back_is_told_what_it_paid_for(service, economy, engine):
    engine.wait_after = 2
    await leave(chat(service), engine)
    before = spent(economy)
    text, receipt = await said(chat(service))
    assert "It joins alpha with beta.".startswith(text)
    assert (receipt.completion_tokens, receipt.fee_nano, spent(economy), engine.calls) == (2, before, before, 1)


async def test_a_key_stays_taken_until_its_hold_is_closed_also_for_a_reader_cancelled_twice(service, engine, actor):
    engine.wait_after = 2
    reading = asyncio.create_task(said(chat(service)))
    await engine.waiting.wait()
    actor.gate.clear()
    reading.cancel()
    await asyncio.sleep(0)
    await hang_up(reading)
    with pytest.raises(Conflict) as caught:
        await said(chat(service))
    assert caught.value.code == "request_in_flight"
    actor.gate.set()
    await asyncio.sleep(0.05)
    assert (await said(chat(service)))[1].completion_tokens == 2


@pytest.mark.parametrize("done", [True, False], ids=["after completing", "before completing"])
async def test_an_answer_whose_receipt_was_lost_is_told_on_a_retry(service, economy, engine, actor, done):
    actor.away, actor.done = {"complete_each"}, done
    with pytest.raises(Unavailable, match="no answer"):
        await said(chat(service))
    text, receipt = await said(chat(service))
    assert (text, engine.calls) == ("It joins alpha with beta.", 1)
    assert spent(economy) == receipt.fee_nano > 0


async def test_a_hold_that_can_not_be_voided_does_not_hide_why_the_engine_failed(service, engine, actor):
    engine.fail_after, actor.away = 1, {"cancel"}
    with pytest.raises(Unavailable, match="the engine broke"):
        await said(chat(service))


async def test_a_stream_that_breaks_off_is_an_error_and_costs_nothing(service, economy, engine):
    engine.break_after = 2
    with pytest.raises(Unavailable) as caught:
        await said(chat(service))
    assert (caught.value.code, spent(economy)) == ("engine_broke_off", 0)


async def test_a_replica_lost_in_mid_answer_is_an_error_that_costs_nothing_and_can_be_asked_again(
    service, economy, engine
):
    engine.die_after = 2
    with pytest.raises(Unavailable) as caught:
        await said(chat(service))
    assert (caught.value.code, spent(economy)) == ("engine_lost", 0)
    text, receipt = await said(chat(service))
    assert (text, spent(economy)) == ("It joins alpha with beta.", receipt.fee_nano)


async def test_a_replica_lost_before_the_first_token_is_not_noticed(service, economy, engine):
    engine.die_after = 0
    text, receipt = await said(chat(service))
    assert (text, engine.calls, spent(economy)) == ("It joins alpha with beta.", 2, receipt.fee_nano)


async def test_the_engine_is_told_where_the_adapter_is(service, engine, tmp_path):
    await said(chat(service))
    assert engine.places == [str((tmp_path / "work" / "adapters" / "greek").resolve())]


async def test_several_answers_are_held_metered_and_kept_one_by_one(service, economy):
    events = [event async for event in chat(service, num_answers=3, seed=1)]
    receipts = [event.receipt for event in events if event.receipt]
    assert sorted(event.index for event in events if event.receipt) == [0, 1, 2]
    assert len({receipt.answer_id for receipt in receipts}) == 3
    assert spent(economy) == sum(receipt.fee_nano for receipt in receipts)
    assert len(economy.pool("greek", "p0001").answers) == 3


async def test_of_several_answers_one_that_fails_ends_all_at_no_cost(service, economy, engine):
    engine.fail_after = 3
    with pytest.raises(Unavailable, match="the engine broke"):
        await said(chat(service, num_answers=3))
    await asyncio.sleep(0.05)
    assert spent(economy) == 0


async def test_a_reader_who_leaves_while_holds_are_placed_leaves_none(service, economy, actor):
    actor.gate.clear()
    reading = asyncio.create_task(said(chat(service, num_answers=3)))
    await asyncio.sleep(0.01)
    reading.cancel()
    await asyncio.sleep(0.01)
    actor.gate.set()
    with suppress(asyncio.CancelledError):
        await reading
    assert spent(economy) == 0


def complete(service, prompts, key="k1", account=ACCOUNT, **sampling):
    chosen = SamplingParameters(**{"max_tokens": 40, **sampling})
    return service.complete(
        account=account, model="greek", prompts=prompts, sampling=chosen, idempotency_key=key, echo=True
    )


async def test_text_is_completed_as_it_is_and_echoed(service, economy, base):
    tokenizer = load_tokenizer(base)
    ids = tokenizer("beta")["input_ids"]
    events = [event async for event in complete(service, ["alpha", ids])]
    firsts = {event.index: event for event in reversed(events)}
    assert [firsts[index].prompt_text for index in (0, 1)] == ["alpha", tokenizer.decode(ids)]
    told = {event.index: event.receipt.prompt_tokens for event in events if event.receipt}
    assert told == {0: len(tokenizer("alpha")["input_ids"]), 1: len(ids)}


@pytest.mark.parametrize(
    ("prompts", "code"),
    [([""], "empty_prompt"), (["alpha", []], "empty_prompt"), ([[10**6]], "invalid_token"),
     (["alpha " * 300], "context_length_exceeded")],
)  # fmt: skip
async def test_of_prompts_one_that_can_not_be_refuses_all(service, economy, engine, prompts, code):
    with pytest.raises(InvalidInput) as caught:
        await said(complete(service, prompts))
    assert (caught.value.code, engine.calls, spent(economy)) == (code, 0, 0)


def contributed(datanets, name="ada"):
    """One accepted and one refused row by `name`, and its id."""
    key = SigningKey(name.encode().ljust(32, b"."))
    who = datanets.register_contributor(key.public_key, name)
    good = "Open the archive and return its members in the order in which they were written."
    drafts = [RowDraft(prompt="What does archive.members do?", completion=good), RowDraft(prompt="x", completion="y")]
    datanets.contribute(sign_contribution(key, "greek", drafts, "1"))
    return who.contributor_id


def contributed_row(datanets, name="ada"):
    """The id of an accepted one."""
    drafts = [RowDraft(prompt=f"What does {name} do?", completion=f"It joins {name} with the names before it.")]
    key = SigningKey(hashlib.sha256(name.encode()).digest())
    (verdict,) = datanets.contribute(sign_contribution(key, "greek", drafts, "1")).verdicts
    assert verdict.outcome == "accept"
    return verdict.row_id


async def kept_time(service):
    """As a start of the API does."""
    keeping = asyncio.create_task(service.desk.keep_time(60.0))
    for _ in range(100):
        await asyncio.sleep(0)
    await hang_up(keeping)


async def test_a_removal_that_was_cut_off_before_the_log_is_put_there_by_the_next_start(service, datanets, economy):
    row_id = contributed_row(datanets)
    service._ledger = Remote(economy._ledger)
    service._ledger.away = {"commit"}
    with pytest.raises(Unavailable):
        await service.remove_rows("user:owner", "greek", [row_id], "court_order")
    (removal,) = datanets.removals("greek")
    assert economy._ledger.find(removal.removal_id) is None
    await kept_time(service)
    assert economy._ledger.find(removal.removal_id) is not None
    assert datanets.unlogged_removals() == []
    economy._ledger.audit()


async def test_a_removal_that_was_cut_off_before_the_log_is_put_there_by_the_next_removal(service, datanets, economy):
    first, second = contributed_row(datanets), contributed_row(datanets, "bob")
    cut_off = datanets.remove("greek", [first], "user:owner", "court_order")
    service._ledger = Remote(economy._ledger)
    told = await service.remove_rows("user:owner", "greek", [second], "court_order")
    assert told["transfer_id"] != cut_off.removal_id
    assert economy._ledger.find(cut_off.removal_id) is not None
    assert datanets.unlogged_removals() == []


async def test_a_removal_that_the_log_refuses_keeps_no_other_from_it(service, datanets, economy, monkeypatch):
    refused, other = (datanets.remove("greek", [contributed_row(datanets, name)], "user:owner", "court_order")
                      for name in ("ada", "bob"))  # fmt: skip
    ledger = Remote(economy._ledger)
    commit = economy._ledger.commit
    monkeypatch.setattr(
        economy._ledger,
        "commit",
        lambda transfers, statement: (
            ["exists_with_different_statement"] * 2
            if statement["removal_id"] == refused.removal_id
            else commit(transfers, statement)
        ),
    )
    service._ledger = ledger
    await service._log_removals()
    assert datanets.unlogged_removals() == [refused]
    assert economy._ledger.find(other.removal_id) is not None


def reported(service, *row_ids, **told):
    """A report of one answer, whose sources the rows are, as a run writes it."""
    sources = [
        {"row_id": row_id, "contributor_id": "c", "datanet": "greek", "score": 0.5, "completion": f"It is {row_id}."}
        for row_id in row_ids
    ]
    answer = {"answer_id": "ans_1", "adapter": "greek", "sources": sources, **told}
    service._workdir.report.write_text(json.dumps({"answers": [answer]}))


async def test_after_a_removal_no_file_of_the_working_folder_has_the_rows_text(service, datanets, economy, tmp_path):
    service._ledger = Remote(economy._ledger)
    row_id, other = contributed_row(datanets), contributed_row(datanets, "bob")
    (row,) = datanets._layout.take("greek", [row_id])
    said = {"question": row.prompt, "expected": row.completion, "answer": row.completion}
    reported(service, row_id, other, asked_row=row_id, **said)
    assert holding(tmp_path, row.completion)
    await service.remove_rows("user:owner", "greek", [row_id], "court_order")
    assert holding(tmp_path, row.completion) == holding(tmp_path, f"It is {row_id}.") == []
    (kept,) = json.loads(service._workdir.report.read_text())["answers"]
    assert ([source["row_id"] for source in kept["sources"]], kept["num_removed_sources"]) == ([other], 1)
    assert (kept["question"], kept["expected"], kept["answer"]) == ("", "", "")


def holding(folder, text):
    return [path for path in folder.rglob("*") if path.is_file() and text.encode() in path.read_bytes()]


async def test_a_report_that_was_written_after_a_removal_tells_nothing_of_its_rows(service, datanets):
    row_id, other = contributed_row(datanets), contributed_row(datanets, "bob")
    datanets.set_display("greek", "text")
    datanets.remove("greek", [row_id], "user:owner", "court_order")
    reported(service, row_id, other)
    (answer,) = (await service.report())["answers"]
    assert [source["completion"] for source in answer["sources"]] == [f"It is {other}."]
    assert await service.attribution("ans_1") == answer


async def test_a_removal_that_was_cut_off_before_the_report_is_forgotten_there_with_what_the_log_lacks(
    service, datanets, economy
):
    service._ledger = Remote(economy._ledger)
    row_id = contributed_row(datanets)
    reported(service, row_id)
    datanets.remove("greek", [row_id], "user:owner", "court_order")
    await service._log_removals()
    assert f"It is {row_id}." not in service._workdir.report.read_text()


async def test_an_old_reports_questions_of_rows_are_neither_told_nor_kept(service):
    said = {"question": "What does parse do?", "expected": "It parses it all.", "answer": "It parses it all."}
    reported(service, kind="held_in", **said)
    (told,) = (await service.report())["answers"]
    assert [told[name] for name in said] == [""] * 3
    assert service._forget_in_report in service.desk._catch_up
    await service._forget_in_report()
    assert "It parses it all." not in service._workdir.report.read_text()


async def test_a_report_that_another_writes_meanwhile_is_read_once_he_is_done(service, datanets):
    """As the quickstart does, which asked for removals before this one."""
    row_id = contributed_row(datanets)
    datanets.remove("greek", [row_id], "user:owner", "court_order")
    with changing(service._workdir.report):
        reported(service)
        forgetting = [asyncio.create_task(service._forget_in_report()) for _ in range(3)]
        await asyncio.wait(forgetting, timeout=0.3)
        reported(service, row_id)
    await asyncio.gather(*forgetting)
    assert f"It is {row_id}." not in service._workdir.report.read_text()


async def test_a_contribution_whose_answer_is_lost_is_judged_all_the_same(service, economy):
    key = SigningKey(b"b" * 32)
    sent = sign_contribution(key, "greek", [RowDraft(prompt="What does beta do?", completion="It ends.")], "1")
    service._datanets.away, service._datanets.done = {"contribute"}, True
    with pytest.raises(Unavailable):
        await service.contribute(sent)
    told = economy.reputation(sent.contributor_id, "greek")
    assert told["ppm"] != economy.reputation("ctr_new", "greek")["ppm"]
    await service.contribute(sent)
    assert economy.reputation(sent.contributor_id, "greek") == told


async def test_datanets_are_told_without_a_report(service, datanets):
    contributed(datanets)
    datanets.publish("greek")
    datanets.create("empty", "Nothing yet", "user:owner")
    empty, greek = await service.datanets()
    assert (empty["name"], empty["version"], empty["rows_in"], empty["contributors"]) == ("empty", 0, 0, [])
    assert (greek["summary"], greek["version"], len(greek["row_root"])) == ("What letters do", 1, 64)
    assert (greek["rows_in"], greek["accepted"], greek["rejected"], greek["review"]) == (2, 1, 1, 0)
    assert await service.datanet("greek") == greek
    assert [person["name"] for person in greek["contributors"]] == ["ada"]


async def test_a_datanet_with_a_damaged_file_says_so_and_names_no_folder(service, datanets):
    datanets._damages["greek"] = Corrupt("shard /work/shard-1, file x: gone", code="corrupt_shard_file")
    datanets.create("sound", "Nothing yet", "user:owner")
    assert [(one["name"], one["damage"]) for one in await service.datanets()] == [
        ("greek", "corrupt_shard_file"),
        ("sound", ""),
    ]


async def test_what_the_report_tells_stands_beside_what_the_datanets_know(service, datanets, tmp_path):
    person = {"contributor_id": contributed(datanets), "kind": "honest", "accepted": 9, "earned_nano": 5}
    told = {"name": "greek", "rows_in": 9, "adapter": {"name": "greek"}, "pool_nano": 7, "contributors": [person]}
    (tmp_path / "work" / "report.json").write_text(json.dumps({"datanets": [told]}))
    entry = await service.datanet("greek")
    assert (entry["rows_in"], entry["adapter"], entry["pool_nano"]) == (2, {"name": "greek"}, 7)
    (one,) = entry["contributors"]
    assert (one["accepted"], one["earned_nano"], one["kind"]) == (1, 5, "honest")


@pytest.mark.parametrize(("policy", "told"), [("text", ["It parses."]), ("reference", [None]), ("none", [])])
async def test_an_answers_sources_are_told_as_the_datanets_policy_is_now(service, datanets, tmp_path, policy, told):
    source = {"row_id": "r1", "contributor_id": "c", "datanet": "greek", "score": 0.5, "completion": "It parses."}
    answer = {"answer_id": "ans_1", "adapter": "greek", "sources": [source]}
    (tmp_path / "work" / "report.json").write_text(json.dumps({"answers": [answer]}))
    datanets.set_display("greek", policy)
    found = await service.attribution("ans_1")
    assert [one.get("completion") for one in found["sources"]] == told
    assert (await service.report())["answers"] == [found]
    assert (await service.datanet("greek"))["display"] == policy


def keep_row_scores(service, monkeypatch, adapter, *documents, **stated):
    """As a settlement of p0001 that names them; the last one's path."""
    quality = {}
    for number, rows in enumerate(documents):
        told = {"format": "openledger.row-scores/1", "adapter_digest": f"{number}" * 64, "deviation": 0.0, "rows": rows}
        text = json.dumps({**told, "datanet": "greek", "shared_with": [], **stated}).encode()
        path = rows_path(
            service._workdir.rows, adapter, "p0001", quality.setdefault(f"{number}.row_scores", digest_bytes(text))
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text)
    monkeypatch.setattr(service._economy._target, "settlement_quality", lambda *_: quality)
    return path


def row_score(row_id, contributor, nano, kind="expected_nano"):
    return {"row_id": row_id, "contributor_id": contributor, "use": {kind: nano}}


async def test_rows_that_moved_a_pool_most_come_first_of_all_adapters_that_were_sold(service, monkeypatch):
    first = [row_score("r1", "a", 5), row_score("r2", "b", -9)]
    keep_row_scores(service, monkeypatch, "greek", first, [row_score("r3", "a", 7, "this_run_nano")])
    told = await service.row_scores("greek", "p0001", limit=2)
    assert ([row["row_id"] for row in told["rows"]], told["has_more"]) == (["r2", "r3"], True)
    assert [one["adapter_digest"] for one in told["adapters"]] == ["0" * 64, "1" * 64]
    own = await service.row_scores("greek", "p0001", contributor="a")
    assert ([row["row_id"] for row in own["rows"]], own["has_more"]) == (["r3", "r1"], False)


async def test_pages_of_rows_follow_each_other_though_adapters_have_the_same_rows(service, monkeypatch):
    """As those of an adapter that was trained again within the period; rows that moved nothing stand side by side."""
    same = [row_score(f"r.{number}", "a", 0) for number in range(3)]
    keep_row_scores(service, monkeypatch, "greek", [row_score("r9", "b", -9), *same], same)
    seen, after = [], ""
    for _ in range(7):
        told = await service.row_scores("greek", "p0001", limit=1, after=after)
        seen += [(row["row_id"], row["adapter_digest"][0]) for row in told["rows"]]
        assert told["has_more"] == bool(told["next"])
        after = told["next"]
    assert (after, seen[0], seen[1:]) == ("", ("r9", "0"), [(f"r.{n}", digest) for n in range(3) for digest in "01"])
    own = await service.row_scores("greek", "p0001", contributor="a", limit=5)
    assert (await service.row_scores("greek", "p0001", contributor="a", after=own["next"]))["rows"] == [
        {**same[2], "adapter_digest": "1" * 64}
    ]
    for wrong in ("x", "1.2", "1.x.r1"):
        with pytest.raises(InvalidInput) as caught:
            await service.row_scores("greek", "p0001", after=wrong)
        assert (caught.value.code, caught.value.param) == ("invalid_after", "after")


async def test_rows_of_a_datanet_that_displays_none_are_refused(service, datanets, monkeypatch):
    contributed(datanets)
    for name in ("greek", "sold-as-this"):  # the second is registered no more, and no Datanet has its name
        keep_row_scores(service, monkeypatch, name, [row_score("r1", "a", 5)])
        datanets.set_display("greek", "reference")
        assert (await service.row_scores(name, "p0001"))["rows"]
        datanets.set_display("greek", "none")
        with pytest.raises(Forbidden) as caught:
            await service.row_scores(name, "p0001")
        assert caught.value.code == "rows_not_displayed"


@pytest.mark.parametrize("datanet", ["", "gone"])
async def test_rows_of_a_datanet_that_is_not_known_are_refused(service, monkeypatch, datanet):
    keep_row_scores(service, monkeypatch, "greek", [row_score("r1", "a", 5)], datanet=datanet)
    with pytest.raises(Forbidden) as caught:
        await service.row_scores("greek", "p0001")
    assert caught.value.code == "rows_not_displayed"


@pytest.mark.parametrize("shared_with", [["user:owner", "user:bob"], None])
async def test_rows_of_an_adapter_that_was_shared_with_some_are_told_nobody_else(service, monkeypatch, shared_with):
    keep_row_scores(service, monkeypatch, "gone", [row_score("r1", "a", 5)], shared_with=shared_with)
    for account in ("", ACCOUNT, *([] if shared_with else ["user:bob"])):
        with pytest.raises(NotFound) as caught:
            await service.row_scores("gone", "p0001", account=account)
        assert caught.value.code == "no_row_scores"
    if shared_with:
        assert (await service.row_scores("gone", "p0001", account="user:bob"))["rows"]


async def test_rows_of_an_adapter_that_an_account_may_not_ask_by_now_are_not_told(service, monkeypatch):
    keep_row_scores(service, monkeypatch, "greek", [row_score("r1", "a", 5)])
    known = service._registry.get("greek")
    service._registry.register("greek", Path(known.folder), DIGEST, known.terms, shared_with=("user:bob",))
    with pytest.raises(NotFound) as caught:
        await service.row_scores("greek", "p0001", account=ACCOUNT)
    assert caught.value.code == "no_row_scores"
    for account in ("user:bob", "user:owner"):
        assert (await service.row_scores("greek", "p0001", account=account))["rows"]


async def test_only_the_row_scores_that_a_settlement_names_are_told(service, economy, monkeypatch):
    """An earlier job's, which didn't get to pay, lie beside them."""
    settlement_quality = economy.settlement_quality
    keep_row_scores(service, monkeypatch, "greek", [row_score("stale", "a", 5)])
    named = keep_row_scores(service, monkeypatch, "greek", [row_score("r1", "a", 5)])
    monkeypatch.setattr(economy, "settlement_quality", settlement_quality)
    with pytest.raises(NotFound):
        await service.row_scores("greek", "p0001")
    await said(chat(service))
    digest, measured = digest_bytes(named.read_bytes()), {"scores_nano": {}, "errors_nano": {}, "gain_nano": 0}
    quality = {"replay": "exact", "row_scores": digest}
    economy.settle(ContributorScores(adapter="greek", period="p0001", method="test/1", quality=quality, **measured), {})
    told = await service.row_scores("greek", "p0001")
    assert ([row["row_id"] for row in told["rows"]], told["adapters"][0]["row_scores"]) == (["r1"], digest)
    named.write_bytes(named.read_bytes() + b" ")
    with pytest.raises(Corrupt):
        await service.row_scores("greek", "p0001")


async def test_row_scores_that_are_not_kept_or_damaged_are_told(service, monkeypatch):
    with pytest.raises(NotFound) as caught:
        await service.row_scores("greek", "p0001")
    assert caught.value.code == "no_row_scores"
    keep_row_scores(service, monkeypatch, "greek", []).write_text("{}")
    with pytest.raises(Corrupt) as caught:
        await service.row_scores("greek", "p0001")
    assert caught.value.code == "corrupt_row_scores"


async def test_an_unknown_datanet_is_not_found(service):
    with pytest.raises(NotFound) as caught:
        await service.datanet("nope")
    assert caught.value.code == "unknown_datanet"


async def test_an_answer_that_no_report_tells_of_is_not_found(service):
    with pytest.raises(NotFound) as caught:
        await service.attribution("ans_x")
    assert caught.value.code == "unknown_answer"


@pytest.mark.parametrize(("of", "code"), [("adapter:nope", "unknown_adapter"), ("datanet:nope", "unknown_datanet")])
async def test_nothing_is_staked_on_what_is_not_there(service, economy, of, code):
    before = economy.balance(ACCOUNT).available_nano
    with pytest.raises(NotFound) as caught:
        await service.desk.stake(ACCOUNT, of, FUNDS, "s1")
    assert (caught.value.code, bool(caught.value.fix)) == (code, True)
    assert economy.balance(ACCOUNT).available_nano == before
    await service.desk.stake(ACCOUNT, of.replace("nope", "greek"), FUNDS, "s2")
    assert economy.balance(ACCOUNT).available_nano == before - FUNDS


async def test_what_a_tenant_asked_is_in_no_report(service):
    """The report is open on the console: it has the demonstration's own questions alone."""
    await said(chat(service, "Where is my contract?"))
    report = await service.report()
    assert (report.get("answers", []), "contract" in json.dumps(report)) == ([], False)


async def test_closing_waits_until_what_was_cut_off_is_paid(service, economy, engine, actor):
    """Its task is cancelled twice, as by a server that has no more time."""
    engine.wait_after = 2
    reading = asyncio.create_task(said(chat(service)))
    await engine.waiting.wait()
    actor.gate.clear()
    reading.cancel()
    await asyncio.sleep(0.05)
    await hang_up(reading)
    asyncio.get_running_loop().call_later(0.1, actor.gate.set)
    assert spent(economy) > 1000 * 20, "held, and not posted"
    await service.close()
    assert 0 < spent(economy) < 1000 * 20
    assert economy.balance(ACCOUNT).posted_nano == economy.balance(ACCOUNT).available_nano


class TestEmbeddings:
    @pytest.fixture
    def embedding(self, engine):
        """An engine whose vectors never come."""

        class Embed:
            cancelled = False

            def remote(self, request, place):
                return asyncio.ensure_future(self._run())

            async def _run(self):
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    self.cancelled = True
                    raise

        engine.embed = Embed()
        return engine.embed

    async def test_one_that_the_hold_would_not_outlive_is_ended_and_costs_nothing(
        self, service, economy, embedding, monkeypatch
    ):
        in_15_min = ManualClock(SystemClock().now_ms() + 15 * 60_000 - 10_050)
        monkeypatch.setattr(service._answering, "_clock", in_15_min)
        async with asyncio.timeout(10):
            with pytest.raises(Unavailable) as caught:
                await service.embed(account=ACCOUNT, model="greek", inputs=["alpha"], idempotency_key="e")
        assert (caught.value.code, embedding.cancelled) == ("embedding_late", True)
        assert economy.balance(ACCOUNT).available_nano == FUNDS

    async def test_who_leaves_while_his_payment_waits_for_another_has_paid(self, service, economy, engine, actor):
        vectors, payments = [], service._answering._till._payments

        async def embed(request, place):
            vectors.append(asyncio.Event())
            await vectors[-1].wait()
            return Vectors(vectors_KH=[[1.0]], engine_ms=1.0)

        engine.embed = SimpleNamespace(remote=lambda *arguments: asyncio.ensure_future(embed(*arguments)))
        reading = [
            asyncio.create_task(service.embed(account=ACCOUNT, model="greek", inputs=["alpha"], idempotency_key=key))
            for key in ("e1", "e2")
        ]
        async with asyncio.timeout(10):
            while len(vectors) < 2:
                await asyncio.sleep(0.01)
            actor.gate.clear()
            vectors[0].set()
            while payments._asking is None:
                await asyncio.sleep(0.01)
            vectors[1].set()
            while not payments._waiting:
                await asyncio.sleep(0.01)
        await asyncio.gather(*(hang_up(one) for one in reading))
        with pytest.raises(Conflict) as caught:
            await service.embed(account=ACCOUNT, model="greek", inputs=["alpha"], idempotency_key="e2")
        assert caught.value.code == "request_in_flight"
        actor.gate.set()
        await service.close()
        fees_nano = [json.loads(row[0])["fee_nano"] for row in economy._db.execute("SELECT statement FROM answers")]
        assert (len(fees_nano), spent(economy)) == (2, sum(fees_nano))
        assert economy.balance(ACCOUNT).posted_nano == economy.balance(ACCOUNT).available_nano

    @pytest.mark.parametrize("inputs", [[[5] * 64] * 1025, ["a " * 33_000] * 2], ids=["ids", "text"])
    async def test_more_tokens_than_a_request_may_have_are_refused(
        self, service, economy, embedding, inputs, monkeypatch
    ):
        monkeypatch.setattr(next(iter(service._bases)), "_fitting", lambda prompt_ids, param: prompt_ids)
        with pytest.raises(TooLarge) as caught:
            await service.embed(account=ACCOUNT, model="greek", inputs=inputs, idempotency_key="e")
        assert (caught.value.code, caught.value.param) == ("too_many_tokens", "input")
        assert spent(economy) == 0

    async def test_text_that_is_clearly_too_long_is_refused_unread(self, service, monkeypatch):
        monkeypatch.setattr(next(iter(service._bases)), "encode_plain", lambda *_, **__: pytest.fail("was tokenised"))
        with pytest.raises(TooLarge):
            await service.embed(account=ACCOUNT, model="greek", inputs=["a" * 2**18] * 5, idempotency_key="e")

    async def test_inputs_are_tokenised_off_the_loop(self, service, embedding, monkeypatch):
        threads = []

        def encode(*_, **__):
            threads.append(threading.current_thread())
            raise InvalidInput("no more is needed")

        monkeypatch.setattr(next(iter(service._bases)), "encode_plain", encode)
        with pytest.raises(InvalidInput):
            await service.embed(account=ACCOUNT, model="greek", inputs=["alpha"], idempotency_key="e")
        assert threads != [threading.current_thread()]


class TestCancelledByServe:
    """The engine's replica is stopped while it answers: Serve raises CancelledError where nobody was cancelled."""

    @pytest.mark.parametrize("number", [1, 2])
    async def test_all_answers_end_with_an_error_and_cost_nothing(self, service, economy, engine, number):
        engine.stop_after = 3
        async with asyncio.timeout(10):
            with pytest.raises(Unavailable):
                await said(chat(service, num_answers=number))
        assert (spent(economy), economy.balance(ACCOUNT).available_nano) == (0, FUNDS)

    async def test_a_stream_that_is_cancelled_by_nobody_ends_the_merged_ones(self):
        async def stopped():
            await asyncio.sleep(0)
            raise asyncio.CancelledError
            yield

        async def good():
            yield "event"
            await asyncio.Event().wait()

        fate = _Fate()
        async with asyncio.timeout(5):
            with pytest.raises(Unavailable) as caught:
                await said(_merged([stopped(), good()], fate))
        assert (caught.value.code, fate.failed) == ("engine_broke_off", True)
