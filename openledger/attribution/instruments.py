"""The instruments behind one interface: each says how far every player moved every query's log-likelihood.

    index      rows            curvature-corrected gradients at the run's checkpoints and its bank's twins
    bank       contributors    expected influence from retraining on coalitions of blocks of rows, with its error
    estimate   rows            the index inside each group, corrected to the bank's estimate of the group
    replay     rows            this run's exact influence on a weighted sum of the queries

Positive: the player makes the answer likelier. Unit: nats per token of the answer, but for the index: its scores
compare rows with one another, for one adapter at one set of views, and have no scale of their own (`RELATIVE`).

Shapes: P players, R rows, D decoys, E both, G groups, Q queries, V views.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from openledger.attribution.bank import Bank, BankPlan, plan_bank
from openledger.attribution.estimate import (
    contributor_sums,
    corrected_rows,
    group_sums,
    row_variance,
)
from openledger.attribution.expected import Expected, fit_expected
from openledger.attribution.index import GradientIndex, build_index, digests
from openledger.attribution.index_folder import View
from openledger.attribution.replay import replay_run
from openledger.attribution.subject import Subject
from openledger.core.errors import InvalidInput
from openledger.core.hashing import digest_json
from openledger.training.examples import Example
from openledger.training.members import Member, Weights
from openledger.training.record import examples_digest
from openledger.training.task import trainable_parameters

Array = npt.NDArray[np.float64]
Report = Callable[[str], None]
Kept = TypeVar("Kept")

THIS_RUN, EXPECTED = "this_run", "expected"
NATS = "nats per token of the answer; positive makes it likelier"
RELATIVE = "relative, not nats: compares rows with one another; positive makes the answer likelier"
SCALED_VIEWS = (0.25, 0.5, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attribution:
    """`scores` and `errors` (standard deviations, where they are known) are [P, Q]; `quantity` is `this_run` or
    `expected`; `quality` says how the numbers came about."""

    method: str
    quantity: str
    players: tuple[str, ...]
    scores: Array
    errors: Array | None = None
    quality: dict[str, Any] = field(default_factory=dict)

    @property
    def unit(self) -> str:
        return RELATIVE if self.method == "index" else NATS


class Attributor(Protocol):
    def attribute(self, queries: Sequence[Example]) -> Attribution:
        """Influence of every player on every query."""


@dataclass(kw_only=True)
class IndexAttributor:
    """`plan` gives the bank whose twins are views too, where they are trained. The index is kept: other queries are
    scored against the same files. `decoys` are rows that were never trained on, for an index of both."""

    subject: Subject
    plan: BankPlan | None = None
    report: Report = print
    decoys: Sequence[Example] = ()

    def attribute(self, queries: Sequence[Example]) -> Attribution:
        views, scores_VRQ = self.views(queries)
        return Attribution(
            method="index",
            quantity=EXPECTED if any(view.startswith("twin") for view in views) else THIS_RUN,
            players=tuple(example.row_id for example in self.subject.examples),
            scores=scores_VRQ.mean(axis=0),
            errors=np.sqrt(row_variance(scores_VRQ)) if len(views) > 1 else None,
            quality={"views": views},
        )

    def views(self, queries: Sequence[Example]) -> tuple[list[str], Array]:
        """Names of the views and each one's scores of the rows, [V, R, Q]."""
        names, trained, _ = self.with_decoys(queries)
        return names, trained

    def with_decoys(self, queries: Sequence[Example]) -> tuple[list[str], Array, Array]:
        """Names of the views and each one's scores of the rows, [V, R, Q], and of the decoys, [V, D, Q]."""
        views = index_views(self.subject, self.plan)
        names = [view.name for view in views]
        self.report(f"index: {', '.join(names)}")
        index = subject_index(self.subject, views, self.decoys)
        scores_VEQ = index.view_scores(index.query_vectors(self.subject.module, queries, views=views))
        trained, decoys = np.split(scores_VEQ.astype(np.float64), [index.num_trained], axis=1)
        return names, trained, decoys


