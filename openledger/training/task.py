"""What is fine-tuned: a module whose trainable parameters are weights of linear layers, and the loss of each example.

Everything that trains, indexes or replays takes a `Task`, so that the same code serves language models with LoRA and
any other module. An example knows its `row_id`, its `contributor_id` and its length in tokens.

Shapes: B examples.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import torch

from openledger.training.examples import collate, completion_logits, row_losses


class Trainable(Protocol):
    """One row as a task's losses take it."""

    @property
    def row_id(self) -> str: ...

    @property
    def contributor_id(self) -> str: ...

    @property
    def num_tokens(self) -> int: ...


class Task(Protocol):
    def losses(self, module: Any, examples: Sequence[Any]) -> torch.Tensor:
        """Each example's loss in nats, [B]: the mean of its predicted tokens' negative log-likelihood."""

    def sampled_losses(self, module: Any, examples: Sequence[Any], seed: int) -> torch.Tensor:
        """Each example's loss on labels drawn from the module itself, [B], as the Fisher matrix needs them."""


class LanguageTask:
    """Rows of a causal language model; examples are `examples.Example`."""

    def losses(self, module: Any, examples: Sequence[Any]) -> torch.Tensor:
        return row_losses(module, collate(examples, _device(module)))

    def sampled_losses(self, module: Any, examples: Sequence[Any], seed: int) -> torch.Tensor:
        """Token losses are scaled by 1/sqrt(n), n the row's predicted tokens: squares of a row's summed gradients then
        have the expectation of the mean of its tokens' squares, which is the curvature of the row's mean loss."""
        batch = collate(examples, _device(module))
        generator = torch.Generator(device=batch.input_ids_BT.device).manual_seed(seed)
        weight_BT = batch.weight_BT[:, batch.first_target :]
        predicts_BT = weight_BT > 0
        logits_NV = completion_logits(module, batch)[predicts_BT]
        labels_N = torch.multinomial(logits_NV.detach().softmax(-1), 1, generator=generator)[:, 0]
        losses_BT = torch.zeros_like(weight_BT)
        losses_BT[predicts_BT] = torch.nn.functional.cross_entropy(logits_NV, labels_N, reduction="none")
        return (losses_BT * weight_BT.sqrt()).sum(dim=1)


LANGUAGE = LanguageTask()


def trainable_parameters(module: Any) -> dict[str, torch.nn.Parameter]:
    """The parameters that require gradients by name, sorted: the one order used by optimizer, index and digests."""
    return dict(sorted((name, p) for name, p in module.named_parameters() if p.requires_grad))


def _device(module: Any) -> torch.device:
    return next(module.parameters()).device
