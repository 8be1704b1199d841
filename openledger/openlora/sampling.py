"""Choosing the next token: greedy, or drawn from what temperature, top-k, nucleus (Holtzman et al., 2020) and min-p
(Nguyen et al., 2024) leave, after a grammar and penalties; and the log-probabilities of what was chosen.

V is the vocabulary, B the rows that need a token.
"""

import math
import secrets
from collections import Counter
from collections.abc import Sequence

import torch

from openledger.core.errors import InvalidInput, OpenLedgerError
from openledger.core.values import SamplingParameters, TokenLogprob
from openledger.openlora.grammar import GrammarState, check_grammar

MAX_LOGPROBS, MAX_ANSWERS = 20, 128
_MAX_STOPS, _MAX_STOP_LENGTH = 16, 256
_FIRST_LOOK = 1024  # tokens that are sorted before the whole vocabulary is


class TokenChooser:
    """One answer's way of choosing. The same seed and logits give the same tokens, whatever else is in the batch.
    `grammar` is set before the first token where the request has one."""

    def __init__(self, sampling: SamplingParameters, prompt_ids: Sequence[int] = (), index: int = 0):
        self._sampling = sampling
        self._answer: Counter[int] = Counter()
        self._seen = set(prompt_ids) if sampling.repetition_penalty != 1 else set()
        self.grammar: GrammarState | None = None
        self._generator: torch.Generator | None = None
        if sampling.temperature > 0:
            seed = secrets.randbits(63) if sampling.seed is None else sampling.seed + index
            self._generator = torch.Generator().manual_seed(seed % (1 << 63))

    @property
    def takes_likeliest(self) -> bool:
        """Greedy, with nothing that changes the logits."""
        return self._generator is None and not self._changes_logits

    @property
    def finished(self) -> bool:
        """The grammar allows nothing more."""
        return self.grammar is not None and self.grammar.complete

    def choose(self, logits_V: torch.Tensor) -> int:
        """Raises InvalidInput (`invalid_grammar`) for a grammar that takes too much work."""
        logits_V = self._changed(logits_V) if self._changes_logits else logits_V
        return int(logits_V.argmax()) if self._generator is None else self._sample(logits_V)

    def accept(self, token: int) -> None:
        """Take note of a token that was chosen."""
        if self._changes_logits:
            self._answer[token] += 1
            self._seen.add(token)
            if self.grammar is not None:
                self.grammar.accept(token)

    @property
    def _changes_logits(self) -> bool:
        wanted = self._sampling
        penalised = wanted.presence_penalty or wanted.frequency_penalty or wanted.repetition_penalty != 1
        return bool(penalised) or self.grammar is not None

    def _changed(self, logits_V: torch.Tensor) -> torch.Tensor:
        wanted = self._sampling
        logits_V = logits_V.clone() if self.grammar is None else self.grammar.mask(logits_V)
        if wanted.repetition_penalty != 1 and self._seen:
            seen = torch.tensor(sorted(self._seen))
            before = logits_V[seen]
            logits_V[seen] = torch.where(
                before > 0, before / wanted.repetition_penalty, before * wanted.repetition_penalty
            )
        if self._answer:
            tokens, counts = torch.tensor(list(self._answer)), torch.tensor(list(self._answer.values()))
            logits_V[tokens] -= wanted.presence_penalty + wanted.frequency_penalty * counts
        return logits_V

    def _sample(self, logits_V: torch.Tensor) -> int:
        wanted = self._sampling
        probabilities_V = torch.softmax(logits_V.double() / wanted.temperature, -1)
        kept, tokens = self._likeliest(probabilities_V)
        before = kept.cumsum(-1) - kept
        kept = kept.masked_fill((before >= wanted.top_p) | (kept < wanted.min_p * kept[0]), 0.0)
        return int(tokens[torch.multinomial(kept, 1, generator=self._generator)])

    def _likeliest(self, probabilities_V: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The `top_k` in descending order; with top-p only so many that their sum reaches it."""
        size = len(probabilities_V) if self._sampling.top_k == 0 else min(self._sampling.top_k, len(probabilities_V))
        if size > _FIRST_LOOK and self._sampling.top_p < 1:
            kept, tokens = probabilities_V.topk(_FIRST_LOOK)
            if float(kept.sum()) >= self._sampling.top_p:
                return kept, tokens
        kept, tokens = probabilities_V.sort(descending=True, stable=True)
        return kept[:size], tokens[:size]


def choose_tokens(logits_BV: torch.Tensor, choosers: Sequence[TokenChooser]) -> list[int | OpenLedgerError | None]:
    """A token for each row; None where the row's logits are not finite, an error where its grammar failed."""
    greedy, finite = _likeliest(logits_BV)
    return [
        None if not usable else token if chooser.takes_likeliest else _chosen(chooser, logits_V)
        for logits_V, token, usable, chooser in zip(logits_BV, greedy, finite, choosers, strict=True)
    ]


def _likeliest(logits_BV: torch.Tensor) -> tuple[list[int], list[bool]]:
    """Each row's likeliest token, and whether all of it is finite."""
    if logits_BV.device.type == "cpu":
        # ten times as fast as torch's
        return logits_BV.numpy().argmax(-1).tolist(), torch.isfinite(logits_BV.sum(-1)).tolist()
    greedy, finite = torch.stack([logits_BV.argmax(-1), torch.isfinite(logits_BV.sum(-1))]).tolist()  # one wait
    return greedy, finite


def _chosen(chooser: TokenChooser, logits_V: torch.Tensor) -> int | OpenLedgerError:
    try:
        return chooser.choose(logits_V.cpu())
    except OpenLedgerError as error:
        return error


def logprob_of(logits_V: torch.Tensor, token: int, num_top: int) -> TokenLogprob:
    """Of the model itself: temperature 1, nothing masked or penalised."""
    logprobs_V = logits_V.float().log_softmax(-1)
    best = logprobs_V.topk(min(num_top, len(logprobs_V)))
    top = tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True))
    return TokenLogprob(token_id=token, logprob=float(logprobs_V[token]), top=top)


