"""The classifier task: what every method says of rows and contributors, against runs that none of them saw.

    python -m benchmarks.attribution_digits FOLDER          some ten minutes on one core; resumable

- Exact Banzhaf and Shapley values of eight contributors: all 256 coalitions are trained, with an order of its own each.
- Twelve contributors: LDS over unseen halves of the contributors and of the rows, removals from the run itself, and
  the run without each contributor (benchmarks/digits_study.py has the trainings).

The bank has other orders. Its players are contributors, unless a line says blocks of rows, which are what settlements
pay by. What other libraries say is taken from FOLDER/scores/peers, where benchmarks/digits_peers.py leaves it. Prints
the tables and the goals' ratios, and writes FOLDER/digits.json.
"""

import argparse
import itertools
import sys
from collections.abc import Sequence, Set
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt
import torch

from benchmarks import attribution_truth as truth
from benchmarks import digits_task as task
from benchmarks.attribution import Figures, Halves, divided_blocks, peer_methods, table
from benchmarks.attribution_values import banzhaf, shapley
from benchmarks.digits_study import CONSTANTS, Study
from openledger.attribution.bank import Bank, plan_bank
from openledger.attribution.estimate import corrected_rows, row_variance
from openledger.attribution.evaluation import coverage, datamodeling_scores, spearman
from openledger.attribution.expected import fit_expected
from openledger.attribution.index import View, build_index
from openledger.core.files import write_json_durably
from openledger.core.hashing import digest_json
from openledger.training.members import Member

Array = npt.NDArray[np.float64]
Tables = dict[str, dict[str, Figures]]
CHANGED_BY = (0.1, 0.01, 0.001)  # of a normal draw
EKFAC = ("EK-FAC", "EK-FAC fitted on all rows")
ENSEMBLES = ("the last 4 checkpoints", "5 runs", "5 runs and 4 checkpoints")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = tables(Study(options.folder))
    results = exact_values(options.folder) | found | {"goals": goals(found)}
    write_json_durably(options.folder / "digits.json", results)
    for name, value in results.items():
        print(table(name, value))
    return 0


def tables(study: Study) -> Tables:
    study.write_for_peers()
    return {
        "contributors, expected": contributors_expected(study),
        "rows, expected": rows_expected(study),
        "contributors, this run": contributors_this_run(study),
        "rows, this run": rows_this_run(study),
        "all row weights at once": finite_differences(study),
    } | smooth_tables(Study(study.folder / "smooth", study.sizes, smooth=True))


def smooth_tables(study: Study) -> Tables:
    """What concerns one run, where units have no kinks: a derivative says more there."""
    return {
        "contributors, this run, smooth units": contributors_this_run(study),
        "rows, this run, smooth units": rows_this_run(study),
        "all row weights at once, smooth units": finite_differences(study),
    }


def goals(found: Tables) -> dict[str, Figures]:
    """Each of the goals' ratios, by the figures per answer unless a line says otherwise."""
    rows, contributors = found["rows, expected"], found["contributors, expected"]
    *_, most = (name for name in contributors if name.endswith("coalitions, with the index as prior"))

    def against(own: Figures, other: Figures, goal: float, what: str = "per answer") -> Figures:
        return {"figure": own[what], "against": other[what], "ratio": own[what] / other[what], "goal": goal}

    def best(figures: dict[str, Figures], points: Sequence[str]) -> Figures:
        """The better of the two EK-FACs: a goal is met against that."""
        return max((figures[f"{kind}, {at}"] for kind in EKFAC for at in points), key=lambda own: own["per answer"])

    one = best(rows, ["one run"])
    return {
        "rows: index of a bare model, weights made smaller, to EK-FAC of one run": against(
            rows["index of a bare model, weights made smaller"], one, 1.1
        ),
        "rows: index of a run, to EK-FAC of one run": against(rows["index of a run"], one, 1.1),
        "rows: estimate, to EK-FAC's best ensemble": against(rows["estimate"], best(rows, ENSEMBLES), 1.1),
        f"contributors: {most}, to EK-FAC's best ensemble": against(
            contributors[most], best(contributors, ENSEMBLES), 1.0
        ),
        f"contributors: {most}, to the ceiling": against(contributors[most], contributors["noise ceiling"], 0.85),
        f"contributors: {most}, sum, to the ceiling": against(
            contributors[most], contributors["noise ceiling"], 0.95, "sum"
        ),
    } | {name: figures for units in ("", ", smooth units") for name, figures in _of_this_run(found, units).items()}


