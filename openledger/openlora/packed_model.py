"""transformers' own model code run on packed batches, admitted by a probe and not by its name.

Some families accept an attention function and compute something else. So a model must call ours exactly once per
layer, hand its linear layers every row of the batch, and give the logits that its plain forward gives; a family that
doesn't is refused by name. Reference: the model's own eager attention. In bfloat16 the same probe allows for its
rounding; before the weights are rounded, the family has passed in fp32.
"""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from openledger.adapters.base_model import BaseModel, load_model
from openledger.adapters.checks import BaseShapes, shapes_of
from openledger.core.errors import InvalidInput
from openledger.openlora import attention
from openledger.openlora.fused_step import MAX_ROWS, FusedStep, is_like_llama, rounded
from openledger.openlora.kv import KeyValueBlocks, num_blocks_of
from openledger.openlora.lora import Plan, Weights
from openledger.openlora.native import BLOCK, Kernels, Paged, Weighing
from openledger.openlora.packing import SHORT, PackedStep, Piece, pack

if TYPE_CHECKING:  # imports Triton
    from openledger.openlora.graph_step import GraphStep

_PROBE_PROMPTS, _PROBE_NEW = (3, 11, 41), 3  # the last in two pieces: one long, one long after stored tokens
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}  # of the largest logit, at least of 1
_TIMED_ROWS = (1, 8, 32, MAX_ROWS)
_SHORT_ON_GPU = 256  # tokens
_WORTH_IT = 1.15  # how much faster bfloat16 must be to be chosen


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Merged:
    """An adapter in weights of its own, for steps that are all under it; `fused` computes the small ones."""

    digest: str
    weights: Weights
    fused: FusedStep | None

    def takes(self, step: PackedStep) -> bool:
        return all(segment.piece.adapter == self.digest for segment in step.segments)

    def num_bytes(self) -> int:
        return sum(weight.nbytes for weight in self.weights.values())