@dataclass(kw_only=True)
class IndexInstead:
    """The index in the place of an instrument that retrains on coalitions, for a subject of one contributor: there is
    nobody to leave out. `wanted` is `bank` or `estimate`, whose players it has."""

    subject: Subject
    wanted: str
    report: Report = print

    def attribute(self, queries: Sequence[Example]) -> Attribution:
        found = IndexAttributor(subject=self.subject, report=self.report).attribute(queries)
        found = replace(found, quality={**found.quality, "instead_of": self.wanted, "because": "one_contributor"})
        if self.wanted == "estimate":
            return found
        names = self.subject.contributors
        who = [example.contributor_id for example in self.subject.examples]
        errors = None if found.errors is None else np.sqrt(contributor_sums(found.errors**2, who, names))
        scores = contributor_sums(found.scores, who, names)
        return replace(found, players=tuple(names), scores=scores, errors=errors)


@dataclass(kw_only=True)
class BankAttributor:
    """Trains what is missing of the bank, unless `may_train` is off."""

    subject: Subject
    plan: BankPlan
    may_train: bool = True
    report: Report = print

    def attribute(self, queries: Sequence[Example]) -> Attribution:
        _, expected, rows, variance = self.measured(queries)
        subject, names = self.subject, self.subject.contributors
        who = [example.contributor_id for example in subject.examples]
        parts_CG = self.plan.design.parts(subject.rows, names)
        inside = contributor_sums(variance * (1 - _own_parts(subject, self.plan, parts_CG)), who, names)
        errors = np.sqrt(parts_CG**2 @ expected.error_GQ**2 + expected.prior_scale**2 * inside)
        return Attribution(
            method="bank",
            quantity=EXPECTED,
            players=tuple(names),
            scores=contributor_sums(rows, who, names),
            errors=errors,
            quality=_bank_quality(self.plan, expected),
        )

    def measured(self, queries: Sequence[Example]) -> tuple[list[str], Expected, Array, Array]:
        """Names of the index's views, the expected influence of the bank's groups with the index's sums as prior, that
        of the rows and what of its variance is the row's own and not its group's, [R, Q]."""
        bank = self.trained()  # first: the twins are views of the index
        views, index_VRQ = IndexAttributor(subject=self.subject, plan=self.plan, report=self.report).views(queries)
        group_R = self.plan.design.numbers(self.subject.rows)
        prior_GQ = group_sums(index_VRQ.mean(axis=0), group_R, len(self.plan.design.groups))
        outcomes = bank.score(self.plan.coalitions, queries)
        expected = fit_expected(self.plan.design.members_MG, outcomes, prior_GQ)[0]
        variance = row_variance(index_VRQ)
        rows = corrected_rows(index_VRQ.mean(axis=0), variance, group_R, expected.mean_GQ, expected.prior_scale)
        return views, expected, rows, variance

    def trained(self) -> Bank:
        bank = self.subject.bank()
        if self.may_train:
            train_bank(bank, self.plan.members, self.report)
        return bank


@dataclass(kw_only=True)
class EstimateAttributor:
    subject: Subject
    plan: BankPlan
    may_train: bool = True
    report: Report = print

    def attribute(self, queries: Sequence[Example]) -> Attribution:
        instrument = BankAttributor(subject=self.subject, plan=self.plan, may_train=self.may_train, report=self.report)
        names, expected, rows, variance = instrument.measured(queries)
        group_R = self.plan.design.numbers(self.subject.rows)
        part = variance / group_sums(variance, group_R, len(self.plan.design.groups))[group_R]
        own = expected.prior_scale**2 * variance
        error = np.sqrt(own * (1 - part) + expected.error_GQ[group_R] ** 2 * part**2)  # as the correction is shared out
        return Attribution(
            method="estimate",
            quantity=EXPECTED,
            players=tuple(example.row_id for example in self.subject.examples),
            scores=rows,
            errors=error,
            quality={**_bank_quality(self.plan, expected), "views": names},
        )


