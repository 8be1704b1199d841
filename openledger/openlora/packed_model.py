"""transformers' own model code run on packed batches, admitted by a probe and not by its name.

Some families accept an attention function and compute something else. So a model must call ours exactly once per
layer, hand its linear layers every row of the batch, and give the logits that its plain forward gives; a family that
doesn't is refused by name. Reference: the model's own eager attention.
"""

from collections import Counter
from typing import Any

import torch

from openledger.adapters.base_model import BaseModel, load_model
from openledger.adapters.checks import BaseShapes, shapes_of
from openledger.core.errors import InvalidInput
from openledger.openlora import attention
from openledger.openlora.kv import KeyValueSlots
from openledger.openlora.packing import PackedStep, Piece, pack

_PROBE_PROMPTS, _PROBE_NEW = (3, 11, 21), 3
_TOLERANCE = 1e-4  # of the largest logit, at least of 1


class PackedModel:
    """A base model that computes packed batches. `shapes` are the modules that adapters may target, `bytes_per_token`
    what the keys and values of a token take."""

    def __init__(self, base: BaseModel):
        self.base = base
        self.model = load_model(base)
        self.vocab_size = int(self.model.get_input_embeddings().weight.shape[0])
        self._num_layers = int(self.model.config.get_text_config().num_hidden_layers)
        self._check_family()
        with torch.inference_mode():
            self.bytes_per_token, self.shapes = self._probe()

    def logits(self, step: PackedStep) -> torch.Tensor:
        """Logits `[number of kept rows, V]`."""
        output = self.model(
            input_ids=step.input_ids,
            position_ids=step.position_ids,
            use_cache=False,
            logits_to_keep=step.kept_rows,
            openlora_step=step,
        )
        return output.logits[0]

    def end_tokens(self) -> frozenset[int]:
        ends = self.model.generation_config.eos_token_id
        return frozenset(() if ends is None else [ends] if isinstance(ends, int) else ends)

    def _check_family(self) -> None:
        if not getattr(self.model, "_supports_attention_backend", False):
            raise self._unsupported("its attention can't be replaced")

    def _probe(self) -> tuple[int, BaseShapes]:
        """Prompts of several lengths, one in two pieces, then single tokens: all against the plain forward."""
        generator = torch.Generator().manual_seed(0)
        lengths = [min(n, self.base.max_positions - _PROBE_NEW) for n in _PROBE_PROMPTS]
        rows = [torch.randint(self.vocab_size, (n + _PROBE_NEW,), generator=generator).tolist() for n in lengths]
        expected = [self.model(input_ids=torch.tensor([row]), use_cache=False).logits[0] for row in rows]
        self.model.set_attn_implementation(attention.register())
        kv = KeyValueSlots(len(rows), max(len(row) for row in rows))
        seen = _RowCounter(self.model)
        for pieces in _probe_steps(rows, lengths):
            self._probe_step(pack(pieces, kv), pieces, expected, seen)
        seen.remove()
        shapes = shapes_of(self.model, self.base.digest)
        regular = {name: shape for name, shape in shapes.modules.items() if name in seen.regular}
        return kv.bytes_per_token(), BaseShapes(digest=shapes.digest, modules=regular)

    def _probe_step(
        self, step: PackedStep, pieces: list[Piece], expected: list[torch.Tensor], seen: "_RowCounter"
    ) -> None:
        seen.begin(step.num_rows)
        logits = self._probe_logits(step)
        if Counter(step.calls) != Counter(range(self._num_layers)):
            raise self._unsupported(f"its {self._num_layers} layers called attention {len(step.calls)} times")
        seen.end()
        for row, index in zip(logits, (index for index in step.order if pieces[index].keep), strict=True):
            reference = expected[pieces[index].slot or 0][pieces[index].end - 1]
            error = (row - reference).abs().max()
            if not error <= _TOLERANCE * max(1.0, float(reference.abs().max())):
                raise self._unsupported(f"packed logits differ from its own by {float(error):.2g}")

    def _probe_logits(self, step: PackedStep) -> torch.Tensor:
        try:
            return self.logits(step)
        except (TypeError, ValueError, RuntimeError, AttributeError, KeyError) as error:
            raise self._unsupported(f"it doesn't run on packed batches: {error}") from error

    def _unsupported(self, reason: str) -> InvalidInput:
        family = self.model.config.model_type
        return InvalidInput(
            f"OpenLoRA can't serve the model family {family!r}: {reason}",
            code="unsupported_model",
            param="base_model",
            fix="take a base with standard attention, such as llama, qwen2, mistral or gpt2",
        )


def _probe_steps(rows: list[list[int]], lengths: list[int]) -> list[list[Piece]]:
    half = lengths[-1] // 2
    first = [Piece(token_ids=row[:n], slot=slot) for slot, (row, n) in enumerate(zip(rows, lengths, strict=True))]
    first[-1] = Piece(token_ids=rows[-1][:half], slot=len(rows) - 1, keep=0)
    rest = Piece(token_ids=rows[-1][half : lengths[-1]], start=half, slot=len(rows) - 1)
    mixed = [*_next_tokens(rows[:-1], lengths, 0), rest]
    return [first, mixed, *(_next_tokens(rows, lengths, offset) for offset in range(1, _PROBE_NEW))]


def _next_tokens(rows: list[list[int]], lengths: list[int], offset: int) -> list[Piece]:
    """One token of each row. The last row, whose prompt took one step more, is one token behind."""
    starts = [n + offset - (1 if slot == 2 else 0) for slot, n in enumerate(lengths)]
    return [
        Piece(token_ids=row[start : start + 1], start=start, slot=slot)
        for slot, (row, start) in enumerate(zip(rows, starts, strict=False))
    ]


class _RowCounter:
    """Which linear layers see every row of each step exactly once (an expert of a mixture sees some, or none)."""

    def __init__(self, model: Any):
        self._calls: Counter[str] = Counter()
        self._num_rows = 0
        linear = [(name, module) for name, module in model.named_modules() if hasattr(module, "weight")]
        self.regular = {name for name, _ in linear}
        self._hooks = [module.register_forward_pre_hook(self._hook(name)) for name, module in linear]

    def begin(self, num_rows: int) -> None:
        self._calls.clear()
        self._num_rows = num_rows

    def end(self) -> None:
        self.regular = {name for name in self.regular if self._calls[name] == 1}

    def remove(self) -> None:
        for hook in self._hooks:
            hook.remove()

    def _hook(self, name: str) -> Any:
        def count(_: Any, arguments: tuple[Any, ...]) -> None:
            whole = bool(arguments) and arguments[0].numel() == self._num_rows * arguments[0].shape[-1]
            self._calls[name] += 1 if whole else 2

        return count