class PackedModel:
    """A base model that computes packed batches, in `dtype` (`auto`: the faster one here), its linear layers' weights
    `exact`, rounded to `int8`, or `auto`: rounded where that makes a step of one row faster. `shapes` are the modules
    that adapters may target, `bytes_per_token` what the keys and values of a token take. `num_threads` is what torch
    computes with, which the call of the kernels doesn't. On a GPU `device` says so. Raises InvalidInput
    (`unsupported_model`, `no_int8`, `kernels_failed`)."""

    def __init__(
        self,
        base: BaseModel,
        kernels: Paged | None = None,
        dtype: str = "float32",
        weights: str = "exact",
        num_threads: int = 1,
        device: torch.device | str = "cpu",
    ):
        self.base, self.kernels, self.dtype, self.device = base, kernels, torch.float32, torch.device(device)
        self.model = load_model(base).to(self.device)
        self.vocab_size = int(self.model.get_input_embeddings().weight.shape[0])
        self._num_layers = int(self.model.config.get_text_config().num_hidden_layers)
        self._weighings: dict[int, Weighing] = {}
        self._fused: FusedStep | None = None
        self._graphs: GraphStep | None = None
        self._check_family()
        with torch.inference_mode():
            self.bytes_per_token, self.shapes = self._probe()
            self.speeds = measure_dtypes(self.model) if dtype == "auto" else {}
            if dtype == "bfloat16" or self.speeds.get("bfloat16", 0.0) > _WORTH_IT * self.speeds.get("float32", 1.0):
                self._round()
                self.bytes_per_token, _ = self._probe()
            self._fuse()
            self.weights = weights if weights == "exact" else self._round_to_int8(weights, num_threads)
            if self._fused is not None and num_threads > 1:
                self._limit(self._fused)

    @property
    def num_fused_rows(self) -> int:
        """Steps of so many rows are one call of the kernels, or one graph; 0 where none is."""
        if self._graphs is not None:
            return self._graphs.max_rows
        return 0 if self._fused is None else self._fused.max_rows

    def pack(self, pieces: Sequence[Piece], kv: KeyValueBlocks) -> PackedStep:
        """As the model computes it fastest. On a GPU one launch for all short pieces is worth more than products of
        their size."""
        longest = SHORT if self.device.type == "cpu" or self.kernels is None else _SHORT_ON_GPU
        return pack(pieces, kv, few=self.num_fused_rows, longest=longest)

    @property
    def decode_path(self) -> str:
        if self._graphs is not None:
            return self._graphs.name
        return "one call" if self._fused is not None else "module by module"

    @property
    def modules(self) -> tuple[str, ...]:
        """Those of `shapes`, in the order in which a graph has them."""
        first = () if self._graphs is None else self._graphs.modules
        return (*first, *(module for module in self.shapes.modules if module not in set(first)))

    def merged(self, digest: str, weights: Weights) -> Merged:
        """What `logits` takes for steps that are all under this adapter."""
        fused = self._fused
        if fused is not None:
            fused = fused.over(weights) if weights.keys() <= set(fused.modules) else None
        return Merged(digest=digest, weights=weights, fused=fused)

    def logits(self, step: PackedStep, plan: Plan | None = None, merged: Merged | None = None) -> torch.Tensor:
        """Logits fp32 `[number of kept rows, V]`, good until the next call. `plan` is what the rows' adapters add,
        `merged` the one that they all have."""
        if self._graphs is not None and merged is None and self._graphs.takes(step, plan):
            return self._graphs.logits(step, plan)
        fused = self._fused if merged is None else merged.fused
        if fused is not None and fused.takes(step):
            if plan is None:
                return fused.logits(step, None, 0)
            if (found := plan.addresses(fused.modules)) is not None:
                return fused.logits(step, found.places, found.num_segments)
        return self._by_modules(step)

    def _by_modules(self, step: PackedStep) -> torch.Tensor:
        step = step.to(self.device)
        output = self.model(
            input_ids=step.input_ids,
            position_ids=step.position_ids,
            use_cache=False,
            logits_to_keep=step.kept_rows,
            openlora_step=step,
            openlora_kernels=self.kernels,
        )
        return output.logits[0].float()

    def hidden(self, step: PackedStep) -> torch.Tensor:
        """Last hidden states `[T, H]`, after the final norm."""
        step = step.to(self.device)
        output = self.model.base_model(
            input_ids=step.input_ids,
            position_ids=step.position_ids,
            use_cache=False,
            openlora_step=step,
            openlora_kernels=self.kernels,
        )
        return output.last_hidden_state[0].float()

    def wait(self) -> None:
        """Until what was asked for is computed: a GPU's calls return before."""
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()

    def end_tokens(self) -> frozenset[int]:
        ends = self.model.generation_config.eos_token_id
        return frozenset(() if ends is None else [ends] if isinstance(ends, int) else ends)

    def _check_family(self) -> None:
        if not getattr(self.model, "_supports_attention_backend", False):
            raise self._unsupported("its attention can't be replaced")

    def _fuse(self) -> None:
        """Decode by one call where that gives the same logits."""
        if self.kernels is None or not is_like_llama(self.model, self._weighings):
            return
        if isinstance(self.kernels, Kernels):
            self._fused = FusedStep(self.model, self.kernels, self._weighings)
        else:
            self._graphs = self._graph_step()
        try:
            self._probe()
        except InvalidInput:
            self._fused = self._graphs = None

    def _graph_step(self) -> "GraphStep | None":
        from openledger.openlora.graph_step import GraphStep
        from openledger.openlora.triton_kernels import TritonKernels

        assert isinstance(self.kernels, TritonKernels)
        return GraphStep(self.model, self.kernels, self._weighings, capture=self.device.type == "cuda")

    def _round_to_int8(self, wanted: str, num_threads: int) -> str:
        """The whole model computes with the rounded weights, so that an answer doesn't depend on which steps of it
        were one call; that call reads a byte for each."""
        if self._fused is None:
            if wanted == "auto":
                return "exact"
            raise InvalidInput(
                f"int8 weights need kernels and a model like Llama, not {self.model.config.model_type!r}",
                code="no_int8",
                param="weights",
                fix="weights: exact",
            )
        assert isinstance(self.kernels, Kernels)
        fused = FusedStep(self.model, self.kernels, self._weighings, int8=True)
        exact_hz, int8_hz = _steps_hz(_call_of(self._fused)), _steps_hz(_call_of(fused))
        if num_threads > 1:
            exact_hz = max(exact_hz, _steps_hz(self._by_modules))
        self.speeds |= {"exact_steps": exact_hz, "int8_steps": int8_hz}
        if wanted == "auto" and self.speeds["int8_steps"] < _WORTH_IT * self.speeds["exact_steps"]:
            return "exact"
        for name in (*fused.modules, "lm_head"):
            weight = self.model.get_submodule(name).weight
            weight.data = rounded(weight)
        self._fused = FusedStep(self.model, self.kernels, self._weighings, int8=True)  # embeddings may be the head's
        self._probe()
        return "int8"

    def _limit(self, fused: FusedStep) -> None:
        """The call has one thread where the modules have several: it takes steps of as many rows as it is measured to
        be the faster way for."""
        fastest = 0
        for rows in sorted({min(each, fused.max_rows) for each in _TIMED_ROWS}):
            call_hz, modules_hz = _steps_hz(_call_of(fused), rows), _steps_hz(self._by_modules, rows)
            self.speeds |= {f"call_steps_{rows}": call_hz, f"module_steps_{rows}": modules_hz}
            if call_hz < modules_hz:
                break
            fastest = rows
        fused.max_rows = fastest
        self._fused = fused if fastest else None

    def _probe(self) -> tuple[int, BaseShapes]:
        """Prompts of several lengths, one in two pieces, then single tokens: all against the plain forward."""
        generator = torch.Generator().manual_seed(0)
        lengths = [min(n, self.base.max_positions - _PROBE_NEW) for n in _PROBE_PROMPTS]
        rows = [torch.randint(self.vocab_size, (n + _PROBE_NEW,), generator=generator).tolist() for n in lengths]
        self.model.set_attn_implementation("eager")
        asked = [torch.tensor([row], device=self.device) for row in rows]
        expected = [self.model(input_ids=ids, use_cache=False).logits[0].float() for ids in asked]
        self.model.set_attn_implementation(attention.register())
        kv = KeyValueBlocks(sum(num_blocks_of(len(row)) for row in rows))
        blocks = [kv.allocate(num_blocks_of(len(row))) for row in rows]
        seen = _RowCounter(self.model)
        for pieces in _probe_steps(rows, lengths, blocks):
            owners = [blocks.index(list(piece.blocks)) for piece in pieces]
            self._probe_step(self.pack(pieces, kv), pieces, [expected[owner] for owner in owners], seen)
        seen.remove()
        shapes = shapes_of(self.model, self.base.digest)
        regular = {name: shape for name, shape in shapes.modules.items() if name in seen.regular}
        return kv.bytes_per_token(), BaseShapes(digest=shapes.digest, modules=regular)

    def _probe_step(
        self, step: PackedStep, pieces: list[Piece], expected: list[torch.Tensor], seen: "_RowCounter"
    ) -> None:
        seen.begin(step.num_rows)
        logits = self._probe_logits(step)
        if not self._is_one_call(step):
            self._check_calls(step)
            seen.end()
        for row, index in zip(logits, (index for index in step.order if pieces[index].keep), strict=True):
            reference = expected[index][pieces[index].end - 1]
            error = (row - reference).abs().max()
            if not error <= _TOLERANCE[self.dtype] * max(1.0, float(reference.abs().max())):
                raise self._unsupported(f"packed logits differ from its own by {float(error):.2g}")

    def _is_one_call(self, step: PackedStep) -> bool:
        if self._graphs is not None:
            return self._graphs.takes(step, None)
        return self._fused is not None and self._fused.takes(step)

    def _check_calls(self, step: PackedStep) -> None:
        if Counter(layer for layer, _ in step.calls) != Counter(range(self._num_layers)):
            raise self._unsupported(f"its {self._num_layers} layers called attention {len(step.calls)} times")
        self._weighings = dict(step.calls)

    def _probe_logits(self, step: PackedStep) -> torch.Tensor:
        try:
            return self.logits(step)
        except self._failures as error:
            raise InvalidInput(
                f"the kernels {self.kernels} don't run on this device: {error}",
                code="kernels_failed",
                param="kernels",
                fix="kernels: torch",
            ) from error
        except (TypeError, ValueError, RuntimeError, AttributeError, KeyError) as error:
            raise self._unsupported(f"it doesn't run on packed batches: {error}") from error

    @property
    def _failures(self) -> tuple[type[Exception], ...]:
        return () if self.kernels is None else self.kernels.failures

    def _round(self) -> None:
        """Weights alone: the tables of rotary positions stay as they are."""
        self.dtype = torch.bfloat16
        for parameter in self.model.parameters():
            parameter.data = parameter.data.to(self.dtype)

    def _unsupported(self, reason: str) -> InvalidInput:
        family = self.model.config.model_type
        return InvalidInput(
            f"OpenLoRA can't serve the model family {family!r}: {reason}",
            code="unsupported_model",
            param="base_model",
            fix="take a base with standard attention, such as llama, qwen2, mistral or gpt2",
        )


