"""`OpenLedger`: one method for each call of the API.

    with OpenLedger("http://127.0.0.1:8420", api_key) as client:
        print(client.ask("python-docs", "What does os.path.join do?").text)

Every method raises the errors of `core.errors` that the server names. Nothing is retried on its own: paid calls take
an `idempotency_key`, with which a retry is safe.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from types import TracebackType
from typing import Any, Self

import httpx

from openledger.client import values
from openledger.client.communities import Communities
from openledger.client.offices import Offices
from openledger.client.transport import Transport
from openledger.client.values import Answer, Model, Piece, read_as
from openledger.client.values import idempotency as _key
from openledger.client.values import segment as _segment
from openledger.core.appealing import Appeal, Decision
from openledger.core.claiming import sign_claim
from openledger.core.errors import InvalidInput, NotFound
from openledger.core.sealing import Seal, SealReceipt
from openledger.core.signed import contribution_id
from openledger.core.signing import SigningKey
from openledger.core.values import (
    Contribution,
    ContributionReceipt,
    Grammar,
    SamplingParameters,
    Verdict,
    Withdrawal,
)

Message = dict[str, str]
Weights = Mapping[str, float]  # of adapters, by name
_NEUTRAL = asdict(SamplingParameters())


class OpenLedger(Offices, Communities):
    def __init__(
        self,
        base_url: str,
        api_key: str | None = None,
        timeout_s: float = 120.0,
        transport: httpx.BaseTransport | None = None,
    ):
        """`transport` replaces the network, as httpx takes it."""
        self._transport = Transport(base_url, api_key, timeout_s, transport)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._transport.close()

    def health(self) -> dict[str, Any]:
        return self._object("/healthz")

    def models(self) -> list[Model]:
        """All that may be asked, page by page."""
        found: list[Model] = []
        path = "/v1/models"
        while True:
            page = self._object(path)
            found += [read_as(values.read_model, item) for item in read_as(values.read_list, page)]
            if not found or not page.get("has_more"):
                return found
            path = f"/v1/models?after={_segment(found[-1].id)}"

    def ask(
        self,
        model: str,
        question: str,
        *,
        sampling: SamplingParameters | None = None,
        adapters: Weights | None = None,
        idempotency_key: str | None = None,
    ) -> Answer:
        """As `chat`, of one question."""
        messages = _asked(question)
        return self.chat(model, messages, sampling=sampling, adapters=adapters, idempotency_key=idempotency_key)

    def chat(
        self,
        model: str,
        messages: Sequence[Message],
        *,
        sampling: SamplingParameters | None = None,
        adapters: Weights | None = None,
        idempotency_key: str | None = None,
    ) -> Answer:
        """The answer, whole. With `adapters`, names with a weight each, all of them answer together, and `model` is the
        base that they are of."""
        body = _chat_body(model, messages, sampling, adapters, stream=False)
        return read_as(
            values.read_answer, self._transport.post_json("/v1/chat/completions", body, _key(idempotency_key))
        )

    def chat_stream(
        self,
        model: str,
        messages: Sequence[Message],
        *,
        sampling: SamplingParameters | None = None,
        adapters: Weights | None = None,
        idempotency_key: str | None = None,
    ) -> Iterator[Piece]:
        """As `chat`, while it is made. Closing the iterator hangs up, which cancels the answer."""
        body = _chat_body(model, messages, sampling, adapters, stream=True)
        for event in self._transport.post_events("/v1/chat/completions", body, _key(idempotency_key)):
            yield read_as(values.read_piece, event)

    def mark(self, answer_id: str, verdict: str = "wrong") -> dict[str, Any]:
        """Say that an answer you paid for was wrong: at least `answer_id`, `verdict` and `transfer_id`, whose proof
        shows it. Nothing is refunded. Safe to send again; refused once the answer's period is closed."""
        path = f"/v1/answers/{_segment(answer_id)}/verdict"
        return read_as(values.read_object, self._transport.post_json(path, {"verdict": verdict}))

    def datanets(self) -> list[dict[str, Any]]:
        return self._list("/v1/datanets")

    def datanet(self, name: str) -> dict[str, Any]:
        return self._object(f"/v1/datanets/{_segment(name)}")

    def contribute(self, contribution: Contribution) -> ContributionReceipt:
        """One verdict for each draft, in order. Safe to send again: the first receipt comes back."""
        body = asdict(contribution)
        path = f"/v1/datanets/{_segment(body.pop('datanet'))}/contributions"
        return read_as(values.read_contribution, self._transport.post_json(path, body))

    def contribute_all(self, contributions: Iterable[Contribution]) -> Iterator[ContributionReceipt]:
        """Send a stream of contributions (`datanets.contribution.sign_batches` makes them of any iterable of rows),
        each as it is asked for. One that is stored already isn't sent again: after a broken connection, start over."""
        for contribution in contributions:
            yield self.stored(contribution) or self.contribute(contribution)

    def stored(self, contribution: Contribution) -> ContributionReceipt | None:
        """The receipt of a contribution that was stored before; None where it wasn't."""
        name, identifier = _segment(contribution.datanet), _segment(contribution_id(contribution))
        try:
            found = self._transport.get_json(f"/v1/datanets/{name}/contributions/{identifier}")
        except NotFound:
            return None
        return read_as(values.read_contribution, found)

    def preview(self, contribution: Contribution) -> list[Verdict]:
        """The verdicts that the rows would get now; nothing is stored."""
        body = asdict(contribution)
        path = f"/v1/datanets/{_segment(body.pop('datanet'))}/previews"
        return read_as(values.read_verdicts, self._transport.post_json(path, body))

    def withdraw_rows(self, withdrawal: Withdrawal) -> dict[str, Any]:
        """Take rows back: at least `removal_id`, `transfer_id` (its proof shows the entry in the log) and `adapters`,
        which have learnt from them. Safe to send again."""
        body = asdict(withdrawal)
        path = f"/v1/datanets/{_segment(body.pop('datanet'))}/withdrawals"
        return read_as(values.read_object, self._transport.post_json(path, body))

    def remove_rows(self, datanet: str, row_ids: Sequence[str], reason: str) -> dict[str, Any]:
        """As `withdraw_rows`, by the Datanet's owner, whose API key this is."""
        body = {"row_ids": list(row_ids), "reason": reason}
        path = f"/v1/datanets/{_segment(datanet)}/removals"
        return read_as(values.read_object, self._transport.post_json(path, body))

    def seal(self, seal: Seal) -> SealReceipt:
        """Keep a place for rows before you show them (`datanets.seals.seal_of` makes the seal of a contribution). Safe
        to send again: the first receipt comes back."""
        body = asdict(seal)
        path = f"/v1/datanets/{_segment(body.pop('datanet'))}/seals"
        return read_as(values.read_seal, self._transport.post_json(path, body))

    def find_seal(self, seal: Seal) -> SealReceipt:
        """What has become of it: `waiting`, `opened` or `expired`."""
        own = f"{_segment(seal.contributor_id)}/{_segment(seal.digest)}"
        return read_as(values.read_seal, self._transport.get_json(f"/v1/datanets/{_segment(seal.datanet)}/seals/{own}"))

    def appeal(self, appeal: Appeal, *, idempotency_key: str | None = None) -> dict[str, Any]:
        """Contest the gate's verdict on a row, against a deposit from the contributor's account
        (`datanets.appeals.appeal_of` makes it of the contribution). Safe to send again."""
        body = asdict(appeal)
        return self._post(_appeals(body.pop("datanet")), body, idempotency_key)

    def appeals(self, datanet: str) -> list[dict[str, Any]]:
        return self._list(_appeals(datanet))

    def find_appeal(self, datanet: str, row_id: str) -> dict[str, Any]:
        return self._object(f"{_appeals(datanet)}/{_segment(row_id)}")

    def appealed_row(self, datanet: str, row_id: str) -> dict[str, Any]:
        """What a reviewer judges: `prompt`, `completion`, `source`; with the API key of the Datanet's owner or of a
        reviewer, while the appeal is open."""
        return self._object(f"{_appeals(datanet)}/{_segment(row_id)}/row")

    def decide(self, decision: Decision, *, idempotency_key: str | None = None) -> dict[str, Any]:
        """Close an appeal (`core.appealing.sign_decision` makes the decision). Safe to send again."""
        body = asdict(decision)
        path = f"{_appeals(body.pop('datanet'))}/{_segment(body.pop('row_id'))}/decision"
        return self._post(path, body, idempotency_key)

    def spot_checks(self, datanet: str) -> list[dict[str, Any]]:
        """The oldest 100 accepted rows that were drawn to be looked at again, with their text; by the API key of the
        Datanet's owner or a reviewer."""
        return self._list(_spot_checks(datanet))

    def spot_check(self, datanet: str, row_id: str, finding: str) -> dict[str, Any]:
        """What you found a drawn row to be: `good`, `spam` or `duplicate`. Safe to send again."""
        return self._post(f"{_spot_checks(datanet)}/{_segment(row_id)}", {"finding": finding})

    def vouch(self, datanet: str, contributor_id: str, vouches: bool = True) -> dict[str, Any]:
        """Vouch for a contributor, by the API key of your own `contributor:` account; at least his `quota_rows`."""
        return self._post(f"/v1/datanets/{_segment(datanet)}/vouches/{_segment(contributor_id)}", {"vouches": vouches})

    def seed_trust(self, datanet: str, contributor_id: str, trusted: bool = True) -> dict[str, Any]:
        """Say whom you trust in your Datanet; trust flows from there along vouches."""
        return self._post(f"/v1/datanets/{_segment(datanet)}/seeds/{_segment(contributor_id)}", {"trusted": trusted})

    def add_reviewer(self, datanet: str, account: str, public_key: str, signature: str) -> dict[str, Any]:
        """Name a reviewer of your Datanet. The reviewer signs for it (`ledger.signers.sign_signer`)."""
        body = {"account": account, "public_key": public_key, "signature": signature}
        return self._post(f"/v1/datanets/{_segment(datanet)}/reviewers", body)

    def end_reviewer(self, datanet: str, account: str, public_key: str) -> dict[str, Any]:
        own = f"{_segment(account)}/{_segment(public_key)}"
        path = f"/v1/datanets/{_segment(datanet)}/reviewers/{own}"
        return read_as(values.read_object, self._transport.delete_json(path))

    def disputes(self, adapter: str, period: str) -> list[dict[str, Any]]:
        return self._list(f"/v1/disputes?adapter={_segment(adapter)}&period={_segment(period)}")

    def dispute(self, dispute_id: str) -> dict[str, Any]:
        return self._object(f"/v1/disputes/{_segment(dispute_id)}")

    def open_dispute(
        self,
        adapter: str,
        period: str,
        claimed_nano: int,
        reason: str = "",
        *,
        key: SigningKey | None = None,
        contributor_id: str | None = None,
        idempotency_key: str | None = None,
    ) -> dict[str, Any]:
        """Say that a settled pool owed more, against a deposit: as the account of the API key, or signed with the
        contributor's own `key`. Safe to send again."""
        claim = {"adapter": adapter, "period": period, "claimed_nano": claimed_nano, "reason": reason}
        signed = {}
        if key is not None:
            signature = sign_claim(key, adapter, period, claimed_nano, reason)
            signed = {"public_key": key.public_key, "signature": signature}
        body = {**claim, **signed, "contributor_id": contributor_id}
        return self._post("/v1/disputes", body, idempotency_key)

    def resolve_dispute(
        self, dispute_id: str, recomputation: Mapping[str, Any], *, idempotency_key: str | None = None
    ) -> dict[str, Any]:
        """Decide a dispute by signed scores, as `ledger.disputes.recomputation_json` gives them. Safe to send again."""
        path = f"/v1/disputes/{_segment(dispute_id)}/recomputation"
        return self._post(path, dict(recomputation), idempotency_key)

    def retention(self) -> dict[str, Any]:
        """What is kept of your prompts and answers: `keep`, `num_kept`, `has_key`."""
        return self._object("/v1/retention")

    def set_retention(self, keep: bool) -> dict[str, Any]:
        return self._post("/v1/retention", {"keep": keep})

    def forget_content(self) -> dict[str, Any]:
        """Delete your key, and what was kept under it; `num_erased` answers."""
        return read_as(values.read_object, self._transport.delete_json("/v1/retention/content"))

    def report(self) -> dict[str, Any]:
        return self._object("/v1/report")

    def attribution(self, answer_id: str) -> dict[str, Any]:
        return self._object(f"/v1/answers/{_segment(answer_id)}/attribution")

    def row_scores(
        self, adapter: str, period: str, *, contributor: str = "", limit: int = 100, after: str = ""
    ) -> dict[str, Any]:
        """What each row did to the answers that `adapter` sold in `period`, most first; `after` is the `next` of the
        page before."""
        pool = f"adapter={_segment(adapter)}&period={_segment(period)}"
        page = f"limit={limit}&after={_segment(after)}"
        return self._object(f"/v1/row_scores?{pool}&contributor={_segment(contributor)}&{page}")

    def checkpoint(self) -> str:
        """The signed note, byte for byte."""
        return self._transport.get_bytes("/v1/ledger/checkpoint").decode("utf-8", "replace")

    def audit(self) -> dict[str, Any]:
        return self._object("/v1/ledger/audit")

    def receipt(self, answer_id: str) -> bytes:
        """The signed receipt of an answer that you paid for; check it with `openledger ledger receipt`."""
        return self._transport.get_bytes(f"/v1/receipts/{_segment(answer_id)}")

    def proof(self, transfer_id: str) -> bytes:
        """The proof file, byte for byte; check it with `openledger ledger verify`."""
        return self._transport.get_bytes(f"/v1/ledger/proofs/{_segment(transfer_id)}")

    def _post(self, path: str, body: dict[str, Any], idempotency_key: str | None = None) -> dict[str, Any]:
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else None
        return read_as(values.read_object, self._transport.post_json(path, body, headers))

    def _object(self, path: str) -> dict[str, Any]:
        return read_as(values.read_object, self._transport.get_json(path))

    def _list(self, path: str) -> list[dict[str, Any]]:
        return read_as(values.read_list, self._transport.get_json(path))


