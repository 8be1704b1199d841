"""From token ids to text while they arrive: whole characters only, and nothing of a stop string.

A character may span several tokens, and so may a stop string: what could still become either is held back.
"""

from collections.abc import Callable, Sequence
from typing import Any

_INCOMPLETE = "�"  # what decoders put for bytes that are no whole character (yet)
_MAX_HELD_TOKENS = 8  # a character has at most four bytes: beyond this the bytes are wrong, not unfinished


def decoder(tokenizer: Any) -> Callable[[Sequence[int]], str]:
    """Token ids to text without special tokens; the fast tokenizer's own function where there is one."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        return lambda ids: str(backend.decode(list(ids), skip_special_tokens=True))
    return lambda ids: str(tokenizer.decode(list(ids), skip_special_tokens=True))


class TextStream:
    """The text of one answer. After `stopped` nothing more comes."""

    __slots__ = ("_decode", "_held", "_ids", "_read", "_shown", "_stops", "stopped")

    def __init__(self, decode: Callable[[Sequence[int]], str], stops: Sequence[str] = ()):
        self._decode, self._stops = decode, tuple(stops)
        self._ids: list[int] = []  # the last tokens that were read, as context, and those not read yet
        self._read, self._shown, self._held = 0, "", ""
        self.stopped = False

    def push(self, token_id: int) -> str:
        """The text that is certain with this token; often all of it, at times none."""
        self._ids.append(token_id)
        text = self._decode(self._ids)
        if text.endswith(_INCOMPLETE) and len(self._ids) - self._read < _MAX_HELD_TOKENS:
            return ""
        return self._release(self._advance(text), final=False)

    def finish(self) -> str:
        """What was still held back."""
        if self.stopped:
            return ""
        return self._release(self._advance(self._decode(self._ids)), final=True)

    def _advance(self, text: str) -> str:
        """The new part of `text`. The tokens just read stay as context for the next: decoders may treat the first
        token of a sequence in a way of its own."""
        new = text[len(self._shown) :]
        self._ids = self._ids[self._read :]
        self._read = len(self._ids)
        self._shown = self._decode(self._ids) if self._ids else ""
        return new

    def _release(self, new: str, *, final: bool) -> str:
        text = self._held + new
        found = [place for place in (text.find(stop) for stop in self._stops) if place >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        keep = 0 if final else self._possible_stop(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def _possible_stop(self, text: str) -> int:
        """Length of the longest end of `text` with which a stop string may begin."""
        longest = min(len(text), max((len(stop) - 1 for stop in self._stops), default=0))
        return next(
            (size for size in range(longest, 0, -1) if any(stop.startswith(text[-size:]) for stop in self._stops)), 0
        )
