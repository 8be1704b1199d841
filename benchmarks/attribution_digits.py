"""The classifier task: exact Banzhaf and Shapley values of eight contributors, and LDS over twelve.

    python -m benchmarks.attribution_digits FOLDER          about three minutes on one core; resumable

Every one of the 256 coalitions is trained, with an order of its own, and no method sees these runs. The bank has other
orders. Its players are contributors, unless a line says blocks of rows, which are what settlements pay by. Prints the
tables and writes FOLDER/digits.json.
"""

import argparse
import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt
import torch

from benchmarks import digits_task as task
from benchmarks.attribution import Figures, Halves, divided_blocks, table
from benchmarks.attribution_values import banzhaf, shapley
from openledger.attribution.bank import Bank, BankPlan, plan_bank
from openledger.attribution.estimate import contributor_sums
from openledger.attribution.evaluation import coverage, spearman
from openledger.attribution.expected import fit_expected
from openledger.attribution.index import View, build_index
from openledger.core.files import write_json_durably
from openledger.core.hashing import digest_json
from openledger.training.members import Member
from openledger.training.recipe import generator

Array = npt.NDArray[np.float64]
HALVES = 40


@dataclass(frozen=True, slots=True)
class Constants:
    initial: str
    order: str


CONSTANTS = Constants(initial=digest_json([task.SEED, "initial"]), order=digest_json([task.SEED, "order"]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = {**exact_values(options.folder), "contributors, expected": contributors_expected(options.folder)}
    write_json_durably(options.folder / "digits.json", results)
    for name, value in results.items():
        print(table(name, value))
    return 0


def exact_truth(folder: Path) -> tuple[list[task.Digit], list[task.Digit], dict[str, Array]]:
    """Eight contributors' rows, the questions, and exact Banzhaf and Shapley values, [C, Q]: all 256 coalitions."""
    examples, queries = task.make_examples(8)
    names = sorted({example.contributor_id for example in examples})
    runs = task.make_runs(examples)
    truth = Bank(folder / "exact", digest_json([task.SEED, 8]), runs)
    coalitions = [set(c) for size in range(1, 9) for c in itertools.combinations(names, size)]
    members = [_member(f"exact-{'-'.join(sorted(there))}", examples, there) for there in coalitions]
    truth.train(members)
    outcomes = truth.score(members, queries)
    start = dict(task.make_module(CONSTANTS.initial).named_parameters())
    empty = runs.score([{name: p.detach() for name, p in start.items()}], queries)[0]
    value = {frozenset(): empty, **{frozenset(c): row for c, row in zip(coalitions, outcomes, strict=True)}}
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
    examples, queries = task.make_examples(12)
    names = sorted({example.contributor_id for example in examples})
    halves = [
        {names[n] for n in generator(f"{task.SEED}-{k}", "half").permutation(len(names))[: len(names) // 2]}
        for k in range(HALVES)
    ]
    truth = Bank(folder / "halves", digest_json([task.SEED, 12]), task.make_runs(examples))
    members = [_member(f"halves-{k}-{o}", examples, half) for k, half in enumerate(halves) for o in (0, 1)]
    truth.train(members)
    return (
        examples,
        queries,
        truth.score(members, queries),
        np.array([[name in half for name in names] for half in halves]),
    )


def contributors_expected(folder: Path) -> dict[str, Figures]:
    """Twelve contributors: LDS over 40 unseen halves, two orders each."""
    examples, queries, outcomes, members = unseen_halves(folder)
    names = sorted({example.contributor_id for example in examples})
    runs = task.make_runs(examples)
    true = Halves(outcomes[0::2], outcomes[1::2], members)
    found = {"noise ceiling": true.ceilings()}
    bank = Bank(folder / "bank12", digest_json([task.SEED, 12]), runs)
    index_RQ = index_scores(bank, examples, queries)
    index = contributor_sums(index_RQ, [e.contributor_id for e in examples], names)
    found["index"] = true.figures(index)
    for number in (12, 24, 32, 64):
        plan: BankPlan = plan_bank(CONSTANTS, examples, num_coalitions=number, num_twins=0, players="contributors")
        bank.train(plan.coalitions)
        scores = bank.score(plan.coalitions, queries)
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
        blocks = block_scores(bank, examples, queries, number, index_RQ)
        found[f"bank of {number} coalitions of blocks of rows, with the index as prior"] = true.figures(*blocks)
    return found


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


def _member(name: str, examples: Sequence[task.Digit], there: set[str]) -> Member:
    rows = tuple(row for row, example in enumerate(examples) if example.contributor_id in there)
    order = digest_json([CONSTANTS.order, "truth", name])
    return Member(name=name, rows=rows, initial=CONSTANTS.initial, order=order)


if __name__ == "__main__":
    sys.exit(main())
