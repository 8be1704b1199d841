"""The attribution index: for every row H^-1 times its gradient, and queries against it.

    influence of row i on answer q = 1/V sum over views v of 1/N g_qv^T H_v^-1 g_iv

Positive: the row makes the answer likelier. g_iv and g_qv are gradients of the mean loss with the module's parameters
as view v has them (a checkpoint of the run, or of a twin), H_v the curvature there by EK-FAC, N the rows trained on.
Removing row i would raise the answer's loss by about this much. H^-1 is symmetric and stands on the rows' side: kept is

    z_iv = b_v * H_v^-1 g_iv          and a query is u_qv = g_qv / b_v

with one constant b for each matrix, the root of its mean curvature, so that one scale for a row fits matrices of very
different curvature into fp16. A query costs a forward and a backward pass and one matrix-vector product for each view:
as much as a gradient dot product. Views count alike: dividing each by the root mean square of its scores was measured
to predict retraining a little worse (docs/attribution/log.md).

Rows that were never trained on ("decoys") are indexed beside the trained ones: their true influence is zero, so their
scores show how far the measure can be wrong. Sums over each contributor's trained rows are kept too: what contributors
get costs the same however many rows there are. Rows withdrawn since are left out of every result; N stays what it was,
because the module was trained on them.

Shapes: V views, R entries, C contributors, Q queries, P parameters.
"""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from openledger.attribution.ekfac import FIT_ROWS, Basis, fit
from openledger.attribution.gradients import not_finite, row_gradients, sites
from openledger.attribution.index_folder import (
    METHOD,
    METHODS,
    IndexEntry,
    IndexFolder,
    IndexPlan,
    View,
    method_at,
    open_shards,
    open_sums,
    plan_index,
    read_index,
    weights_digest,
    wrong_index,
)
from openledger.attribution.shards import RowVectors, Top, halved, merge_tops, top_of
from openledger.core.errors import InvalidInput, invariant
from openledger.training.task import LANGUAGE, Task, Trainable, trainable_parameters

__all__ = ["METHOD", "METHODS", "GradientIndex", "IndexEntry", "ScoredRow", "View", "build_index", "row_vectors"]

_BATCH_ROWS, _BATCH_TOKENS, _BATCH_BYTES = 32, 16_384, 256 * 2**20

Float = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredRow:
    row_id: str
    contributor_id: str
    score: float


def build_index(
    module: Any,
    trained: Sequence[Trainable],
    decoys: Sequence[Trainable],
    folder: Path,
    adapter_digest: str,
    *,
    views: Sequence[View] = (),
    base_digest: str = "",
    task: Task = LANGUAGE,
    fit_rows: int = FIT_ROWS,
    shard_rows: int | None = None,
    others: Sequence[Path] = (),
    method: str = "",
) -> "GradientIndex":
    """Build the index of `module` at `folder`, going on from finished shards, or open the one that is there.

    `method` is one of METHODS, such as a settlement states; without it an index goes on by the one that it was begun
    by, and a new one has METHOD. Without `views` the module is indexed as it stands. `others` are indexes of the very
    same rows: views that one of them has by this method are taken from it. Raises InvalidInput (`wrong_index`) where
    the folder has the index of something else or by another method, or `method` is unknown (`unknown_method`), Corrupt
    (`not_finite`) naming a row whose loss or gradient is NaN or infinite.
    """
    views, rows = views or [standing(module)], [*trained, *decoys]
    plan = plan_index(
        sites(module), digests(views), trained, decoys, adapter_digest,
        base_digest=base_digest, fit_rows=fit_rows, shard_rows=shard_rows, method=method or method_at(folder),
    )  # fmt: skip
    building = IndexFolder(folder, plan)
    for other in others:
        building.adopt(other)
    for number, shards in building.missing().items():
        with loaded(module, views[number]):
            fit_view(module, building, number, trained, task)
            build_shards(module, building, number, shards, rows, task)
    building.finish()
    return GradientIndex.open(folder, adapter_digest, base_digest=base_digest)


