"""The settlement replay: the exact derivative of what a finished run says, in the weight of every row it trained on.

    F = sum over queries q of a_q * (mean log-likelihood of q's tokens under the run's final weights)
    scores[i] = dF / dw_i, w_i the weight of row i's loss (1 in a real run); positive: it makes the answers likelier

by reverse differentiation through the whole run (MAGIC: Ilyas and Engstrom, arXiv 2504.16430). A run is a chain of
states s = (parameters, first moment, second moment):

    g_t = gradient of 1/B sum over the batch's rows i of w_i * loss_i        s_{t+1} = adamw(s_t, g_t)

Backwards, u_t = dF/ds_t starts with the gradient of F and passes each step in two parts. Autograd through `adamw` gives
u_t's direct part and c_t = dF/dg_t. One double backward of the batch's loss then gives both the rest of u_t, which is
Hessian times c_t, and dF/dw_i = c_t . (gradient of loss_i) / B. F is linear in a_q, so one replay of a period's
fee-weighted sum costs what one answer costs. Several targets share everything but the double backward's second half.

States: the run is cut into about sqrt(N) segments and the state at each one's beginning is kept, with the gradients of
its steps where they fit (`keep_bytes`). From these the optimizer alone makes every state again; without them each
segment is computed a second time. With a folder `checkpoints` all of it lies there and a replay that was killed goes
on, to the same numbers. Each file there carries a digest of its tensors: one that is damaged is named in the log, and
made again from the ones before it.

The arithmetic of the forward run is that of `training.loop.train`, bit for bit; the double backward may group rows as
it likes. What can't be replayed is refused (`check_replayable`): half precision, attention without second derivatives,
dropout, eps_root 0.

Shapes: R rows of the run, T targets, B rows of a batch, P trainable parameters in one vector, S steps of a segment.
"""

import json
import logging
import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch.nn.attention import SDPBackend, sdpa_kernel

from openledger.adapters.base_model import BaseModel, load_model
from openledger.core.errors import Conflict, Corrupt, InvalidInput
from openledger.core.files import write_durably, write_json_durably
from openledger.core.hashing import digest_bytes, digest_json
from openledger.training.examples import Example
from openledger.training.lora import attach_lora, initial_matrices
from openledger.training.members import Member, Weights
from openledger.training.optimizer import Tensors, adamw
from openledger.training.recipe import Recipe, epoch_batches, learning_rate_at
from openledger.training.record import RunRecord, check_run
from openledger.training.task import LANGUAGE, Task, Trainable, trainable_parameters

REPLAY_FORMAT = "openledger.replay/2"  # the first had no digests
KEEP_BYTES = 2 << 30
# Rows of one double backward. Fewer than a batch, grouped by length: less padding, and what it touches fits the cache.
PASS_ROWS = 8
PASS_TOKENS = 2048  # with the padding, of one pass: its memory, which rows alone don't bound; a longer row is alone

_DIGEST = "digest_32"
_logger = logging.getLogger(__name__)
Target = Sequence[tuple[Any, float]]  # queries with their weights
OnStep = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """`scores_RT` float32 has a line for each example, 0 for one the run didn't train on; in nats per token of the
    answer and unit of row weight. `values_T` are the targets' own values under the replayed weights. `deviation` is the
    largest absolute difference between the replayed final weights and the stored ones: 0 for an exact replay, None
    where none were given."""

    scores_RT: npt.NDArray[np.float32]
    values_T: npt.NDArray[np.float64]
    num_steps: int
    deviation: float | None = None


