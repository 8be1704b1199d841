"""Do the intervals that payouts rest on cover? Contributors' scores of a period by banks of blocks, with their errors.

    python -m benchmarks.attribution_intervals FOLDER [--first 200] [--seeds 8] [--coalitions 8 16 32 64]
    python -m benchmarks.attribution_intervals FOLDER --players contributors [--worlds 1]

Resumable. **Blocks**, as settled: in each of the red team's worlds of digits that nobody attacks, eight banks on the
same rows, initial weights and held-out questions: each with a full run, blocks, coalitions and orders of its own. Each
bank's score of a contributor is held against the mean of the other seven's:

    covered = |I - mean I'| <= 1.645 sqrt(SE^2 + sum SE'^2 / 7^2)            for a stated 90 %

All eight have the index as prior, and what it errs by in common. "Others without the index" are the banks fitted
without it, which is retraining alone: so the interval is held against what the index gets wrong, too.

What is summed are the held-out questions: they are the same in all eight, answers sold are not. With FOLDER of
`benchmarks.redteam` nothing is trained that was trained there ("blocks shopped among 8", 32 coalitions).

**Contributors** as players: six banks, of as many constants for the order, against exact Banzhaf values of eight
contributors and against new trainings, the 70 coalitions of four among the exact ones.

Writes FOLDER/intervals-blocks.json or FOLDER/intervals-contributors.json.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from benchmarks import attribution_digits as digits
from benchmarks import digits_task as task
from benchmarks.attribution import table
from benchmarks.attribution_values import banzhaf
from benchmarks.redteam import NAMES, SHOPPED, DigitsWorld, block_constants
from benchmarks.redteam_pay import jackknife, measured
from benchmarks.redteam_world import DigitsKit
from openledger.attribution.bank import Bank, plan_bank
from openledger.attribution.evaluation import coverage
from openledger.attribution.expected import fit_expected
from openledger.core.files import write_json_durably
from openledger.core.hashing import digest_json
from openledger.core.values import ContributorScores

Array = npt.NDArray[np.float64]
Tables = dict[str, dict[str, float]]
LEVEL, NORMAL_90 = 0.9, 1.645
COALITIONS, BANKS = (8, 16, 32, 64), 6
EVERY = 5  # of the held-out questions, answer by answer: each is a fit of its own


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--first", type=int, default=200, metavar="SEED", help="the first seed (200)")
    parser.add_argument("--seeds", type=int, default=8, metavar="N", help="how many seeds (8)")
    parser.add_argument("--coalitions", type=int, nargs="+", default=COALITIONS, metavar="N", help="sizes of banks")
    parser.add_argument("--players", choices=("blocks", "contributors"), default="blocks")
    parser.add_argument("--worlds", type=int, default=1, metavar="N", help="how many worlds of contributors (1)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.players == "blocks":
        found = blocks(options.folder, range(options.first, options.first + options.seeds), options.coalitions)
    else:
        found = contributors(options.folder, options.worlds, options.coalitions)
    write_json_durably(options.folder / f"intervals-{options.players}.json", found)
    print(table(f"intervals at a stated {LEVEL:g}, banks of {options.players}", found))
    return 0


def blocks(folder: Path, seeds: Sequence[int], sizes: Sequence[int]) -> Tables:
    found: Tables = {}
    for coalitions in sizes:
        worlds = [bank_scores(DigitsWorld(folder, DigitsKit(), seed), coalitions) for seed in seeds]
        for part in ("sum", "sum, others without the index", "per answer"):
            covered = [world[part] for world in worlds]
            figure = jackknife(covered, lambda some: float(np.mean(np.concatenate([own.ravel() for own in some]))))
            found[f"{coalitions} coalitions, {part}"] = {
                "found": figure.value,
                "its error over seeds": figure.error,
                "pairs": float(sum(own.size for own in covered)),
            }
    return found


def contributors(folder: Path, num_worlds: int, sizes: Sequence[int]) -> Tables:
    """Mean coverage and its standard error over banks, of as many worlds: the constants of the banks are the same."""
    found: Tables = {}
    for number in sizes:
        banks = [covers for world in range(num_worlds) for covers in exact_coverage(folder, world, number)]
        found[f"{number} coalitions"] = {"banks": float(len(banks))}
        for what in banks[0]:
            values = np.array([covers[what] for covers in banks])
            error = float(values.std(ddof=1) / np.sqrt(len(values)))
            found[f"{number} coalitions"] |= {what: float(values.mean()), f"{what}, ±": error}
    return found


def exact_coverage(
    folder: Path, world: int, number: int, num_contributors: int = 8, num_banks: int = BANKS
) -> list[dict[str, float]]:
    """What the intervals of each bank cover: exact values and new trainings, for answers and for their sum."""
    seed = world_seed(world)
    examples, queries, value = digits.exact_game(folder, seed, num_contributors)
    names = sorted({example.contributor_id for example in examples})
    exact_GQ = banzhaf(value, names)
    fours = sorted((coalition for coalition in value if len(coalition) == len(names) // 2), key=sorted)
    asked_NG = np.array([[name in coalition for name in names] for coalition in fours])
    true_NQ = np.array([value[coalition] for coalition in fours])
    bank = Bank(folder / "intervals8", digest_json([seed, num_contributors]), task.make_runs(examples))
    found = []
    for constant in range(num_banks):
        order = digest_json([digits.CONSTANTS.order, "intervals", constant])
        constants = replace(digits.CONSTANTS, order=order)
        plan = plan_bank(constants, examples, num_coalitions=number, num_twins=0, players="contributors")
        bank.train(plan.coalitions)
        members_MG, outcomes_MQ = plan.design.members_MG, bank.score(plan.coalitions, queries)
        each, predictor = fit_expected(members_MG, outcomes_MQ)
        covers = {
            "values": coverage(*each.interval(LEVEL), exact_GQ),
            "new trainings": coverage(*predictor.interval(asked_NG, LEVEL), true_NQ),
        }
        exact_G1, true_N1 = (values.sum(axis=1, keepdims=True) for values in (exact_GQ, true_NQ))
        total, total_predictor = fit_expected(members_MG, outcomes_MQ.sum(axis=1, keepdims=True), ratios=each.ratios)
        covers["sum's values"] = coverage(*total.interval(LEVEL), exact_G1)
        covers["new trainings' sum"] = coverage(*total_predictor.interval(asked_NG, LEVEL), true_N1)
        found.append(covers)
    return found


def world_seed(world: int) -> str:
    return f"{task.SEED}-{world}" if world else task.SEED


def bank_scores(world: DigitsWorld, coalitions: int) -> dict[str, npt.NDArray[np.bool_]]:
    """Whether each bank's interval covers what the others say: [banks, contributors], and for each answer."""
    sums, alone, answers = [], [], []
    for number in range(SHOPPED):
        observed = world.observe(world.rows, coalitions, block_constants(world, number))
        fees = world.fees(observed)
        found = measured(observed, fees, slice(None))
        without = measured(replace(observed, index_RQ=np.zeros_like(observed.index_RQ)), fees, slice(None))
        for kept, own in ((sums, found.improvement()), (alone, without.improvement())):
            assert own is not None
            kept.append(_numbers([own]))
        asked = range(observed.num_sold, len(observed.gains_Q), EVERY)
        answers.append(_numbers([found.answer(n) for n in asked]))
    return {
        "sum": covered(np.array(sums), np.array(sums)),
        "sum, others without the index": covered(np.array(sums), np.array(alone)),
        "per answer": covered(np.array(answers), np.array(answers)),
    }


def covered(own_BQC2: Array, others_BQC2: Array) -> npt.NDArray[np.bool_]:
    """Each bank's against the others' means, by the module's formula; the last axis is score and error."""
    score, square = others_BQC2[..., 0], others_BQC2[..., 1] ** 2
    others = len(score) - 1
    mean = (score.sum(axis=0) - score) / others
    error = np.sqrt(own_BQC2[..., 1] ** 2 + (square.sum(axis=0) - square) / others**2)
    return np.asarray(np.abs(own_BQC2[..., 0] - mean) <= NORMAL_90 * error)


def _numbers(scores: Sequence[ContributorScores]) -> Array:
    return np.array([[(own.scores_nano[name], own.errors_nano[name]) for name in NAMES] for own in scores], float)


if __name__ == "__main__":
    sys.exit(main())
