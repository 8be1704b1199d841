"""The index actor: knows a base model, builds adapters' indexes and scores answers against them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import ray
import torch

from openledger.adapters.base_model import BaseModel, load_model, load_tokenizer
from openledger.attribution.bank_folder import bank_outcomes, find_bank
from openledger.attribution.coalitions import Design
from openledger.attribution.index import GradientIndex, IndexEntry, build_index
from openledger.core.values import Answer, Row
from openledger.training.examples import Example, encode_row
from openledger.training.lora import load_lora


class IndexHost:
    def __init__(self, base: BaseModel, threads: int = 1):
        torch.set_num_threads(threads)
        self._base = base
        self._tokenizer = load_tokenizer(base)

    def build(
        self, adapter_folder: str, adapter_digest: str, trained: Sequence[Row], decoys: Sequence[Row], folder: str
    ) -> int:
        """Build the adapter's index at `folder` (or find it there); the number of rows in it."""
        if (Path(folder) / "index.json").exists():
            return len(GradientIndex.open(Path(folder), adapter_digest).entries)
        with self._lora(adapter_folder) as model:
            encoded, spare = ([encode_row(self._tokenizer, row) for row in rows] for rows in (trained, decoys))
            return len(build_index(model, encoded, spare, Path(folder), adapter_digest).entries)

    def score(
        self, adapter_folder: str, adapter_digest: str, folder: str, answers: Sequence[Answer]
    ) -> tuple[list[IndexEntry], npt.NDArray[np.float32]]:
        """Influence of every indexed row on every answer: (entries, [num_rows, num_answers])."""
        index = GradientIndex.open(Path(folder), adapter_digest)
        with self._lora(adapter_folder) as model:
            return index.entries, index.score(index.query_vectors(model, [_example(answer) for answer in answers]))

    def bank_outcomes(
        self, adapter_folder: str, adapter_digest: str, answers: Sequence[Answer]
    ) -> tuple[Design, npt.NDArray[np.float64]] | None:
        """The adapter's bank's design and every answer's log-likelihood per token under each of its coalitions,
        [num_coalitions, num_answers]; None where the adapter has no bank."""
        kept = find_bank(Path(adapter_folder), adapter_digest)
        if kept is None:
            return None
        examples = [_example(answer) for answer in answers]
        return kept.design, bank_outcomes(Path(adapter_folder), kept, self._base, examples)

    @contextmanager
    def _lora(self, adapter_folder: str) -> Iterator[Any]:
        yield load_lora(load_model(self._base), Path(adapter_folder))


def start_index_host(base: BaseModel, num_cpus: float = 1) -> Any:
    return ray.remote(IndexHost).options(num_cpus=num_cpus, max_restarts=2, max_task_retries=2).remote(base)


def _example(answer: Answer) -> Example:
    return Example(
        row_id=answer.answer_id,
        contributor_id="",
        ids=(*answer.prompt_ids, *answer.completion_ids),
        num_prompt=len(answer.prompt_ids),
    )