def _asked(question: str) -> list[Message]:
    return [{"role": "user", "content": question}]


def _chat_body(
    model: str,
    messages: Sequence[Message],
    sampling: SamplingParameters | None,
    adapters: Weights | None,
    *,
    stream: bool,
) -> dict[str, Any]:
    if adapters is not None and not adapters:
        raise InvalidInput(
            "an ensemble of no adapters", code="invalid_ensemble", param="adapters", fix="name some, or leave it out"
        )
    named = [{"model": name, "weight": float(weight)} for name, weight in (adapters or {}).items()]
    together = {"adapters": named} if named else {}
    return {"model": model, "messages": list(messages), "stream": stream, **together, **_sampling_body(sampling)}


def _sampling_body(sampling: SamplingParameters | None) -> dict[str, Any]:
    """In the API's words; what is as it would be anyway is left out."""
    if sampling is None:
        return {}
    if sampling.num_answers != 1 or sampling.prompt_logprobs is not None:
        raise InvalidInput(
            "the SDK reads one answer, without its prompt's log-probabilities",
            code="unsupported_parameter",
            param="sampling",
            fix="ask POST /v1/chat/completions or /v1/completions yourself for n or echo",
        )
    chosen = {name: value for name, value in asdict(sampling).items() if value != _NEUTRAL[name]}
    if sampling.stop:
        chosen["stop"] = list(sampling.stop)
    if sampling.logprobs is not None:
        chosen |= {"logprobs": True, "top_logprobs": sampling.logprobs}
    if sampling.grammar is not None:
        del chosen["grammar"]
        chosen["response_format"] = _response_format(sampling.grammar)
    return {{"ignore_end": "ignore_eos"}.get(name, name): value for name, value in chosen.items()}


def _response_format(grammar: Grammar) -> dict[str, Any]:
    if grammar.kind == "json_schema":
        schema = {"name": "answer", "schema": json.loads(grammar.text)}
        return {"type": "json_schema", "json_schema": schema}
    words = {"regex": "pattern", "lark": "grammar"}
    return {"type": grammar.kind, **({words[grammar.kind]: grammar.text} if grammar.kind in words else {})}


def _spot_checks(datanet: str) -> str:
    return f"/v1/datanets/{_segment(datanet)}/spot-checks"


def _appeals(datanet: str) -> str:
    return f"/v1/datanets/{_segment(datanet)}/appeals"
