"""How well each instrument predicts what happens when data is taken away: the language task.

    python -m benchmarks.attribution FOLDER

Makes what is missing (benchmarks/attribution_truth.py: about two hours of one core), scores every method on the same
truth, prints the tables and writes FOLDER/results.json. Resumable: all outcomes and scores are kept under FOLDER.
"""

import argparse
import itertools
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from benchmarks import attribution_truth as truth
from benchmarks.attribution_values import banzhaf, shapley
from openledger.attribution.bank import Bank, run_bank
from openledger.attribution.coalitions import Design, design
from openledger.attribution.estimate import contributor_sums, corrected_rows, group_sums, row_variance
from openledger.attribution.evaluation import (
    coverage,
    datamodeling_scores,
    noise_ceiling,
    pooled_ceiling,
    spearman,
)
from openledger.attribution.expected import Predictor, fit_expected
from openledger.attribution.gradients import row_gradients, sites
from openledger.attribution.index import View, build_index
from openledger.attribution.instruments import first_half, index_views
from openledger.attribution.records import contributors_of, read_examples
from openledger.attribution.replay import replay_run
from openledger.attribution.subject import Subject
from openledger.core.files import write_json_durably
from openledger.core.hashing import digest_json
from openledger.training.examples import Example
from openledger.training.members import Member, Weights
from openledger.training.packed import score_members
from openledger.training.task import Trainable, trainable_parameters

REPLAYED, LEVEL = 8, 0.9
SCORED_TOGETHER = 16  # members; one at a time costs several times the CPU
BLOCKS = (16, 32, 64)  # coalitions of banks of blocks

Array = npt.NDArray[np.float64]
Figures = dict[str, float]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    started = time.time()
    study = Study(options.folder)
    results = {
        "hardware": f"{platform.machine()}, 1 thread, torch {torch.__version__}",
        "task": study.description,
        "contributors, expected": contributors_expected(study),
        "rows, expected": rows_expected(study),
        "rows, expected, eight answers": rows_by_replays(study),
        "contributors, this run": contributors_this_run(study),
        "rows, this run": rows_this_run(study),
        "all row weights at once": finite_differences(study),
        "intervals": intervals(study),
        "intervals, blocks of rows": block_intervals(study),
        "eight contributors, exact values": exact_values(study),
        "eight contributors, ways to Shapley values": shapley_ways(study),
    }
    write_json_durably(options.folder / "results.json", results)
    for name, value in results.items():
        print(table(name, value) if isinstance(value, dict) else f"{name}: {value}")
    print(f"{time.time() - started:.0f} s", file=sys.stderr)
    return 0


