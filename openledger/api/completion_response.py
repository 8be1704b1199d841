"""OpenAI's text completion objects, with the prompt and its log-probabilities where it is echoed."""

from collections.abc import Sequence
from typing import Any

from openledger.api.chat_response import Heading, receipt_object
from openledger.api.streams import Collected, receipts, usage_of
from openledger.platform.service import AnswerEvent, TokenScore

_KIND = "text_completion"


def completion(heading: Heading, answers: list[Collected]) -> dict[str, Any]:
    return {
        **heading.top(_KIND),
        "choices": [_choice(heading, answer) for answer in answers],
        "usage": usage_of(answers),
        "openledger": receipt_object(receipts(answers)),
    }


def chunks_of(heading: Heading, event: AnswerEvent, is_first: bool) -> list[dict[str, Any]]:
    choice = {
        "index": event.index,
        "text": event.text,
        "logprobs": _logprobs(event.scores, 0) if heading.scored and event.scores else None,
        "finish_reason": event.finish_reason,
    }
    if not (event.text or event.scores or event.finish_reason):
        return []
    receipt = {} if event.receipt is None else {"openledger": receipt_object([event.receipt])}
    return [{**heading.top(_KIND), "choices": [choice], **receipt}]


def usage_chunk(heading: Heading, answers: list[Collected]) -> dict[str, Any]:
    return {**heading.top(_KIND), "choices": [], "usage": usage_of(answers)}


def _choice(heading: Heading, answer: Collected) -> dict[str, Any]:
    scores = [*answer.prompt_scores, *answer.scores]
    return {
        "index": answer.index,
        "text": answer.prompt_text + answer.text,
        "logprobs": _logprobs(scores, 0) if heading.scored else None,
        "finish_reason": answer.finish_reason,
    }


def _logprobs(scores: Sequence[TokenScore], offset: int) -> dict[str, Any]:
    """OpenAI's legacy shape: four lists with an entry for each token."""
    offsets = []
    for score in scores:
        offsets.append(offset)
        offset += len(score.token)
    return {
        "tokens": [score.token for score in scores],
        "token_logprobs": [score.logprob for score in scores],
        "top_logprobs": [None if score.logprob is None else _top(score) for score in scores],
        "text_offset": offsets,
    }


def _top(score: TokenScore) -> dict[str, float]:
    """Two tokens may read alike (parts of one character do): the likelier keeps the place."""
    told: dict[str, float] = {}
    for token, logprob in score.top:
        told[token] = max(logprob, told.get(token, logprob))
    return told
