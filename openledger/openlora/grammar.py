"""Answers that must fit a JSON Schema, a regular expression or a Lark grammar, by masking tokens (llguidance).

Owns the compiling, on a thread of its own since a grammar may take its time, and its limits: the text's length and
depth before, the library's own limits on states and work for each token after. Knows nothing of the other sampling.
"""

import json
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from openledger.core.errors import InvalidInput, OpenLedgerError
from openledger.core.values import Grammar

MAX_LENGTH, MAX_DEPTH = 1 << 16, 64
_KINDS = ("json_object", "json_schema", "regex", "lark")


class GrammarState:
    """Where one answer stands in its grammar."""

    __slots__ = ("_matcher",)

    def __init__(self, matcher: LLMatcher):
        self._matcher = matcher

    def mask(self, logits_V: torch.Tensor) -> torch.Tensor:
        """`logits_V` with minus infinity for every token that can't come next. Raises InvalidInput once the grammar
        takes more work for a token than it may."""
        allowed_V = torch.frombuffer(bytearray(self._matcher.compute_logit_bias()), dtype=torch.uint8)
        if self._matcher.is_error():
            raise invalid_grammar(self._matcher.get_error())
        return logits_V.masked_fill(allowed_V[: len(logits_V)] == 0, float("-inf"))

    def accept(self, token: int) -> None:
        self._matcher.consume_token(token)

    @property
    def complete(self) -> bool:
        """Nothing can follow."""
        return bool(self._matcher.is_stopped()) and not self._matcher.is_error()

    def copy(self) -> "GrammarState":
        return GrammarState(self._matcher.deep_copy())


class Grammars:
    """Compiles for one tokenizer, whose wrapping (a second for a large vocabulary) waits for the first grammar."""

    def __init__(self, tokenizer: Any, vocab_size: int, ends: Iterable[int]):
        self._source, self._vocab_size, self._ends = tokenizer, vocab_size, sorted(ends)
        self._wrapped: LLTokenizer | None = None
        self._pool: ThreadPoolExecutor | None = None

    def compile(self, grammar: Grammar) -> "Future[GrammarState]":
        """Its result raises InvalidInput (`invalid_grammar`)."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="openlora-grammar")
        return self._pool.submit(self._compile, grammar)

    def _compile(self, grammar: Grammar) -> GrammarState:
        matcher = LLMatcher(self._tokenizer(), _source_of(grammar), log_level=0, limits=LLParserLimits())
        if matcher.is_error():
            raise invalid_grammar(matcher.get_error())
        return GrammarState(matcher)

    def _tokenizer(self) -> LLTokenizer:
        if self._wrapped is None:
            backend = getattr(self._source, "backend_tokenizer", None)
            if backend is None:
                raise InvalidInput(
                    "this base's tokenizer can't be used with a grammar", code="invalid_grammar", param="grammar"
                )
            size = max(self._vocab_size, len(self._source))
            self._wrapped = LLTokenizer(backend.to_str(), n_vocab=size, eos_token=self._ends)
        return self._wrapped


def check_grammar(grammar: Grammar) -> None:
    """What can be said at once. Raises InvalidInput (`invalid_grammar`)."""
    if grammar.kind not in _KINDS:
        raise invalid_grammar(f"there is no kind {grammar.kind!r}, but {', '.join(_KINDS)}")
    if len(grammar.text) > MAX_LENGTH:
        raise invalid_grammar(f"it has {len(grammar.text)} characters, the limit is {MAX_LENGTH}")
    if _depth(grammar.text) > MAX_DEPTH:
        raise invalid_grammar(f"it is nested deeper than {MAX_DEPTH}")
    if grammar.kind == "json_schema":
        try:
            json.loads(grammar.text)
        except ValueError as error:
            raise invalid_grammar(f"its JSON Schema is no JSON: {error}") from error


def _source_of(grammar: Grammar) -> str:
    if grammar.kind == "json_object":
        return LLMatcher.grammar_from_json_schema({"type": "object"})
    if grammar.kind == "json_schema":
        return LLMatcher.grammar_from_json_schema(grammar.text)
    return LLMatcher.grammar_from_regex(grammar.text) if grammar.kind == "regex" else grammar.text


def _depth(text: str) -> int:
    depth = deepest = 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        deepest = max(deepest, depth)
    return deepest


def invalid_grammar(reason: str) -> OpenLedgerError:
    return InvalidInput(
        f"the grammar can't be used: {reason[:500]}",
        code="invalid_grammar",
        param="grammar",
        fix="simplify it, or ask for a JSON object and check the answer yourself",
    )