def replay(
    module: Any,
    examples: Sequence[Trainable],
    recipe: Recipe,
    order: str,
    *,
    targets: Sequence[Target],
    rows: Sequence[int] | None = None,
    row_weights: Sequence[float] | None = None,
    task: Task = LANGUAGE,
    initial: Mapping[str, torch.Tensor] | None = None,
    final: Mapping[str, torch.Tensor] | None = None,
    checkpoints: Path | None = None,
    keep_bytes: int = KEEP_BYTES,
    pass_rows: int = PASS_ROWS,
    identity: str = "",
    within: float | None = None,
    on_step: OnStep | None = None,
) -> Replay:
    """Every row's influence on each of `targets` in the run that starts where `module` stands, and stands again after.

    `order` is the run's constant of row order; `rows` and `row_weights` (one for each of `rows`) are those of a
    `Member` that wasn't trained on everything. `initial` are the weights at which the record says the run began,
    `final` those it ended with. `identity` names what else decides the numbers (the base model), so that `checkpoints`
    of another replay are refused. Where the run repeated ends more than `within` from `final`, nothing more is
    computed. `on_step(done, total)` is called after each step, forward and back.

    Raises InvalidInput for what can't be replayed or asked, Conflict (`other_replay`) for another replay's checkpoints
    or (`run_deviates`) another end, Corrupt where the loss or an adjoint is not finite (naming step and row).
    """
    check_replayable(module, recipe)
    run = _Run(module, examples, recipe, order, rows, row_weights, task, pass_rows)
    run.check_start(initial, final)
    _check_targets(targets)
    tape = _Tape(checkpoints, run, keep_bytes)
    progress = _Progress(on_step, run.num_steps)
    with run.standing():
        run.check_repeatable()
        tape.claim(_identity(run, targets, identity, pass_rows))
        adjoint = tape.adjoint()
        if adjoint is None:
            state = _run_forward(run, tape, progress)
            run.check_end(state, final, within)
            adjoint = run.start_adjoint(state, targets)
            tape.save_adjoint(adjoint)
        _run_backward(run, tape, adjoint, progress)
    return Replay(
        scores_RT=adjoint.scores_RT.cpu().numpy().astype(np.float32),
        values_T=adjoint.values_T.cpu().numpy(),
        num_steps=run.num_steps,
        deviation=None if final is None else run.deviation(adjoint.final_P, final),
    )


def replay_run(
    base: BaseModel,
    record: RunRecord,
    examples: Sequence[Example],
    targets: Sequence[Target],
    *,
    member: Member | None = None,
    start: Path | None = None,
    final: Weights | None = None,
    checkpoints: Path | None = None,
    keep_bytes: int = KEEP_BYTES,
    device: str = "cpu",
    within: float | None = None,
    on_step: OnStep | None = None,
) -> Replay:
    """`replay` of a language model's recorded run, or of `member` of its bank. Everything it takes can be pickled, so a
    Ray task may run it: with `checkpoints` on storage that every node sees, the retry after a killed worker goes on
    where the worker was. A run that went on from another adapter begins at the one in `start` (training/start.py).

    Raises as `replay`, InvalidInput where the record has another base or other rows, Corrupt (`corrupt_start`).
    """
    check_run(record, base, examples)
    torch.set_num_threads(record.recipe.threads)
    begin = member.initial if member else record.initial
    module = attach_lora(load_model(base).to(device), record.recipe, begin, start)
    return replay(
        module,
        examples,
        record.recipe,
        member.order if member else record.order,
        targets=targets,
        rows=member.rows if member else None,
        row_weights=(member.row_weights or None) if member else None,
        initial=initial_lora(module, begin, start),
        final=final,
        checkpoints=checkpoints,
        keep_bytes=keep_bytes,
        identity=base.digest,
        within=within,
        on_step=on_step,
    )


def initial_lora(module: Any, initial: str, start: Path | None = None) -> Weights:
    """Where a LoRA run under `initial` begins, by the module's parameter names."""
    shapes = {name: tuple(p.shape) for name, p in trainable_parameters(module).items()}
    return initial_matrices(shapes, initial, start)


def check_replayable(module: Any, recipe: Recipe) -> None:
    """Raises InvalidInput (code `not_replayable`) where a replay would fail or, worse, give numbers that are wrong."""
    if recipe.eps_root <= 0:
        raise _refusal("eps_root", "with eps_root 0 the derivative of Adam's step is unbounded", "train with eps_root")
    if not trainable_parameters(module):
        raise _refusal("module", "the module has no trainable parameters", "attach an adapter that requires gradients")
    _check_precision(module)
    for name, part in module.named_modules():
        _check_part(name or type(part).__name__, part)