@dataclass(kw_only=True)
class ReplayAttributor:
    """This run's influence of every row on the queries' sum by `weights`, [R, 1]. Killed, it goes on where it was."""

    subject: Subject
    weights: Sequence[float]
    report: Report = print

    def attribute(self, queries: Sequence[Example]) -> Attribution:
        subject, record = self.subject, self.subject.needed_record()
        weights = check_weights(self.weights, len(queries))
        final = {name: p.detach().clone() for name, p in trainable_parameters(subject.module).items()}
        found = replay_run(
            subject.base,
            record,
            subject.examples,
            [list(zip(queries, weights, strict=True))],
            start=subject.start,
            final=final,
            checkpoints=subject.folder / "replay" / _replay_name(queries, weights),
            device=subject.device,
            on_step=self._tell,
        )
        return Attribution(
            method="replay",
            quantity=THIS_RUN,
            players=tuple(example.row_id for example in subject.examples),
            scores=found.scores_RT.astype(np.float64),
            quality={"deviation": found.deviation, "steps": found.num_steps},
        )

    def _tell(self, done: int, total: int) -> None:
        if done % 50 == 0 or done == total:
            self.report(f"replay: {done} of {total} steps")


def make(
    method: str,
    subject: Subject,
    *,
    num_coalitions: int,
    num_twins: int,
    may_train: bool = True,
    weights: Sequence[float] = (),
    report: Report = print,
) -> Attributor:
    """The instrument called `method`; the index where a bank of the subject's one contributor was asked for. Raises
    NotFound where the instrument needs a run record and there is none."""
    if method == "index":
        plan = None
        if subject.record is not None and len(subject.contributors) > 1:
            plan = subject_plan(subject, num_coalitions, num_twins)
        return IndexAttributor(subject=subject, plan=plan, report=report)
    if method == "replay":
        return ReplayAttributor(subject=subject, weights=weights, report=report)
    if len(subject.contributors) < 2:
        return IndexInstead(subject=subject, wanted=method, report=report)
    plan = subject_plan(subject, num_coalitions, num_twins)
    if method == "bank":
        return BankAttributor(subject=subject, plan=plan, may_train=may_train, report=report)
    return EstimateAttributor(subject=subject, plan=plan, may_train=may_train, report=report)


def missing(attributor: Attributor) -> list[str]:
    """Names of the runs that the instrument would train first."""
    if isinstance(attributor, BankAttributor | EstimateAttributor):
        return [member.name for member in attributor.subject.bank().missing(attributor.plan.members)]
    return []


def index_views(subject: Subject, plan: BankPlan | None = None) -> list[View]:
    """The checkpoints of the first half of the run, and of the trained twins of its bank: later on, rows that are
    learnt by heart have hardly a gradient left. A plain adapter has neither: its views are itself with B made smaller,
    which is about where its training came by (docs/attribution/log.md has what each gains)."""
    found = _first_half("", subject.checkpoints())
    if not found:
        own = {name: p.detach().clone() for name, p in trainable_parameters(subject.module).items()}
        found = [View(name=f"scaled-{factor:g}", weights=_scaled(own, factor)) for factor in SCALED_VIEWS]
    if plan is not None:
        bank = subject.bank()
        for twin in plan.twins:
            found += _first_half(f"{twin.name}-", bank.epochs(twin) if not bank.missing([twin]) else {})
    return found


def first_half(epochs: Mapping[int, Kept]) -> dict[int, Kept]:
    """Of what is kept of each epoch, the first half; at least the first."""
    last = max(epochs, default=0)
    return {epoch: kept for epoch, kept in epochs.items() if 2 * epoch <= max(2, last)}


