"""vLLM under the same deployment, for GPU nodes: its model code, batching, memory and kernels; our adapters, events,
metering and limits.

Owns what a request means to vLLM and what vLLM's tokens mean to a request. vLLM runs inside this process and is stepped
by our step thread. Text, stop strings and ends are ours, so that they are those of `TorchEngine`; log-probabilities,
sampling and grammars are vLLM's own. Which adapters it holds is `vllm_slots`' matter. vLLM is imported only here and
there, when an engine is made: it is an extra.
"""

import importlib.util
import itertools
import json
import os
import secrets
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from openledger.adapters.base_model import BaseModel, load_tokenizer
from openledger.adapters.checks import AdapterLimits, BaseShapes, read_shapes
from openledger.core.errors import Conflict, InvalidInput, NotFound, OpenLedgerError, Unavailable
from openledger.core.values import GenerationRequest, Grammar, SamplingParameters, TokenEvent, TokenLogprob
from openledger.openlora.engine import Vectors, check_dtype, not_finite, refusal
from openledger.openlora.ensembles import check_ensemble, members_of
from openledger.openlora.grammar import invalid_grammar
from openledger.openlora.sampling import MAX_LOGPROBS, check_sampling
from openledger.openlora.scheduler import Generation, answer_to, new_generation
from openledger.openlora.text import decoder
from openledger.openlora.vllm_slots import MAX_RANK, VllmSlots, rank_of_slots

