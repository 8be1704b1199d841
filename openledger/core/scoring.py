"""The one thing that attribution asks of the engine: how likely an answer is under each of many adapters."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt


class Scorer(Protocol):
    def score(
        self, prompt_ids: Sequence[int], completion_ids: Sequence[int], adapter_digests: Sequence[str]
    ) -> npt.NDArray[np.float32]:
        """Log-probabilities `[num_adapters, num_completion_tokens]`: natural logarithm, temperature 1.

        The empty digest is the base model alone.
        """
        ...


def gain(
    score: Callable[..., Any], prompt_ids: Sequence[int], completion_ids: Sequence[int], adapter_digest: str
) -> float:
    """Mean log-likelihood of the completion's tokens under the adapter minus that under the base, in nats. `score` is a
    `Scorer`'s method."""
    return gains(score, prompt_ids, completion_ids, (adapter_digest,))[0]


def gains(
    score: Callable[..., Any], prompt_ids: Sequence[int], completion_ids: Sequence[int], adapter_digests: Sequence[str]
) -> list[float]:
    """As `gain`, under each of several adapters, asked at once."""
    *adapters, base = score(prompt_ids, completion_ids, (*adapter_digests, ""))
    return [float(adapter.mean() - base.mean()) for adapter in adapters]
