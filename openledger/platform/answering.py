"""Paid answers: a hold for each before any is begun, then the engine's tokens, then the metered fee.

Owns the way of one request's answers between economy and engine, and that no hold outlives them: however an answer
ends, its hold is posted for what was generated, or voided where the engine failed. Knows adapters and prompts as
values; how they were found and encoded is `live`'s.

Payment depends on no reader. It is under way before the last words are told, and at the latest `_TO_PAY_S` before the
hold expires: an answer that isn't whole then, or whose reader stands still, ends there.

An answer by several weighted adapters at once is sold once for each of them, by its weight (`ensembles`), so that each
(adapter, period) pool, its owner and its stakers get what is theirs by the same rules as for any answer.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

from openledger.core.clock import Clock, SystemClock
from openledger.core.errors import Conflict, Unavailable
from openledger.core.hashing import digest_json
from openledger.core.ids import derived_id
from openledger.core.values import (
    AdapterTerms,
    Answer,
    Authorization,
    EmbeddingRequest,
    FeeReceipt,
    GenerationRequest,
    SamplingParameters,
    TokenEvent,
    TokenLogprob,
    Usage,
)
from openledger.economy.sales import Order
from openledger.openlora.ensembles import Places
from openledger.openlora.text import TextStream
from openledger.platform.asking import Asking, Tail
from openledger.platform.bases import ServedBase
from openledger.platform.calls import answered
from openledger.platform.service import AdapterReceipt, AnswerEvent, Embedded, Receipt, TokenScore
from openledger.platform.till import Till

Seat = tuple[str, str]  # account and idempotency key
Sold = tuple[Answer, FeeReceipt]
Result = TypeVar("Result")
_TO_PAY_S = 10.0  # between the last moment for tokens or vectors and the end of the hold that pays them
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """An adapter that answers, or the base itself: under which terms, and with which weight where it is one of an
    ensemble. `place` is where its files are."""

    terms: AdapterTerms
    place: str
    weight: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One answer to make, by an adapter of `base`, by several with weights, or by the base itself. `echo` is the
    prompt's text where it is to be told with the answer; `key_digest` is the SHA-256 of the API key that asks, whose
    daily cap holds; `whole` says that nobody reads before the end; `kind` tells bodies apart whose tokens are alike."""

    index: int
    account: str
    key: str
    base: ServedBase
    parts: tuple[Part, ...]
    prompt_ids: tuple[int, ...]
    sampling: SamplingParameters
    echo: str | None = None
    key_digest: str = ""
    whole: bool = False
    kind: str = ""

    @property
    def seat(self) -> Seat:
        return self.account, self.key

    @property
    def ensemble(self) -> tuple[tuple[str, float], ...]:
        return tuple((part.terms.adapter_digest, part.weight) for part in self.parts if part.weight is not None)

    @property
    def adapter_digest(self) -> str:
        """As the engine knows it: nothing for an ensemble, nor for the base itself, whose digest stands in its
        terms."""
        digest = self.parts[0].terms.adapter_digest
        return "" if self.ensemble or digest == self.base.base.digest else digest

    @property
    def place(self) -> Places:
        if not self.ensemble:
            return self.parts[0].place
        return {part.terms.adapter_digest: part.place for part in self.parts}

    @property
    def body_digest(self) -> str:
        adapters = [[digest, repr(weight)] for digest, weight in self.ensemble] or self.parts[0].terms.adapter_digest
        kind = [self.kind] if self.kind else []
        return digest_json([adapters, list(self.prompt_ids), repr(self.sampling), *kind])

    def key_of(self, number: int) -> str:
        """Of the sale of the part with this number. The first keeps the request's."""
        return self.key if number == 0 else derived_id("key", self.key, f"adapter-{number}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sale:
    """The hold for one part of an answer; `sold` is what was sold under its key before."""

    part: Part
    hold: Authorization
    sold: Sold | None


@dataclass(slots=True)
class _Fate:
    """What a request's answers share: whether one of them failed, so that the others are owed for nothing."""

    failed: bool = False


@dataclass(slots=True)
class _Bill:
    """What one answer has generated, and what the engine told of it. `is_told`: its reader has not come back for more.
    `paying`: its payment, once it has begun."""

    generated: list[int] = field(default_factory=list)
    usage: Usage | None = None
    is_told: bool = False
    paying: asyncio.Task[Receipt | None] | None = None


class _HoldEnds(Exception):
    """There is just time left to pay."""


def one_by_one(asked: Asked, prompts: Sequence[tuple[Sequence[int], str | None]]) -> list[Asked]:
    """The answers that `asked.sampling.num_answers` and several prompts stand for, the i-th of a prompt with its seed
    raised by i. The first keeps the key."""
    number = asked.sampling.num_answers
    return [
        replace(
            asked,
            index=index,
            key=asked.key if index == 0 else derived_id("key", asked.key, str(index)),
            prompt_ids=tuple(prompts[index // number][0]),
            echo=prompts[index // number][1],
            sampling=_numbered(asked.sampling, index % number),
        )
        for index in range(number * len(prompts))
    ]


class Answering:
    """`economy` is an actor's handle. One for a gateway: it knows which keys are being answered, so that each is
    answered once at a time."""

    def __init__(self, economy: Any, clock: Clock | None = None):
        self._economy, self._till = economy, Till(economy)
        self._clock = clock or SystemClock()
        self._in_flight: set[Seat] = set()
        self._closing: dict[Seat, asyncio.Task[Any]] = {}  # holds being posted or voided; they keep their seats
        self._left: set[Seat] = set()  # those of them whose readers have gone

    async def answers(self, asked: Sequence[Asked]) -> AsyncGenerator[AnswerEvent]:
        """The events of all, each with its `index`, as they come."""
        self._take([one.seat for one in asked])
        try:
            placed = await self._place(asked)
            fate = _Fate()
            streams = [self._answer(one, sales, fate) for one, sales in zip(asked, placed, strict=True)]
            async with aclosing(streams[0] if len(streams) == 1 else _merged(streams, fate)) as events:
                async for event in events:
                    yield event
        finally:
            self._free([one.seat for one in asked])

    async def embed(self, one: Asked, request: EmbeddingRequest) -> Embedded:
        """`one` has all inputs as its prompt and no tokens to generate. The hold is voided where no vector came; once
        paid, the vectors are computed again for a retry, as they aren't kept. Raises Unavailable (`embedding_late`)
        before the hold expires: nothing more is computed that couldn't be paid. A payment that has begun is made."""
        self._take([one.seat])
        try:
            (sales,) = await self._place([one])
            (sold,) = [sale.sold for sale in sales]
            try:
                async with asyncio.timeout(None if sold is not None else self._left_s(sales)):
                    embedded = await one.base.calls.embed(request, one.parts[0].place)
            except BaseException as error:
                if sold is None:
                    await asyncio.shield(self._begun(one.seat, self._close(one, sales, None, _Bill(), failed=True)))
                if isinstance(error, TimeoutError):
                    raise _late() from error
                raise
            usage = Usage(
                prompt_tokens=request.num_tokens, cached_tokens=0, completion_tokens=0, engine_ms=embedded.engine_ms
            )
            if sold is not None:
                receipt = _receipt(one, [sold])
            else:
                receipt = await asyncio.shield(self._begun(one.seat, self._complete(one, sales, (), usage)))
            return Embedded(vectors_KH=embedded.vectors_KH, receipt=receipt)
        finally:
            self._free([one.seat])

    async def close(self) -> None:
        """Until all holds are closed whose answers have ended."""
        while self._closing:
            await asyncio.wait(set(self._closing.values()))

    def _left_s(self, sales: Sequence[Sale]) -> float:
        return (min(sale.hold.expires_ms for sale in sales) - self._clock.now_ms()) / 1000 - _TO_PAY_S

    def _take(self, seats: Sequence[Seat]) -> None:
        """Raises Conflict while another request sits there: only the one that began generating may close its hold."""
        if not self._in_flight.isdisjoint(seats):
            raise Conflict(
                "a request with this idempotency key is being answered",
                code="request_in_flight",
                param="idempotency_key",
                fix="wait for its answer, or send a new key",
            )
        self._in_flight.update(seats)

    def _free(self, seats: Sequence[Seat]) -> None:
        """Each now, or once its hold is closed."""
        self._left |= self._closing.keys() & seats
        self._in_flight -= set(seats) - self._closing.keys()

    def _begun(self, seat: Seat, work: Coroutine[Any, Any, Result]) -> asyncio.Task[Result]:
        """`work` on a seat's hold, which goes to its end whoever leaves; until then the seat isn't free."""
        task = self._closing[seat] = asyncio.create_task(work)
        task.add_done_callback(partial(self._ended, seat))
        return task

    def _ended(self, seat: Seat, task: asyncio.Task[Any]) -> None:
        if not task.cancelled():
            task.exception()  # whoever still waits hears of it
        if self._closing.get(seat) is not task:
            return
        del self._closing[seat]
        if seat in self._left:
            self._left.remove(seat)
            self._in_flight.discard(seat)

    async def _place(self, asked: Sequence[Asked]) -> list[list[Sale]]:
        """Holds for all, or for none: one for each part of each; beside it what was sold under its key before."""
        placed: list[list[Sale]] = []
        placing: list[asyncio.Task[tuple[Authorization, Sold | None]]] = []
        try:
            for one in asked:
                placed.append([])
                for number, part in enumerate(one.parts):
                    placing.append(asyncio.ensure_future(self._authorize(one, number)))
                    hold, sold = await asyncio.shield(placing[-1])  # a client may leave: no hold may be lost with it
                    placed[-1].append(Sale(part=part, hold=hold, sold=sold))
        except BaseException:
            await asyncio.shield(asyncio.ensure_future(self._void_placed(placing)))
            raise
        return placed

    async def _authorize(self, one: Asked, number: int) -> tuple[Authorization, Sold | None]:
        return await self._till.hold(
            Order(
                account=one.account,
                terms=one.parts[number].terms,
                num_prompt_tokens=len(one.prompt_ids),
                max_tokens=one.sampling.max_tokens,
                idempotency_key=one.key_of(number),
                request_digest=one.body_digest,
                key_digest=one.key_digest,
            )
        )

    async def _void_placed(self, placing: Sequence["asyncio.Task[tuple[Authorization, Sold | None]]"]) -> None:
        placed = await asyncio.gather(*placing, return_exceptions=True)
        held = [one for one in placed if not isinstance(one, BaseException)]
        await self._void_all([hold for hold, sold in held if sold is None])

    async def _void_all(self, holds: Sequence[Authorization]) -> None:
        for hold in holds:
            try:
                await answered(self._economy.cancel.remote(hold.answer_id))
            except Exception:  # noqa: BLE001 - why the request ends is being raised; a hold that stays expires
                _log.exception("the hold of %s was not voided", hold.answer_id)

    async def _answer(self, one: Asked, sales: Sequence[Sale], fate: _Fate) -> AsyncGenerator[AnswerEvent]:
        if any(sale.sold is not None for sale in sales):
            yield await self._told_again(one, sales)
            return
        request = GenerationRequest(
            request_id=sales[0].hold.answer_id,
            prompt_ids=one.prompt_ids,
            adapter_digest=one.adapter_digest,
            ensemble=one.ensemble,
            sampling=one.sampling,
            tenant=one.account,
        )
        async with aclosing(self._metered(request, one, sales, fate)) as events:
            async for event in events:
                yield event

    async def _told_again(self, one: Asked, sales: Sequence[Sale]) -> AnswerEvent:
        """A completed answer for a retry: the first text and the first receipt, and nothing to pay. What of an ensemble
        was not paid when it was cut off is paid now."""
        answer = next(sale.sold[0] for sale in sales if sale.sold is not None)
        left = [sale for sale in sales if sale.sold is None]
        selling = self._sell(one, left, answer.completion_ids, None)
        sold = iter(await asyncio.shield(self._begun(one.seat, selling)))
        paid = [sale.sold or next(sold) for sale in sales]
        text = TextStream(one.base.decode, one.sampling.stop)
        told = "".join([*map(text.push, answer.completion_ids), text.finish()])
        ended = text.stopped or answer.completion_ids[-1:] == (one.base.tokenizer.eos_token_id,)
        return AnswerEvent(
            index=one.index,
            text=told,
            token_count=len(answer.completion_ids),
            finish_reason="stop" if ended else "length",
            receipt=_receipt(one, paid),
            prompt_text=one.echo or "",
        )

    async def _metered(
        self, request: GenerationRequest, one: Asked, sales: Sequence[Sale], fate: _Fate
    ) -> AsyncGenerator[AnswerEvent]:
        """Generate under the holds of `sales`. However this ends, each is posted for what was generated and not for a
        failed generation, else voided; and what ended it is what the reader hears of."""
        bill, receipt = _Bill(), None
        failed, first = True, True
        asking = one.base.calls.asking(request, one.place, one.whole)
        loop = asyncio.get_running_loop()
        until_s = loop.time() + self._left_s(sales)
        watching = loop.call_at(until_s, self._end_unread, one, sales, asking, bill)
        try:
            async with aclosing(asking.events()) as events:
                while (event := await _next(events, until_s)) is not None:
                    bill.generated += event.token_ids
                    said = self._told(one, event)
                    said, first = self._echoed(said, one, event) if first else said, False
                    if event.finish_reason is None:
                        bill.is_told = True
                        yield said
                        bill.is_told = False
                        if bill.paying is not None:
                            raise _HoldEnds
                        continue
                    failed, bill.usage = False, event.usage  # whole: owed, also should the ledger not answer now
                    bill.paying = self._begun(one.seat, self._complete(one, sales, bill.generated, bill.usage))
                    if not one.whole and self._left_s(sales) > 0:
                        yield said  # nobody waits for his last words until they are paid
                        said = AnswerEvent(index=one.index, text="", token_count=0)
                    receipt = await asyncio.shield(bill.paying)
                    yield replace(said, finish_reason=event.finish_reason, receipt=receipt)
            if receipt is None:
                raise _broke_off()
        except _HoldEnds:
            failed = one.whole  # then nobody was told anything
            fate.failed = fate.failed or failed
            raise _answer_late() from None
        except (GeneratorExit, asyncio.CancelledError):
            failed = fate.failed  # else the client went away: what was generated is paid for
            raise
        finally:
            watching.cancel()
            if receipt is None:
                closing = self._close(one, sales, asking, bill, failed)
                await asyncio.shield(self._begun(one.seat, closing))

    def _end_unread(self, one: Asked, sales: Sequence[Sale], asking: Asking, bill: _Bill) -> None:
        """Have an answer paid whose hold ends while its reader stands still. One that waits for the engine ends
        itself."""
        if bill.is_told and bill.paying is None:
            bill.paying = self._begun(one.seat, self._settle(one, sales, asking, bill, failed=False))

    def _told(self, one: Asked, event: TokenEvent) -> AnswerEvent:
        return AnswerEvent(
            index=one.index,
            text=event.text,
            token_count=len(event.token_ids),
            scores=tuple(_score(one, entry) for entry in event.logprobs),
        )

    def _echoed(self, told: AnswerEvent, one: Asked, event: TokenEvent) -> AnswerEvent:
        """With the first event goes the prompt, where it was asked for."""
        if one.echo is None:
            return told
        entries = zip(one.prompt_ids, event.prompt_logprobs, strict=False)
        scores = tuple(
            TokenScore(token=one.base.decode([token]), logprob=None) if entry is None else _score(one, entry)
            for token, entry in entries
        )
        return replace(told, prompt_text=one.echo, prompt_scores=scores)

    async def _complete(
        self, one: Asked, sales: Sequence[Sale], generated: Sequence[int], usage: Usage | None
    ) -> Receipt:
        return _receipt(one, await self._sell(one, sales, generated, usage))

    async def _sell(
        self, one: Asked, sales: Sequence[Sale], generated: Sequence[int], usage: Usage | None
    ) -> list[Sold]:
        """In one call: were this process to end between two, an adapter would have answered and not been paid."""
        if not sales:
            return []
        parts = [_part_sold(one, sale, generated, usage) for sale in sales]
        return list(zip(parts, await self._till.pay(parts), strict=True))

    async def _close(self, one: Asked, sales: Sequence[Sale], asking: Asking | None, bill: _Bill, failed: bool) -> None:
        """See to it that an answer is settled, also where the waiting reader is cancelled a second time. A payment that
        had begun is waited for, and tried again where it failed."""
        try:
            if bill.paying is None or not await _is_done(bill.paying):
                await self._settle(one, sales, asking, bill, failed)
        except Exception:  # noqa: BLE001 - why the answer ended is being raised; a hold that stays expires
            _log.exception("what %s was charged for could not be told", sales[0].hold.answer_id)

    async def _settle(
        self, one: Asked, sales: Sequence[Sale], asking: Asking | None, bill: _Bill, failed: bool
    ) -> Receipt | None:
        """Leave the engine, and post the holds for what was generated, or void them where it failed."""
        tail = Tail() if asking is None else await asking.leave()
        bill.generated += tail.token_ids
        bill.usage = bill.usage or tail.usage
        if bill.generated and not failed:
            return await self._complete(one, sales, bill.generated, bill.usage)
        await self._void_all([sale.hold for sale in sales])
        return None


async def _next(events: AsyncGenerator[TokenEvent], until_s: float) -> TokenEvent | None:
    """The next event, None after the last. Raises _HoldEnds where there is none by `until_s` on the loop's clock."""
    limit = asyncio.timeout_at(until_s)
    try:
        async with limit:
            return await anext(events, None)
    except TimeoutError:
        if limit.expired():
            raise _HoldEnds from None
        raise


async def _is_done(paying: asyncio.Task[Receipt | None]) -> bool:
    """Whether it was paid, once that has ended."""
    await asyncio.wait({paying})
    return not paying.cancelled() and paying.exception() is None


def _part_sold(one: Asked, sale: Sale, generated: Sequence[int], usage: Usage | None) -> Answer:
    return Answer(
        answer_id=sale.hold.answer_id,
        adapter=sale.part.terms.adapter,
        adapter_digest=sale.part.terms.adapter_digest,
        ensemble=one.ensemble,
        period=sale.hold.period,
        prompt_ids=one.prompt_ids,
        completion_ids=tuple(generated),
        cached_tokens=0 if usage is None else usage.cached_tokens,
        engine_us=0 if usage is None else round(1000 * usage.engine_ms),
    )


async def _merged(streams: Sequence[AsyncGenerator[AnswerEvent]], fate: _Fate) -> AsyncGenerator[AnswerEvent]:
    """The events of all as they come. Where one fails, the others are ended and its error is raised."""
    queue: asyncio.Queue[AnswerEvent | BaseException | None] = asyncio.Queue()
    tasks = [asyncio.create_task(_read(stream, queue.put_nowait)) for stream in streams]
    try:
        open_streams = len(tasks)
        while open_streams:
            item = await queue.get()
            if isinstance(item, BaseException):
                fate.failed = fate.failed or getattr(item, "code", "") != "answer_late"
                raise item
            if item is None:
                open_streams -= 1
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _read(stream: AsyncGenerator[AnswerEvent], put: Callable[[AnswerEvent | BaseException | None], None]) -> None:
    try:
        async with aclosing(stream):
            async for event in stream:
                put(event)
        put(None)
    except asyncio.CancelledError:
        if (task := asyncio.current_task()) is not None and task.cancelling():
            raise
        put(_broke_off())
    except Exception as error:  # noqa: BLE001 - raised again where the events are read
        put(error)


def _score(one: Asked, entry: TokenLogprob) -> TokenScore:
    top = tuple((one.base.decode([token]), logprob) for token, logprob in entry.top)
    return TokenScore(token=one.base.decode([entry.token_id]), logprob=entry.logprob, top=top)


def _broke_off() -> Unavailable:
    return Unavailable("the engine broke off", code="engine_broke_off", fix="ask again with the same key")


def _answer_late() -> Unavailable:
    return Unavailable(
        "the answer wasn't whole, or not read to its end, while its hold lasted; no more is paid than was generated",
        code="answer_late",
        fix="ask again with the same key: what was paid for is told again at no charge",
    )


def _late() -> Unavailable:
    return Unavailable(
        "the engine didn't make the vectors while their hold lasted; nothing was charged",
        code="embedding_late",
        fix="send fewer inputs in a request, or try again when the engine has less to do",
    )


def _numbered(sampling: SamplingParameters, number: int) -> SamplingParameters:
    seed = None if sampling.seed is None else sampling.seed + number
    return replace(sampling, num_answers=1, seed=seed)


def _receipt(one: Asked, sold: Sequence[Sold]) -> Receipt:
    """Of the one sale; of an ensemble's, what they cost together and each by itself."""
    answer, paid = sold[0]
    parts: dict[str, int] = {}
    for account, nano in (item for _, each in sold for item in each.parts.items()):
        parts[account] = parts.get(account, 0) + nano
    return Receipt(
        answer_id=paid.answer_id,
        prompt_tokens=len(answer.prompt_ids),
        completion_tokens=len(answer.completion_ids),
        fee_nano=sum(each.fee_nano for _, each in sold),
        parts=parts,
        cached_tokens=answer.cached_tokens,
        engine_ms=answer.engine_us / 1000,
        signed=None if one.ensemble else paid.signed,
        adapters=tuple(_adapter_receipt(*each, one.ensemble) for each in sold) if one.ensemble else (),
    )


def _adapter_receipt(answer: Answer, paid: FeeReceipt, ensemble: Sequence[tuple[str, float]]) -> AdapterReceipt:
    return AdapterReceipt(
        answer_id=paid.answer_id,
        adapter=answer.adapter,
        weight=dict(ensemble)[answer.adapter_digest],
        fee_nano=paid.fee_nano,
        parts=paid.parts,
        signed=paid.signed,
    )
