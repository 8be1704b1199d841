"""OpenAI's chat completion objects. Under `openledger` stands what OpenAI has no word for: the receipt."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from openledger.api.streams import Collected, receipts, usage_of
from openledger.platform.service import AnswerEvent, Receipt, TokenScore


@dataclass(frozen=True, slots=True, kw_only=True)
class Heading:
    """What all chunks of one completion share. `scored` says that log-probabilities were asked for."""

    id: str
    created_s: int
    model: str
    scored: bool = False

    def top(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created_s, "model": self.model}


def completion(heading: Heading, answers: list[Collected]) -> dict[str, Any]:
    return {
        **heading.top("chat.completion"),
        "choices": [_choice(heading, answer) for answer in answers],
        "usage": usage_of(answers),
        "openledger": receipt_object(receipts(answers)),
    }


def chunks_of(heading: Heading, event: AnswerEvent, is_first: bool) -> list[dict[str, Any]]:
    """What is sent of one event: the role before an answer's first text, its end and receipt after its last."""
    told = [_chunk(heading, event, {"role": "assistant", "content": ""})] if is_first else []
    if event.text or event.scores:
        told.append(_chunk(heading, event, {"content": event.text}, scores=event.scores))
    if event.finish_reason is not None:
        last = _chunk(heading, event, {}, event.finish_reason)
        told.append({**last, "openledger": receipt_object([event.receipt])} if event.receipt is not None else last)
    return told


def usage_chunk(heading: Heading, answers: list[Collected]) -> dict[str, Any]:
    """The chunk after the last, without choices, that `stream_options.include_usage` asks for."""
    return {**heading.top("chat.completion.chunk"), "choices": [], "usage": usage_of(answers)}


def receipt_object(told: Sequence[Receipt]) -> dict[str, Any]:
    """The receipt; of several answers, what they cost together and each by itself."""
    if len(told) == 1:
        return _receipt(told[0])
    return {"fee_nano": sum(receipt.fee_nano for receipt in told), "answers": [_receipt(receipt) for receipt in told]}


def _receipt(receipt: Receipt) -> dict[str, Any]:
    """`adapters` is told of ensembles alone."""
    return {name: value for name, value in asdict(receipt).items() if name != "adapters" or value}


def _choice(heading: Heading, answer: Collected) -> dict[str, Any]:
    return {
        "index": answer.index,
        "message": {"role": "assistant", "content": answer.text, "refusal": None},
        "logprobs": _logprobs(answer.scores) if heading.scored else None,
        "finish_reason": answer.finish_reason,
    }


def _chunk(
    heading: Heading,
    event: AnswerEvent,
    delta: dict[str, str],
    finish_reason: str | None = None,
    scores: Sequence[TokenScore] = (),
) -> dict[str, Any]:
    choice = {
        "index": event.index,
        "delta": delta,
        "logprobs": _logprobs(scores) if heading.scored and scores else None,
        "finish_reason": finish_reason,
    }
    return {**heading.top("chat.completion.chunk"), "choices": [choice]}


def _logprobs(scores: Sequence[TokenScore]) -> dict[str, Any]:
    content = [
        {**_token(score.token, score.logprob), "top_logprobs": [_token(token, logprob) for token, logprob in score.top]}
        for score in scores
    ]
    return {"content": content, "refusal": None}


def _token(token: str, logprob: float | None) -> dict[str, Any]:
    return {"token": token, "logprob": logprob, "bytes": list(token.encode("utf-8", "replace"))}