def _of_this_run(found: Tables, units: str) -> dict[str, Figures]:
    replayed, members = found[f"rows, this run{units}"]["replay"], found[f"contributors, this run{units}"]
    figures = {f"replay, {percent} %": (replayed[f"{percent} %, per answer"], 0.85) for percent in (1, 5, 10)}
    reformed = members["leave-one-out members against re-formed batches"]["per answer"]
    figures["leave-one-out members"] = (reformed, 0.9)
    return {f"this run{units}: {name}": {"figure": own, "goal": goal} for name, (own, goal) in figures.items()}


def exact_game(
    folder: Path, seed: str = task.SEED, num_contributors: int = 8
) -> tuple[list[task.Digit], list[task.Digit], dict[frozenset[str], Array]]:
    """Rows of some contributors, the questions, and what these are worth after each of all coalitions, [Q]."""
    examples, queries = task.make_examples(num_contributors, seed)
    names = sorted({example.contributor_id for example in examples})
    runs = task.make_runs(examples)
    truth = Bank(folder / "exact", digest_json([seed, num_contributors]), runs)
    coalitions = [frozenset(c) for size in range(1, num_contributors + 1) for c in itertools.combinations(names, size)]
    members = [_member(f"exact-{'-'.join(sorted(there))}", examples, there) for there in coalitions]
    truth.train(members)
    start = dict(task.make_module(CONSTANTS.initial).named_parameters())
    empty = runs.score([{name: p.detach() for name, p in start.items()}], queries)[0]
    return examples, queries, {frozenset(): empty, **dict(zip(coalitions, truth.score(members, queries), strict=True))}


def exact_truth(folder: Path) -> tuple[list[task.Digit], list[task.Digit], dict[str, Array]]:
    """Eight contributors' rows, the questions, and exact Banzhaf and Shapley values, [C, Q]."""
    examples, queries, value = exact_game(folder)
    names = sorted({example.contributor_id for example in examples})
    return examples, queries, {"Banzhaf": banzhaf(value, names), "Shapley": shapley(value, names)}


def exact_values(folder: Path) -> dict[str, dict[str, Figures]]:
    """Eight contributors: the bank's estimate before clipping against all 256 coalitions."""
    examples, queries, exact = exact_truth(folder)
    runs = task.make_runs(examples)
    found: dict[str, dict[str, Figures]] = {"payouts, exact values": {}, "intervals": {}}
    for number in (16, 32, 64):
        plan = plan_bank(CONSTANTS, examples, num_coalitions=number, num_twins=0, players="contributors")
        bank = Bank(folder / "bank8", digest_json([task.SEED, 8]), runs)
        bank.train(plan.coalitions)
        scores = bank.score(plan.coalitions, queries)
        each, _ = fit_expected(plan.design.members_MG, scores)
        total, _ = fit_expected(plan.design.members_MG, scores.sum(axis=1, keepdims=True), ratios=each.ratios)
        found["payouts, exact values"][f"bank of {number} coalitions"] = {
            f"{kind}, {what}": float(spearman(mine, truth_value).mean())
            for kind, exact_GQ in exact.items()
            for what, mine, truth_value in (
                ("sum", total.mean_GQ, exact_GQ.sum(axis=1, keepdims=True)),
                ("per answer", each.mean_GQ, exact_GQ),
            )
        }
        found["intervals"][f"bank of {number} coalitions"] = {
            "stated": 0.9,
            "found, per answer": coverage(*each.interval(0.9), exact["Banzhaf"]),
            "found, sum": coverage(*total.interval(0.9), exact["Banzhaf"].sum(axis=1, keepdims=True)),
            "pairs": float(exact["Banzhaf"].size),
        }
    return found


def unseen_halves(folder: Path) -> tuple[list[task.Digit], list[task.Digit], Array, npt.NDArray[np.bool_]]:
    """Twelve contributors' rows, the questions, what these are worth after 40 halves in two orders each, [2 * N, Q],
    and who is in which half, [N, C]."""
    study = Study(folder)
    return study.examples, study.queries, study.contributors_truth(), study.contributor_halves


