"""How events travel from a replica to a gateway: many answers over one connection, frames of four bytes of length and
JSON. A frame holds what there was to say at that moment, to every answer it concerns.

A connection begins with the gateway's secret, which replicas get with each call through Ray; what follows can't run
code at either end. Knows neither sockets nor Ray.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from openledger.core.values import TokenEvent, TokenLogprob, Usage

_LENGTH_BYTES = 4
MAX_FRAME_BYTES = 64 << 20
SECRET_BYTES = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """Where the events of a call go: to the gateway at `host` and `port`, under the call's `number`. Where they are
    to come `whole`, the first comes at once and all others together."""

    host: str
    port: int
    secret: str = field(repr=False)
    number: int
    whole: bool = False


def frame(items: list[Any]) -> bytes:
    body = json.dumps(items, separators=(",", ":")).encode()
    return len(body).to_bytes(_LENGTH_BYTES, "big") + body


class Frames:
    """Bytes as they come to the frames in them."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def feed(self, data: bytes) -> Iterator[list[Any]]:
        """Raises ValueError for what isn't JSON or is longer than `MAX_FRAME_BYTES`."""
        self._bytes += data
        while len(self._bytes) >= _LENGTH_BYTES:
            length = int.from_bytes(self._bytes[:_LENGTH_BYTES], "big")
            if length > MAX_FRAME_BYTES:
                raise ValueError(f"a frame of {length} bytes")
            end = _LENGTH_BYTES + length
            if len(self._bytes) < end:
                return
            body = bytes(self._bytes[_LENGTH_BYTES:end])
            del self._bytes[:end]
            yield json.loads(body)


def pack_event(number: int, event: TokenEvent) -> list[Any]:
    """Most events are tokens and text and nothing else: what is rare comes in a dictionary at the end."""
    packed: list[Any] = [number, event.token_ids, event.text, event.index, event.num_open]
    rare: dict[str, Any] = {}
    if event.finish_reason is not None:
        rare["finish_reason"] = event.finish_reason
    if event.error is not None:
        rare["error"] = event.error
    if event.usage is not None:
        rare["usage"] = asdict(event.usage)
    if event.logprobs:
        rare["logprobs"] = [_pack_score(entry) for entry in event.logprobs]
    if event.prompt_logprobs:
        rare["prompt_logprobs"] = [entry and _pack_score(entry) for entry in event.prompt_logprobs]
    if rare:
        packed.append(rare)
    return packed


def unpack_event(request_id: str, packed: list[Any]) -> TokenEvent:
    _, token_ids, text, index, num_open, *more = packed
    rare = more[0] if more else {}
    usage = rare.get("usage")
    return TokenEvent(
        request_id=request_id,
        token_ids=tuple(token_ids),
        text=text,
        finish_reason=rare.get("finish_reason"),
        error=rare.get("error"),
        index=index,
        num_open=num_open,
        logprobs=tuple(_unpack_score(entry) for entry in rare.get("logprobs", ())),
        prompt_logprobs=tuple(entry and _unpack_score(entry) for entry in rare.get("prompt_logprobs", ())),
        usage=None if usage is None else Usage(**usage),
    )


def _pack_score(entry: TokenLogprob) -> list[Any]:
    return [entry.token_id, entry.logprob, entry.top]


def _unpack_score(packed: list[Any]) -> TokenLogprob:
    token_id, logprob, top = packed
    return TokenLogprob(token_id=token_id, logprob=logprob, top=tuple((token, score) for token, score in top))
