"""The Service on a running cluster: what API and console ask, answered by the actors and the engine.

A paid answer: authorize (a hold) -> generate -> complete (the metered fee, split). Attribution and settlement are
elsewhere and later; nothing here waits for them.
"""

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from openledger.adapters.base_model import BaseModel, encode_messages, load_tokenizer
from openledger.adapters.registry import AdapterRegistry
from openledger.core.clock import SystemClock
from openledger.core.errors import Conflict, InvalidInput, NotFound, OpenLedgerError, Unavailable
from openledger.core.hashing import digest_json
from openledger.core.ids import new_id
from openledger.core.values import (
    AdapterTerms,
    Answer,
    Authorization,
    Contribution,
    ContributionReceipt,
    DatanetVersion,
    FeeReceipt,
    GenerationRequest,
    Removal,
    SamplingParameters,
    TokenEvent,
    Verdict,
    Withdrawal,
)
from openledger.ledger.proofs import encode_proof
from openledger.ledger.removals import removal_accounts, removal_statement, removal_transfers
from openledger.openlora.text import TextStream, decoder
from openledger.platform.removals import AffectedAdapter, affected_adapters, check_recorded
from openledger.platform.report import audit_entry, datanet_entry, displayed
from openledger.platform.service import AnswerEvent, ModelEntry, Receipt
from openledger.platform.workdir import Workdir

Seat = tuple[str, str]  # account and idempotency key
_log = logging.getLogger(__name__)