def contributors_expected(study: Study) -> dict[str, Figures]:
    """LDS over unseen halves of the contributors."""
    outcomes = study.contributors_truth()
    true = Halves(outcomes[0::2], outcomes[1::2], study.contributor_halves)
    found = {"noise ceiling": true.ceilings()}
    found |= {name: true.figures(study.sums(scores)) for name, scores in row_methods(study).items()}
    full = study.outcomes(study.bank, study.plan.twins).mean(axis=0)
    without = study.outcomes(study.bank, study.plan.withouts)
    found[f"leave-one-out bank, {len(without)} trainings"] = true.figures(full - without)
    index_RQ = np.mean(study.index_views(), axis=0)
    index = study.sums(index_RQ)
    for number in study.sizes.coalitions:
        plan = study.plan_of(number)
        scores = study.outcomes(study.bank, plan.coalitions)
        sums = scores.sum(axis=1, keepdims=True)
        for named_prior, prior in (("alone", None), ("with the index as prior", index)):
            each, predictor = fit_expected(plan.design.members_MG, scores, prior)
            total_prior = None if prior is None else prior.sum(axis=1, keepdims=True)
            total, total_predictor = fit_expected(plan.design.members_MG, sums, total_prior, ratios=each.ratios)
            label = f"bank of {number} coalitions, {named_prior}"
            found[label] = true.figures(each.mean_GQ, total.mean_GQ)
            found[f"{label}, interactions predicted"] = true.predicted(
                predictor.predict(true.members), total_predictor.predict(true.members)
            )
        blocks = block_scores(study.bank, study.examples, study.queries, number, index_RQ)
        found[f"bank of {number} coalitions of blocks of rows, with the index as prior"] = true.figures(*blocks)
    return found


def rows_expected(study: Study) -> dict[str, Figures]:
    """LDS over unseen halves of the rows."""
    outcomes = study.rows_truth()
    true = Halves(outcomes[0::2], outcomes[1::2], study.row_halves)
    found = {"noise ceiling": true.ceilings()}
    found |= {name: true.figures(scores) for name, scores in row_methods(study).items()}
    return found | {"estimate": true.figures(estimate_scores(study))}


def contributors_this_run(study: Study) -> dict[str, Figures]:
    """Leave-one-out members (weights 0 in place) against the run without the contributor, batches formed anew; and the
    same runs from another order, which is how much of it is luck."""
    full = study.outcomes(study.bank, [study.full])[0]
    without, reformed = study.outcomes(study.bank, study.plan.withouts), study.reformed()
    another = study.reformed(digest_json([CONSTANTS.order, "another"]))
    found = {}
    for name, mine in (
        ("leave-one-out members against re-formed batches", full - without),
        ("re-formed batches of another order", full - another),
        ("index, all views", study.sums(np.mean(study.bank_views(), axis=0))),
    ):
        found[name] = {
            "per answer": float(spearman(mine, full - reformed).mean()),
            "sum": float(spearman(mine.sum(1, keepdims=True), (full - reformed).sum(1, keepdims=True))[0]),
        }
    return found


def rows_this_run(study: Study) -> dict[str, Figures]:
    """The replay of all answers' sum and of some answers against removals from the same run, everything else as it
    was."""
    replayed, answers = study.replay(), study.replayed
    methods = {"replay": (replayed[:, 1:], replayed[:, :1])}
    for name, scores in (
        ("index of a run with its bank", np.mean(study.bank_views(), axis=0)),
        ("EK-FAC, one run", study.run_views()[-1]),
    ):
        methods[name] = (scores[:, answers], scores.sum(axis=1, keepdims=True))
    found: dict[str, Figures] = {name: {} for name in methods}
    for percent in sorted(truth.REMOVALS):
        weights, true = study.removed(percent)
        for name, (each, total) in methods.items():
            found[name] |= {
                f"{percent} %, per answer": float(datamodeling_scores(each, weights, true[:, answers]).mean()),
                f"{percent} %, sum": float(datamodeling_scores(total, weights, true.sum(1, keepdims=True))[0]),
            }
    return found