def fit_view(
    module: Any, building: IndexFolder, view: int, trained: Sequence[Trainable], task: Task = LANGUAGE
) -> None:
    """Put the view's eigenbasis in the folder, unless it is there. `module` stands as the view says."""
    if building.basis(view) is None:
        plan = building.plan
        building.add_basis(view, fit(module, trained, task=task, fit_rows=plan.fit_rows, damping=plan.damping))


def build_shards(
    module: Any,
    building: IndexFolder,
    view: int,
    shards: Sequence[int],
    rows: Sequence[Trainable],
    task: Task = LANGUAGE,
) -> None:
    """Put shards of a fitted view in the folder. `module` stands as the view says; `rows` are the index's, in order.

    Raises Corrupt (`not_finite`) naming a row.
    """
    basis = building.basis(view) or {}
    invariant(bool(basis), f"view {view} has no basis yet")
    for shard in shards:
        building.add_shard(view, shard, row_vectors(module, basis, rows[building.plan.shards[shard]], task))


def row_vectors(module: Any, basis: Basis, examples: Sequence[Trainable], task: Task = LANGUAGE) -> RowVectors:
    """z of the module's formula for each example, with `module` as it stands.

    Raises Corrupt (`not_finite`) naming a row.
    """
    device = next(module.parameters()).device
    balanced = {name: own.balanced().to(device) for name, own in basis.items()}
    size = sum(own.curvature_SL.numel() for own in basis.values())
    rows_RP, scale_R = np.empty((len(examples), size), np.float16), np.empty(len(examples), np.float32)
    for numbers in batches(examples, size):
        gradients = row_gradients(module, [examples[number] for number in numbers], task)
        parts = [own.precondition(gradients[name]).flatten(1) for name, own in balanced.items()]
        half, scale = halved(torch.cat(parts, dim=1))
        rows_RP[numbers], scale_R[numbers] = half.cpu().numpy(), scale.cpu().numpy()
    for number in np.flatnonzero(~np.isfinite(scale_R)).tolist():
        raise not_finite(f"the gradient of row {examples[number].row_id}")
    return RowVectors(rows_RP, scale_R)


def gradient_vectors(module: Any, examples: Sequence[Trainable], task: Task = LANGUAGE) -> Float:
    """Each example's gradient in an index's order, with `module` as it stands: [num_examples, P]."""
    all_sites = sites(module)
    size = sum(site.size for site in all_sites)
    vectors_QP = np.empty((len(examples), size), np.float32)
    for numbers in batches(examples, size):
        gradients = row_gradients(module, [examples[number] for number in numbers], task, all_sites)
        parts = [gradients[site.name].flatten(1) for site in all_sites]
        vectors_QP[numbers] = torch.cat(parts, dim=1).cpu().numpy()
    return vectors_QP


def standing(module: Any, name: str = "standing") -> View:
    """The module as it stands."""
    return View(name=name, weights={n: p.detach().clone() for n, p in trainable_parameters(module).items()})


def digests(views: Sequence[View]) -> tuple[tuple[str, str], ...]:
    return tuple((view.name, weights_digest(view.weights)) for view in views)


@contextmanager
def loaded(module: Any, view: View) -> Iterator[None]:
    """While open, the module stands as `view` says. Raises InvalidInput where the view is of another module."""
    parameters = trainable_parameters(module)
    if {n: p.shape for n, p in parameters.items()} != {n: t.shape for n, t in view.weights.items()}:
        raise InvalidInput(f"the view {view.name} is of another module", code="invalid_view", param="views")
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    try:
        for name, parameter in parameters.items():
            parameter.data.copy_(view.weights[name])
        yield
    finally:
        for name, parameter in parameters.items():
            parameter.data.copy_(before[name])


