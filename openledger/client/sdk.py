"""`OpenLedger`: one method for each call of the API.

    with OpenLedger("http://127.0.0.1:8420", api_key) as client:
        print(client.ask("python-docs", "What does os.path.join do?").text)

Every method raises the errors of `core.errors` that the server names. Nothing is retried on its own: paid calls take
an `idempotency_key`, with which a retry is safe.
"""

import json
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import httpx

from openledger.client import values
from openledger.client.transport import Transport
from openledger.client.values import Answer, Model, Piece, read_as
from openledger.core.errors import InvalidInput
from openledger.core.values import Contribution, ContributionReceipt, Grammar, SamplingParameters

Message = dict[str, str]
_NEUTRAL = asdict(SamplingParameters())


class OpenLedger:
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

    def balance(self) -> dict[str, Any]:
        """At least `account`, `available_nano`, `held_nano`."""
        return self._object("/v1/balance")

    def payouts(self) -> list[dict[str, Any]]:
        return self._list("/v1/payouts")

    def ask(
        self,
        model: str,
        question: str,
        *,
        sampling: SamplingParameters | None = None,
        idempotency_key: str | None = None,
    ) -> Answer:
        return self.chat(model, _asked(question), sampling=sampling, idempotency_key=idempotency_key)

    def chat(
        self,
        model: str,
        messages: Sequence[Message],
        *,
        sampling: SamplingParameters | None = None,
        idempotency_key: str | None = None,
    ) -> Answer:
        body = _chat_body(model, messages, sampling, stream=False)
        return read_as(
            values.read_answer, self._transport.post_json("/v1/chat/completions", body, _key(idempotency_key))
        )

    def chat_stream(
        self,
        model: str,
        messages: Sequence[Message],
        *,
        sampling: SamplingParameters | None = None,
        idempotency_key: str | None = None,
    ) -> Iterator[Piece]:
        """The answer as it is made. Closing the iterator hangs up, which cancels the answer."""
        body = _chat_body(model, messages, sampling, stream=True)
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

    def report(self) -> dict[str, Any]:
        return self._object("/v1/report")

    def attribution(self, answer_id: str) -> dict[str, Any]:
        return self._object(f"/v1/answers/{_segment(answer_id)}/attribution")

    def checkpoint(self) -> str:
        """The signed note, byte for byte."""
        return self._transport.get_bytes("/v1/ledger/checkpoint").decode("utf-8", "replace")

    def audit(self) -> dict[str, Any]:
        return self._object("/v1/ledger/audit")

    def proof(self, transfer_id: str) -> bytes:
        """The proof file, byte for byte; check it with `openledger ledger verify`."""
        return self._transport.get_bytes(f"/v1/ledger/proofs/{_segment(transfer_id)}")

    def _object(self, path: str) -> dict[str, Any]:
        return read_as(values.read_object, self._transport.get_json(path))

    def _list(self, path: str) -> list[dict[str, Any]]:
        return read_as(values.read_list, self._transport.get_json(path))


def _asked(question: str) -> list[Message]:
    return [{"role": "user", "content": question}]


def _chat_body(
    model: str, messages: Sequence[Message], sampling: SamplingParameters | None, *, stream: bool
) -> dict[str, Any]:
    return {"model": model, "messages": list(messages), "stream": stream, **_sampling_body(sampling)}


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


def _key(idempotency_key: str | None) -> dict[str, str]:
    return {"Idempotency-Key": idempotency_key or str(uuid.uuid4())}


def _segment(name: str) -> str:
    """`name` as one segment of a path, whatever it holds."""
    return quote(name, safe="")
