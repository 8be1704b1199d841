"""Do the intervals that payouts rest on cover? Contributors' scores of a period by banks of blocks, with their errors.

    python -m benchmarks.attribution_intervals FOLDER [--first 200] [--seeds 8]     some ten minutes; resumable

In each of the red team's worlds of digits that nobody attacks, eight banks on the same rows, initial weights and
held-out questions: each with a full run, blocks, coalitions and orders of its own. Each bank's score of a contributor
is held against the mean of the other seven's:

    covered = |I - mean I'| <= 1.645 sqrt(SE^2 + sum SE'^2 / 7^2)            for a stated 90 %

All eight have the index as prior, and what it errs by in common. "Others without the index" are the banks fitted
without it, which is retraining alone: so the interval is held against what the index gets wrong, too.

What is summed are the held-out questions: they are the same in all eight, answers sold are not. With FOLDER of
`benchmarks.redteam` nothing is trained that was trained there ("blocks shopped among 8"). Writes FOLDER/intervals.json.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.attribution import table
from benchmarks.redteam import NAMES, SHOPPED, DigitsWorld, block_constants
from benchmarks.redteam_pay import jackknife, measured
from benchmarks.redteam_world import DigitsKit
from openledger.attribution.coalitions import Design
from openledger.core.files import write_json_durably
from openledger.core.values import ContributorScores

Array = npt.NDArray[np.float64]
NORMAL_90 = 1.645
EVERY = 5  # of the held-out questions, answer by answer: each is a fit of its own


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--first", type=int, default=200, metavar="SEED", help="the first seed (200)")
    parser.add_argument("--seeds", type=int, default=8, metavar="N", help="how many seeds (8)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, dict[str, float]] = {}
    for coalitions in (16, 32):
        seeds = range(options.first, options.first + options.seeds)
        worlds = [bank_scores(DigitsWorld(options.folder, DigitsKit(), seed), coalitions) for seed in seeds]
        for part in ("sum", "sum, others without the index", "per answer"):
            covered = [world[part] for world in worlds]
            figure = jackknife(covered, lambda some: float(np.mean(np.concatenate([own.ravel() for own in some]))))
            found[f"{coalitions} coalitions, {part}"] = {
                "stated": 0.9,
                "found": figure.value,
                "its error over seeds": figure.error,
                "pairs": float(sum(own.size for own in covered)),
            }
    write_json_durably(options.folder / "intervals.json", found)
    print(table("contributors' intervals, banks of blocks", found))
    return 0


def bank_scores(world: DigitsWorld, coalitions: int) -> dict[str, npt.NDArray[np.bool_]]:
    """Whether each bank's interval covers what the others say: [banks, contributors], and for each answer."""
    sums, alone, answers = [], [], []
    for number in range(SHOPPED):
        observed = world.observe(world.rows, world.num_coalitions, block_constants(world, number))
        kept = Design(groups=observed.groups, members_MG=observed.members_MG[:coalitions])
        observed = replace(observed, members_MG=kept.members_MG, outcomes_MQ=observed.outcomes_MQ[:coalitions])
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