def check_sampling(sampling: SamplingParameters, max_temperature: float = 100.0) -> None:
    """Raises InvalidInput (`invalid_sampling`, `invalid_grammar`) with the parameter's name."""
    checks = {
        "max_tokens": _is_integer(sampling.max_tokens) and sampling.max_tokens >= 1,
        "temperature": _is_number(sampling.temperature) and 0 <= sampling.temperature <= max_temperature,
        "top_p": _is_number(sampling.top_p) and 0 < sampling.top_p <= 1,
        "top_k": _is_integer(sampling.top_k) and sampling.top_k >= 0,
        "min_p": _is_number(sampling.min_p) and 0 <= sampling.min_p <= 1,
        "presence_penalty": _is_number(sampling.presence_penalty) and -2 <= sampling.presence_penalty <= 2,
        "frequency_penalty": _is_number(sampling.frequency_penalty) and -2 <= sampling.frequency_penalty <= 2,
        "repetition_penalty": _is_number(sampling.repetition_penalty) and 0 < sampling.repetition_penalty <= 10,
        "seed": sampling.seed is None or _is_integer(sampling.seed),
        "stop": len(sampling.stop) <= _MAX_STOPS
        and all(isinstance(stop, str) and 0 < len(stop) <= _MAX_STOP_LENGTH for stop in sampling.stop),
        "logprobs": _is_count(sampling.logprobs),
        "prompt_logprobs": _is_count(sampling.prompt_logprobs),
        "num_answers": _is_integer(sampling.num_answers) and 1 <= sampling.num_answers <= MAX_ANSWERS,
    }
    for name, usable in checks.items():
        if not usable:
            raise InvalidInput(
                f"{name}={getattr(sampling, name)!r} can't be used",
                code="invalid_sampling",
                param=name,
                fix=f"max_tokens >= 1, temperature 0 to {max_temperature:g}, 0 < top_p <= 1, top_k >= 0, min_p 0 to 1, "
                "presence and frequency penalty -2 to 2, 0 < repetition_penalty <= 10, an integer seed, at most "
                f"{_MAX_STOPS} stop strings of 1 to {_MAX_STOP_LENGTH} characters, logprobs 0 to {MAX_LOGPROBS}, "
                f"1 to {MAX_ANSWERS} answers",
            )
    if sampling.grammar is not None:
        check_grammar(sampling.grammar)


def _is_count(value: object) -> bool:
    return value is None or (isinstance(value, int) and _is_integer(value) and 0 <= value <= MAX_LOGPROBS)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
