"""OpenAI's completion objects. Under `openledger` stands what OpenAI has no word for: the receipt."""

import json
from dataclasses import asdict, dataclass
from typing import Any

from openledger.platform.service import Receipt

DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Heading:
    """What all chunks of one completion share."""

    id: str
    created_s: int
    model: str


def completion(heading: Heading, text: str, finish_reason: str, receipt: Receipt) -> dict[str, Any]:
    message = {"role": "assistant", "content": text, "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish_reason}
    return {
        **_top(heading, "chat.completion"),
        "choices": [choice],
        "usage": usage(receipt),
        "openledger": asdict(receipt),
    }


def chunk(heading: Heading, delta: dict[str, str], finish_reason: str | None = None) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
    return {**_top(heading, "chat.completion.chunk"), "choices": [choice]}


def last_chunk(heading: Heading, finish_reason: str | None, receipt: Receipt) -> dict[str, Any]:
    return {**chunk(heading, {}, finish_reason), "openledger": asdict(receipt)}


def usage_chunk(heading: Heading, receipt: Receipt) -> dict[str, Any]:
    """The chunk after the last, without choices, that `stream_options.include_usage` asks for."""
    return {**_top(heading, "chat.completion.chunk"), "choices": [], "usage": usage(receipt)}


def usage(receipt: Receipt) -> dict[str, int]:
    return {
        "prompt_tokens": receipt.prompt_tokens,
        "completion_tokens": receipt.completion_tokens,
        "total_tokens": receipt.prompt_tokens + receipt.completion_tokens,
    }


def server_sent(value: dict[str, Any]) -> bytes:
    """One server-sent event. JSON escapes line ends, so the data stays on its one line."""
    return b"data: " + json.dumps(value, separators=(",", ":")).encode() + b"\n\n"


def _top(heading: Heading, kind: str) -> dict[str, Any]:
    return {"id": heading.id, "object": kind, "created": heading.created_s, "model": heading.model}
