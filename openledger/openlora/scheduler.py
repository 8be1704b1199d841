"""Which requests are in flight, which wait, and which tokens enter the next step.

Continuous batching (Orca, Yu et al., 2022): requests join when a slot is free and leave when they are done, between
any two steps. Every running request gets its one token in each step; what is left of the step's token budget goes to
prompts in order of arrival, in pieces if need be. Owns the slots' reference to requests; knows nothing of models.
"""

from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from openledger.core.errors import Conflict, InvalidInput, Unavailable
from openledger.core.values import GenerationRequest
from openledger.openlora.kv import KeyValueSlots
from openledger.openlora.packing import Piece
from openledger.openlora.sampling import TokenChooser
from openledger.openlora.text import TextStream


@dataclass(slots=True, kw_only=True, eq=False)
class Generation:
    """A request's state: `ids` are prompt and answer so far, the first `num_stored` of them in `slot`."""

    request: GenerationRequest
    ids: list[int]
    text: TextStream
    chooser: TokenChooser
    slot: int = -1
    num_stored: int = 0

    @property
    def num_generated(self) -> int:
        return len(self.ids) - len(self.request.prompt_ids)

    @property
    def num_missing(self) -> int:
        return len(self.ids) - self.num_stored


class Scheduler:
    def __init__(self, kv: KeyValueSlots, *, step_tokens: int, max_waiting: int):
        self._kv, self._step_tokens, self._max_waiting = kv, step_tokens, max_waiting
        self._waiting: deque[Generation] = deque()
        self._running: dict[str, Generation] = {}
        self._in_flight: set[str] = set()
        self._adapters: Counter[str] = Counter()

    def check_new(self, request_id: str) -> None:
        """Raises Conflict where the id is in flight already."""
        if request_id in self._in_flight:
            raise Conflict(
                f"request {request_id!r} is in flight",
                code="duplicate_request",
                param="request_id",
                fix="use a fresh id",
            )

    def check_room(self) -> None:
        """Raises Unavailable (`queue_full`)."""
        if len(self._waiting) >= self._max_waiting:
            raise Unavailable(
                f"{len(self._waiting)} requests are waiting", code="queue_full", fix="try again in a few seconds"
            )

    def add(self, generation: Generation) -> None:
        self._waiting.append(generation)
        self._in_flight.add(generation.request.request_id)
        self._adapters[generation.request.adapter_digest] += 1

    def remove(self, generation: Generation, *, wipe: bool = False) -> None:
        """Forget a request, waiting or running, and free its slot."""
        request = generation.request
        if self._running.pop(request.request_id, None) is not None:
            self._kv.release(generation.slot, wipe=wipe)
        else:
            self._waiting.remove(generation)
        self._in_flight.discard(request.request_id)
        self._adapters[request.adapter_digest] -= 1

    def find(self, request_id: str) -> Generation | None:
        waiting = (generation for generation in self._waiting if generation.request.request_id == request_id)
        return self._running.get(request_id) or next(waiting, None)

    def uses(self, adapter_digest: str) -> bool:
        return self._adapters[adapter_digest] > 0

    def has_work(self) -> bool:
        return bool(self._in_flight)

    def counts(self) -> dict[str, int]:
        return {"running": len(self._running), "waiting": len(self._waiting), "free_slots": self._kv.num_free()}

    def plan(self) -> list[tuple[Generation, Piece]]:
        """What the next step computes. Empty only when nothing is in flight."""
        self._admit()
        decoding = [generation for generation in self._running.values() if generation.num_missing == 1]
        budget = max(1, self._step_tokens - len(decoding))
        plan = [(generation, _piece(generation, 1)) for generation in decoding]
        for generation in self._running.values():
            if generation.num_missing > 1 and budget > 0:
                size = min(budget, generation.num_missing)
                plan.append((generation, _piece(generation, size)))
                budget -= size
        return plan

    def _admit(self) -> None:
        while self._waiting and self._kv.can_allocate():
            generation = self._waiting.popleft()
            generation.slot = self._kv.allocate()
            self._running[generation.request.request_id] = generation


def new_generation(
    request: GenerationRequest, decode: Callable[[Sequence[int]], str], *, vocab_size: int, max_positions: int
) -> Generation:
    """Raises InvalidInput for a prompt that is empty, over the context, or not of this vocabulary."""
    if not request.prompt_ids:
        raise InvalidInput("the prompt is empty", code="empty_prompt", param="prompt_ids", fix="send some text")
    if len(request.prompt_ids) >= max_positions:
        raise InvalidInput(
            f"the prompt has {len(request.prompt_ids)} tokens, the context holds {max_positions} with the answer",
            code="context_length_exceeded",
            param="prompt_ids",
            fix=f"shorten the prompt to {max_positions - 1} tokens or fewer",
        )
    if not all(0 <= token < vocab_size for token in request.prompt_ids):
        raise InvalidInput(
            f"token ids must be 0 to {vocab_size - 1}",
            code="invalid_token",
            param="prompt_ids",
            fix="encode the prompt with this base model's tokenizer",
        )
    return Generation(
        request=request,
        ids=list(request.prompt_ids),
        text=TextStream(decode, request.sampling.stop),
        chooser=TokenChooser(request.sampling),
    )


def _piece(generation: Generation, size: int) -> Piece:
    start = generation.num_stored
    complete = start + size == len(generation.ids)
    return Piece(
        token_ids=generation.ids[start : start + size],
        start=start,
        slot=generation.slot,
        adapter=generation.request.adapter_digest,
        keep=1 if complete else 0,
    )