class Study:
    """The task, the bank, the truth, and every outcome and score, kept on disk once computed."""

    def __init__(self, folder: Path):
        self.folder = folder
        base, examples, record = truth.make_task(folder)
        self.examples, self.record = examples, record
        self.queries = read_examples(folder / "queries.jsonl", base, queries=True)
        self.subject = Subject(base=base, folder=folder / "run", examples=tuple(examples), record=record)
        self.plan = truth.bank_plan(record, examples)
        self.bank = run_bank(folder / "run" / "bank", record, base, examples)
        self.truth = run_bank(folder / "truth", record, base, examples)
        self.members = truth.truth_members(record, examples)
        self.names = contributors_of(examples)
        self.who = [example.contributor_id for example in examples]
        self.rows = [(example.row_id, example.contributor_id) for example in examples]

    @property
    def description(self) -> str:
        return (
            f"{len(self.examples)} rows, {len(self.names)} contributors, {len(self.queries)} answers, "
            f"rows {self.record.examples_digest[:12]}, base {self.record.base_digest[:12]}"
        )

    def outcomes(self, store: Bank, members: Sequence[Member]) -> Array:
        """Log-likelihood per token of each query under each member, [M, Q]; members are trained where missing."""
        store.train(members)
        paths = [self.folder / "scores/outcomes" / f"{store.path(member).stem}.npy" for member in members]
        todo = [(path, member) for path, member in zip(paths, members, strict=True) if not path.exists()]
        for start in range(0, len(todo), SCORED_TOGETHER):
            some_paths, some = zip(*todo[start : start + SCORED_TOGETHER], strict=True)
            for path, found_Q in zip(some_paths, store.score(some, self.queries), strict=True):
                truth.write_array(path, found_Q.astype(np.float32))
        return np.stack([np.load(path).astype(np.float64) for path in paths])

    def true(self, kind: str) -> Array:
        return self.outcomes(self.truth, self.members[kind])

    @cached_property
    def views(self) -> dict[str, Array]:
        """Scores of the index at every point of the run, early and at the end of its twins, and at the adapter with B
        made smaller."""
        bare = Subject(base=self.subject.base, folder=self.subject.folder, examples=self.subject.examples)
        self.bank.train(self.plan.twins)
        run = [View(name=f"epoch-{n}", weights=weights) for n, weights in self.subject.checkpoints().items()]
        twins = zip(self.plan.twins, self.bank.weights(self.plan.twins), strict=True)
        ends = [View(name=twin.name, weights=weights) for twin, weights in twins]
        views = [*run, *index_views(self.subject, self.plan), *ends, *index_views(bare)]
        return {view.name: self.view(view) for view in views}

    def view(self, view: View) -> Array:
        return self.kept(f"views/{view.name}", lambda: view_scores(self.subject, view, self.queries))

    @cached_property
    def dot(self) -> Array:
        """Gradient dot product at the run's end, [R, Q]."""
        return self.kept("views/dot", self._dot)

    @property
    def replayed_answers(self) -> list[int]:
        """Some answers, evenly spaced: each costs a replay a pass of its own."""
        return list(range(0, len(self.queries), len(self.queries) // REPLAYED))[:REPLAYED]

    @cached_property
    def replay(self) -> Array:
        """The replay of the sum of all answers, then of `replayed_answers`, [R, 1 + REPLAYED]."""
        return self.kept("replay", self._replay)

    @cached_property
    def twin_replays(self) -> Array:
        """The same of each of the bank's twins, [T, R, 1 + REPLAYED]."""
        return np.stack([self.kept(f"replay-{twin.name}", partial(self._replay, twin)) for twin in self.plan.twins])

    def base_outcome(self) -> Array:
        """What the base alone says: a run of no rows ends where it began, with B at zero."""
        start = {name: 0 * tensor for name, tensor in self.bank.weights(self.plan.twins[:1])[0].items()}
        found = score_members(self.subject.base, self.record.recipe, [start], self.queries)
        return np.asarray(found.numpy()[0], dtype=np.float64)

    def _replay(self, twin: Member | None = None) -> Array:
        """Of the run, or of a twin of its bank."""
        queries = [self.queries[number] for number in self.replayed_answers]
        targets = [[(query, 1.0) for query in self.queries], *([(query, 1.0)] for query in queries)]
        final = self.bank.weights([twin])[0] if twin else self.subject.checkpoints()[self.record.recipe.num_epochs]
        name = f"replay-{twin.name}" if twin else "replay"
        started = time.process_time()
        found = replay_run(
            self.subject.base, self.record, self.examples, targets,
            member=twin, final=final, checkpoints=self.folder / name,
        )  # fmt: skip
        cost = time.process_time() - started
        print(f"{name}: final weights off by {found.deviation}, {cost:.0f} CPU-s", file=sys.stderr)
        return found.scores_RT.astype(np.float64)

    def sums(self, scores_RQ: Array) -> Array:
        return contributor_sums(scores_RQ, self.who, self.names)

    def _dot(self) -> Array:
        module = self.subject.module
        last = self.subject.checkpoints()[self.record.recipe.num_epochs]
        for name, parameter in trainable_parameters(module).items():
            parameter.data.copy_(last[name])
        rows, queries = (_gradients(module, examples) for examples in (self.examples, self.queries))
        return np.asarray((rows @ queries.T).double().numpy())

    def kept(self, name: str, make: Callable[[], Array]) -> Array:
        path = self.folder / "scores" / f"{name}.npy"
        if not path.exists():
            truth.write_array(path, make().astype(np.float32))
        return np.load(path).astype(np.float64)


@dataclass(frozen=True, slots=True)
class Halves:
    """Truth on halves of the players: two orders of each, [N, Q], and which players are in."""

    first: Array
    second: Array
    members: npt.NDArray[np.bool_]

    @property
    def mean(self) -> Array:
        return (self.first + self.second) / 2

    def ceilings(self) -> Figures:
        total = (self.first.sum(1, keepdims=True), self.second.sum(1, keepdims=True))
        return {"per answer": pooled_ceiling(self.first, self.second), "sum": float(noise_ceiling(*total)[0])}

    def figures(self, scores_PQ: Array, total_P: Array | None = None) -> Figures:
        total = scores_PQ.sum(1, keepdims=True) if total_P is None else total_P
        return {
            "per answer": float(datamodeling_scores(scores_PQ, self.members, self.mean).mean()),
            "sum": float(datamodeling_scores(total, self.members, self.mean.sum(1, keepdims=True))[0]),
        }

    def predicted(self, outcomes_NQ: Array, total_N: Array) -> Figures:
        return {
            "per answer": float(spearman(outcomes_NQ, self.mean).mean()),
            "sum": float(spearman(total_N, self.mean.sum(1, keepdims=True))[0]),
        }


def view_scores(subject: Subject, view: View, queries: Sequence[Example]) -> Array:
    """The index's scores at one view, [R, Q]. Nothing of it is kept: the study has more views than a disk has room."""
    with TemporaryDirectory(prefix="openledger-index-") as temporary:
        folder, module = Path(temporary) / "index", subject.module
        index = build_index(module, subject.examples, (), folder, subject.digest, views=[view])
        return index.score(index.query_vectors(module, queries, views=[view])).astype(np.float64)


def contributors_expected(study: Study) -> dict[str, Figures]:
    """LDS over unseen halves of the contributors."""
    halves = contributor_halves(study)
    found = {"noise ceiling": halves.ceilings()}
    for name, scores in row_methods(study).items():
        found[name] = halves.figures(study.sums(scores))
    full = study.outcomes(study.bank, study.plan.twins).mean(axis=0)
    without = study.outcomes(study.bank, study.plan.withouts)
    found["leave-one-out bank, 12 trainings"] = halves.figures(full - without)
    outcomes, members = study.outcomes(study.bank, study.plan.coalitions), study.plan.design.members_MG
    prior, of_run = study.sums(index_scores(study)), study.sums(run_scores(study))
    priors = {"alone": None, "with the index as prior": prior, "with the index of the run alone as prior": of_run}
    for number in (12, 24, 32, 64):
        for named_prior, own in priors.items():
            part = slice(0, number)
            expected, predictor = fit_expected(members[part], outcomes[part], own)
            total, total_predictor = fit_expected(
                members[part], outcomes[part].sum(1, keepdims=True), None if own is None else own.sum(1, keepdims=True)
            )
            label = f"bank of {number} coalitions, {named_prior}"
            found[label] = halves.figures(expected.mean_GQ, total.mean_GQ)
            if number == 64 and own is prior:
                found[f"{label}, interactions predicted"] = halves.predicted(
                    predictor.predict(halves.members), total_predictor.predict(halves.members)
                )
    for number in BLOCKS:
        drawn, members = block_bank(study, number)
        blocks = study.outcomes(study.bank, members)
        for named_prior, own in (("index", index_scores(study)), ("index of the run alone", run_scores(study))):
            found[f"bank of {number} coalitions of blocks of rows, with the {named_prior} as prior"] = halves.figures(
                *divided_blocks(drawn, blocks, own, study.examples)
            )
    other = study.true("other-initial")
    found["another initial A (how far it agrees)"] = halves.predicted(other, other.sum(1, keepdims=True))
    return found


def contributor_halves(study: Study) -> Halves:
    """The truth on unseen halves of the contributors."""
    true = study.true("halves")
    named = [[name in half for name in study.names] for half in truth.contributor_halves(study.examples)]
    return Halves(true[0::2], true[1::2], np.array(named))


def block_bank(study: Study, num_coalitions: int) -> tuple[Design, list[Member]]:
    """Coalitions of blocks of rows, as `benchmarks.attribution_blocks` has them in its first bank."""
    drawn = design(study.rows, num_coalitions, study.record.order)
    return drawn, block_members(drawn, drawn.numbers(study.rows), study.record.initial, study.record.order)


def block_members(
    drawn: Design, group_R: npt.NDArray[np.int64], initial: str, constant: str, numbers_R: Sequence[int] | None = None
) -> list[Member]:
    """A run for each coalition of `drawn`. `numbers_R` are the rows' numbers among all that may be trained on, if they
    are not all."""
    numbers = np.arange(len(group_R)) if numbers_R is None else np.asarray(numbers_R)
    return [
        Member(
            name=f"blocks-{len(drawn.groups)}-{number:03}",
            rows=tuple(numbers[present_G[group_R]].tolist()),
            initial=initial,
            order=digest_json([constant, len(drawn.groups), number]),
        )
        for number, present_G in enumerate(drawn.members_MG)
    ]


def divided_blocks(
    design: Design, outcomes_MQ: Array, index_RQ: Array, examples: Sequence[Trainable]
) -> tuple[Array, Array]:
    """Contributors' scores for each answer and for the sum from a bank of blocks, divided inside blocks as settlements
    do."""
    rows = [(example.row_id, example.contributor_id) for example in examples]
    group_R = design.numbers(rows)
    prior = group_sums(index_RQ, group_R, len(design.groups))
    each, _ = fit_expected(design.members_MG, outcomes_MQ, prior)
    sums = (outcomes_MQ.sum(axis=1, keepdims=True), prior.sum(axis=1, keepdims=True))
    total, _ = fit_expected(design.members_MG, *sums, ratios=each.ratios)
    names = sorted({name for _, name in rows})
    found = []
    for index, expected in ((index_RQ, each), (index_RQ.sum(axis=1, keepdims=True), total)):
        most = np.median(np.abs(index), axis=0)
        bounded, even = np.clip(index, -most, most), np.ones_like(index)
        divided = corrected_rows(bounded, even, group_R, expected.mean_GQ, expected.prior_scale)
        found.append(contributor_sums(divided, [name for _, name in rows], names))
    return found[0], found[1]


def rows_expected(study: Study) -> dict[str, Figures]:
    """LDS over unseen halves of the rows."""
    halves = row_halves(study)
    found = {"noise ceiling": halves.ceilings()}
    for name, scores in row_methods(study).items():
        found[name] = halves.figures(scores)
    found["estimate"] = halves.figures(estimate_scores(study))
    return found


def row_halves(study: Study) -> Halves:
    """The truth on unseen halves of the rows."""
    true = study.true("rows")
    members = np.zeros((truth.ROW_HALVES, len(study.examples)), dtype=bool)
    for number in range(truth.ROW_HALVES):
        members[number, list(truth._half(len(study.examples), f"truth-rows-{number}"))] = True
    return Halves(true[0::2], true[1::2], members)


def rows_by_replays(study: Study) -> dict[str, Figures]:
    """LDS over unseen halves of the rows, for the answers that were replayed and for the sum of all: what replays of
    the run and of its twins add to the index, as they are and corrected to the bank."""
    answers, halves = study.replayed_answers, row_halves(study)
    true, total = halves.mean[:, answers], halves.mean.sum(axis=1, keepdims=True)
    stack = index_stack(study)
    index = np.concatenate([stack.sum(axis=2, keepdims=True), stack[:, :, answers]], axis=2)
    replays = np.concatenate([study.replay[None], study.twin_replays])
    each: dict[str, Array] = {}
    found: dict[str, Figures] = {}
    for name, views in (
        ("index of a run", (index[: len(index_views(study.subject))],)),
        ("index of a run with its bank", (index,)),
        ("replay of the run", (replays[:1],)),
        ("replays of the run and its twins", (replays,)),
        ("index of a run and its replay", (index[: len(index_views(study.subject))], replays[:1])),
        ("index of a run with its bank, and replays", (index, replays)),
    ):
        scores, variance = together(views)
        for label, rows in ((name, scores), (f"{name}, corrected", corrected(study, scores, variance))):
            each[label] = datamodeling_scores(rows[:, 1:], halves.members, true)
            found[label] = {
                "per answer": float(each[label].mean()),
                "sum": float(datamodeling_scores(rows[:, :1], halves.members, total)[0]),
            }
    for label, own in each.items():
        more = own - each["index of a run with its bank, corrected"]
        error = float(more.std(ddof=1) / np.sqrt(len(more)))
        found[label] |= {"per answer, above the estimate": float(more.mean()), "±": error}
    return found


def together(instruments: Sequence[Array]) -> tuple[Array, Array]:
    """The mean over instruments, each the mean over its views [V, R, Q] in units of its root mean square, and its
    variance, [R, Q]. One instrument stays in its own unit."""
    if len(instruments) == 1:
        return instruments[0].mean(axis=0), row_variance(instruments[0])
    units = [np.sqrt((views.mean(axis=0) ** 2).mean(axis=0)) for views in instruments]
    scaled = [views / unit for views, unit in zip(instruments, units, strict=True)]
    scores = np.mean([views.mean(axis=0) for views in scaled], axis=0)
    return scores, np.sum([row_variance(views) for views in scaled], axis=0) / len(scaled) ** 2


def corrected(study: Study, scores_RQ: Array, variance_RQ: Array) -> Array:
    """The scores of the sum and of the replayed answers, [R, 1 + REPLAYED], corrected to the bank's estimate of the
    contributors, which has their sums as its prior."""
    outcomes, design_MG = study.outcomes(study.bank, study.plan.coalitions), study.plan.design.members_MG
    prior, groups = study.sums(scores_RQ), study.plan.design.numbers(study.rows)
    each, _ = fit_expected(design_MG, outcomes[:, study.replayed_answers], prior[:, 1:])
    total, _ = fit_expected(design_MG, outcomes.sum(axis=1, keepdims=True), prior[:, :1], ratios=each.ratios)
    return np.column_stack(
        [
            corrected_rows(scores_RQ[:, part], variance_RQ[:, part], groups, expected.mean_GQ, expected.prior_scale)
            for part, expected in ((slice(0, 1), total), (slice(1, None), each))
        ]
    )


def contributors_this_run(study: Study) -> dict[str, Figures]:
    """Leave-one-out members (weights 0 in place) against the run without the contributor, batches formed anew."""
    full = study.outcomes(study.bank, study.plan.twins).mean(axis=0)
    without = study.outcomes(study.bank, study.plan.withouts)
    reformed = study.true("reformed")
    return {
        "leave-one-out members against re-formed batches": {
            "per answer": float(spearman(without, reformed).mean()),
            "sum": float(spearman(without.sum(1, keepdims=True), reformed.sum(1, keepdims=True))[0]),
        },
        "index, all views": {
            "per answer": float(spearman(study.sums(index_scores(study)), full - reformed).mean()),
        },
    }


def rows_this_run(study: Study) -> dict[str, Figures]:
    """The replay of the whole period and of some answers against removals from the same run, everything else as it
    was."""
    found: dict[str, Figures] = {}
    answers = study.replayed_answers
    index = index_scores(study)
    for name, scores, total in (
        ("replay", study.replay[:, 1:], study.replay[:, :1]),
        ("index of a run with its bank", index[:, answers], index.sum(axis=1, keepdims=True)),
        ("EK-FAC, one run", *_with_sum(study.views[f"epoch-{study.record.recipe.num_epochs}"], answers)),
    ):
        found[name] = {}
        for percent in sorted(truth.REMOVALS):
            members = study.members[f"removed-{percent}"]
            weights = np.array([member.row_weights for member in members])
            true = study.true(f"removed-{percent}")
            found[name][f"{percent} %, per answer"] = float(
                datamodeling_scores(scores, weights, true[:, answers]).mean()
            )
            found[name][f"{percent} %, sum"] = float(datamodeling_scores(total, weights, true.sum(1, keepdims=True))[0])
    return found


def finite_differences(study: Study) -> dict[str, Figures]:
    """The replay's derivative along random directions of all row weights, against two runs on either side of it."""
    true = study.true("perturbed")
    change = (true[0::2] - true[1::2]) / (2 * truth.PERTURBED_BY)
    actual = np.column_stack([change.sum(axis=1), change[:, study.replayed_answers]])
    predicted = truth.directions(len(study.examples)) @ study.replay
    error = np.linalg.norm(predicted - actual, axis=0) / np.linalg.norm(actual, axis=0)
    return {
        "replay": {
            "correlation": float(np.corrcoef(predicted[:, 1:].ravel(), actual[:, 1:].ravel())[0, 1]),
            "relative error, per answer": float(np.median(error[1:])),
            "relative error, sum": float(error[0]),
        }
    }


def intervals(study: Study) -> dict[str, Figures]:
    """How often a new training falls into the interval that a bank's model gives for it, at a stated 90 %."""
    members, true = np.repeat(contributor_halves(study).members, 2, axis=0), study.true("halves")
    prior, found = study.sums(index_scores(study)), {}
    outcomes, design = study.outcomes(study.bank, study.plan.coalitions), study.plan.design.members_MG
    for number in (8, 16, 32, 64):
        each, predictor = fit_expected(design[:number], outcomes[:number], prior)
        sums = [values.sum(axis=1, keepdims=True) for values in (outcomes[:number], prior)]
        _, total = fit_expected(design[:number], *sums, ratios=each.ratios)
        found[f"bank of {number} coalitions"] = {
            "stated": LEVEL,
            "per answer": _covered(predictor, members, true),
            "sum": _covered(total, members, true.sum(axis=1, keepdims=True)),
            "pairs": float(true.size),
        }
    return found


def block_intervals(study: Study) -> dict[str, Figures]:
    """By banks of blocks of rows, with the index of the run alone as prior: how often a coalition that was left out of
    the fit, with its complement, falls into its interval. The ratios stay those of the whole fit. Halves of the
    contributors are no such coalitions: their rows are less varied, and they are worth less than the model says."""
    index, found = run_scores(study), {}
    for number in BLOCKS:
        drawn, members = block_bank(study, number)
        outcomes = study.outcomes(study.bank, members)
        prior = group_sums(index, drawn.numbers(study.rows), len(drawn.groups))
        ratios = fit_expected(drawn.members_MG, outcomes, prior)[0].ratios
        sums = (outcomes.sum(axis=1, keepdims=True), prior.sum(axis=1, keepdims=True))
        found[f"bank of {number} coalitions"] = {
            "stated": LEVEL,
            "per answer": _covered_left_out(drawn, outcomes, prior, ratios),
            "sum": _covered_left_out(drawn, *sums, ratios),
            "pairs": float(outcomes.size),
        }
    return found


def _covered_left_out(drawn: Design, outcomes_MQ: Array, prior_GQ: Array, ratios: dict[str, float]) -> float:
    pair_M = np.arange(len(outcomes_MQ)) // 2
    covered = []
    for pair in range(pair_M[-1] + 1):
        out_M = pair_M == pair
        known = (drawn.members_MG[~out_M], outcomes_MQ[~out_M], prior_GQ)
        _, predictor = fit_expected(*known, ratios=ratios)
        covered.append(_covered(predictor, drawn.members_MG[out_M], outcomes_MQ[out_M]))
    return float(np.mean(covered))


def exact_values(study: Study) -> dict[str, Figures]:
    """A bank's estimate, before clipping, against values of which every coalition was trained."""
    exact = exact_game(study)
    drawn, members = truth.exact_bank(study.record, study.examples)
    outcomes = study.outcomes(study.truth, members)
    found: dict[str, Figures] = {"Banzhaf and Shapley with each other": {}}
    for what, own in (("per answer", exact), ("sum", {k: v.sum(1, keepdims=True) for k, v in exact.items()})):
        found["Banzhaf and Shapley with each other"][f"Banzhaf, {what}"] = float(
            spearman(own["Banzhaf"], own["Shapley"]).mean()
        )
    for number in (16, 32, 64):
        part = slice(0, number)
        each, _ = fit_expected(drawn.members_MG[part], outcomes[part])
        total, _ = fit_expected(drawn.members_MG[part], outcomes[part].sum(axis=1, keepdims=True), ratios=each.ratios)
        found[f"bank of {number} coalitions"] = {
            f"{kind}, {what}": float(spearman(mine, true).mean())
            for kind, values in exact.items()
            for what, mine, true in (
                ("per answer", each.mean_GQ, values),
                ("sum", total.mean_GQ, values.sum(axis=1, keepdims=True)),
            )
        } | {"Banzhaf in its 90 % interval": coverage(*each.interval(LEVEL), exact["Banzhaf"])}
    return found


def shapley_ways(study: Study) -> dict[str, Figures]:
    """64 coalitions, and what else could come nearer to Shapley values than the model's Banzhaf values: coalitions of
    the sizes that Shapley values weigh, what the base and the run say (they cost no training), the index as prior. "The
    game" is what the model predicts of all coalitions, with its pairs and its curvature in their number."""
    exact = exact_game(study)
    names = sorted({study.rows[row][1] for row in truth.exact_rows(study.examples)})
    drawn, members = truth.exact_bank(study.record, study.examples)
    halves = (drawn.members_MG, study.outcomes(study.truth, members))
    kernel_MG, members = truth.kernel_bank(study.record, study.examples)
    kernel = (kernel_MG, study.outcomes(study.truth, members))
    run = study.outcomes(study.truth, [truth.exact_run(study.record, study.examples)])
    ends = (np.array([[False] * len(names), [True] * len(names)]), np.concatenate([_base(study)[None], run]))
    prior = contributor_sums(
        exact_index(study), [study.rows[row][1] for row in truth.exact_rows(study.examples)], names
    )
    some = slice(0, 32)
    banks = {
        "halves and quarters, as shipped": [halves],
        "sizes of the Shapley kernel": [kernel],
        "32 of each": [(half[some], outcomes[some]) for half, outcomes in (halves, kernel)],
        "halves and quarters, the base and the run": [halves, ends],
        "32 of each, the base and the run": [
            *((one[some], outcomes[some]) for one, outcomes in (halves, kernel)),
            ends,
        ],
    }
    found: dict[str, Figures] = {}
    for name, parts in banks.items():
        members_MG, outcomes = (np.concatenate(own) for own in zip(*parts, strict=True))
        for label, own in (("", None), (", with the index as prior", prior)):
            each, predictor = fit_expected(members_MG, outcomes, own)
            sums = (outcomes.sum(axis=1, keepdims=True), None if own is None else own.sum(axis=1, keepdims=True))
            total, predicted = fit_expected(members_MG, *sums, ratios=each.ratios)
            mine = (each.mean_GQ, total.mean_GQ)
            found[f"{name}{label}"] = value_figures(exact["Shapley"], *mine)
            mine = (predicted_shapley(predictor, names), predicted_shapley(predicted, names))
            found[f"{name}{label}, Shapley values of the game"] = value_figures(exact["Shapley"], *mine)
    return found


def value_figures(exact_CQ: Array, each_CQ: Array, total_C1: Array) -> Figures:
    return {
        "per answer": float(spearman(each_CQ, exact_CQ).mean()),
        "sum": float(spearman(total_C1, exact_CQ.sum(axis=1, keepdims=True))[0]),
    }


def predicted_shapley(predictor: Predictor, names: Sequence[str]) -> Array:
    """Shapley values of the game that a model predicts, [C, Q]."""
    coalitions = [frozenset(c) for size in range(len(names) + 1) for c in itertools.combinations(names, size)]
    members = np.array([[name in coalition for name in names] for coalition in coalitions])
    return shapley(dict(zip(coalitions, predictor.predict(members), strict=True)), names)


def exact_index(study: Study, choose: Callable[[Mapping[int, Weights]], list[View]] | None = None) -> Array:
    """The index of the eight contributors' rows, [R, Q], at the first half of a run on these alone, or at the views
    that `choose` makes of its epochs."""
    rows = truth.exact_rows(study.examples)
    run = truth.exact_run(study.record, study.examples)
    study.truth.train([run])
    epochs = study.truth.epochs(run)
    views = choose(epochs) if choose else [View(name=f"epoch-{n}", weights=w) for n, w in first_half(epochs).items()]
    few = replace(study.subject, examples=tuple(study.examples[row] for row in rows), record=None)
    kept = [study.kept(f"views/exact-{view.name}", partial(view_scores, few, view, study.queries)) for view in views]
    return np.asarray(np.mean(kept, axis=0))


def exact_game(study: Study) -> dict[str, Array]:
    """Exact Banzhaf and Shapley values of eight contributors, [C, Q]."""
    coalitions = truth.exact_coalitions(study.examples)
    names = sorted(set().union(*coalitions))
    trained = study.outcomes(study.truth, truth.exact_members(study.record, study.examples))
    value = {frozenset(): _base(study), **dict(zip(coalitions, trained, strict=True))}
    return {"Banzhaf": banzhaf(value, names), "Shapley": shapley(value, names)}


def _base(study: Study) -> Array:
    return study.kept("outcomes/base", study.base_outcome)


def _covered(predictor: Predictor, members_NG: npt.NDArray[np.bool_], true: Array) -> float:
    return coverage(*predictor.interval(members_NG, LEVEL), true)


def _with_sum(scores_RQ: Array, answers: Sequence[int]) -> tuple[Array, Array]:
    return scores_RQ[:, list(answers)], scores_RQ.sum(axis=1, keepdims=True)


def row_methods(study: Study) -> dict[str, Array]:
    views = study.views
    last = study.record.recipe.num_epochs
    epochs = [f"epoch-{epoch}" for epoch in range(1, last + 1)]
    twins = [twin.name for twin in study.plan.twins]
    scaled = [name for name in views if name.startswith("scaled-")]
    sets = {
        "EK-FAC, one run": [epochs[-1]],
        "EK-FAC, epoch 2 of 6": [epochs[1]],
        "EK-FAC, the last 4 checkpoints": epochs[-4:],
        "EK-FAC, 5 runs": [epochs[-1], *twins],
        "EK-FAC, 5 runs and 4 checkpoints": [*epochs[-4:], *twins],
        "index of a bare adapter": scaled,
        "index of a run": [view.name for view in index_views(study.subject)],
    }
    found = {"gradient dot": study.dot}
    for name, chosen in sets.items():
        found[name] = np.mean([views[view] for view in chosen], axis=0)
    found["index of a run with its bank"] = index_scores(study)
    return found | peer_methods(study)


def peer_methods(study: Study) -> dict[str, Array]:
    """What benchmarks/attribution_peers.py left: other libraries' scores of the same rows and answers."""
    shape = (len(study.examples), len(study.queries))
    found = {f"peer: {path.stem}": np.load(path) for path in sorted((study.folder / "scores/peers").glob("*.npy"))}
    for name, scores in found.items():
        if scores.shape != shape:
            raise ValueError(f"{name} has scores of shape {scores.shape}, not {shape}")
    return {name: scores.astype(np.float64) for name, scores in found.items()}


def index_stack(study: Study) -> Array:
    """The index of a run with its bank, view by view, [V, R, Q]: first those of the run."""
    study.bank.train(study.plan.twins)
    return np.stack([study.view(view) for view in index_views(study.subject, study.plan)])


def index_scores(study: Study) -> Array:
    return np.asarray(index_stack(study).mean(axis=0))


def run_scores(study: Study) -> Array:
    """The index of the run alone: banks of the platform have no twins."""
    return np.asarray(np.mean([study.view(view) for view in index_views(study.subject)], axis=0))


def estimate_scores(study: Study) -> Array:
    stack = index_stack(study)
    outcomes = study.outcomes(study.bank, study.plan.coalitions)
    expected, _ = fit_expected(study.plan.design.members_MG, outcomes, study.sums(stack.mean(axis=0)))
    groups = study.plan.design.numbers(study.rows)
    return corrected_rows(stack.mean(axis=0), row_variance(stack), groups, expected.mean_GQ, expected.prior_scale)


def _gradients(module: Any, examples: Sequence[Example]) -> torch.Tensor:
    parts = []
    for start in range(0, len(examples), 16):
        found = row_gradients(module, examples[start : start + 16])
        parts.append(torch.cat([found[site.name].flatten(1) for site in sites(module)], dim=1))
    return torch.cat(parts)


def table(title: str, rows: dict[str, Figures]) -> str:
    columns = list(dict.fromkeys(column for figures in rows.values() for column in figures))
    lines = [f"\n{title}\n", f"| | {' | '.join(columns)} |", "| --- |" + " --- |" * len(columns)]
    for name, figures in rows.items():
        cells = [f"{figures[column]:.3f}" if column in figures else "" for column in columns]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
