"""Rows as token ids. A row's id and its contributor travel with its tokens to the gradient.

Shapes: B rows, T tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from openledger.adapters.base_model import BaseModel, encode_completion, encode_messages, load_tokenizer
from openledger.core.errors import InvalidInput
from openledger.core.values import Answer, Row
from openledger.datanets.row_schema import turns_before


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """`ids` is the prompt's tokens, then the completion's with its end token."""

    row_id: str
    contributor_id: str
    ids: tuple[int, ...]
    num_prompt: int

    def __post_init__(self) -> None:
        if not 0 < self.num_prompt < len(self.ids):
            raise InvalidInput(f"row {self.row_id} has an empty prompt or completion", code="empty_row", param="rows")

    @property
    def num_tokens(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class Batch:
    """`target_BT` holds each position's next token; `weight_BT` is 1/n at the n positions that predict a
    completion token and 0 elsewhere, so that a row's loss is its mean over completion tokens."""

    input_ids_BT: torch.Tensor
    mask_BT: torch.Tensor
    target_BT: torch.Tensor
    weight_BT: torch.Tensor
    first_target: int


def encode_row(tokenizer: Any, row: Row) -> Example:
    """A row of a chat goes through the tokenizer's template turn by turn, and only its last turn is learnt; any other
    row is one question and its answer."""
    prompt, completion = encode_messages(tokenizer, turns_before(row)), encode_completion(tokenizer, row.completion)
    return Example(
        row_id=row.row_id,
        contributor_id=row.contributor_id,
        ids=(*prompt, *completion),
        num_prompt=len(prompt),
    )


def check_lengths(examples: Sequence[Example], base: BaseModel) -> None:
    """Raises InvalidInput (`row_too_long`) naming an example that has more tokens than the base model has positions."""
    for example in examples:
        if example.num_tokens > base.max_positions:
            raise InvalidInput(
                f"{example.row_id} has {example.num_tokens} tokens, the base model {base.max_positions} positions",
                code="row_too_long",
                param="rows",
                fix="leave it out, or cut it",
            )


def encode_answer(answer: Answer) -> Example:
    """What was sold, as an example of nobody's."""
    return Example(
        row_id=answer.answer_id,
        contributor_id="",
        ids=(*answer.prompt_ids, *answer.completion_ids),
        num_prompt=len(answer.prompt_ids),
    )


def fitting_rows(rows: Sequence[Row], base: BaseModel, max_tokens: int) -> list[Row]:
    """The rows that have at most `max_tokens` tokens, and no more than the base model has positions for."""
    tokenizer = load_tokenizer(base)
    limit = min(max_tokens, base.max_positions)
    return [row for row in rows if len(encode_row(tokenizer, row).ids) <= limit]


def collate(examples: Sequence[Example], device: torch.device | str = "cpu") -> Batch:
    """Examples to one batch, padded on the right."""
    width = max(len(example.ids) for example in examples)
    ids = torch.zeros(len(examples), width, dtype=torch.long)
    mask, target = torch.zeros_like(ids), torch.zeros_like(ids)
    weight = torch.zeros(len(examples), width)
    for index, example in enumerate(examples):
        length = len(example.ids)
        ids[index, :length] = torch.tensor(example.ids)
        mask[index, :length] = 1
        target[index, : length - 1] = ids[index, 1:length]
        weight[index, example.num_prompt - 1 : length - 1] = 1.0 / (length - example.num_prompt)
    first = min(example.num_prompt for example in examples) - 1
    return Batch(ids.to(device), mask.to(device), target.to(device), weight.to(device), first)


def completion_logits(model: Any, batch: Batch) -> torch.Tensor:
    """Logits at each position from the batch's first target on: [B, T - first_target, V]."""
    positions = torch.arange(batch.first_target, batch.input_ids_BT.shape[1], device=batch.input_ids_BT.device)
    return model(
        input_ids=batch.input_ids_BT, attention_mask=batch.mask_BT, use_cache=False, logits_to_keep=positions
    ).logits


def token_losses(model: Any, batch: Batch) -> torch.Tensor:
    """Cross-entropy in nats at each position from the batch's first target on: [B, T - first_target]."""
    logits = completion_logits(model, batch)
    losses = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), batch.target_BT[:, batch.first_target :].flatten(), reduction="none"
    )
    return losses.view(logits.shape[:2])


def row_losses(model: Any, batch: Batch) -> torch.Tensor:
    """Each row's mean loss over its completion tokens, [B], in nats."""
    return (token_losses(model, batch) * batch.weight_BT[:, batch.first_target :]).sum(dim=1)