_DTYPES = ("auto", "float32", "bfloat16", "float16")
_COUNTS = ("max_batch", "max_context", "step_tokens", "max_waiting", "score_tokens", "tensor_parallel")
_MAX_TEMPERATURE = 2.0  # of vLLM
_FOR_PEOPLE, _IN_THE_BACKGROUND = 0, 1  # vLLM's priorities: the lower goes first
_SETTINGS = {
    "VLLM_NO_USAGE_STATS": "1",  # it reports to its makers otherwise
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # in this process: it is stepped by us
    "VLLM_COMPUTE_NANS_IN_LOGITS": "1",  # an adapter that overflows is told by its logits
    "VLLM_LOGGING_LEVEL": "WARNING",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmOptions:
    """As `EngineOptions` where the names are the same. vLLM takes `device_memory` of the device's memory in all, or
    `kv_bytes` for keys and values where that isn't 0. Its slots have one rank, the smallest it knows that holds
    `adapter_limits.max_rank`: a lower limit saves memory. `ensemble_slots` are further ones for ensembles, each of
    which takes one and must fit its rank with those of all its adapters together; with them adapters stay in the node's
    memory too. `dtype` `auto` is the base's own. Without `compiled` it starts sooner and runs slower."""

    max_batch: int = 64
    max_context: int = 4096
    kv_bytes: int = 0
    device_memory: float = 0.9
    step_tokens: int = 2048
    max_waiting: int = 1024
    score_tokens: int = 8192
    tensor_parallel: int = 1
    ensemble_slots: int = 0
    dtype: str = "auto"
    compiled: bool = True
    adapter_limits: AdapterLimits = field(default_factory=AdapterLimits)


class VllmEngine:
    """See `Engine` for what it promises. Holds at most `num_slots` adapters. Raises Unavailable
    (`vllm_not_installed`)."""

    def __init__(self, base: BaseModel, options: VllmOptions | None = None, num_slots: int = 64):
        self.options = options or VllmOptions()
        _check_options(self.options)
        self._base, self._num_slots = base, num_slots
        self._max_positions = min(base.max_positions, self.options.max_context)
        for name, value in _SETTINGS.items():
            os.environ.setdefault(name, value)
        on_cpu = _is_on_cpu()
        shapes = read_shapes(base)
        self._vllm = _start(base, self.options, shapes, num_slots, self._max_positions, on_cpu)
        self._slots = VllmSlots(
            self._vllm, shapes, self.options.adapter_limits, num_slots, self.options.ensemble_slots, spare=on_cpu
        )
        self._vocab_size = int(self._vllm.model_config.get_vocab_size())
        tokenizer = load_tokenizer(base)
        self._decode = decoder(tokenizer)
        self._ends = _end_tokens(Path(base.path)) | {tokenizer.eos_token_id}
        self._numbers = itertools.count()
        self._answers: dict[str, _Answer] = {}  # by the number that vLLM knows them under
        self._open: Counter[str] = Counter()
        self._num_overflows: Counter[str] = Counter()  # by adapter
        self._uses: Counter[str] = Counter()  # of adapters and ensembles, by answers and scores
        self._scores: dict[str, _Score] = {}  # that are being computed, by the number that vLLM knows them under
        self._ready: list[TokenEvent] = []
        self._people: Callable[[], None] | None = None

    def load(self, digest: str, folder: Path) -> None:
        """Beside the steps it is read, checked and written to memory; it goes to the device when it is first used,
        between two steps, since vLLM takes adapters at no other time."""
        self._slots.load(digest, folder)

    def unload(self, digest: str) -> None:
        if self._uses[digest]:
            raise Conflict(f"adapter {digest} is in use", code="adapter_in_use", param="digest", fix="try again later")
        self._slots.remove(digest)

    def resident(self) -> tuple[str, ...]:
        return self._slots.resident()

    def check_merging(self) -> None:
        raise InvalidInput(
            "this model is served by vLLM, which merges no adapter while it serves others",
            code="merging_unsupported",
            param="merge",
            fix="leave merging off, or take the engine torch",
        )

    def merge(self, digest: str) -> None:
        self.check_merging()

    def unmerge(self) -> None:
        """Nothing is ever merged."""

    def merged(self) -> str:
        return ""

    def add(self, request: GenerationRequest) -> None:
        if request.request_id in self._open:
            raise Conflict(
                f"request {request.request_id!r} is in flight",
                code="duplicate_request",
                param="request_id",
                fix="use a fresh id",
            )
        try:
            self._check(request)
            first = new_generation(
                request, self._decode, b"", vocab_size=self._vocab_size, max_positions=self._max_positions
            )
            self._submit(first)
        except OpenLedgerError as error:
            self._ready.append(refusal(request.request_id, error))

    def cancel(self, request_id: str) -> None:
        for answer in [each for each in self._answers.values() if each.request_id == request_id]:
            self._abort(answer)
            self._ready.append(self._ended(answer, "cancelled", text=answer.generation.text.finish()))

    def has_work(self) -> bool:
        return bool(self._ready) or bool(self._answers)

    def step(self) -> list[TokenEvent]:
        if self._answers or self._scores:
            self._compute()
        events, self._ready = self._ready, []
        return events

    def score(
        self, prompt_ids: Sequence[int], completion_ids: Sequence[int], adapter_digests: Sequence[str]
    ) -> npt.NDArray[np.float32]:
        """In vLLM's own batches, beside the answers of people and after them. Raises Corrupt (`non_finite_logits`)
        naming an adapter that overflows."""
        self._check_scoring(prompt_ids, completion_ids, adapter_digests)
        scores_KC = np.zeros((len(adapter_digests), len(completion_ids)), np.float32)
        size = self.num_scored_at_once(len(prompt_ids) + len(completion_ids))
        held = Counter(adapter_digests)
        self._uses += held
        try:
            for begin in range(0, len(adapter_digests), size):
                digests = adapter_digests[begin : begin + size]
                scores_KC[begin : begin + size] = self._score_together(prompt_ids, completion_ids, digests)
        finally:
            self._uses -= held
        return scores_KC

    def embed(self, inputs: Sequence[Sequence[int]], adapter_digest: str) -> Vectors:
        raise InvalidInput(
            "this model is served by vLLM, which makes text here and no embeddings",
            code="embeddings_unsupported",
            param="model",
            fix="ask a model that is served by the torch engine",
        )

    def give_way_to(self, people: Callable[[], None]) -> None:
        self._people = people

    def num_scored_at_once(self, num_tokens: int) -> int:
        """How many adapters `score` gives to vLLM at a time for a prompt and completion of `num_tokens`."""
        return max(1, self.options.score_tokens // max(1, num_tokens))

    def describe(self) -> dict[str, Any]:
        """What is live, for status pages and logs."""
        import torch
        import vllm

        running = len(self._scheduler.running)
        pool = self._scheduler.kv_cache_manager.block_pool
        return {
            "engine": "vllm",
            "vllm": vllm.__version__,
            "torch": torch.__version__,
            "device": self._vllm.vllm_config.device_config.device_type,
            "dtype": str(self._vllm.model_config.dtype).removeprefix("torch."),
            "base_model": self._base.name,
            "base_digest": self._base.digest,
            "options": asdict(self.options),
            "max_positions": self._max_positions,
            "slots": self._num_slots,
            "resident": list(self.resident()),
            "running": running,
            "waiting": len(self._scheduler.waiting),
            "free_slots": self.options.max_batch - running,
            "free_blocks": pool.get_num_free_blocks(),
        }

    @property
    def _scheduler(self) -> Any:
        return self._vllm.engine_core.engine_core.scheduler

    def _compute(self) -> None:
        begin = time.perf_counter()
        before = [(each, each.num_computed_tokens, each.prefill_stats) for each in self._scheduler.requests.values()]
        outputs = self._vllm.step()
        self._charge(before, 1000 * (time.perf_counter() - begin))
        if overflowed := {each.request_id for each, _, _ in before if each.num_nans_in_logits}:
            self._end_overflowed(overflowed)
        for output in outputs:
            if (score := self._scores.get(output.request_id)) is not None:
                score.told = output
            elif (answer := self._answers.get(output.request_id)) is not None:
                self._ready.append(self._told(answer, output))

    def _charge(self, before: Sequence[tuple[Any, int, Any]], step_ms: float) -> None:
        """A step's time is divided by rows; what a prompt found in the cache is none."""
        rows = {}
        for each, num_before, prefill in before:
            found = prefill.num_cached_tokens if prefill is not None and num_before == 0 else 0
            rows[each.request_id] = max(0, each.num_computed_tokens - num_before - found)
        num_rows = max(1, sum(rows.values()))
        for answer in self._answers.values():
            answer.generation.engine_ms += step_ms * rows.get(answer.vllm_id, 0) / num_rows

    def _submit(self, generation: Generation) -> None:
        request = generation.request
        number = str(next(self._numbers))
        given = self._slots.give(request.adapter_digest)
        if request.ensemble:
            given = self._slots.give_together(generation.adapter, request.ensemble, self._uses)
        parameters = _parameters(request.sampling, generation.index, self._ends)
        answer = _Answer(generation=generation, number=number)
        salt = f"{self._num_overflows[generation.adapter]} {request.tenant}"
        answer.vllm_id = self._add(number, request.prompt_ids, parameters, given, salt, _FOR_PEOPLE)
        self._answers[number] = answer
        self._open[request.request_id] += 1
        self._uses.update(_used(generation))

    def _add(self, number: str, ids: Sequence[int], parameters: Any, given: Any, salt: str, priority: int) -> str:
        """vLLM's id of the request. Its prefix cache tells adapters apart by the digest, tenants by `salt`. Raises
        InvalidInput (`invalid_grammar`, `refused_by_vllm`) for what only vLLM refuses."""
        from vllm.exceptions import VLLMClientError
        from vllm.inputs import tokens_input

        prompt = tokens_input(list(ids), cache_salt=salt)
        try:
            return str(self._vllm.add_request(number, prompt, parameters, lora_request=given, priority=priority))
        except (VLLMClientError, ValueError) as error:
            if parameters.structured_outputs is not None:
                raise invalid_grammar(str(error)) from error
            raise InvalidInput(
                f"vLLM refuses the request: {error}",
                code="refused_by_vllm",
                fix="ask for less, or a model that is served by the torch engine",
            ) from error

    def _end_overflowed(self, vllm_ids: Collection[str]) -> None:
        """End all answers under the adapters whose logits aren't finite, and mark the scores that aren't: a further
        step of theirs would read what was made finite, and be wrong. What isn't finite in keys and values would spoil
        whoever gets their blocks next (0 times NaN is NaN), so it is made finite, and what was cached for these
        adapters is never found again."""
        adapters = {each.generation.adapter for each in self._answers.values() if each.vllm_id in vllm_ids}
        for answer in [each for each in self._answers.values() if each.generation.adapter in adapters]:
            self._abort(answer)
            self._ready.append(self._ended(answer, "error", error=not_finite(answer.generation.adapter)))
        for score in self._scores.values():
            score.overflowed |= score.vllm_id in vllm_ids
        self._num_overflows.update(adapters)
        self._vllm.collective_rpc(_make_finite)

    def _told(self, answer: "_Answer", output: Any) -> TokenEvent:
        """The event of the tokens that vLLM made for an answer."""
        generation, completion = answer.generation, output.outputs[0]
        wanted = generation.request.sampling
        if not generation.num_generated:
            generation.num_cached = max(0, output.num_cached_tokens or 0)
            if generation.index == 0:
                self._begin_further_answers(generation.request)
        text, reason, made = "", None, 0
        for token in completion.token_ids:
            made += 1
            generation.ids.append(token)
            if token in self._ends and not wanted.ignore_end:
                reason = "stop"
                break
            text += generation.text.push(token)
            if generation.text.stopped:
                reason = "stop"
                break
        given: dict[str, Any] = {
            "token_ids": tuple(completion.token_ids[:made]),
            "logprobs": ()
            if wanted.logprobs is None
            else _logprobs(completion.logprobs, wanted.logprobs, completion.token_ids[:made]),
            "prompt_logprobs": self._prompt_logprobs(generation, output, made),
        }
        if not (reason or output.finished):
            return self._event(generation, text=text, **given)
        if not output.finished:
            self._abort(answer)
        if reason is None and completion.finish_reason not in ("stop", "length"):
            return self._ended(answer, "error", error=_gave_up(completion.finish_reason))
        text += generation.text.finish()
        reason = "stop" if generation.text.stopped else reason or completion.finish_reason
        return self._ended(answer, reason, text=text, **given)

    def _begin_further_answers(self, request: GenerationRequest) -> None:
        """The prompt is computed: the other answers find its blocks."""
        for index in range(1, request.sampling.num_answers):
            self._submit(answer_to(request, self._decode, b"", index))

    def _prompt_logprobs(self, generation: Generation, output: Any, made: int) -> tuple[TokenLogprob | None, ...]:
        """With the first token's event, and no other."""
        if not generation.wants_prompt_logprobs or generation.num_generated > made:
            return ()
        ids, num_top = generation.request.prompt_ids, generation.request.sampling.prompt_logprobs or 0
        return (None, *_logprobs(output.prompt_logprobs[1:], num_top, ids[1:]))

    def _abort(self, answer: "_Answer") -> None:
        self._vllm.abort_request([answer.vllm_id], internal=True)

    def _ended(
        self, answer: "_Answer", reason: str, *, error: OpenLedgerError | None = None, **given: Any
    ) -> TokenEvent:
        """Forget the answer; its last event."""
        del self._answers[answer.number]
        _count_down(self._open, answer.request_id)
        for used in _used(answer.generation):
            _count_down(self._uses, used)
        told = None if error is None else error.to_dict()
        return self._event(
            answer.generation, finish_reason=reason, error=told, usage=answer.generation.usage(), **given
        )

    def _event(self, generation: Generation, **given: Any) -> TokenEvent:
        request_id = generation.request.request_id
        return TokenEvent(
            request_id=request_id,
            index=generation.index,
            num_open=self._open[request_id],
            **{"token_ids": (), "text": "", **given},
        )

    def _score_together(
        self, prompt_ids: Sequence[int], completion_ids: Sequence[int], digests: Sequence[str]
    ) -> npt.NDArray[np.float32]:
        """vLLM tells the log-probabilities of a prompt's tokens, so the completion is the end of the prompt: but for
        its last token, since a prompt must leave room for one. That one is generated, and can be no other."""
        from vllm import SamplingParams

        *ids, last = *prompt_ids, *completion_ids
        parameters = SamplingParams(
            max_tokens=1, temperature=0.0, prompt_logprobs=0, logprobs=0, allowed_token_ids=[last], detokenize=False
        )
        scores: list[_Score] = []
        try:
            for digest in digests:
                number = f"score-{next(self._numbers)}"
                given = self._slots.give(digest)
                score = _Score(digest=digest, number=number)
                score.vllm_id = self._add(number, ids, parameters, given, "score", _IN_THE_BACKGROUND)
                scores.append(score)
                self._scores[number] = score
            while any(score.told is None for score in scores):
                if self._people is not None:
                    self._people()
                self._compute()
                _check_finite(scores)
            found_KC = np.array([_logprobs_of(score.told, ids, last, len(prompt_ids)) for score in scores], np.float32)
            rows = zip(scores, found_KC, strict=True)
            if overflowed := {score.vllm_id for score, found_C in rows if not np.isfinite(found_C).all()}:
                self._end_overflowed(overflowed)
            _check_finite(scores)
            return found_KC
        finally:
            self._vllm.abort_request([score.vllm_id for score in scores], internal=True)
            for score in scores:
                del self._scores[score.number]

    def _check(self, request: GenerationRequest) -> None:
        if len(self._scheduler.waiting) >= self.options.max_waiting:
            raise Unavailable(
                f"{len(self._scheduler.waiting)} requests are waiting",
                code="queue_full",
                fix="try again in a few seconds",
            )
        check_sampling(request.sampling, _MAX_TEMPERATURE)
        check_ensemble(request)
        if request.ensemble and not self.options.ensemble_slots:
            raise InvalidInput(
                "this model is served by vLLM without slots for several adapters together",
                code="invalid_ensemble",
                param="ensemble",
                fix="merge the adapters, or ask a model that is served by the torch engine; the operator may set"
                " ensemble_slots",
            )
        for digest, _ in members_of(request):
            self._check_resident(digest)

    def _check_resident(self, digest: str) -> None:
        if digest and digest not in self._slots.resident():
            raise NotFound(f"adapter {digest!r} is not loaded", code="unknown_adapter", param="adapter_digest")

    def _check_scoring(self, prompt_ids: Sequence[int], completion_ids: Sequence[int], digests: Sequence[str]) -> None:
        if not prompt_ids or not completion_ids:
            raise InvalidInput("prompt and completion must not be empty", code="empty_prompt", param="prompt_ids")
        if len(prompt_ids) + len(completion_ids) > self._max_positions:
            raise InvalidInput(
                f"prompt and completion are over the context of {self._max_positions} tokens",
                code="context_length_exceeded",
                param="completion_ids",
            )
        if not all(0 <= token < self._vocab_size for token in (*prompt_ids, *completion_ids)):
            raise InvalidInput("token ids are not of this vocabulary", code="invalid_token", param="prompt_ids")
        for digest in digests:
            self._check_resident(digest)


@dataclass(slots=True, kw_only=True, eq=False)
class _Answer:
    """One answer in vLLM: the `number` we gave it, the id it has there."""

    generation: Generation
    number: str
    vllm_id: str = ""

    @property
    def request_id(self) -> str:
        return self.generation.request.request_id


@dataclass(slots=True, kw_only=True)
class _Score:
    """A completion under one adapter, in vLLM: the `number` we gave it, the id it has there, and what it `told`."""

    digest: str
    number: str
    vllm_id: str = ""
    told: Any = None
    overflowed: bool = False


def _check_options(options: VllmOptions) -> None:
    """Raises InvalidInput (`invalid_limit`, `unknown_dtype`)."""
    limits = {name: getattr(options, name) >= 1 for name in _COUNTS}
    limits["kv_bytes"] = options.kv_bytes >= 0
    limits["ensemble_slots"] = options.ensemble_slots >= 0
    limits["device_memory"] = 0 < options.device_memory <= 1
    limits["adapter_limits"] = 1 <= options.adapter_limits.max_rank <= MAX_RANK
    for name, usable in limits.items():
        if not usable:
            raise InvalidInput(
                f"{name}={getattr(options, name)!r} can't be used with vLLM",
                code="invalid_limit",
                param=name,
                fix=f"counts from 1 on, device_memory over 0 and at most 1, a max_rank of 1 to {MAX_RANK}",
            )
    check_dtype("dtype", options.dtype, _DTYPES)


def _start(
    base: BaseModel, options: VllmOptions, shapes: BaseShapes, num_slots: int, max_positions: int, on_cpu: bool
) -> Any:
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.engine.llm_engine import LLMEngine
    from vllm.v1.executor import Executor

    num_places = num_slots + options.ensemble_slots + on_cpu  # see `vllm_slots`
    arguments = EngineArgs(
        model=base.path,
        dtype=options.dtype,
        max_model_len=max_positions,
        max_num_seqs=options.max_batch,
        max_num_batched_tokens=max(options.step_tokens, options.max_batch),
        max_logprobs=MAX_LOGPROBS,
        enable_lora=True,
        max_loras=num_places,
        max_cpu_loras=num_places,
        max_lora_rank=rank_of_slots(options.adapter_limits.max_rank),
        lora_target_modules=sorted({name.rsplit(".", 1)[-1] for name in shapes.modules}),  # not the head: it has none
        gpu_memory_utilization=options.device_memory,
        kv_cache_memory_bytes=options.kv_bytes or None,
        tensor_parallel_size=options.tensor_parallel,
        distributed_executor_backend="uni" if options.tensor_parallel == 1 else "mp",
        enforce_eager=not options.compiled,
        enable_prefix_caching=True,
        block_size=32 if on_cpu else None,  # there it takes 128, and finds nothing of a shorter prompt again
        scheduling_policy="priority",
        seed=secrets.randbits(31),  # of answers without one
        async_scheduling=False,  # a step's events are its own, and adapters come and go between steps
        structured_outputs_config={"backend": "guidance"},
        generation_config="vllm",  # a base's own defaults don't reach into what a request asks
    )
    config = arguments.create_engine_config()
    return LLMEngine(config, Executor.get_class(config), log_stats=False, multiprocess_mode=False)


def _make_finite(worker: Any) -> None:
    for memory in worker.model_runner.kv_caches:
        memory.nan_to_num_(0.0, 0.0, 0.0)


def _is_on_cpu() -> bool:
    if importlib.util.find_spec("vllm") is None:
        raise Unavailable(
            "the engine vllm is not installed on this node",
            code="vllm_not_installed",
            param="engine",
            fix="pip install 'openledger[vllm]' in an environment of its own, or take the engine torch",
        )
    from vllm.platforms import current_platform

    return bool(current_platform.is_cpu())


def _end_tokens(folder: Path) -> frozenset[int]:
    """What the base's generation configuration says ends an answer."""
    path = folder / "generation_config.json"
    ends = json.loads(path.read_text()).get("eos_token_id") if path.exists() else None
    return frozenset(() if ends is None else [ends] if isinstance(ends, int) else ends)


def _parameters(wanted: SamplingParameters, index: int, ends: frozenset[int]) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        max_tokens=wanted.max_tokens,
        temperature=wanted.temperature,
        top_p=wanted.top_p,
        top_k=wanted.top_k,
        min_p=wanted.min_p,
        presence_penalty=wanted.presence_penalty,
        frequency_penalty=wanted.frequency_penalty,
        repetition_penalty=wanted.repetition_penalty,
        seed=None if wanted.seed is None else (wanted.seed + index) % (1 << 63),
        logprobs=wanted.logprobs,
        prompt_logprobs=wanted.prompt_logprobs if index == 0 else None,
        ignore_eos=True,
        stop_token_ids=[] if wanted.ignore_end else sorted(ends),
        structured_outputs=None if wanted.grammar is None else _structure(wanted.grammar),
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
    )


def _structure(grammar: Grammar) -> Any:
    from vllm.sampling_params import StructuredOutputsParams

    if grammar.kind == "json_object":
        return StructuredOutputsParams(json_object=True)
    name = {"json_schema": "json", "regex": "regex", "lark": "grammar"}[grammar.kind]
    return StructuredOutputsParams(**{name: grammar.text})


def _logprobs(told: Sequence[Any], num_top: int, ids: Sequence[int]) -> tuple[TokenLogprob, ...]:
    """`told` has for each place the token's log-probability and those of the likeliest, by token."""
    found = []
    for token, by_token in zip(ids, told, strict=False):
        best = sorted((one.rank, other, one.logprob) for other, one in by_token.items() if one.rank <= num_top)
        top = tuple((other, logprob) for _, other, logprob in best)
        found.append(TokenLogprob(token_id=token, logprob=by_token[token].logprob, top=top))
    return tuple(found)


def _logprobs_of(told: Any, ids: Sequence[int], last: int, begin: int) -> list[float]:
    """Of `ids` from `begin` on, which were the prompt, and of `last`, which was generated."""
    of_prompt = [told.prompt_logprobs[place][ids[place]].logprob for place in range(begin, len(ids))]
    return [*of_prompt, told.outputs[0].logprobs[0][last].logprob]


def _check_finite(scores: Sequence[_Score]) -> None:
    """Raises Corrupt (`non_finite_logits`)."""
    for score in scores:
        if score.overflowed:
            raise not_finite(score.digest)


def _used(generation: Generation) -> set[str]:
    """What must keep its slot while an answer is made."""
    return {generation.adapter, *(digest for digest, _ in generation.request.ensemble)}


def _count_down(counter: Counter[str], key: str) -> None:
    counter[key] -= 1
    if not counter[key]:
        del counter[key]


def _gave_up(reason: Any) -> OpenLedgerError:
    return Unavailable(f"vLLM ended the answer: {reason}", code="engine_stopped", fix="try again")