def _probe_steps(rows: list[list[int]], lengths: list[int], blocks: list[list[int]]) -> list[list[Piece]]:
    half = lengths[-1] // 2
    first = [Piece(token_ids=row[:n], blocks=each) for row, n, each in zip(rows, lengths, blocks, strict=True)]
    first[-1] = Piece(token_ids=rows[-1][:half], blocks=blocks[-1], keep=0)
    rest = Piece(token_ids=rows[-1][half : lengths[-1]], start=half, blocks=blocks[-1])
    mixed = [*_next_tokens(rows[:-1], lengths, blocks, 0), rest]
    return [first, mixed, *(_next_tokens(rows, lengths, blocks, offset) for offset in range(1, _PROBE_NEW))]


def _next_tokens(rows: list[list[int]], lengths: list[int], blocks: list[list[int]], offset: int) -> list[Piece]:
    """One token of each row. The last row, whose prompt took one step more, is one token behind."""
    starts = [n + offset - (1 if number == 2 else 0) for number, n in enumerate(lengths)]
    return [
        Piece(token_ids=row[start : start + 1], start=start, blocks=each)
        for row, start, each in zip(rows, starts, blocks, strict=False)
    ]


def measure_dtypes(model: Any, rows: int = 32, budget_s: float = 0.05) -> dict[str, float]:
    """Products of the model's largest linear layer a second, for a batch of `rows`, by dtype (Hz)."""
    layers = [module.weight for module in model.modules() if isinstance(module, torch.nn.Linear)]
    weight = max(layers, key=lambda each: each.numel() if each.shape[0] <= 4 * each.shape[1] else 0, default=None)
    if weight is None:
        return {}
    speeds = {}
    for dtype in (torch.float32, torch.bfloat16):
        x, w = torch.ones(rows, weight.shape[1], dtype=dtype, device=weight.device), weight.detach().to(dtype)
        _done(torch.nn.functional.linear(x, w))
        count, begin = 0, time.perf_counter()
        while (taken := time.perf_counter() - begin) < budget_s / 2 or count < 2:
            _done(torch.nn.functional.linear(x, w))
            count += 1
        speeds[str(dtype).removeprefix("torch.")] = count / taken
    return speeds


def _done(result: torch.Tensor) -> None:
    """A GPU computes after the call has returned."""
    if result.is_cuda:
        torch.cuda.synchronize()


def _call_of(fused: FusedStep) -> Callable[[PackedStep], torch.Tensor]:
    return partial(fused.logits, segments=None, num_segments=0)


def _steps_hz(compute: Callable[[PackedStep], torch.Tensor], rows: int = 1, budget_s: float = 0.05) -> float:
    """Steps of so many rows a second, each of which needs logits."""
    parts = [min(BLOCK, rows - begin) for begin in range(0, rows, BLOCK)]
    pieces = [Piece(token_ids=[0] * part, blocks=[block], keep=part) for block, part in enumerate(parts)]
    step = pack(pieces, KeyValueBlocks(len(parts)))
    compute(step)
    count, begin_s = 0, time.perf_counter()
    while (taken_s := time.perf_counter() - begin_s) < budget_s or count < 3:
        compute(step)
        count += 1
    return count / taken_s


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
