"""What an engine promises, so that the deployment can hold any of them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from openledger.core.errors import Corrupt, InvalidInput, OpenLedgerError
from openledger.core.values import GenerationRequest, TokenEvent


@dataclass(frozen=True, slots=True, kw_only=True)
class Vectors:
    """`vectors_KH` fp32, and the time that the engine computed them, without that which others had in between."""

    vectors_KH: npt.NDArray[np.float32]
    engine_ms: float


class Limits(Protocol):
    """What an engine's options say of it, by whatever class: answers that run at once, tokens of a step."""

    @property
    def max_batch(self) -> int: ...

    @property
    def step_tokens(self) -> int: ...


class Engine(Protocol):
    """Generates for many requests at once over one base model; each request under one adapter or none.

    Invariants:

    - One thread, the step thread, calls everything but `load`, `merge` and `merged`. `load` and `merge` may run on any
      thread beside it and never wait for a step; the adapter can be used when `load` has returned.
    - An adapter is its digest: another content is another adapter, and nothing is ever kept under a name.
    - `add` never raises for what a request asks: a request that can't be served gets one event with `error`, and no
      other request notices. Only a `request_id` that is in flight already raises (Conflict), since events couldn't
      be told apart.
    - Each answer of a request ends in exactly one event with a `finish_reason`, a request in exactly one that
      `is_last`; it holds no memory after it. A request that is refused has one event, and one that is cancelled while
      its prompt is read has one: the further answers never began.
    - The token ids of an answer's events, joined, are all tokens generated, the end token included; its texts,
      joined, are the answer without end token and stop string.
    - The event that ends an answer tells what it took (`usage`): tokens read, found and made, and its part of the
      steps' time. Metering rests on it.
    - What was computed for one adapter or tenant is never used for another.
    - `score` changes no request in flight. It calls what `give_way_to` was given between parts of its work, from where
      everything but `score` may be called; adapters it scores under can't be unloaded meanwhile.
    """

    @property
    def options(self) -> Limits: ...

    def load(self, digest: str, folder: Path) -> None:
        """Make an adapter resident; one that is resident already costs nothing. Raises what `check_adapter` raises,
        and Corrupt (`adapter_digest_mismatch`) where the folder holds another adapter."""
        ...

    def unload(self, digest: str) -> None:
        """Raises Conflict (`adapter_in_use`) while a request needs it; unknown digests are ignored."""
        ...

    def resident(self) -> tuple[str, ...]: ...

    def check_merging(self) -> None:
        """Raises InvalidInput (`merging_unsupported`) where the engine merges nothing."""
        ...

    def merge(self, digest: str) -> None:
        """Merge a resident adapter, in place of the one that was: steps that are all under it compute with weights of
        its own. All others, scores and embeddings are computed as before. It ends when the adapter is unloaded. Raises
        NotFound for an adapter that isn't resident, and as `check_merging`."""
        ...

    def unmerge(self) -> None:
        """Give back the memory of the merged weights."""
        ...

    def merged(self) -> str:
        """The adapter that is merged now; empty where none is."""
        ...

    def add(self, request: GenerationRequest) -> None: ...

    def step(self) -> list[TokenEvent]:
        """One forward pass over a batch; at most one new token for each request in it."""
        ...

    def cancel(self, request_id: str) -> None:
        """End a request early, with all its answers; unknown ids are ignored. Its last events come with the next
        `step`."""
        ...

    def has_work(self) -> bool: ...

    def score(
        self, prompt_ids: Sequence[int], completion_ids: Sequence[int], adapter_digests: Sequence[str]
    ) -> npt.NDArray[np.float32]:
        """See `core.scoring.Scorer`. Raises NotFound for an adapter that isn't resident."""
        ...

    def num_scored_at_once(self, num_tokens: int) -> int:
        """How many adapters `score` takes at a time for a prompt and completion of `num_tokens`."""
        ...

    def embed(self, inputs: Sequence[Sequence[int]], adapter_digest: str) -> Vectors:
        """A vector of length 1 for each of `inputs`: the mean of its tokens' last hidden states.
        With more tokens than a step has it gives way as `score` does. Raises NotFound for an adapter that isn't
        resident, InvalidInput (`empty_prompt`, `invalid_token`, `context_length_exceeded`; `embeddings_unsupported`
        where the engine makes none)."""
        ...

    def give_way_to(self, people: Callable[[], None]) -> None:
        """`people` serves whoever waits for an answer, and returns at once where nobody does."""
        ...

    def describe(self) -> dict[str, Any]:
        """What is live, for status pages and logs: which kernels, dtype, limits, how much is in use."""
        ...


def check_dtype(name: str, dtype: str, known: Sequence[str]) -> None:
    """Raises InvalidInput (`unknown_dtype`)."""
    if dtype not in known:
        raise InvalidInput(f"{name} is one of {', '.join(known)}, not {dtype!r}", code="unknown_dtype", param=name)


def precision_of(described: Mapping[str, Any]) -> str:
    """What an engine computes with, of its `describe`: "openlora float32", or with all that is less than that."""
    kinds = (described["dtype"], described.get("adapter_dtype", described["dtype"]), described.get("weights", "exact"))
    named = dict.fromkeys(kind for kind in kinds if kind != "exact")
    return " ".join(["vllm" if described.get("engine") == "vllm" else "openlora", *named])


def refusal(request_id: str, error: OpenLedgerError) -> TokenEvent:
    """The one event of a request that can't be served."""
    return TokenEvent(request_id=request_id, token_ids=(), text="", finish_reason="error", error=error.to_dict())


def not_finite(digest: str) -> OpenLedgerError:
    return Corrupt(
        f"adapter {digest!r} gives logits that are not finite",
        code="non_finite_logits",
        param="adapter_digest",
        fix="its weights overflow: train it again",
    )
