"""The embedded engine: transformers' model code, our batching, our kernels for LoRA and attention. On a CPU or one GPU.

One step = plan (scheduler), pack, aim the adapters, one forward pass, choose tokens, tell. Owns the order of these and
the requests' errors; the parts know nothing of each other.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import wait
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from openledger.adapters.base_model import BaseModel, load_tokenizer
from openledger.adapters.checks import AdapterLimits, read_adapter
from openledger.core.errors import Conflict, Corrupt, InvalidInput, NotFound, OpenLedgerError, TooLarge, Unavailable
from openledger.core.values import GenerationRequest, TokenEvent, TokenLogprob
from openledger.openlora.devices import find_device, find_kernels, triton_products
from openledger.openlora.engine import Vectors, check_dtype, not_finite, refusal
from openledger.openlora.ensembles import check_ensemble, identity_of, members_of
from openledger.openlora.grammar import Grammars
from openledger.openlora.kv import KeyValueBlocks, num_blocks_of, root_key
from openledger.openlora.lora import LoraLayers, NativeProducts, Products
from openledger.openlora.lora_torch import TorchProducts
from openledger.openlora.merging import check_memory
from openledger.openlora.native import BLOCK, Kernels, Paged
from openledger.openlora.packed_model import Merged, PackedModel
from openledger.openlora.packing import PackedStep, Piece, pack
from openledger.openlora.sampling import check_sampling, choose_tokens, logprob_of
from openledger.openlora.scheduler import Generation, Scheduler, answer_to, new_generation
from openledger.openlora.text import decoder

DTYPES = ("auto", "float32", "bfloat16")
WEIGHTS = ("exact", "int8", "auto")
_GRAMMAR_WAIT_S = 0.01
_SOFTMAX_ROWS = 64  # of a score at a time: they stay in the caches, and nobody waits for all of them
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """Limits that bound the engine's memory and step time, and what it computes with.

    A request's prompt and answer together hold at most `max_context` tokens (or the base's own limit); at most
    `max_batch` answers run, with `kv_bytes` for keys and values in all; the rest wait. `score_tokens` is how many
    tokens scoring takes at a time: fewer let people through sooner. `dtype` is the base's, `adapter_dtype` that in
    which adapters are kept (`auto`: the base's); scores decide money, so that fp32 is the default and `auto` a choice.
    So is `weights`: the base's as they are, or rounded to int8, which decodes faster and computes something else.
    `kernels` is `auto`, `torch`, an instruction set's name or `triton`. `device` is `cpu`, `cuda`, or `auto`: the GPU
    where there is one, unless the kernels are a processor's.
    """

    max_batch: int = 32
    max_context: int = 4096
    kv_bytes: int = 1 << 30
    step_tokens: int = 512
    max_waiting: int = 1024
    score_tokens: int = 512
    num_threads: int = 1
    dtype: str = "float32"
    adapter_dtype: str = "auto"
    weights: str = "exact"
    kernels: str = "auto"
    device: str = "auto"
    adapter_limits: AdapterLimits = field(default_factory=AdapterLimits)


class TorchEngine:
    """See `Engine` for what it promises. Raises InvalidInput (`unsupported_model`) for a family the probe refuses."""

    def __init__(self, base: BaseModel, options: EngineOptions | None = None):
        self.options = options or EngineOptions()
        torch.set_num_threads(self.options.num_threads)
        _check_options(self.options)
        device = find_device(self.options.device, self.options.kernels)
        _check_weights(self.options.weights, device)
        self._model = self._packed_model(base, find_kernels(device, self.options.kernels), device)
        self._kernels = self._model.kernels
        self._lora = LoraLayers(self._model.model, self._products())
        self._merged: Merged | None = None
        tokenizer = load_tokenizer(base)
        self._decode = decoder(tokenizer)
        self._ends = self._model.end_tokens() | {tokenizer.eos_token_id}
        self._grammars = Grammars(tokenizer, self._model.vocab_size, self._ends)
        self._max_positions = min(base.max_positions, self.options.max_context)
        self._kv = KeyValueBlocks(self._num_blocks())
        self._scheduler = Scheduler(
            self._kv,
            max_batch=self.options.max_batch,
            step_tokens=self.options.step_tokens,
            max_waiting=self.options.max_waiting,
        )
        self._ready: list[TokenEvent] = []
        self._in_pass: Counter[str] = Counter()  # adapters of passes that may have given way
        self._people: Callable[[], None] | None = None
        self._given_s = 0.0  # to people, by passes that gave way

    def load(self, digest: str, folder: Path) -> None:
        if digest in self._lora.resident():
            return
        weights = read_adapter(folder, self._model.shapes, self.options.adapter_limits)
        if weights.description.digest != digest:
            raise Corrupt(
                f"{folder} holds the adapter {weights.description.digest}, not {digest}",
                code="adapter_digest_mismatch",
                param=str(folder),
            )
        try:
            self._lora.install(digest, weights)
        except torch.OutOfMemoryError as error:
            raise Unavailable(
                f"the GPU has no memory left for adapter {digest}",
                code="no_memory_for_adapter",
                param="digest",
                fix="fewer slots, or a smaller kv_bytes or max_batch",
            ) from error

    def unload(self, digest: str) -> None:
        if self._scheduler.uses(digest) or self._in_pass[digest]:
            raise Conflict(f"adapter {digest} is in use", code="adapter_in_use", param="digest", fix="try again later")
        if self.merged() == digest:
            self.unmerge()
        self._lora.remove(digest)

    def resident(self) -> tuple[str, ...]:
        return self._lora.resident()

    def check_merging(self) -> None:
        if self._model.device.type != "cpu":
            raise InvalidInput(
                "adapters aren't merged on a GPU",
                code="merging_unsupported",
                param="merge",
                fix="leave merging off",
            )
        if self._model.dtype is not torch.float32 or self._model.weights != "exact":
            raise InvalidInput(
                f"adapters aren't merged into {self._model.weights} weights of {_name_of(self._model.dtype)}: rounding "
                "would change what they add",
                code="merging_unsupported",
                param="merge",
                fix="dtype: float32 and weights: exact, or leave merging off",
            )

    def merge(self, digest: str) -> None:
        self.check_merging()
        self._check_resident(digest)
        check_memory(self._lora.num_merged_bytes(digest))
        with torch.inference_mode():
            self._merged = self._model.merged(digest, self._lora.merge(digest))

    def unmerge(self) -> None:
        self._merged = None
        self._lora.let_go()

    def merged(self) -> str:
        merged = self._merged
        return "" if merged is None else merged.digest

    def add(self, request: GenerationRequest) -> None:
        self._scheduler.check_new(request.request_id)
        try:
            self._scheduler.check_room()
            check_sampling(request.sampling)
            check_ensemble(request)
            for digest, _ in members_of(request):
                self._check_resident(digest)
            generation = new_generation(
                request,
                self._decode,
                root_key(self._model.base.digest, identity_of(request), request.tenant),
                vocab_size=self._model.vocab_size,
                max_positions=self._max_positions,
            )
        except OpenLedgerError as error:
            self._ready.append(refusal(request.request_id, error))
        else:
            if request.sampling.grammar is not None:
                generation.grammar = self._grammars.compile(request.sampling.grammar)
            self._scheduler.add(generation)

    def cancel(self, request_id: str) -> None:
        for generation in self._scheduler.find(request_id):
            self._ready.append(self._ended(generation, "cancelled", text=generation.text.finish()))

    def has_work(self) -> bool:
        return bool(self._ready) or self._scheduler.has_work()

    def step(self) -> list[TokenEvent]:
        self._take_over_grammars()
        events, self._ready = self._ready, []
        if plan := self._scheduler.plan():
            with torch.inference_mode():
                events += self._compute(plan)
        elif not events and (waiting := self._scheduler.grammars()):
            wait((generation.grammar for generation in waiting if generation.grammar), timeout=_GRAMMAR_WAIT_S)
        return events

    def score(
        self, prompt_ids: Sequence[int], completion_ids: Sequence[int], adapter_digests: Sequence[str]
    ) -> npt.NDArray[np.float32]:
        self._check_scoring(prompt_ids, completion_ids, adapter_digests)
        scores_KC = np.zeros((len(adapter_digests), len(completion_ids)), np.float32)
        size = self.num_scored_at_once(len(prompt_ids) + len(completion_ids))
        with self._held(adapter_digests), torch.inference_mode():
            for begin in range(0, len(adapter_digests), size):
                digests = adapter_digests[begin : begin + size]
                scores_KC[begin : begin + size] = self._score_together(prompt_ids, completion_ids, digests)
        return scores_KC

    def embed(self, inputs: Sequence[Sequence[int]], adapter_digest: str) -> Vectors:
        self._check_inputs(inputs, adapter_digest)
        begin_s, given_s = time.perf_counter(), self._given_s
        is_long = sum(map(len, inputs)) > self.options.step_tokens
        pieces = [Piece(token_ids=ids, adapter=adapter_digest, keep=0) for ids in inputs]
        step = pack(pieces, None, self._give_way if is_long else None)
        with self._held((adapter_digest,)), torch.inference_mode():
            self._lora.use(step)
            hidden_TH = self._model.hidden(step)
            means_KH = torch.stack([hidden_TH[segment.begin : segment.end].mean(0) for segment in step.segments])
            vectors_KH = torch.nn.functional.normalize(means_KH, dim=-1).cpu().numpy()
        ordered: npt.NDArray[np.float32] = np.empty(vectors_KH.shape, np.float32)
        ordered[list(step.order)] = vectors_KH
        taken_s = time.perf_counter() - begin_s - (self._given_s - given_s)
        return Vectors(vectors_KH=ordered, engine_ms=1000 * taken_s)

    def give_way_to(self, people: Callable[[], None]) -> None:
        self._people = people

    def num_scored_at_once(self, num_tokens: int) -> int:
        """How many adapters `score` takes through one forward pass for a prompt and completion of `num_tokens`."""
        return max(1, self.options.score_tokens // max(1, num_tokens))

    def describe(self) -> dict[str, Any]:
        """What is live, for status pages and logs."""
        return {
            "engine": "torch",
            "lora_path": f"kernels: {self._kernels}" if self._kernels else "torch, packed baddbmm",
            "attention_path": f"kernels: {self._kernels}" if self._kernels else "torch, piece by piece",
            "decode_path": self._model.decode_path,
            "device": self._device_name(),
            "dtype": _name_of(self._model.dtype),
            "weights": self._model.weights,
            "adapter_dtype": _name_of(self._adapter_dtype()),
            "dtype_speeds_hz": self._model.speeds,
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "base_model": self._model.base.name,
            "base_digest": self._model.base.digest,
            "options": asdict(self.options),
            "max_positions": self._max_positions,
            "kv_bytes": self._kv.num_blocks * self._block_bytes(),
            "adapter_bytes": self._lora.num_bytes(),
            "merged": self.merged(),
            "merged_bytes": 0 if self._merged is None else self._merged.num_bytes(),
            "resident": list(self.resident()),
            **self._scheduler.counts(),
        }

    def _compute(self, plan: list[tuple[Generation, Piece]]) -> list[TokenEvent]:
        begin = time.perf_counter()
        step = self._model.pack([piece for _, piece in plan], self._kv)
        merged = self._merged_for(step)
        added = self._lora.use(step, None if merged is None else merged.weights)
        logits_KV = self._model.logits(step, added, merged)
        for generation, piece in plan:  # a GPU computes meanwhile
            self._scheduler.stored(generation, piece.end)
        self._model.wait()
        row_ms = 1000 * (time.perf_counter() - begin) / step.num_rows
        complete, rows, row = [], [], 0
        for index in step.order:
            generation, piece = plan[index]
            generation.engine_ms += row_ms * len(piece.token_ids)
            if piece.keep > 1 or (piece.keep and generation.wants_prompt_logprobs):
                _read_prompt(generation, piece, logits_KV[row : row + piece.keep])
            row += piece.keep
            if piece.keep and piece.end == len(generation.ids):
                complete.append(generation)
                rows.append(row - 1)
        return self._choose(complete, logits_KV if len(rows) == len(logits_KV) else logits_KV[rows])

    def _merged_for(self, step: PackedStep) -> Merged | None:
        merged = self._merged  # another thread may change it
        return merged if merged is not None and merged.takes(step) else None

    def _choose(self, generations: list[Generation], logits_BV: torch.Tensor) -> list[TokenEvent]:
        events = []
        tokens = choose_tokens(logits_BV, [generation.chooser for generation in generations])
        for generation, logits_V, token in zip(generations, logits_BV, tokens, strict=True):
            if not generation.num_generated and generation.index == 0:
                self._begin_further_answers(generation)
            if isinstance(token, OpenLedgerError):
                events.append(self._ended(generation, "error", error=token))
            elif token is None:
                error = not_finite(generation.adapter)
                events.append(self._ended(generation, "error", error=error, wipe=True))
            else:
                events.append(self._advance(generation, token, logits_V))
        return events

    def _begin_further_answers(self, first: Generation) -> None:
        """The prompt is computed: the other answers find its blocks."""
        further = [
            answer_to(first.request, self._decode, first.keys[0], index)
            for index in range(1, first.request.sampling.num_answers)
        ]
        for generation in further:
            if first.chooser.grammar is not None:
                generation.chooser.grammar = first.chooser.grammar.copy()
        self._scheduler.add_beside(further)

    def _take_over_grammars(self) -> None:
        for generation in self._scheduler.grammars():
            if generation.waits_for_grammar:
                continue
            compiled, generation.grammar = generation.grammar, None
            try:
                generation.chooser.grammar = compiled.result() if compiled else None
            except OpenLedgerError as error:
                self._ready.append(self._ended(generation, "error", error=error))

    def _score_together(
        self, prompt_ids: Sequence[int], completion_ids: Sequence[int], digests: Sequence[str]
    ) -> npt.NDArray[np.float32]:
        ids = [*prompt_ids, *completion_ids[:-1]]
        pieces = [Piece(token_ids=ids, adapter=digest, keep=len(completion_ids)) for digest in digests]
        step = pack(pieces, None, self._give_way)
        self._lora.use(step)
        logits_RV = self._model.logits(step)
        chosen_R1 = torch.tensor(list(completion_ids), device=logits_RV.device).repeat(len(digests))[:, None]
        parts = []
        for begin in range(0, len(logits_RV), _SOFTMAX_ROWS):
            self._give_way()
            rows = slice(begin, begin + _SOFTMAX_ROWS)
            parts.append(torch.log_softmax(logits_RV[rows], -1).gather(-1, chosen_R1[rows]))
        scores_KC = torch.cat(parts).view(len(digests), len(completion_ids))
        scores: npt.NDArray[np.float32] = np.empty(scores_KC.shape, np.float32)
        scores[list(step.order)] = scores_KC.cpu().numpy()
        return scores

    @contextmanager
    def _held(self, digests: Sequence[str]) -> Iterator[None]:
        """A pass that gives way reads these adapters' memory when it goes on: `unload` refuses them meanwhile."""
        self._in_pass.update(digests)
        try:
            yield
        finally:
            self._in_pass -= Counter(digests)

    def _give_way(self) -> None:
        """A GPU is behind: people who come while it computes what was queued would wait for all of it."""
        if self._people is not None:
            self._model.wait()
            begin_s = time.perf_counter()
            with self._lora.set_aside():
                self._people()
            self._given_s += time.perf_counter() - begin_s

    def _packed_model(self, base: BaseModel, kernels: Paged | None, device: torch.device) -> PackedModel:
        """By torch alone where a GPU's kernels don't run or give something else, unless they were asked for by name."""
        options = self.options
        load = partial(
            PackedModel,
            base,
            dtype=options.dtype,
            weights=options.weights,
            num_threads=options.num_threads,
            device=device,
        )
        try:
            return load(kernels)
        except InvalidInput as error:
            if options.kernels != "auto" or kernels is None or isinstance(kernels, Kernels):
                raise
            reason = str(error)
        model = load(None)
        _log.warning("torch computes attention and adapters, more slowly than kernels: %s", reason)
        return model

    def _products(self) -> Products:
        if self._kernels is None:
            return TorchProducts(self._adapter_dtype(), self._model.device)
        if isinstance(self._kernels, Kernels):
            return NativeProducts(self._kernels, self._adapter_dtype())
        return triton_products(self._kernels, self._model.modules, self._adapter_dtype(), self._model.device)

    def _device_name(self) -> str:
        device = self._model.device
        return device.type if device.type == "cpu" else torch.cuda.get_device_name(device)

    def _adapter_dtype(self) -> torch.dtype:
        wanted = self.options.adapter_dtype
        return self._model.dtype if wanted == "auto" else getattr(torch, wanted)

    def _block_bytes(self) -> int:
        return self._model.bytes_per_token * BLOCK

    def _num_blocks(self) -> int:
        """As many as fit; never more than all running answers at full length could fill."""
        each = num_blocks_of(self._max_positions)
        if self.options.kv_bytes < each * self._block_bytes():
            raise TooLarge(
                f"one request's keys and values take {each * self._block_bytes()} bytes, "
                f"the limit is {self.options.kv_bytes}",
                code="kv_limit_too_small",
                param="kv_bytes",
                fix="raise kv_bytes or lower max_context",
            )
        return min(self.options.max_batch * each, self.options.kv_bytes // self._block_bytes())

    def _check_resident(self, digest: str) -> None:
        if digest and digest not in self._lora.resident():
            raise NotFound(f"adapter {digest!r} is not loaded", code="unknown_adapter", param="adapter_digest")

    def _check_inputs(self, inputs: Sequence[Sequence[int]], digest: str) -> None:
        longest = max(map(len, inputs), default=0)
        if not inputs or not all(inputs):
            raise InvalidInput("an input is empty", code="empty_prompt", param="input")
        if longest > self._max_positions:
            raise InvalidInput(
                f"an input has {longest} tokens; the context holds {self._max_positions}",
                code="context_length_exceeded",
                param="input",
            )
        if not all(0 <= token < self._model.vocab_size for ids in inputs for token in ids):
            raise InvalidInput("token ids are not of this vocabulary", code="invalid_token", param="input")
        self._check_resident(digest)

    def _check_scoring(self, prompt_ids: Sequence[int], completion_ids: Sequence[int], digests: Sequence[str]) -> None:
        if not prompt_ids or not completion_ids:
            raise InvalidInput("prompt and completion must not be empty", code="empty_prompt", param="prompt_ids")
        if len(prompt_ids) + len(completion_ids) > self._model.base.max_positions + 1:
            raise InvalidInput(
                f"prompt and completion are over the context of {self._model.base.max_positions} tokens",
                code="context_length_exceeded",
                param="completion_ids",
            )
        if not all(0 <= token < self._model.vocab_size for token in (*prompt_ids, *completion_ids)):
            raise InvalidInput("token ids are not of this vocabulary", code="invalid_token", param="prompt_ids")
        for digest in digests:
            self._check_resident(digest)

    def _advance(self, generation: Generation, token: int, logits_V: torch.Tensor) -> TokenEvent:
        """Take the token that was chosen; the event that tells of it."""
        wanted = generation.request.sampling
        generation.ids.append(token)
        generation.chooser.accept(token)
        logprobs = () if wanted.logprobs is None else (logprob_of(logits_V, token, wanted.logprobs),)
        text = "" if self._ends_at(generation, token) else generation.text.push(token)
        reason = self._finish_reason(generation, token)
        if reason is not None:
            text += generation.text.finish()
            reason = "stop" if generation.text.stopped else reason
            return self._ended(generation, reason, text=text, token_ids=(token,), logprobs=logprobs)
        return TokenEvent(
            request_id=generation.request.request_id,
            token_ids=(token,),
            text=text,
            index=generation.index,
            num_open=self._scheduler.num_open(generation.request.request_id),
            logprobs=logprobs,
            prompt_logprobs=_prompt_logprobs(generation),
        )

    def _ended(
        self,
        generation: Generation,
        reason: str,
        *,
        text: str = "",
        token_ids: tuple[int, ...] = (),
        logprobs: tuple[TokenLogprob, ...] = (),
        error: OpenLedgerError | None = None,
        wipe: bool = False,
    ) -> TokenEvent:
        """Forget the answer; its last event."""
        self._scheduler.remove(generation, wipe=wipe)
        return TokenEvent(
            request_id=generation.request.request_id,
            token_ids=token_ids,
            text=text,
            finish_reason=reason,
            error=None if error is None else error.to_dict(),
            index=generation.index,
            num_open=self._scheduler.num_open(generation.request.request_id),
            logprobs=logprobs,
            prompt_logprobs=_prompt_logprobs(generation) if generation.num_generated == len(token_ids) else (),
            usage=generation.usage(),
        )

    def _ends_at(self, generation: Generation, token: int) -> bool:
        return token in self._ends and not generation.request.sampling.ignore_end

    def _finish_reason(self, generation: Generation, token: int) -> str | None:
        if self._ends_at(generation, token) or generation.text.stopped or generation.chooser.finished:
            return "stop"
        if generation.num_generated >= generation.request.sampling.max_tokens:
            return "length"
        return "length" if len(generation.ids) >= self._max_positions else None


def _read_prompt(generation: Generation, piece: Piece, logits_KV: torch.Tensor) -> None:
    """Log-probabilities of the prompt's tokens that these rows predict."""
    num_top = generation.request.sampling.prompt_logprobs or 0
    first = piece.end - len(logits_KV)
    for place, logits_V in enumerate(logits_KV, start=first + 1):
        if place == len(generation.prompt_logprobs) and place < generation.num_prompt:
            generation.prompt_logprobs.append(logprob_of(logits_V, generation.ids[place], num_top))


def _prompt_logprobs(generation: Generation) -> tuple[TokenLogprob | None, ...]:
    """With the first token's event, and no other."""
    told = generation.wants_prompt_logprobs and generation.num_generated <= 1
    return tuple(generation.prompt_logprobs) if told else ()


def _check_options(options: EngineOptions) -> None:
    for name in ("dtype", "adapter_dtype"):
        check_dtype(name, getattr(options, name), DTYPES)
    if options.weights not in WEIGHTS:
        raise InvalidInput(
            f"weights is one of {', '.join(WEIGHTS)}, not {options.weights!r}", code="no_int8", param="weights"
        )


def _check_weights(weights: str, device: torch.device) -> None:
    if weights == "int8" and device.type != "cpu":
        raise InvalidInput(
            "int8 weights are computed on a CPU only", code="no_int8", param="weights",
            fix="weights: exact, or device: cpu",
        )  # fmt: skip


def _name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