def _first_half(prefix: str, epochs: Mapping[int, Weights]) -> list[View]:
    return [View(name=f"{prefix}epoch-{n}", weights=weights) for n, weights in first_half(epochs).items()]


def subject_index(subject: Subject, views: Sequence[View], decoys: Sequence[Example] = ()) -> GradientIndex:
    """The index of the rows and `decoys` at `views`: built, gone on with or found where `index_place` says."""
    folder, others = index_place(subject, views, decoys)
    return build_index(
        subject.module,
        subject.examples,
        decoys,
        folder,
        subject.digest,
        views=views,
        base_digest=subject.base.digest,
        others=others,
    )


def index_place(subject: Subject, views: Sequence[View], decoys: Sequence[Example] = ()) -> tuple[Path, list[Path]]:
    """Where the subject's index at `views` is kept, and those of the same rows at other views: index/ROWS/VIEWS under
    the adapter's folder. Raises InvalidInput where nothing can be written there."""
    rows = digest_json([subject.digest, *(examples_digest(own) for own in (subject.examples, decoys) if own)])[:16]
    kept = subject.folder / "index" / rows
    try:
        kept.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidInput(
            f"the index can't be kept under {subject.folder}: {error}",
            code="unwritable_folder",
            param="adapter",
            fix="copy the adapter to a folder that can be written to",
        ) from error
    folder = kept / digest_json([list(named) for named in digests(views)])[:16]
    return folder, sorted(other for other in kept.iterdir() if other != folder)


def train_bank(bank: Bank, members: Sequence[Member], report: Report) -> None:
    todo, done = len(bank.missing(members)), 0

    def tell(member: Member) -> None:
        nonlocal done
        done += 1
        report(f"bank: {member.name} trained, {done} of {todo}")

    bank.train(members, on_member=tell)


def subject_plan(subject: Subject, num_coalitions: int, num_twins: int, without: Sequence[str] = ()) -> BankPlan:
    return plan_bank(
        subject.needed_record(), subject.examples, num_coalitions=num_coalitions, num_twins=num_twins, without=without
    )


def _own_parts(subject: Subject, plan: BankPlan, parts_CG: Array) -> Array:
    """[R, 1]: which part of its group's rows are by the row's own contributor. Where all are, what the rows' scores err
    by inside the group cancels out in his sum."""
    places = {name: place for place, name in enumerate(subject.contributors)}
    place_R = [places[example.contributor_id] for example in subject.examples]
    return np.asarray(parts_CG[place_R, plan.design.numbers(subject.rows)][:, None])


def _bank_quality(plan: BankPlan, expected: Expected) -> dict[str, Any]:
    return {
        "coalitions": len(plan.coalitions),
        "twins": len(plan.twins),
        "groups": len(plan.design.groups),
        "players": plan.design.players,
        "index_scale": round(expected.prior_scale, 6),
        "ratios": {name: round(value, 4) for name, value in expected.ratios.items()},
        "noise": round(float(expected.noise_Q.mean()), 6),
    }


def _scaled(weights: Weights, factor: float) -> Weights:
    return {name: tensor * factor if ".lora_B." in name else tensor for name, tensor in weights.items()}


def _replay_name(queries: Sequence[Example], weights: Sequence[float]) -> str:
    """Replays of other sums have checkpoints of their own."""
    return digest_json([[query.row_id, list(query.ids), repr(w)] for query, w in zip(queries, weights, strict=True)])[
        :16
    ]


def check_weights(weights: Sequence[float], num_queries: int) -> list[float]:
    """Raises InvalidInput where there isn't one finite weight for each query."""
    if len(weights) != num_queries or not np.isfinite(np.asarray(weights, dtype=np.float64)).all():
        raise InvalidInput(
            f"{num_queries} queries need as many finite weights, not {len(weights)}",
            code="invalid_weights",
            param="weights",
        )
    return [float(weight) for weight in weights]
