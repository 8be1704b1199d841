"""The Service on a running cluster: what API and console ask, answered by the actors and the engine.

A paid answer: authorize (a hold) -> generate -> complete (the metered fee, split); see `answering`. Attribution and
settlement are elsewhere and later; nothing here waits for them.
"""

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import asdict, replace
from typing import Any

from openledger.adapters.base_model import BaseModel
from openledger.adapters.registry import AdapterRegistry, RegisteredAdapter
from openledger.adapters.sources import SourceRules
from openledger.core.clock import SystemClock
from openledger.core.errors import Conflict, Forbidden, NotFound, OpenLedgerError
from openledger.core.files import write_json_durably
from openledger.core.ids import new_id
from openledger.core.signed import contribution_id
from openledger.core.values import (
    Contribution,
    ContributionReceipt,
    DatanetVersion,
    EmbeddingRequest,
    Removal,
    SamplingParameters,
    Verdict,
    Withdrawal,
)
from openledger.economy.pricing import fee_id
from openledger.ledger.proofs import encode_proof
from openledger.ledger.receipts import encode_receipt
from openledger.ledger.removals import removal_statement
from openledger.openlora.inbox import EventInbox
from openledger.platform.answering import Answering, Asked, Part, one_by_one
from openledger.platform.bases import Bases, ServedBase
from openledger.platform.calls import answered
from openledger.platform.community import Community
from openledger.platform.contributing import Contributing
from openledger.platform.desk import Desk
from openledger.platform.ensembles import ensemble_of
from openledger.platform.intake import Intake
from openledger.platform.known_keys import KnownKeys
from openledger.platform.owners import Owners
from openledger.platform.removals import AffectedAdapter, affected_adapters, record_removal
from openledger.platform.replaying import may_be_told, no_row_scores, open_rows
from openledger.platform.report import audit_entry, datanet_entry, displayed, row_lines, told_rows, without_rows
from openledger.platform.report_file import changing_meanwhile
from openledger.platform.service import AdapterReceipt, AnswerEvent, Embedded, ModelEntry, NewAdapter, Receipt
from openledger.platform.workdir import Workdir

Named = tuple[str, Sequence[tuple[str, float]]]  # `model`, and an ensemble's adapters with their weights
Encoded = tuple[list[int], str | None]  # a prompt's token ids, and its text where that is to be told
_logger = logging.getLogger(__name__)
_RECEIPT_PATIENCE_S = 2.0