class GradientIndex:
    """A finished index, memory-mapped. `entries` are its rows but for those withdrawn: the order of `score`."""

    def __init__(
        self, folder: Path, plan: IndexPlan, finished: Sequence[dict[str, Any]], withdrawn: Collection[str] = ()
    ):
        self.plan, self.folder = plan, folder
        self._live_R = np.array([entry.row_id not in withdrawn for entry in plan.entries])
        self._trained_R = np.array([entry.trained for entry in plan.entries])
        self._balance_VP = [_spread(plan, own["balance"]) for own in finished]
        self._shards = [open_shards(folder, plan, view, own["shards"]) for view, own in enumerate(finished)]
        self._sums = [open_sums(folder, plan, view, own["sums"]) for view, own in enumerate(finished)]
        self.entries = [entry for entry, live in zip(plan.entries, self._live_R, strict=True) if live]
        self.withdrawn = [e.row_id for e, live in zip(plan.entries, self._live_R, strict=True) if not live]
        self.contributors = sorted({entry.contributor_id for entry in self.entries if entry.trained})
        self.num_trained = int(self._trained_R.sum())
        self._places = {name: place for place, name in enumerate(plan.contributors)}
        self._gone = np.flatnonzero(self._trained_R & ~self._live_R).tolist()

    @classmethod
    def open(
        cls, folder: Path, adapter_digest: str, *, base_digest: str = "", withdrawn: Collection[str] = ()
    ) -> "GradientIndex":
        """`withdrawn` are ids of rows that no longer exist. Raises Corrupt (`corrupt_index`, `corrupt_shard`) where
        files are missing or don't fit together, InvalidInput (`wrong_index`) for another adapter's or base's index.
        """
        plan, finished = read_index(folder)
        if plan.adapter_digest != adapter_digest:
            raise wrong_index(folder, "another adapter's")
        if base_digest and plan.base_digest and plan.base_digest != base_digest:
            raise wrong_index(folder, "another base model's")
        return cls(folder, plan, finished, withdrawn)

    def query_vectors(
        self, module: Any, answers: Sequence[Trainable], *, views: Sequence[View] = (), task: Task = LANGUAGE
    ) -> Float:
        """u of the module's formula for each answer, [V, Q, P]: many answers in one forward and backward pass.

        `views` are those of the build; without them the module stands as it did then. Raises InvalidInput
        (`wrong_index`) where they differ.
        """
        asked = views or [View(name=self.plan.views[0][0], weights=trainable_parameters(module))]
        if digests(asked) != self.plan.views:
            raise wrong_index(self.folder, "its views are not these")
        vectors_VQP = np.empty((len(asked), len(answers), self.plan.num_parameters), np.float32)
        for own_QP, view, balance_P in zip(vectors_VQP, asked, self._balance_VP, strict=True):
            with loaded(module, view) if views else nullcontext():
                own_QP[:] = gradient_vectors(module, answers, task) / balance_P
        return vectors_VQP

    def score(self, vectors_VQP: Float) -> Float:
        """Influence of every entry on every answer, [R, Q], in nats per token of the answer."""
        return np.asarray(self.view_scores(vectors_VQP).mean(axis=0))

    def shard_scores(self, vectors_VQP: Float, shard: int) -> Float:
        """What `score` says of one shard's entries, [R, Q]."""
        return np.asarray(self.view_scores(vectors_VQP, [shard]).mean(axis=0))

    def view_scores(self, vectors_VQP: Float, shards: Sequence[int] | None = None) -> Float:
        """What each view says, [V, R, Q], of the entries of some shards (default: all): `score` is their mean."""
        self.check_query(vectors_VQP, 1)
        chosen = range(len(self.plan.shards)) if shards is None else shards
        live_R = np.concatenate([self._live_R[self.plan.shards[number]] for number in chosen])
        views = [
            np.concatenate([own[number].products(queries) for number in chosen])[live_R]
            for own, queries in zip(self._shards, vectors_VQP, strict=True)
        ]
        return np.asarray(np.stack(views) / np.float32(self.num_trained), dtype=np.float32)

    def contributor_scores(self, vectors_VQP: Float) -> Float:
        """Sums of `score` over each contributor's trained entries, [C, Q], from the stored sums: no row is read, but
        for those withdrawn."""
        self.check_query(vectors_VQP, 1)
        parts = [sums.products(queries) for sums, queries in zip(self._sums, vectors_VQP, strict=True)]
        found_CQ = np.mean(parts, axis=0)
        for number in self._gone:
            place = self._places[self.plan.entries[number].contributor_id]
            found_CQ[place] -= self._row_products(number, vectors_VQP)
        chosen = [self._places[name] for name in self.contributors]
        return np.asarray(found_CQ[chosen] / np.float32(self.num_trained))

    def top_rows(self, vectors_VQP: Float, k: int) -> list[list[ScoredRow]]:
        """For each answer the `k` trained rows that made it likeliest, best first."""
        return self.listed(self.top(vectors_VQP, k))

    def top(self, vectors_VQP: Float, k: int, shards: Sequence[int] | None = None) -> Top:
        """Numbers and scores of the best trained rows of some shards (default: all)."""
        self.check_query(vectors_VQP, k)
        chosen = range(len(self.plan.shards)) if shards is None else shards
        return merge_tops([self._shard_top(shard, vectors_VQP, k) for shard in chosen], k)

    def check_query(self, vectors_VQP: Float, k: int) -> None:
        """Raises InvalidInput for what can't be asked of this index."""
        if k < 1:
            raise InvalidInput(f"the top {k} rows were asked for", code="invalid_k", param="k")
        views, parameters = len(self.plan.views), self.plan.num_parameters
        if vectors_VQP.ndim != 3 or vectors_VQP.shape[0] != views or vectors_VQP.shape[2] != parameters:
            raise InvalidInput(
                f"queries of shape {list(vectors_VQP.shape)} don't fit an index of {views} views and {parameters} "
                "parameters",
                code="invalid_query",
                param="queries",
                fix="make them with this index's query_vectors",
            )

    def listed(self, top: Top) -> list[list[ScoredRow]]:
        found = []
        for rows, scores in zip(top.rows_QK.tolist(), top.scores_QK.tolist(), strict=True):
            entries = [self.plan.entries[row] for row in rows]
            found.append(
                [
                    ScoredRow(row_id=entry.row_id, contributor_id=entry.contributor_id, score=score)
                    for entry, score in zip(entries, scores, strict=True)
                ]
            )
        return found

    def _shard_top(self, number: int, vectors_VQP: Float, k: int) -> Top:
        rows = self.plan.shards[number]
        products = [shards[number].products(q) for shards, q in zip(self._shards, vectors_VQP, strict=True)]
        listed_R = np.flatnonzero((self._live_R & self._trained_R)[rows])
        scores_RQ = np.mean(products, axis=0)[listed_R] / np.float32(self.num_trained)
        return top_of(scores_RQ, listed_R + rows.start, k)

    def _row_products(self, number: int, vectors_VQP: Float) -> Float:
        shard, row = divmod(number, self.plan.shard_rows)
        pairs = zip(self._shards, vectors_VQP, strict=True)
        return np.asarray(np.mean([queries @ shards[shard].row(row) for shards, queries in pairs], axis=0))


def batches(examples: Sequence[Trainable], num_parameters: int) -> Iterator[list[int]]:
    """Numbers of examples of like length, so that little is padded; as many as passes and gradients have room for."""
    lengths = [example.num_tokens for example in examples]
    most = max(1, min(_BATCH_ROWS, _BATCH_BYTES // (4 * num_parameters)))
    batch: list[int] = []
    for number in sorted(range(len(examples)), key=lambda at: lengths[at]):
        if batch and (len(batch) == most or (len(batch) + 1) * lengths[number] > _BATCH_TOKENS):
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch


def _spread(plan: IndexPlan, balance: Sequence[float]) -> Float:
    return np.repeat(np.array(balance, np.float32), [site.size for site in plan.sites])