def finite_differences(study: Study) -> dict[str, Figures]:
    """The replay's derivative along random directions of all row weights, against two runs on either side of it."""
    found = {}
    for by in CHANGED_BY:
        directions, change = study.perturbed(by)
        actual = np.column_stack([change.sum(axis=1), change[:, study.replayed]])
        predicted = directions @ study.replay()
        error = np.linalg.norm(predicted - actual, axis=0) / np.linalg.norm(actual, axis=0)
        found[f"replay, weights changed by {100 * by:g} %"] = {
            "correlation": float(np.corrcoef(predicted[:, 1:].ravel(), actual[:, 1:].ravel())[0, 1]),
            "relative error, per answer": float(np.median(error[1:])),
            "relative error, sum": float(error[0]),
        }
    return found


def row_methods(study: Study) -> dict[str, Array]:
    """Every method's scores, [R, Q]. EK-FAC is ours, at the points named."""
    run, ends = study.run_views(), study.twin_ends()
    fitted, fitted_ends = study.fitted_on_all()
    sets = {
        "EK-FAC, one run": run[-1:],
        "EK-FAC, the last 4 checkpoints": run[-4:],
        "EK-FAC, 5 runs": [run[-1], *ends],
        "EK-FAC, 5 runs and 4 checkpoints": [*run[-4:], *ends],
        "EK-FAC fitted on all rows, one run": fitted[-1:],
        "EK-FAC fitted on all rows, the last 4 checkpoints": fitted[-4:],
        "EK-FAC fitted on all rows, 5 runs": [fitted[-1], *fitted_ends],
        "EK-FAC fitted on all rows, 5 runs and 4 checkpoints": [*fitted[-4:], *fitted_ends],
        "index of a bare model, weights made smaller": study.smaller_views(),
        "index of a bare model and its public start, weights between": study.between_views(),
        "index of a run": study.index_views(),
        "index of a run with its bank": study.bank_views(),
    }
    means = {name: np.mean(views, axis=0) for name, views in sets.items()}
    return {"gradient dot": study.dot(), **means, **peer_methods(study)}


def estimate_scores(study: Study) -> Array:
    """The index of the run and its bank's twins, corrected for each contributor to the largest bank's estimate."""
    views_VRQ = np.stack(study.bank_views())
    index = views_VRQ.mean(axis=0)
    outcomes, design = study.outcomes(study.bank, study.plan.coalitions), study.plan.design
    expected, _ = fit_expected(design.members_MG, outcomes, study.sums(index))
    group_R = design.numbers([(example.row_id, example.contributor_id) for example in study.examples])
    return corrected_rows(index, row_variance(views_VRQ), group_R, expected.mean_GQ, expected.prior_scale)


def block_scores(
    bank: Bank, examples: Sequence[task.Digit], queries: Sequence[task.Digit], number: int, index_RQ: Array
) -> tuple[Array, Array]:
    """Contributors' scores for each answer and for the sum, divided inside blocks as settlements do."""
    plan = plan_bank(CONSTANTS, examples, num_coalitions=number, num_twins=0)
    bank.train(plan.coalitions)
    scores = bank.score(plan.coalitions, queries)
    return divided_blocks(plan.design, scores, index_RQ, examples)


def index_scores(bank: Bank, examples: Sequence[task.Digit], queries: Sequence[task.Digit]) -> Array:
    """The index at the first half of a run on all rows, [R, Q]."""
    full = Member(
        name="full", rows=tuple(range(len(examples))), initial=CONSTANTS.initial, order=CONSTANTS.order,
        keeps_epochs=True,
    )  # fmt: skip
    bank.train([full])
    epochs = bank.epochs(full)
    views = [View(name=f"epoch-{n}", weights=own) for n, own in epochs.items() if 2 * n <= len(epochs)]
    module = task.make_module(CONSTANTS.initial)
    with TemporaryDirectory() as temporary:
        index = build_index(module, examples, (), Path(temporary) / "index", "full", views=views, task=task.TASK)
        return index.score(index.query_vectors(module, queries, views=views, task=task.TASK)).astype(np.float64)


def _member(name: str, examples: Sequence[task.Digit], there: Set[str]) -> Member:
    rows = tuple(row for row, example in enumerate(examples) if example.contributor_id in there)
    order = digest_json([CONSTANTS.order, "truth", name])
    return Member(name=name, rows=rows, initial=CONSTANTS.initial, order=order)


if __name__ == "__main__":
    sys.exit(main())
