"""Which answers are in flight, which wait, and which tokens enter the next step.

Continuous batching (Orca, Yu et al., 2022): answers join when there is room and leave when they are done, between
any two steps. Every running answer gets its one token in each step; what is left of the step's token budget goes to
prompts in order of arrival, in pieces if need be. Keys and values take blocks as they grow; where none is left, the
answer that came last gives its own back, waits in front, and is computed again from its tokens so far. The oldest is
never interrupted, so something always ends. Owns the blocks of answers; knows nothing of models.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from openledger.core.errors import Conflict, InvalidInput, Unavailable
from openledger.core.values import GenerationRequest, TokenLogprob, Usage
from openledger.openlora.ensembles import identity_of, members_of
from openledger.openlora.grammar import GrammarState
from openledger.openlora.kv import KeyValueBlocks, block_key, num_blocks_of
from openledger.openlora.native import BLOCK
from openledger.openlora.packing import Piece
from openledger.openlora.sampling import TokenChooser
from openledger.openlora.text import TextStream


@dataclass(slots=True, kw_only=True, eq=False)
class Generation:
    """One answer's state: `ids` are prompt and answer so far, the first `num_stored` of them in `blocks`. `keys` are
    those of the full blocks known so far, after the root. `num_cached` tokens of the prompt were found, not computed.
    `adapter` is the identity of what it is answered under.
    """

    request: GenerationRequest
    ids: list[int]
    text: TextStream
    chooser: TokenChooser
    keys: list[bytes]
    adapter: str
    index: int = 0
    grammar: "Future[GrammarState] | None" = None
    blocks: list[int] = field(default_factory=list)
    num_stored: int = 0
    num_cached: int = 0
    prompt_logprobs: list[TokenLogprob | None] = field(default_factory=lambda: [None])
    engine_ms: float = 0.0

    @property
    def num_prompt(self) -> int:
        return len(self.request.prompt_ids)

    @property
    def num_generated(self) -> int:
        return len(self.ids) - self.num_prompt

    @property
    def num_missing(self) -> int:
        return len(self.ids) - self.num_stored

    @property
    def waits_for_grammar(self) -> bool:
        return self.grammar is not None and not self.grammar.done()

    @property
    def wants_prompt_logprobs(self) -> bool:
        return self.index == 0 and self.request.sampling.prompt_logprobs is not None

    def usage(self) -> Usage:
        return Usage(
            prompt_tokens=self.num_prompt,
            cached_tokens=self.num_cached,
            completion_tokens=self.num_generated,
            engine_ms=self.engine_ms,
        )


class Scheduler:
    def __init__(self, kv: KeyValueBlocks, *, max_batch: int, step_tokens: int, max_waiting: int):
        self._kv, self._max_batch, self._step_tokens, self._max_waiting = kv, max_batch, step_tokens, max_waiting
        self._waiting: deque[Generation] = deque()
        self._running: list[Generation] = []  # the oldest first
        self._open: Counter[str] = Counter()
        self._adapters: Counter[str] = Counter()
        self._num_preempted = 0

    def check_new(self, request_id: str) -> None:
        """Raises Conflict where the id is in flight already."""
        if request_id in self._open:
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
        self._count(generation)

    def add_beside(self, generations: Sequence[Generation]) -> None:
        """More answers to a prompt that is computed: they go first."""
        for generation in reversed(generations):
            self._waiting.appendleft(generation)
            self._count(generation)

    def remove(self, generation: Generation, *, wipe: bool = False) -> None:
        """Forget an answer, waiting or running, and free its blocks."""
        if generation in self._running:
            self._running.remove(generation)
        else:
            self._waiting.remove(generation)
        self._kv.release(generation.blocks, wipe=wipe)
        generation.blocks = []
        _count_down(self._open, generation.request.request_id)
        for digest, _ in members_of(generation.request):
            _count_down(self._adapters, digest)

    def find(self, request_id: str) -> list[Generation]:
        """All open answers of a request."""
        if request_id not in self._open:
            return []
        return [each for each in (*self._running, *self._waiting) if each.request.request_id == request_id]

    def num_open(self, request_id: str) -> int:
        return self._open[request_id]

    def uses(self, adapter_digest: str) -> bool:
        return self._adapters[adapter_digest] > 0

    def has_work(self) -> bool:
        return bool(self._open)

    def grammars(self) -> list[Generation]:
        """Waiting answers with a grammar that isn't taken over yet."""
        return [generation for generation in self._waiting if generation.grammar is not None]

    def counts(self) -> dict[str, int]:
        return {
            "running": len(self._running),
            "waiting": len(self._waiting),
            "free_slots": self._max_batch - len(self._running),
            "free_blocks": self._kv.num_free(),
            "known_blocks": self._kv.num_known(),
            "preempted": self._num_preempted,
        }

    def plan(self) -> list[tuple[Generation, Piece]]:
        """What the next step computes. Empty only when nothing is in flight, or all that is waits for a grammar."""
        self._admit()
        budget = max(1, self._step_tokens - sum(generation.num_missing == 1 for generation in self._running))
        plan = []
        for generation in self._oldest_first():
            decodes = generation.num_missing == 1
            size = 1 if decodes else min(budget, generation.num_missing)
            if size and self._reserve(generation, generation.num_stored + size):
                plan.append((generation, _piece(generation, size)))
                budget -= 0 if decodes else size
        return plan

    def stored(self, generation: Generation, end: int) -> None:
        """Tokens up to `end` were computed: full blocks can be found from now on."""
        generation.num_stored = end
        full = end // BLOCK
        while len(generation.keys) <= full:
            begin = (len(generation.keys) - 1) * BLOCK
            generation.keys.append(block_key(generation.keys[-1], generation.ids[begin : begin + BLOCK]))
            self._kv.publish(generation.blocks[begin // BLOCK], generation.keys[-1])

    def _count(self, generation: Generation) -> None:
        self._open[generation.request.request_id] += 1
        self._adapters.update(digest for digest, _ in members_of(generation.request))

    def _oldest_first(self) -> Iterator[Generation]:
        """The running, those left out that are interrupted on the way."""
        for generation in list(self._running):
            if generation in self._running:
                yield generation

    def _admit(self) -> None:
        passed: list[Generation] = []
        while self._waiting and len(self._running) < self._max_batch:
            generation = self._waiting.popleft()
            if generation.waits_for_grammar:
                passed.append(generation)
            elif self._enter(generation):
                self._running.append(generation)
            else:
                self._waiting.appendleft(generation)
                break
        self._waiting.extendleft(reversed(passed))

    def _enter(self, generation: Generation) -> bool:
        """Take over what is known of its beginning. False where its tokens so far, and the next, have no room."""
        found = [] if generation.wants_prompt_logprobs else self._find_beginning(generation)
        self._kv.hold(found)
        missing = num_blocks_of(len(generation.ids) + 1) - len(found)
        if self._running and not self._kv.can_allocate(missing):
            self._kv.release(found)
            return False
        generation.blocks = found
        generation.num_stored = len(found) * BLOCK
        if not generation.num_generated:
            generation.num_cached = generation.num_stored
        return True

    def _find_beginning(self, generation: Generation) -> list[int]:
        """Blocks that are known; one token at least is left to compute."""
        keys = generation.keys
        for begin in range((len(keys) - 1) * BLOCK, len(generation.ids) - BLOCK, BLOCK):
            keys.append(block_key(keys[-1], generation.ids[begin : begin + BLOCK]))
        found = self._kv.find(keys[1 : (len(generation.ids) - 1) // BLOCK + 1])
        del keys[len(found) + 1 :]
        return found

    def _reserve(self, generation: Generation, end: int) -> bool:
        """Blocks up to `end`, at the cost of the youngest; False where that is the generation itself."""
        missing = num_blocks_of(end) - len(generation.blocks)
        while not self._kv.can_allocate(missing):
            youngest = self._running[-1]
            self._preempt(youngest)
            if youngest is generation:
                return False
        generation.blocks += self._kv.allocate(missing)
        return True

    def _preempt(self, generation: Generation) -> None:
        self._running.remove(generation)
        self._kv.release(generation.blocks)
        generation.blocks, generation.num_stored = [], 0
        del generation.keys[1:]
        self._waiting.appendleft(generation)
        self._num_preempted += 1


def new_generation(
    request: GenerationRequest,
    decode: Callable[[Sequence[int]], str],
    root: bytes,
    *,
    vocab_size: int,
    max_positions: int,
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
    return answer_to(request, decode, root, 0)


def answer_to(
    request: GenerationRequest, decode: Callable[[Sequence[int]], str], root: bytes, index: int
) -> Generation:
    """The request's answer number `index`, before its first token."""
    return Generation(
        request=request,
        index=index,
        ids=list(request.prompt_ids),
        text=TextStream(decode, request.sampling.stop),
        chooser=TokenChooser(request.sampling, request.prompt_ids, index),
        keys=[root],
        adapter=identity_of(request),
    )


def _count_down(counter: Counter[str], key: str) -> None:
    counter[key] -= 1
    if not counter[key]:
        del counter[key]


def _piece(generation: Generation, size: int) -> Piece:
    start, end = generation.num_stored, generation.num_stored + size
    if generation.wants_prompt_logprobs and start < generation.num_prompt - 1:
        keep = size
    else:
        keep = 1 if end == len(generation.ids) else 0
    return Piece(
        token_ids=generation.ids[start:end],
        start=start,
        blocks=generation.blocks,
        adapter=generation.adapter,
        keep=keep,
        members=generation.request.ensemble,
    )