class LiveService(Community, Owners):
    """`engines` has the handle of each base model's OpenLoRA deployment (see `Bases`); `datanets`, `ledger` and
    `economy` are actor handles. `sources` says from where adapters may be added: without it, from the folder `incoming`
    alone. `inbox` is where the engines' events come in: without it, they come through Serve."""

    def __init__(
        self,
        workdir: Workdir,
        engines: Mapping[BaseModel, Any],
        datanets: Any,
        ledger: Any,
        economy: Any,
        sources: SourceRules | None = None,
        inbox: EventInbox | None = None,
    ):
        self._workdir = workdir
        self._bases = Bases(engines, inbox)
        self._registry = AdapterRegistry(workdir.adapters)
        super().__init__(datanets, economy)
        self._ledger = ledger
        self._contributing = Contributing(datanets)
        self._changing_report = asyncio.Lock()  # or each that waits would take a thread
        catch_up = self._log_removals, self._forget_in_report, self._after_panels, self._settle_keys
        self.desk = Desk(self._ask, catch_up, self._check_stakeable, self._restore_keys)
        self._answering = Answering(economy)
        self._keys = KnownKeys(economy)
        rules = sources or SourceRules(folders=(str(workdir.incoming),), schemes=("file",))
        self._intake = Intake(tuple(engines), self._registry, datanets, economy, rules)

    async def close(self) -> None:
        await self._answering.close()

    async def authenticate(self, api_key: str) -> str:
        return await self._keys.account_of(api_key)

    async def _ask(self, method: str, *arguments: Any) -> Any:
        return await answered(getattr(self._economy, method).remote(*arguments))

    async def _check_stakeable(self, account: str, of: str) -> None:
        """What is named in another way than `adapter:NAME` or `datanet:NAME` is the economy's to refuse."""
        kind, _, name = of.partition(":")
        if kind == "datanet":
            await answered(self._datanets.datanet.remote(name))
        if kind == "adapter":
            try:
                self._sold(account, name)
            except NotFound as error:
                raise NotFound(
                    f"there is no adapter {name!r}",
                    code="unknown_adapter",
                    param="object",
                    fix="'openledger models' lists the adapters; a Datanet is staked on as datanet:NAME",
                ) from error

    async def models(self, *, account: str = "", after: str = "", limit: int = 1000) -> list[ModelEntry]:
        return [self._entry(adapter) for adapter in self._registry.page(account=account, after=after, limit=limit)]

    async def model(self, account: str, model_id: str) -> ModelEntry:
        return self._entry(self._sold(account, model_id))

    async def add_adapter(self, account: str, adapter: NewAdapter) -> ModelEntry:
        return self._entry(await self._intake.add(account, adapter))

    async def remove_adapter(self, account: str, model_id: str) -> None:
        await self._intake.remove(account, model_id)

    def chat(
        self,
        *,
        account: str,
        model: str,
        messages: Sequence[dict[str, str]],
        sampling: SamplingParameters,
        idempotency_key: str,
        key_digest: str = "",
        whole: bool = False,
        adapters: Sequence[tuple[str, float]] = (),
    ) -> AsyncIterator[AnswerEvent]:
        def encode(base: ServedBase) -> list[Encoded]:
            return [(base.encode_chat(messages), None)]

        return self._answers(account, (model, adapters), encode, sampling, idempotency_key, key_digest, whole)

    def complete(
        self,
        *,
        account: str,
        model: str,
        prompts: Sequence[str | Sequence[int]],
        sampling: SamplingParameters,
        idempotency_key: str,
        key_digest: str = "",
        echo: bool = False,
        whole: bool = False,
        adapters: Sequence[tuple[str, float]] = (),
    ) -> AsyncIterator[AnswerEvent]:
        def encode(base: ServedBase) -> list[Encoded]:
            return [base.encode_plain(prompt, echo=echo) for prompt in prompts]

        return self._answers(account, (model, adapters), encode, sampling, idempotency_key, key_digest, whole)

    async def embed(
        self,
        *,
        account: str,
        model: str,
        inputs: Sequence[str | Sequence[int]],
        idempotency_key: str,
        key_digest: str = "",
    ) -> Embedded:
        asked = self._asked(account, (model, ()), SamplingParameters(max_tokens=0), idempotency_key, key_digest)
        ids = await asyncio.to_thread(asked.base.encode_inputs, inputs)
        asked = replace(
            asked,
            prompt_ids=tuple(token for each in ids for token in each),
            kind=f"embedding of {[len(each) for each in ids]}",
        )
        request = EmbeddingRequest(inputs=ids, adapter_digest=asked.adapter_digest, tenant=account)
        embedded = await self._answering.embed(asked, request)
        return replace(embedded, receipt=await self._signed(embedded.receipt))

    async def _answers(
        self,
        account: str,
        named: Named,
        encode: Callable[[ServedBase], list[Encoded]],
        sampling: SamplingParameters,
        idempotency_key: str,
        key_digest: str,
        whole: bool,
    ) -> AsyncGenerator[AnswerEvent]:
        asked = self._asked(account, named, sampling, idempotency_key, key_digest)
        prompts = encode(asked.base)
        room = asked.base.base.max_positions - max(len(prompt_ids) for prompt_ids, _ in prompts)
        sampling = replace(sampling, max_tokens=min(sampling.max_tokens, room))
        asked = replace(asked, sampling=sampling, whole=whole)
        async with aclosing(self._answering.answers(one_by_one(asked, prompts))) as events:
            async for event in events:
                yield event if event.receipt is None else replace(event, receipt=await self._signed(event.receipt))

    def _asked(
        self, account: str, named: Named, sampling: SamplingParameters, idempotency_key: str, key_digest: str
    ) -> Asked:
        """What is known of a request before its text is encoded. Raises as `model`, `Bases.of` and `ensemble_of`."""
        model, weights = named
        if weights:
            members = [(self._sold(account, name), weight) for name, weight in weights]
            base, parts = ensemble_of(self._bases, model, members)
        else:
            adapter = self._sold(account, model)
            assert adapter.terms is not None
            base, place = self._bases.of(adapter), "" if adapter.is_base else adapter.place
            parts = (Part(terms=adapter.terms, place=place),)
        return Asked(
            index=0,
            account=account,
            key=idempotency_key or new_id("key", SystemClock().now_ms()),
            key_digest=key_digest,
            base=base,
            parts=parts,
            prompt_ids=(),
            sampling=sampling,
        )

    async def _signed(self, told: Receipt) -> Receipt:
        """With the ledger's promise, which came with the payment unless that was made before."""
        if told.adapters:
            return replace(told, adapters=tuple([await self._signed_part(each) for each in told.adapters]))
        return told if told.signed else replace(told, signed=await self._promise(told.answer_id))

    async def _signed_part(self, told: AdapterReceipt) -> AdapterReceipt:
        return told if told.signed else replace(told, signed=await self._promise(told.answer_id))

    async def _promise(self, answer_id: str) -> dict[str, Any] | None:
        """None where the ledger isn't there, for the answer is paid and the promise can be had later."""
        try:
            async with asyncio.timeout(_RECEIPT_PATIENCE_S):
                return dict(await answered(self._ledger.receipt.remote(fee_id(answer_id))))
        except (OpenLedgerError, TimeoutError):
            _logger.warning("%s goes out without its signed receipt", answer_id, exc_info=True)
            return None

    def _entry(self, adapter: RegisteredAdapter) -> ModelEntry:
        terms = adapter.terms
        assert terms is not None
        return ModelEntry(
            id=adapter.name,
            created_ms=adapter.created_ms,
            owned_by=terms.owner_account,
            base_model=self._bases.name_of(adapter),
            base_digest=adapter.base_digest,
            datanet=terms.datanet,
            datanet_version=terms.datanet_version,
            adapter_digest="" if adapter.is_base else adapter.digest,
            prompt_price_nano=terms.prompt_price_nano,
            completion_price_nano=terms.completion_price_nano,
        )

    def _sold(self, account: str, model: str) -> RegisteredAdapter:
        """Raises NotFound (`unknown_model`), in the same words where `account` may not know of it."""
        adapter = self._registry.get(model)
        if adapter.terms is None:
            raise NotFound(f"the model {model!r} is not sold", code="unknown_model", param="model")
        if not adapter.may_be_asked_by(account):
            raise NotFound(
                f"there is no model {model!r}",
                code="unknown_model",
                param="model",
                fix="list the models to see the names",
            )
        return adapter

    async def mark(self, account: str, answer_id: str, verdict: str) -> str:
        return str(await answered(self._economy.mark.remote(answer_id, verdict, account)))

    async def balance(self, account: str) -> dict[str, Any]:
        try:
            balance = await answered(self._economy.balance.remote(account))
        except NotFound:
            await self._check_known(account)
            return {"account": account, "available_nano": 0, "held_nano": 0, "is_open": False}
        held_nano = balance.posted_nano - balance.available_nano
        return {"account": account, "available_nano": balance.available_nano, "held_nano": held_nano, "is_open": True}

    async def _check_known(self, account: str) -> None:
        """An API key's account is known by its key, a contributor's by what came in under his."""
        kind, _, contributor = account.partition(":")
        if kind == "contributor" and not await answered(self._datanets.has_signed.remote(contributor)):
            raise NotFound(
                f"nothing was ever contributed as {contributor}",
                code="unknown_contributor",
                param="key",
                fix="check that it is the key file, and the server, that you contributed with",
            )

    async def datanets(self) -> list[dict[str, Any]]:
        told = await self._told()
        names = await answered(self._datanets.names.remote())
        return await asyncio.gather(*(self._datanet_entry(name, told.get(name, {})) for name in sorted(names)))

    async def datanet(self, name: str) -> dict[str, Any]:
        return await self._datanet_entry(name, (await self._told()).get(name, {}))

    async def _datanet_entry(self, name: str, told: dict[str, Any]) -> dict[str, Any]:
        """What the Datanets know now, and beside it what the report tells of adapter, shares and earnings."""
        found, versions, statistics, move, damages = await asyncio.gather(
            answered(self._datanets.datanet.remote(name)),
            answered(self._datanets.versions.remote(name)),
            answered(self._datanets.statistics.remote(name)),
            answered(self._datanets.move_state.remote()),
            answered(self._datanets.damages.remote()),
        )
        entry = datanet_entry(name, found.summary, versions[-1] if versions else _unpublished(name), statistics, {})
        people = {person["contributor_id"]: person for person in told.get("contributors", [])}
        contributors = [{**people.get(one["contributor_id"], {}), **_now(one)} for one in entry["contributors"]]
        known = {"display": found.display, "owner": found.owner, "row_schema": found.row_schema.to_json()}
        known |= {"move": move, "damage": damages[name].code if name in damages else ""}
        return {**told, **entry, **known, "contributors": contributors}

    async def _told(self) -> dict[str, dict[str, Any]]:
        """The report's entries by Datanet."""
        return {entry["name"]: entry for entry in (await self.report()).get("datanets", [])}

    async def contribute(self, contribution: Contribution) -> ContributionReceipt:
        own = contribution.contributor_id, contribution.public_key
        await answered(self._datanets.check_key.remote(*own))  # or others' deposits would be held
        receipt = await self.desk.deposited(
            contribution,
            lambda: self._contributing.send(contribution),
            lambda: answered(self._datanets.judged.remote(contribution_id(contribution))),
        )
        await self._log_seals()
        return receipt

    async def preview(self, contribution: Contribution) -> tuple[Verdict, ...]:
        return await self._contributing.preview(contribution)

    async def contribution(self, name: str, contribution_id: str, reader: str = "") -> ContributionReceipt:
        receipt: ContributionReceipt = await answered(self._datanets.receipt.remote(name, contribution_id, reader))
        return receipt

    def adapters_of(self, datanet: str) -> list[str]:
        return [one.name for one in self._registry.list() if one.terms is not None and one.terms.datanet == datanet]

    async def withdraw(self, withdrawal: Withdrawal) -> dict[str, Any]:
        return await self._recorded(await answered(self._datanets.withdraw.remote(withdrawal)))

    async def remove_rows(self, account: str, name: str, row_ids: Sequence[str], reason: str) -> dict[str, Any]:
        return await self._recorded(await answered(self._datanets.remove.remote(name, row_ids, account, reason)))

    async def _recorded(self, removal: Removal) -> dict[str, Any]:
        """A removal is answered once the report has forgotten it and the log has it, and with it all that were cut off
        here before."""
        statement = removal_statement(removal)
        await self._forget_in_report()
        transfer_id = await self._log_removal(removal)
        await self._log_removals()
        adapters = affected_adapters(self._registry, self._workdir.indexes, removal.row_ids)
        told = {name: statement[name] for name in ("removal_id", "datanet", "kind", "num_rows", "rows_root")}
        return {**told, "transfer_id": transfer_id, "adapters": [_affected(one) for one in adapters]}

    async def _before_key_change(self) -> None:
        await self._log_removals()
        await super()._before_key_change()

    async def _log_removals(self) -> None:
        """Put removals that the log lacks there, in their order; may be repeated, also by two at a time."""
        waiting: list[Removal] = await answered(self._datanets.unlogged_removals.remote())
        if waiting:
            await self._forget_in_report()
        for removal in waiting:
            try:
                await self._log_removal(removal)
            except (Conflict, Forbidden):
                _logger.exception("the log refuses the removal %s", removal.removal_id)

    async def _log_removal(self, removal: Removal) -> str:
        """The id of the transfer whose proof shows it."""
        transfer_id = await record_removal(self._ledger, removal, self.key_holder)
        await answered(self._datanets.mark_removal_logged.remote(removal.removal_id))
        return transfer_id

    async def report(self) -> dict[str, Any]:
        """The report as it was written, its sources as the Datanets' display policies are now."""
        path = self._workdir.report
        told = dict(json.loads(path.read_text())) if path.exists() else {}
        told["unit"] = (await answered(self._economy.unit.remote())).name
        if told.get("answers"):
            displays = await answered(self._datanets.displays.remote())
            told["answers"] = [displayed(answer, displays) for answer in await self._answers_now(told["answers"])]
        return told

    async def _answers_now(self, answers: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Without what they tell of rows that were taken back."""
        gone: set[str] = await answered(self._datanets.removed_among.remote(told_rows(answers)))
        return [without_rows(answer, gone) for answer in answers]

    async def _forget_in_report(self) -> None:
        """The report's file keeps no text of a row that was taken back."""
        path = self._workdir.report
        async with self._changing_report, changing_meanwhile(path):
            told = json.loads(path.read_text()) if path.exists() else {}
            if told.get("answers") and told["answers"] != (kept := await self._answers_now(told["answers"])):
                await asyncio.to_thread(write_json_durably, path, {**told, "answers": kept})

    async def checkpoint(self) -> str:
        return str(await answered(self._ledger.checkpoint.remote()))

    async def audit(self) -> dict[str, Any]:
        return audit_entry(await answered(self._ledger.audit.remote()))

    async def receipt(self, account: str, answer_id: str) -> bytes:
        try:
            signed = await answered(self._ledger.receipt.remote(fee_id(answer_id)))
        except NotFound as error:
            raise _not_bought(account, answer_id) from error
        if signed["transfer"]["debit"] != account:
            raise _not_bought(account, answer_id)
        return encode_receipt(signed)

    async def proof(self, transfer_id: str) -> bytes:
        return encode_proof(await answered(self._ledger.proof.remote(transfer_id)))

    async def payouts(self, account: str | None = None) -> list[dict[str, Any]]:
        accounts = [account] if account else [f"contributor:{contributor}" for contributor in await self._paid()]
        found = await asyncio.gather(*(answered(self._economy.payouts.remote(name)) for name in accounts))
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

    async def row_scores(
        self, adapter: str, period: str, *, account: str = "", contributor: str = "", limit: int = 100, after: str = ""
    ) -> dict[str, Any]:
        quality = await self._ask("settlement_quality", adapter, period)
        found = await asyncio.to_thread(open_rows, self._workdir.rows, adapter, period, quality)
        stated = {digest: document.stated for digest, document in found.items()}
        if not self._may_ask(account, adapter) or not all(may_be_told(told, account) for told in stated.values()):
            raise no_row_scores(adapter, period)
        displays = await answered(self._datanets.displays.remote())
        if any(displays.get(told.get("datanet", ""), "none") == "none" for told in stated.values()):
            raise Forbidden(
                f"the Datanet of {adapter} shows nobody its rows",
                code="rows_not_displayed",
                param="adapter",
                fix="its owner sets what is displayed; the contributor's own rows are known to him by their ids",
            )
        rows, ends = await asyncio.to_thread(row_lines, list(found.values()), contributor, limit, after)
        kept = [
            {"row_scores": digest, **{name: told.get(name) for name in ("adapter_digest", "deviation", "corrected")}}
            for digest, told in stated.items()
        ]
        page = {"rows": rows, "has_more": bool(ends), "next": ends}
        return {"adapter": adapter, "period": period, "adapters": kept, **page}

    def _may_ask(self, account: str, adapter: str) -> bool:
        """Also what is registered no more: there its documents say who may know of it."""
        try:
            return self._registry.get(adapter).may_be_asked_by(account)
        except NotFound:
            return True


def _not_bought(account: str, answer_id: str) -> NotFound:
    return NotFound(
        f"{account} paid for no answer {answer_id}",
        code="answer_not_sold",
        param="answer_id",
        fix="send the API key that paid for it; the answer's id stands in its `openledger` object",
    )


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


def _payout_entry(payout: Any) -> dict[str, Any]:
    adapter, _, period = payout.reference.rpartition(":")
    return {**asdict(payout), "adapter": adapter, "period": period}