def _check_precision(module: Any) -> None:
    for name, parameter in module.named_parameters():
        if parameter.is_floating_point() and parameter.dtype not in (torch.float32, torch.float64):
            kind = str(parameter.dtype).removeprefix("torch.")
            raise _refusal("dtype", f"{name} is {kind}: its second derivatives are noise", "load the module in float32")
    device = next(module.parameters()).device.type
    if torch.is_autocast_enabled(device):
        raise _refusal("dtype", "autocast is on", "replay outside of torch.autocast")
    if torch.get_float32_matmul_precision() != "highest":
        raise _refusal(
            "dtype", "float32 products are computed in lower precision", "torch.set_float32_matmul_precision('highest')"
        )


def _check_part(name: str, part: Any) -> None:
    attention = getattr(getattr(part, "config", None), "_attn_implementation", None)
    if attention not in (None, "eager", "sdpa"):
        raise _refusal("attention", f"{name} has {attention} attention", "load the model with attention='eager'")
    if not part.training:
        return
    rate = part.p if isinstance(part, torch.nn.modules.dropout._DropoutNd) else getattr(part, "attention_dropout", 0.0)
    if isinstance(rate, float) and rate > 0:
        raise _refusal("dropout", f"dropout of {rate:g} is active in {name}", "train and replay without dropout")
    if isinstance(part, torch.nn.modules.batchnorm._BatchNorm):
        raise _refusal("module", f"{name} mixes the rows of a batch and changes as it runs", "put it in eval mode")


@dataclass(frozen=True, slots=True)
class _State:
    """Where a run stands before a step: the parameters and Adam's moments, each a list in the parameters' order."""

    parameters: Tensors
    first: Tensors
    second: Tensors


@dataclass(slots=True)
class _Adjoint:
    """dF/d(state before `step`) for each target, and the scores gathered from the steps after it."""

    step: int
    state_3TP: torch.Tensor
    scores_RT: torch.Tensor
    values_T: torch.Tensor
    final_P: torch.Tensor


@dataclass(frozen=True, slots=True)
class _Segment:
    """Steps `start` to `stop` of the run. `gradients_SP` is None where they weren't kept."""

    start: int
    stop: int
    state_3P: torch.Tensor
    gradients_SP: torch.Tensor | None