class LiveService:
    """`engine` is the OpenLoRA deployment's handle; `datanets`, `ledger` and `economy` are actor handles."""

    def __init__(self, workdir: Workdir, base: BaseModel, engine: Any, datanets: Any, ledger: Any, economy: Any):
        self._workdir = workdir
        self._base = base
        self._tokenizer = load_tokenizer(base)
        self._registry = AdapterRegistry(workdir.adapters)
        self._engine = engine
        self._datanets = datanets
        self._ledger = ledger
        self._economy = economy
        self._in_flight: set[Seat] = set()  # this gateway's; there is one, so that a key is answered once at a time
        self._closing: dict[Seat, asyncio.Task[None]] = {}  # holds being closed; they keep their seats

    async def authenticate(self, api_key: str) -> str:
        return str(await _answered(self._economy.authenticate.remote(api_key)))

    async def models(self) -> list[ModelEntry]:
        return [
            ModelEntry(
                id=adapter.name,
                created_ms=int((Path(adapter.folder) / "card.json").stat().st_mtime * 1000),
                owned_by=adapter.terms.owner_account,
                datanet=adapter.terms.datanet,
                datanet_version=adapter.terms.datanet_version,
                adapter_digest=adapter.digest,
                prompt_price_nano=adapter.terms.prompt_price_nano,
                completion_price_nano=adapter.terms.completion_price_nano,
            )
            for adapter in self._registry.list()
            if adapter.terms is not None
        ]

    async def chat(
        self,
        *,
        account: str,
        model: str,
        messages: Sequence[dict[str, str]],
        sampling: SamplingParameters,
        idempotency_key: str,
    ) -> AsyncIterator[AnswerEvent]:
        terms = self._registry.get(model).terms
        if terms is None:
            raise NotFound(f"the model {model!r} is not sold", code="unknown_model", param="model")
        prompt_ids = self._encode(messages)
        sampling = replace(sampling, max_tokens=min(sampling.max_tokens, self._base.max_positions - len(prompt_ids)))
        key = idempotency_key or new_id("key", SystemClock().now_ms())
        digest = digest_json([terms.adapter_digest, prompt_ids, repr(sampling)])
        seat = (account, key)
        self._take(seat)
        try:
            hold = await _answered(
                self._economy.authorize.remote(account, terms, len(prompt_ids), sampling.max_tokens, key, digest)
            )
            sold = await _answered(self._economy.completed.remote(hold.answer_id))
            if sold is not None:
                answer, paid = sold
                yield self._told_again(answer, paid, sampling)
                return
            request = GenerationRequest(
                request_id=hold.answer_id,
                prompt_ids=tuple(prompt_ids),
                adapter_digest=terms.adapter_digest,
                sampling=sampling,
            )
            async with aclosing(self._metered(request, terms, hold, seat)) as events:
                async for event in events:
                    yield event
        finally:
            if seat not in self._closing:
                self._in_flight.discard(seat)

    def _take(self, seat: Seat) -> None:
        """Raises Conflict while another request sits there: only the one that began generating may close its hold."""
        if seat in self._in_flight:
            raise Conflict(
                "a request with this idempotency key is being answered",
                code="request_in_flight",
                param="idempotency_key",
                fix="wait for its answer, or send a new key",
            )
        self._in_flight.add(seat)

    def _told_again(self, answer: Answer, paid: FeeReceipt, sampling: SamplingParameters) -> AnswerEvent:
        """A completed answer for a retry: the first text and the first receipt, and nothing to pay."""
        text = TextStream(decoder(self._tokenizer), sampling.stop)
        told = "".join([*map(text.push, answer.completion_ids), text.finish()])
        ended = text.stopped or answer.completion_ids[-1:] == (self._tokenizer.eos_token_id,)
        return AnswerEvent(
            text=told,
            token_count=len(answer.completion_ids),
            finish_reason="stop" if ended else "length",
            receipt=_receipt(paid, answer),
        )

    async def _metered(
        self, request: GenerationRequest, terms: AdapterTerms, hold: Authorization, seat: Seat
    ) -> AsyncGenerator[AnswerEvent]:
        """Generate under `hold`. However this ends, the hold is posted for what was generated and not for a failed
        generation, else voided; and what ended it is what the reader hears of."""
        generated: list[int] = []
        receipt: Receipt | None = None
        failed = True
        try:
            async for event in self._engine.generate.options(stream=True).remote(request):
                _raise_failure(event)
                generated += event.token_ids
                if event.finish_reason is None:
                    yield AnswerEvent(text=event.text, token_count=len(event.token_ids))
                    continue
                failed = False  # it is whole: should the ledger not answer now, it is owed all the same
                receipt = await self._complete(request, terms, hold, generated)
                yield AnswerEvent(
                    text=event.text,
                    token_count=len(event.token_ids),
                    finish_reason=event.finish_reason,
                    receipt=receipt,
                )
            if receipt is None:
                raise Unavailable("the engine broke off", code="engine_broke_off", fix="ask again with the same key")
        except (GeneratorExit, asyncio.CancelledError):
            failed = False  # the client went away: what was generated is paid for
            raise
        finally:
            if receipt is None:
                closing = self._close(request, terms, hold, seat, [] if failed else generated)
                self._closing[seat] = asyncio.create_task(closing)
                await asyncio.shield(self._closing[seat])

    async def _complete(
        self, request: GenerationRequest, terms: AdapterTerms, hold: Authorization, generated: Sequence[int]
    ) -> Receipt:
        answer = Answer(
            answer_id=hold.answer_id,
            adapter=terms.adapter,
            adapter_digest=terms.adapter_digest,
            period=hold.period,
            prompt_ids=request.prompt_ids,
            completion_ids=tuple(generated),
        )
        paid = await _answered(self._economy.complete.remote(answer))
        return _receipt(paid, answer)

    async def _close(
        self, request: GenerationRequest, terms: AdapterTerms, hold: Authorization, seat: Seat, generated: Sequence[int]
    ) -> None:
        """Post or void `hold` and free the seat, also where the waiting reader is cancelled a second time."""
        try:
            if generated:
                await self._complete(request, terms, hold, generated)
            else:
                await _answered(self._economy.cancel.remote(hold.answer_id))
        except Exception:  # noqa: BLE001 - why the answer ended is being raised; a hold that stays expires
            _log.exception("the hold of %s was not closed", hold.answer_id)
        finally:
            del self._closing[seat]
            self._in_flight.discard(seat)

    def _encode(self, messages: Sequence[dict[str, str]]) -> list[int]:
        prompt_ids = encode_messages(self._tokenizer, list(messages))
        if len(prompt_ids) >= self._base.max_positions:
            raise InvalidInput(
                f"the prompt has {len(prompt_ids)} tokens; the context holds {self._base.max_positions}",
                code="context_length_exceeded",
                param="messages",
                fix="shorten the conversation",
            )
        return prompt_ids

    async def mark(self, account: str, answer_id: str, verdict: str) -> str:
        return str(await _answered(self._economy.mark.remote(answer_id, verdict, account)))

    async def balance(self, account: str) -> dict[str, Any]:
        balance = await _answered(self._economy.balance.remote(account))
        held_nano = balance.posted_nano - balance.available_nano
        return {"account": account, "available_nano": balance.available_nano, "held_nano": held_nano}

    async def datanets(self) -> list[dict[str, Any]]:
        told = await self._told()
        names = await _answered(self._datanets.names.remote())
        return await asyncio.gather(*(self._datanet_entry(name, told.get(name, {})) for name in sorted(names)))

    async def datanet(self, name: str) -> dict[str, Any]:
        return await self._datanet_entry(name, (await self._told()).get(name, {}))

    async def _datanet_entry(self, name: str, told: dict[str, Any]) -> dict[str, Any]:
        """What the Datanets know now, and beside it what the report tells of adapter, shares and earnings."""
        found, versions, statistics = await asyncio.gather(
            _answered(self._datanets.datanet.remote(name)),
            _answered(self._datanets.versions.remote(name)),
            _answered(self._datanets.statistics.remote(name)),
        )
        entry = datanet_entry(name, found.summary, versions[-1] if versions else _unpublished(name), statistics, {})
        people = {person["contributor_id"]: person for person in told.get("contributors", [])}
        contributors = [{**people.get(one["contributor_id"], {}), **_now(one)} for one in entry["contributors"]]
        return {**told, **entry, "display": found.display, "contributors": contributors}

    async def _told(self) -> dict[str, dict[str, Any]]:
        """The report's entries by Datanet."""
        return {entry["name"]: entry for entry in (await self.report()).get("datanets", [])}

    async def contribute(self, contribution: Contribution) -> ContributionReceipt:
        receipt: ContributionReceipt = await _answered(self._datanets.contribute.remote(contribution))
        return receipt

    async def preview(self, contribution: Contribution) -> tuple[Verdict, ...]:
        verdicts: tuple[Verdict, ...] = await _answered(self._datanets.preview.remote(contribution))
        return verdicts

    async def contribution(self, name: str, contribution_id: str) -> ContributionReceipt:
        receipt: ContributionReceipt = await _answered(self._datanets.receipt.remote(name, contribution_id))
        return receipt

    async def withdraw(self, withdrawal: Withdrawal) -> dict[str, Any]:
        return await self._recorded(await _answered(self._datanets.withdraw.remote(withdrawal)))

    async def remove_rows(self, account: str, name: str, row_ids: Sequence[str], reason: str) -> dict[str, Any]:
        return await self._recorded(await _answered(self._datanets.remove.remote(name, row_ids, account, reason)))

    async def _recorded(self, removal: Removal) -> dict[str, Any]:
        """A removal is answered once the log has it; a retry of one that was cut off here puts it there."""
        statement = removal_statement(removal)
        transfers = removal_transfers(statement)
        await _answered(self._ledger.create_accounts.remote(removal_accounts(removal.datanet)))
        check_recorded(await _answered(self._ledger.commit.remote(transfers, statement)))
        adapters = affected_adapters(self._registry, self._workdir.indexes, removal.row_ids)
        told = {name: statement[name] for name in ("removal_id", "datanet", "kind", "num_rows", "rows_root")}
        return {**told, "transfer_id": transfers[0].transfer_id, "adapters": [_affected(one) for one in adapters]}

    async def report(self) -> dict[str, Any]:
        """The report as it was written, its sources as the Datanets' display policies are now."""
        path = self._workdir.report
        told = dict(json.loads(path.read_text())) if path.exists() else {}
        if told.get("answers"):
            displays = await _answered(self._datanets.displays.remote())
            told["answers"] = [displayed(answer, displays) for answer in told["answers"]]
        return told

    async def checkpoint(self) -> str:
        return str(await _answered(self._ledger.checkpoint.remote()))

    async def audit(self) -> dict[str, Any]:
        return audit_entry(await _answered(self._ledger.audit.remote()))

    async def proof(self, transfer_id: str) -> bytes:
        return encode_proof(await _answered(self._ledger.proof.remote(transfer_id)))

    async def payouts(self, account: str | None = None) -> list[dict[str, Any]]:
        accounts = [account] if account else [f"contributor:{contributor}" for contributor in await self._paid()]
        found = await asyncio.gather(*(_answered(self._economy.payouts.remote(name)) for name in accounts))
        entries = [_payout_entry(payout) for payouts in found for payout in payouts]
        return sorted(entries, key=lambda entry: -entry["time_ms"])

    async def _paid(self) -> list[str]:
        people = [c for entry in (await self._told()).values() for c in entry.get("contributors", [])]
        return [person["contributor_id"] for person in people if person.get("earned_nano")]

    async def attribution(self, answer_id: str) -> dict[str, Any]:
        found = [entry for entry in (await self.report()).get("answers", []) if entry["answer_id"] == answer_id]
        if not found:
            raise NotFound(
                f"no attributed answer {answer_id!r}",
                code="unknown_answer",
                param="answer_id",
                fix="the report keeps the answers of the quickstart's last settled period, and no others",
            )
        return dict(found[0])


