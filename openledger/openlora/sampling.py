"""Choosing the next token: greedy, or temperature and nucleus sampling (Holtzman et al., 2020) from a seed.

V is the vocabulary, B the rows that need a token.
"""

import math
import secrets
from collections.abc import Sequence

import torch

from openledger.core.errors import InvalidInput
from openledger.core.values import SamplingParameters

_MAX_STOPS, _MAX_STOP_LENGTH = 16, 256


class TokenChooser:
    """One request's way of choosing. The same seed and logits give the same tokens, whatever else is in the batch."""

    __slots__ = ("_generator", "_temperature", "_top_p")

    def __init__(self, sampling: SamplingParameters):
        self._temperature, self._top_p = sampling.temperature, sampling.top_p
        self._generator: torch.Generator | None = None
        if not self.greedy:
            seed = secrets.randbits(63) if sampling.seed is None else sampling.seed
            self._generator = torch.Generator().manual_seed(seed % (1 << 63))

    @property
    def greedy(self) -> bool:
        return self._temperature == 0.0

    def sample(self, logits_V: torch.Tensor) -> int:
        probabilities, tokens = torch.softmax(logits_V.double() / self._temperature, -1).sort(
            descending=True, stable=True
        )
        before = probabilities.cumsum(-1) - probabilities
        kept = probabilities.masked_fill(before >= self._top_p, 0.0)
        return int(tokens[torch.multinomial(kept, 1, generator=self._generator)])


def choose_tokens(logits_BV: torch.Tensor, choosers: Sequence[TokenChooser]) -> list[int | None]:
    """A token for each row; None where the row's logits are not finite."""
    greedy = logits_BV.argmax(-1).tolist()
    finite = torch.isfinite(logits_BV.sum(-1)).tolist()
    return [
        None if not usable else token if chooser.greedy else chooser.sample(logits_V)
        for logits_V, token, usable, chooser in zip(logits_BV, greedy, finite, choosers, strict=True)
    ]


def check_sampling(sampling: SamplingParameters) -> None:
    """Raises InvalidInput (`invalid_sampling`) with the parameter's name."""
    checks = {
        "max_tokens": _is_integer(sampling.max_tokens) and sampling.max_tokens >= 1,
        "temperature": _is_number(sampling.temperature) and 0 <= sampling.temperature <= 100,
        "top_p": _is_number(sampling.top_p) and 0 < sampling.top_p <= 1,
        "seed": sampling.seed is None or _is_integer(sampling.seed),
        "stop": len(sampling.stop) <= _MAX_STOPS
        and all(isinstance(stop, str) and 0 < len(stop) <= _MAX_STOP_LENGTH for stop in sampling.stop),
    }
    for name, usable in checks.items():
        if not usable:
            raise InvalidInput(
                f"{name}={getattr(sampling, name)!r} can't be used",
                code="invalid_sampling",
                param=name,
                fix="max_tokens >= 1, temperature 0 to 100, 0 < top_p <= 1, an integer seed, "
                f"at most {_MAX_STOPS} stop strings of 1 to {_MAX_STOP_LENGTH} characters",
            )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