class _Run:
    """One run as a chain of steps, each of which can be taken forward and gone through backwards."""

    def __init__(
        self,
        module: Any,
        examples: Sequence[Trainable],
        recipe: Recipe,
        order: str,
        rows: Sequence[int] | None,
        row_weights: Sequence[float] | None,
        task: Task,
        pass_rows: int,
    ):
        self.module, self.examples, self.recipe, self.order, self.task = module, examples, recipe, order, task
        self.parameters = trainable_parameters(module)
        self._initial = [parameter.data for parameter in self.parameters.values()]  # to stand elsewhere replaces them
        self.rows = list(range(len(examples)) if rows is None else rows)
        self.weights = dict(zip(self.rows, [1.0] * len(self.rows) if row_weights is None else row_weights, strict=True))
        lengths = [example.num_tokens for example in examples]
        epochs = range(recipe.num_epochs)
        self.batches = [batch for epoch in epochs for batch in epoch_batches(lengths, recipe, order, epoch, self.rows)]
        self._pass_rows = pass_rows
        if not self.batches:
            raise InvalidInput("the run has no rows", code="empty_run", param="rows")

    @property
    def num_steps(self) -> int:
        return len(self.batches)

    @property
    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters.values())

    @property
    def like(self) -> torch.Tensor:
        return next(iter(self.parameters.values()))

    @contextmanager
    def standing(self) -> Iterator[None]:
        """Mathematical attention inside; at the end the module has its weights again."""
        try:
            with sdpa_kernel(SDPBackend.MATH), torch.enable_grad():
                yield
        finally:
            self._stand_at(self._initial)

    def start(self) -> _State:
        own = [tensor.clone() for tensor in self._initial]
        return _State(own, [torch.zeros_like(p) for p in own], [torch.zeros_like(p) for p in own])

    def walk(self, segment: _Segment) -> Iterator[tuple[_State, Tensors, _State]]:
        """Each step of a segment: the state before it, its gradients (computed where they weren't kept), the state
        after it."""
        state = _State(*(self.pieces(vector_P) for vector_P in segment.state_3P.to(self.like.device)))
        for step in range(segment.start, segment.stop):
            if segment.gradients_SP is None:
                gradients = self.gradients(step, state)
            else:
                gradients = self.pieces(segment.gradients_SP[step - segment.start].to(self.like.device))
            after = self.step(step, state, gradients)
            yield state, gradients, after
            state = after

    def end(self, segment: _Segment) -> _State:
        """The state after a segment's last step."""
        ((_, _, state),) = deque(self.walk(segment), maxlen=1)
        return state

    def gradients(self, step: int, state: _State) -> Tensors:
        """As `loop.train` computes them: the same operations on the same batch."""
        self._stand_at(state.parameters)
        batch = self.batches[step]
        loss = (self._losses(batch) * self._batch_weights(batch)).sum() / len(batch)
        gradients = list(torch.autograd.grad(loss, list(self.parameters.values())))
        if not bool(loss.isfinite()):
            raise Corrupt(
                f"the training loss is not finite in step {step}",
                code="diverged",
                param="learning_rate",
                fix="lower the learning rate, and look for extreme rows",
            )
        return gradients

    def step(self, step: int, state: _State, gradients: Sequence[torch.Tensor]) -> _State:
        rate = learning_rate_at(step, self.num_steps, self.recipe)
        with torch.no_grad():
            return _State(*adamw(state.parameters, gradients, state.first, state.second, step, rate, self.recipe))

    def start_adjoint(self, state: _State, targets: Sequence[Target]) -> _Adjoint:
        """The gradient of each target in the final weights."""
        self._stand_at(state.parameters)
        found = [self._target_gradient(target) for target in targets]
        state_3TP = torch.zeros(3, len(targets), self.num_parameters, dtype=self.like.dtype, device=self.like.device)
        state_3TP[0] = torch.stack([gradient_P for _, gradient_P in found])
        return _Adjoint(
            step=self.num_steps,
            state_3TP=state_3TP,
            scores_RT=torch.zeros(len(self.examples), len(targets), dtype=torch.float64),
            values_T=torch.tensor([value for value, _ in found], dtype=torch.float64),
            final_P=flat(state.parameters),
        )

    def step_back(self, step: int, state: _State, gradients: Tensors, adjoint: _Adjoint) -> None:
        """Take `adjoint` from after `step` to before it."""
        direct_3TP, gradient_TP = self._through_adamw(step, state, gradients, adjoint.state_3TP)
        if not bool(gradient_TP.isfinite().all()):
            raise Corrupt(
                f"the adjoint is not finite in step {step}, from the optimizer",
                code="not_finite",
                param="eps_root",
                fix="train with a larger eps_root or a lower learning rate",
            )
        self._stand_at(state.parameters)
        hessian_TP = torch.zeros_like(gradient_TP)
        batch = self.batches[step]
        for places in self._passes([self.examples[row].num_tokens for row in batch]):
            part = [batch[place] for place in places]
            product_TP, scores_TB = self._double_backward(part, len(batch), gradient_TP)
            if not bool(product_TP.isfinite().all() and scores_TB.isfinite().all()):
                raise self._not_finite(step, part, len(batch), gradient_TP)
            hessian_TP += product_TP
            adjoint.scores_RT[part] += scores_TB.T.double().cpu()
        direct_3TP[0] += hessian_TP
        adjoint.state_3TP, adjoint.step = direct_3TP, step

    def _passes(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        """The places of `lengths`, the shortest first, in parts that one pass may take."""
        part: list[int] = []
        for place in sorted(range(len(lengths)), key=lengths.__getitem__):
            if len(part) == self._pass_rows or (part and (len(part) + 1) * lengths[place] > PASS_TOKENS):
                yield part
                part = []
            part.append(place)
        if part:
            yield part

    def pieces(self, vector_P: torch.Tensor) -> Tensors:
        """A vector over all parameters as tensors of their shapes. Copies: kernels may compute other last bits on
        memory that is not aligned."""
        shapes = [parameter.shape for parameter in self.parameters.values()]
        parts = vector_P.split([shape.numel() for shape in shapes])
        return [part.view(shape).clone() for part, shape in zip(parts, shapes, strict=True)]

    def deviation(self, final_P: torch.Tensor, final: Mapping[str, torch.Tensor]) -> float:
        return max(
            float((own.cpu() - _stored(final, name)).abs().max())
            for name, own in zip(self.parameters, self.pieces(final_P), strict=True)
        )

    def check_start(self, initial: Mapping[str, torch.Tensor] | None, final: Mapping[str, torch.Tensor] | None) -> None:
        """Raises InvalidInput for weights that are not this run's: `initial` must be the module's, bit for bit."""
        for what, weights in (("initial", initial), ("final", final)):
            for name, parameter in self.parameters.items() if weights is not None else ():
                if weights is None or _stored(weights, name).shape != parameter.shape:
                    raise InvalidInput(
                        f"the {what} weights have no {name} of shape {tuple(parameter.shape)}",
                        code="other_weights",
                        param=what,
                    )
        for name, parameter in self.parameters.items() if initial is not None else ():
            if initial is not None and not torch.equal(parameter.detach().cpu(), _stored(initial, name)):
                raise InvalidInput(
                    f"the module doesn't stand where the run began: {name} differs",
                    code="other_initial",
                    param="module",
                    fix="hand in the module as training began with it (training.lora.reset_lora), not the trained one",
                )

    def check_end(self, state: _State, final: Mapping[str, torch.Tensor] | None, within: float | None) -> None:
        """Raises Conflict (`run_deviates`) where the run repeated ends elsewhere than its record says."""
        if final is None or within is None or (found := self.deviation(flat(state.parameters), final)) <= within:
            return
        raise Conflict(
            f"the run repeated ends {found:.2g} from the adapter that its record names, and {within:.2g} is allowed",
            code="run_deviates",
            param="final",
            fix="replay on the kind of machine, and with the versions, that run.json names under environment",
        )

    def check_repeatable(self) -> None:
        """Raises InvalidInput where the first batch's losses come out otherwise a second time."""
        with torch.no_grad():
            once, again = (self._losses(self.batches[0]) for _ in range(2))
        if not torch.allclose(once, again, rtol=1e-4, atol=1e-6, equal_nan=True):
            raise _refusal("module", "the module gives other losses for the same rows each time", "take out what draws")

    def _through_adamw(
        self, step: int, state: _State, gradients: Tensors, after_3TP: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """dF/d(state before) by the step's direct way, [3, T, P], and dF/d(gradient), [T, P]."""
        ways = (state.parameters, gradients, state.first, state.second)
        leaves = [flat(tensors).requires_grad_() for tensors in ways]
        theta, gradient, first, second = ([leaf] for leaf in leaves)
        rate = learning_rate_at(step, self.num_steps, self.recipe)
        outputs = [tensors[0] for tensors in adamw(theta, gradient, first, second, step, rate, self.recipe)]
        back = [
            torch.autograd.grad(outputs, leaves, grad_outputs=list(after_3TP[:, number]), retain_graph=True)
            for number in range(after_3TP.shape[1])
        ]
        theta_TP, gradient_TP, first_TP, second_TP = (torch.stack(parts) for parts in zip(*back, strict=True))
        return torch.stack([theta_TP, first_TP, second_TP]), gradient_TP

    def _double_backward(
        self, rows: Sequence[int], batch_size: int, direction_TP: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """With g(theta, w) the gradient of these rows' part of the batch's loss: c . dg/dtheta, [T, P], and c . dg/dw,
        [T, B], for each c of `direction_TP`."""
        parameters = list(self.parameters.values())
        weight_B = self._batch_weights(rows).requires_grad_()
        loss = (self._losses(rows) * weight_B).sum() / batch_size
        gradients = torch.autograd.grad(loss, parameters, create_graph=True)
        products, scores = [], []
        for number, direction_P in enumerate(direction_TP):
            *product, score_B = torch.autograd.grad(
                gradients,
                [*parameters, weight_B],
                grad_outputs=self.pieces(direction_P),
                retain_graph=number + 1 < len(direction_TP),
                allow_unused=True,
                materialize_grads=True,
            )
            products.append(flat(product))
            scores.append(score_B)
        return torch.stack(products), torch.stack(scores)

    def _target_gradient(self, target: Target) -> tuple[float, torch.Tensor]:
        value, gradient_P = 0.0, torch.zeros(self.num_parameters, dtype=self.like.dtype, device=self.like.device)
        for places in self._passes([query.num_tokens for query, _ in target]):
            part = [target[place] for place in places]
            weight_B = torch.tensor([weight for _, weight in part], dtype=torch.float64, device=self.like.device)
            weighted_B = self.task.losses(self.module, [query for query, _ in part]) * -weight_B
            gradient_P += flat(torch.autograd.grad(weighted_B.sum(), list(self.parameters.values())))
            value += float(weighted_B.detach().sum())
            if not (math.isfinite(value) and bool(gradient_P.isfinite().all())):
                names = ", ".join(query.row_id for query, _ in part)
                raise Corrupt(
                    f"the gradient of a query is not finite, one of {names}", code="not_finite", param="targets"
                )
        return value, gradient_P

    def _not_finite(self, step: int, part: Sequence[int], batch_size: int, direction_TP: torch.Tensor) -> Corrupt:
        names = [self.examples[row].row_id for row in part]
        for row in part:
            found = self._double_backward([row], batch_size, direction_TP)
            if not all(bool(tensor_TX.isfinite().all()) for tensor_TX in found):
                names = [self.examples[row].row_id]
                break
        return Corrupt(
            f"the adjoint is not finite in step {step}, from row {' or '.join(names)}",
            code="not_finite",
            param="rows",
            fix="look at the row; a larger eps_root or a lower learning rate in training keeps adjoints small",
        )

    def _losses(self, rows: Sequence[int]) -> torch.Tensor:
        return self.task.losses(self.module, [self.examples[row] for row in rows])

    def _batch_weights(self, rows: Sequence[int]) -> torch.Tensor:
        return torch.tensor([self.weights[row] for row in rows], device=self.like.device)

    def _stand_at(self, tensors: Tensors) -> None:
        for parameter, tensor in zip(self.parameters.values(), tensors, strict=True):
            parameter.data = tensor


class _Tape:
    """What a replay remembers of the run: a segment's record is put there after its last step. In memory, or in
    `folder` as replay.json, segment-N.safetensors and adjoint.safetensors, each written whole or not at all. What is
    damaged there is named in the log, and counts as not there."""

    def __init__(self, folder: Path | None, run: _Run, keep_bytes: int):
        self._folder, self._memory = folder, dict[int, _Segment]()
        self.size = math.ceil(math.sqrt(run.num_steps))
        self.num_segments = math.ceil(run.num_steps / self.size)
        self._num_steps = run.num_steps
        self._device = run.like.device
        self.keeps_gradients = run.num_steps * run.num_parameters * run.like.element_size() <= keep_bytes

    def claim(self, identity: str) -> None:
        """Raises Conflict where the folder holds another replay."""
        if self._folder is None:
            return
        path = self._folder / "replay.json"
        found = _claimed(path)
        if found is None:
            for left in self._folder.glob("*.safetensors"):  # nobody knows of which replay
                left.unlink()
            write_json_durably(path, {"format": REPLAY_FORMAT, "identity": identity})
        elif found != identity:
            raise Conflict(
                f"{self._folder} holds the checkpoints of another replay",
                code="other_replay",
                param="checkpoints",
                fix="name another folder, or remove this one",
            )

    def span(self, number: int) -> range:
        return range(number * self.size, min((number + 1) * self.size, self._num_steps))

    def num_done(self) -> int:
        """How many segments from the first on are there."""
        number = 0
        while self._folder is not None and self._path(number).exists():
            number += 1
        return number

    def put(self, number: int, segment: _Segment) -> None:
        if self._folder is None:
            self._memory[number] = segment
            return
        tensors = {"state_3P": segment.state_3P}
        if segment.gradients_SP is not None:
            tensors["gradients_SP"] = segment.gradients_SP
        _write(self._path(number), tensors)

    def get(self, number: int) -> _Segment | None:
        if self._folder is None:
            return self._memory[number]
        tensors, span = _read(self._path(number), "state_3P"), self.span(number)
        if tensors is None:
            return None
        return _Segment(span.start, span.stop, tensors["state_3P"], tensors.get("gradients_SP"))

    def drop(self, number: int) -> None:
        if self._folder is None:
            del self._memory[number]
        else:
            self._path(number).unlink(missing_ok=True)

    def save_adjoint(self, adjoint: _Adjoint) -> None:
        if self._folder is None:
            return
        tensors = {name: getattr(adjoint, name) for name in ("state_3TP", "scores_RT", "values_T", "final_P")}
        _write(self._folder / "adjoint.safetensors", {**tensors, "step": torch.tensor(adjoint.step)})

    def adjoint(self) -> _Adjoint | None:
        """The adjoint that a killed replay left."""
        if self._folder is None or not (self._folder / "adjoint.safetensors").exists():
            return None
        found = _read(self._folder / "adjoint.safetensors", "step", "state_3TP", "scores_RT", "values_T", "final_P")
        if found is None:
            return None
        state_3TP = found["state_3TP"].to(self._device)
        return _Adjoint(int(found["step"]), state_3TP, found["scores_RT"], found["values_T"], found["final_P"])

    def _path(self, number: int) -> Path:
        return (self._folder or Path()) / f"segment-{number}.safetensors"


class _Progress:
    def __init__(self, on_step: OnStep | None, num_steps: int):
        self._on_step, self._num_steps = on_step, num_steps

    def forward(self, step: int) -> None:
        if self._on_step is not None:
            self._on_step(step + 1, 2 * self._num_steps)

    def backward(self, step: int) -> None:
        if self._on_step is not None:
            self._on_step(2 * self._num_steps - step, 2 * self._num_steps)


def _run_forward(run: _Run, tape: _Tape, progress: _Progress) -> _State:
    """The run again, its segments on the tape; its final state."""
    done = tape.num_done()
    state = run.end(_kept(run, tape, done - 1)) if done else run.start()
    for number in range(done, tape.num_segments):
        _, state = _recorded(run, tape, number, state, progress)
    return state


def _recorded(
    run: _Run, tape: _Tape, number: int, state: _State, progress: _Progress | None = None
) -> tuple[_Segment, _State]:
    """A segment that begins at `state`, put on the tape, and the state after it."""
    span, gradients_SP = tape.span(number), list[torch.Tensor]()
    start_3P = torch.stack([flat(state.parameters), flat(state.first), flat(state.second)])
    walk = run.walk(_Segment(span.start, span.stop, start_3P, None))
    for step, (_, gradients, after) in zip(span, walk, strict=True):
        state = after
        if tape.keeps_gradients:
            gradients_SP.append(flat(gradients))
        if progress is not None:
            progress.forward(step)
    segment = _Segment(span.start, span.stop, start_3P, torch.stack(gradients_SP) if gradients_SP else None)
    tape.put(number, segment)
    return segment, state


def _kept(run: _Run, tape: _Tape, number: int) -> _Segment:
    """A segment that was put on the tape; where it is damaged, made again from the one before it."""
    segment = tape.get(number)
    if segment is None:
        state = run.end(_kept(run, tape, number - 1)) if number else run.start()
        segment, _ = _recorded(run, tape, number, state)
    return segment


def _run_backward(run: _Run, tape: _Tape, adjoint: _Adjoint, progress: _Progress) -> None:
    while adjoint.step > 0:
        number = (adjoint.step - 1) // tape.size
        steps = [(before, gradients) for before, gradients, _ in run.walk(_kept(run, tape, number))]
        for step in reversed(tape.span(number)):
            run.step_back(step, *steps.pop(), adjoint)
            progress.backward(step)
        tape.save_adjoint(adjoint)
        tape.drop(number)


def flat(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """All parameters' values, or their gradients, in one vector."""
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors])


def _check_targets(targets: Sequence[Target]) -> None:
    if not targets or not all(targets):
        raise InvalidInput("a replay needs targets, each with a query or more", code="empty_target", param="targets")
    for target in targets:
        for query, weight in target:
            if not math.isfinite(weight):
                raise InvalidInput(
                    f"the weight of query {query.row_id} is {weight}", code="invalid_weights", param="targets"
                )


def _identity(run: _Run, targets: Sequence[Target], also: str, pass_rows: int) -> str:
    """Digest of everything that decides a replay's numbers, the frozen parameters aside (`also` names them)."""
    return digest_json(
        [
            also,
            run.order,
            json.dumps(run.recipe.to_dict(), sort_keys=True),
            [_name(example) for example in run.examples],
            run.rows,
            [repr(float(run.weights[row])) for row in run.rows],
            [[[_name(query), repr(float(weight))] for query, weight in target] for target in targets],
            digest_bytes(flat(list(run.parameters.values())).cpu().numpy().tobytes()),
            [pass_rows, PASS_TOKENS],
        ]
    )


def _name(example: Any) -> list[Any]:
    """An example by its names, and its tokens where it has them."""
    return [example.row_id, example.contributor_id, example.num_tokens, list(getattr(example, "ids", ()))]


def _stored(weights: Mapping[str, torch.Tensor], name: str) -> torch.Tensor:
    """`name`'s tensor in a checkpoint, or in an adapter as PEFT stores it (without the adapter's name)."""
    found = weights.get(name, weights.get(name.replace(".default.", ".")))
    return torch.empty(0) if found is None else found.detach().cpu()


def _write(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    own = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_durably(path, save({**own, _DIGEST: _digest(own)}))


def _read(path: Path, *names: str) -> dict[str, torch.Tensor] | None:
    """What `_write` wrote, with `names` among it; None, named in the log, where it isn't there whole."""
    try:
        found = dict(load(path.read_bytes()))
        if found.pop(_DIGEST, torch.empty(0)).tolist() != _digest(found).tolist():
            raise ValueError("its content has changed")
        if not set(names) <= set(found):
            raise ValueError(f"it lacks {', '.join(sorted(set(names) - set(found)))}")
    except (OSError, SafetensorError, ValueError) as error:
        _name_damaged(path, error)
        return None
    return found


def _digest(tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Of all names and contents, [32]. The format itself has none of the contents."""
    parts = [[name, digest_bytes(tensor.numpy().tobytes())] for name, tensor in sorted(tensors.items())]
    return torch.tensor(list(bytes.fromhex(digest_json(parts))), dtype=torch.uint8)


def _claimed(path: Path) -> str | None:
    """The identity of the replay whose checkpoints lie beside `path`; None where there is none, or nobody knows."""
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text())
        if found["format"] != REPLAY_FORMAT:
            raise ValueError(f"its format is {found['format']}")
        return str(found["identity"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        _name_damaged(path, error)
        return None


def _name_damaged(path: Path, reason: Exception) -> None:
    _logger.warning("the replay's checkpoint %s can't be used, and is made again: %s", path, reason)


def _refusal(param: str, reason: str, fix: str) -> InvalidInput:
    return InvalidInput(f"this run can't be replayed: {reason}", code="not_replayable", param=param, fix=fix)