def _affected(adapter: AffectedAdapter) -> dict[str, Any]:
    """As a contributor sees it: what was made of the rows lies in the owner's folders, whose names are his."""
    return {
        "name": adapter.name,
        "adapter_digest": adapter.digest,
        "served": adapter.served,
        "num_trained": adapter.num_trained,
        "num_held_out": adapter.num_held_out,
        "without": list(adapter.without),
    }


def _unpublished(name: str) -> DatanetVersion:
    return DatanetVersion(datanet=name, number=0, row_root="", num_rows=0, gate_version="", published_ms=0)


def _now(contributor: dict[str, Any]) -> dict[str, Any]:
    """A contributor's counts, without the kind: only a demonstration's report knows that, and tells it."""
    return {key: value for key, value in contributor.items() if key != "kind"}


def _receipt(paid: FeeReceipt, answer: Answer) -> Receipt:
    return Receipt(
        answer_id=paid.answer_id,
        prompt_tokens=len(answer.prompt_ids),
        completion_tokens=len(answer.completion_ids),
        fee_nano=paid.fee_nano,
        parts=paid.parts,
    )


async def _answered(reference: Any) -> Any:
    """The value of a Ray reference; errors of ours come out as themselves, Ray's as Unavailable."""
    import ray.exceptions

    try:
        return await reference
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, OpenLedgerError):
            raise error.cause from None
        raise
    except ray.exceptions.RayActorError as error:
        raise Unavailable(f"a part of the platform is restarting: {error}", code="actor_unavailable") from error


def _payout_entry(payout: Any) -> dict[str, Any]:
    adapter, _, period = payout.reference.rpartition(":")
    return {**asdict(payout), "adapter": adapter, "period": period}


def _raise_failure(event: TokenEvent) -> None:
    if event.finish_reason != "error":
        return
    failure = event.error or {}
    kinds = {cls.default_code: cls for cls in OpenLedgerError.__subclasses__()}
    cls = kinds.get(str(failure.get("type")), Unavailable)
    message = str(failure.get("message", "the engine failed"))
    raise cls(message, code=failure.get("code"), param=failure.get("param"), fix=failure.get("fix"))
