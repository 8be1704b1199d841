"""The embedded engine: transformers' model code, our batching, our LoRA layers. fp32, on the CPU.

One step = plan (scheduler), pack, aim the adapters, one forward pass, choose tokens, tell. Owns the order of these and
the requests' errors; the parts know nothing of each other.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from openledger.adapters.base_model import BaseModel, load_tokenizer
from openledger.adapters.checks import AdapterLimits, read_adapter
from openledger.core.errors import Conflict, Corrupt, InvalidInput, NotFound, OpenLedgerError, TooLarge
from openledger.core.values import GenerationRequest, TokenEvent
from openledger.openlora.kv import KeyValueSlots
from openledger.openlora.lora import LoraLayers
from openledger.openlora.packed_model import PackedModel
from openledger.openlora.packing import Piece, pack
from openledger.openlora.sampling import check_sampling, choose_tokens
from openledger.openlora.scheduler import Generation, Scheduler, new_generation
from openledger.openlora.text import decoder


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """Limits that bound the engine's memory and step time. A request's prompt and answer together hold at most
    `max_context` tokens (or the base's own limit); at most `max_batch` requests run, fewer where `kv_bytes` is less;
    the rest wait."""

    max_batch: int = 32
    max_context: int = 4096
    kv_bytes: int = 1 << 30
    step_tokens: int = 512
    max_waiting: int = 1024
    num_threads: int = 1
    adapter_limits: AdapterLimits = field(default_factory=AdapterLimits)


class TorchEngine:
    """See `Engine` for what it promises. Raises InvalidInput (`unsupported_model`) for a family the probe refuses."""

    def __init__(self, base: BaseModel, options: EngineOptions | None = None):
        self.options = options or EngineOptions()
        torch.set_num_threads(self.options.num_threads)
        self._model = PackedModel(base)
        self._lora = LoraLayers(self._model.model)
        tokenizer = load_tokenizer(base)
        self._decode = decoder(tokenizer)
        self._ends = self._model.end_tokens() | {tokenizer.eos_token_id}
        self._max_positions = min(base.max_positions, self.options.max_context)
        self._kv = KeyValueSlots(self._num_slots(), self._max_positions)
        self._scheduler = Scheduler(
            self._kv, step_tokens=self.options.step_tokens, max_waiting=self.options.max_waiting
        )
        self._ready: list[TokenEvent] = []

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
        self._lora.install(digest, weights)

    def unload(self, digest: str) -> None:
        if self._scheduler.uses(digest):
            raise Conflict(f"adapter {digest} is in use", code="adapter_in_use", param="digest", fix="try again later")
        self._lora.remove(digest)

    def resident(self) -> tuple[str, ...]:
        return self._lora.resident()

    def add(self, request: GenerationRequest) -> None:
        self._scheduler.check_new(request.request_id)
        try:
            self._scheduler.check_room()
            check_sampling(request.sampling)
            self._check_resident(request.adapter_digest)
            generation = new_generation(
                request, self._decode, vocab_size=self._model.vocab_size, max_positions=self._max_positions
            )
        except OpenLedgerError as error:
            self._ready.append(_error_event(request.request_id, error))
        else:
            self._scheduler.add(generation)

    def cancel(self, request_id: str) -> None:
        if generation := self._scheduler.find(request_id):
            self._scheduler.remove(generation)
            text = generation.text.finish()
            self._ready.append(TokenEvent(request_id=request_id, token_ids=(), text=text, finish_reason="cancelled"))

    def has_work(self) -> bool:
        return bool(self._ready) or self._scheduler.has_work()

    def step(self) -> list[TokenEvent]:
        events, self._ready = self._ready, []
        if plan := self._scheduler.plan():
            with torch.inference_mode():
                events += self._compute(plan)
        return events

    def score(
        self, prompt_ids: Sequence[int], completion_ids: Sequence[int], adapter_digests: Sequence[str]
    ) -> npt.NDArray[np.float32]:
        self._check_scoring(prompt_ids, completion_ids, adapter_digests)
        scores_KC = np.zeros((len(adapter_digests), len(completion_ids)), np.float32)
        size = self.num_scored_at_once(len(prompt_ids) + len(completion_ids))
        with torch.inference_mode():
            for begin in range(0, len(adapter_digests), size):
                digests = adapter_digests[begin : begin + size]
                scores_KC[begin : begin + size] = self._score_together(prompt_ids, completion_ids, digests)
        return scores_KC

    def num_scored_at_once(self, num_tokens: int) -> int:
        """How many adapters `score` takes through one forward pass for a prompt and completion of `num_tokens`."""
        return max(1, self.options.step_tokens // max(1, num_tokens))

    def describe(self) -> dict[str, Any]:
        """What is live, for status pages and logs."""
        return {
            "engine": "torch",
            "lora_path": "packed baddbmm",
            "attention_path": "contiguous slots, scaled dot product",
            "dtype": "float32",
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "base_model": self._model.base.name,
            "base_digest": self._model.base.digest,
            "options": asdict(self.options),
            "max_positions": self._max_positions,
            "kv_bytes": self._kv.num_slots * self._max_positions * self._model.bytes_per_token,
            "adapter_bytes": self._lora.num_bytes(),
            "resident": list(self.resident()),
            **self._scheduler.counts(),
        }

    def _compute(self, plan: list[tuple[Generation, Piece]]) -> list[TokenEvent]:
        step = pack([piece for _, piece in plan], self._kv)
        self._lora.use(step)
        logits_BV = self._model.logits(step)
        for generation, piece in plan:
            generation.num_stored = piece.end
        complete = [plan[index][0] for index in step.order if plan[index][1].keep]
        tokens = choose_tokens(logits_BV, [generation.chooser for generation in complete])
        return [self._advance(generation, token) for generation, token in zip(complete, tokens, strict=True)]

    def _score_together(
        self, prompt_ids: Sequence[int], completion_ids: Sequence[int], digests: Sequence[str]
    ) -> npt.NDArray[np.float32]:
        ids = [*prompt_ids, *completion_ids[:-1]]
        step = pack([Piece(token_ids=ids, adapter=digest, keep=len(completion_ids)) for digest in digests], None)
        self._lora.use(step)
        logits_KCV = self._model.logits(step).view(len(digests), len(completion_ids), -1)
        chosen_KC1 = torch.tensor(list(completion_ids)).expand(len(digests), -1)[..., None]
        scores: npt.NDArray[np.float32] = torch.log_softmax(logits_KCV, -1).gather(-1, chosen_KC1)[..., 0].numpy()
        return scores

    def _num_slots(self) -> int:
        slot_bytes = self._model.bytes_per_token * self._max_positions
        if self.options.kv_bytes < slot_bytes:
            raise TooLarge(
                f"one request's keys and values take {slot_bytes} bytes, the limit is {self.options.kv_bytes}",
                code="kv_limit_too_small",
                param="kv_bytes",
                fix="raise kv_bytes or lower max_context",
            )
        return min(self.options.max_batch, self.options.kv_bytes // slot_bytes)

    def _check_resident(self, digest: str) -> None:
        if digest and digest not in self._lora.resident():
            raise NotFound(f"adapter {digest!r} is not loaded", code="unknown_adapter", param="adapter_digest")

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

    def _advance(self, generation: Generation, token: int | None) -> TokenEvent:
        """Take the token that was chosen; the event that tells of it."""
        request_id = generation.request.request_id
        if token is None:
            self._scheduler.remove(generation, wipe=True)
            return _error_event(request_id, _not_finite(generation.request.adapter_digest))
        generation.ids.append(token)
        text = "" if token in self._ends else generation.text.push(token)
        reason = self._finish_reason(generation, token)
        if reason is not None:
            text += generation.text.finish()
            reason = "stop" if generation.text.stopped else reason
            self._scheduler.remove(generation)
        return TokenEvent(request_id=request_id, token_ids=(token,), text=text, finish_reason=reason)

    def _finish_reason(self, generation: Generation, token: int) -> str | None:
        if token in self._ends or generation.text.stopped:
            return "stop"
        if generation.num_generated >= generation.request.sampling.max_tokens:
            return "length"
        return "length" if len(generation.ids) >= self._max_positions else None


def _error_event(request_id: str, error: OpenLedgerError) -> TokenEvent:
    return TokenEvent(request_id=request_id, token_ids=(), text="", finish_reason="error", error=error.to_dict())


def _not_finite(digest: str) -> OpenLedgerError:
    return Corrupt(
        f"adapter {digest!r} gives logits that are not finite",
        code="non_finite_logits",
        param="adapter_digest",
        fix="its weights overflow: train it again",
    )
