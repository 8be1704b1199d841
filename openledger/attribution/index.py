"""The attribution index: every row's gradient in the adapter's curvature eigenbasis, and queries against it.

    influence of row i on answer q = 1/N g_q^T H^-1 g_i      positive: the row makes the answer likelier

g_i and g_q are gradients of the mean completion loss, N the rows trained on, H by EK-FAC. Removing row i would raise
the answer's loss by about this much. Rows that were never trained on ("decoys") are indexed beside the trained ones:
their true influence is zero, so their scores show how far the measure can be wrong.

Gradients are taken where the adapter stood in the middle of its training: at its end the rows it has learnt by heart
have almost none, while decoys keep theirs, and an early checkpoint was measured to predict retraining better
(LDS 0.54 in epoch 2 of 6, 0.49 at the end).

On disk: rows.f16 (memory-mapped, [rows, parameters], each row scaled by its largest value), index.json, basis.pt.
Built whole in a temporary folder and renamed: a folder that is there is complete.
"""

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from openledger.attribution.ekfac import Eigenbasis, fit
from openledger.attribution.gradients import row_gradients, sites
from openledger.core.errors import Corrupt, InvalidInput
from openledger.core.files import sync_folder
from openledger.training.examples import Example

INDEX_FORMAT = "openledger.index/1"
METHOD = "index/ekfac-1"
_BATCH_ROWS = 16
_SCORED_ROWS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexEntry:
    row_id: str
    contributor_id: str
    trained: bool


def build_index(
    lora_model: Any, trained: Sequence[Example], decoys: Sequence[Example], folder: Path, adapter_digest: str
) -> "GradientIndex":
    """Build the index of `lora_model` at `folder`, replacing none: an index of the same adapter is opened as it is.

    Raises Corrupt (code `not_finite`) when a gradient is NaN or infinite, naming the row.
    """
    if (folder / "index.json").exists():
        return GradientIndex.open(folder, adapter_digest)
    building = folder.with_name(f".{folder.name}.building")  # one process owns a working folder
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    basis = fit(lora_model, trained)
    rows = [(example, True) for example in trained] + [(example, False) for example in decoys]
    _write_gradients(lora_model, basis, [example for example, _ in rows], building)
    torch.save({name: (b.outputs_OO, b.inputs_II, b.curvature_OI) for name, b in basis.items()}, building / "basis.pt")
    entries = [{"row_id": e.row_id, "contributor_id": e.contributor_id, "trained": t} for e, t in rows]
    document = {"format": INDEX_FORMAT, "method": METHOD, "adapter_digest": adapter_digest, "entries": entries}
    (building / "index.json").write_text(json.dumps(document))
    for path in building.iterdir():
        with path.open("rb") as stream:
            os.fsync(stream.fileno())
    building.rename(folder)
    sync_folder(folder.parent)
    return GradientIndex.open(folder, adapter_digest)


class GradientIndex:
    """A finished index, memory-mapped."""

    def __init__(
        self,
        entries: list[IndexEntry],
        rows: npt.NDArray[np.float16],
        scales: npt.NDArray[np.float32],
        basis: dict[str, Eigenbasis],
    ):
        self.entries = entries
        self._rows = rows
        self._scales = scales
        self._basis = basis

    @classmethod
    def open(cls, folder: Path, adapter_digest: str) -> "GradientIndex":
        """Raises Corrupt where files are missing or don't fit together, InvalidInput for another adapter's index."""
        try:
            document = json.loads((folder / "index.json").read_text())
            stored = torch.load(folder / "basis.pt", weights_only=True)
            scales = np.load(folder / "scales.npy")
            entries = [IndexEntry(**entry) for entry in document["entries"]]
            basis = {name: Eigenbasis(*parts) for name, parts in stored.items()}
            num_parameters = sum(b.curvature_OI.numel() for b in basis.values())
            rows = np.memmap(folder / "rows.f16", dtype=np.float16, mode="r", shape=(len(entries), num_parameters))
        except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
            raise Corrupt(
                f"the attribution index at {folder} can't be read: {error}",
                code="corrupt_index",
                param=str(folder),
                fix="remove the folder; it is built again from the adapter and its rows",
            ) from error
        if document["adapter_digest"] != adapter_digest:
            raise InvalidInput(f"{folder} is the index of another adapter", code="wrong_index", param="adapter")
        return cls(entries, rows, scales, basis)

    @property
    def num_trained(self) -> int:
        return sum(entry.trained for entry in self.entries)

    def query_vectors(self, lora_model: Any, answers: Sequence[Example]) -> npt.NDArray[np.float32]:
        """H^-1 g_q for each answer, in the eigenbasis: [num_answers, num_parameters]."""
        vectors = []
        for answer in answers:
            gradients = row_gradients(lora_model, [answer])
            parts = [self._basis[s.name] for s in sites(lora_model)]
            rotated = [b.rotate(gradients[s.name].cpu()) for b, s in zip(parts, sites(lora_model), strict=True)]
            flat = [b.precondition(r).flatten() for b, r in zip(parts, rotated, strict=True)]
            vectors.append(torch.cat(flat).numpy())
        return np.stack(vectors).astype(np.float32)

    def score(self, vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Influence of every row on every answer: [num_rows, num_answers], in nats per token of the answer."""
        scores = np.empty((len(self.entries), len(vectors)), dtype=np.float32)
        for start in range(0, len(self.entries), _SCORED_ROWS):
            rows = slice(start, start + _SCORED_ROWS)
            scores[rows] = (self._rows[rows].astype(np.float32) @ vectors.T) * self._scales[rows, None]
        return (scores / self.num_trained).astype(np.float32)


def _write_gradients(lora_model: Any, basis: dict[str, Eigenbasis], examples: Sequence[Example], folder: Path) -> None:
    ordered = [basis[site.name] for site in sites(lora_model)]
    names = [site.name for site in sites(lora_model)]
    scales = np.empty(len(examples), dtype=np.float32)
    with (folder / "rows.f16").open("wb") as stream:
        for start in range(0, len(examples), _BATCH_ROWS):
            batch = examples[start : start + _BATCH_ROWS]
            gradients = row_gradients(lora_model, batch)
            rotated = [b.rotate(gradients[name].cpu()) for name, b in zip(names, ordered, strict=True)]
            flat = torch.cat([part.flatten(1) for part in rotated], dim=1)
            _check_finite(flat, batch)
            largest = flat.abs().amax(dim=1).clamp_min(torch.finfo(torch.float32).tiny)
            scales[start : start + len(batch)] = largest.numpy()
            stream.write((flat / largest[:, None]).to(torch.float16).numpy().tobytes())
    np.save(folder / "scales.npy", scales)


def _check_finite(gradients: torch.Tensor, examples: Sequence[Example]) -> None:
    bad = (~gradients.isfinite().all(dim=1)).nonzero().flatten().tolist()
    if bad:
        raise Corrupt(
            f"the gradient of row {examples[bad[0]].row_id} is not finite",
            code="not_finite",
            param="rows",
            fix="leave the row out, or train with a lower learning rate",
        )
