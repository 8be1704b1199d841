"""How much of a pool is paid where contributors are many and nobody attacks: the digits.

    python -m benchmarks.pool_sizes FOLDER [--first 500] [--seeds 2]       some five minutes of one core; resumable

8, 16, 24 and 40 contributors of thirty rows each, a bank of 32 coalitions of blocks, 60 answers sold and 40 held out. A
share is over D = max(G, sum of influences): G is what the adapter gained over nothing, an influence what is lost by
taking rows from about half of all. Where more rows add less, influences sum to less than G, and the rest of the pool is
nobody's. Each column of a part is in parts of its G:

    sum I        the influences of all contributors
    slope        the same by retraining: twice what three quarters of the rows bring more than a quarter of them
    z            what z takes
    repeats      what rows that repeat others moved

"Without G" is what would be paid if D were the sum of influences alone. Writes FOLDER/pool_sizes.json.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from benchmarks import digits_task
from benchmarks.attribution import table
from benchmarks.redteam import DigitsWorld
from benchmarks.redteam_pay import PARAMETERS, Scores, period_scores, shipped_pay
from benchmarks.redteam_world import DigitsKit, Observed
from openledger.core.files import write_json_durably
from openledger.core.shares import ceiling_nano
from openledger.core.values import UNATTRIBUTED, ContributorScores

SIZES = (8, 16, 24, 40)
COALITIONS = 32
NUM_SOLD = 60

Weights = npt.NDArray[np.float64] | float


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--first", type=int, default=500, metavar="SEED", help="the first seed (500)")
    parser.add_argument("--seeds", type=int, default=2, metavar="N", help="how many seeds (2)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, dict[str, float]] = {}
    for size in SIZES:
        for seed in range(options.first, options.first + options.seeds):
            found[f"{size} contributors, seed {seed}"] = figures(world_of(options.folder, seed, size))
    write_json_durably(options.folder / "pool_sizes.json", found)
    print(table("parts of the pool", found))
    return 0


def world_of(folder: Path, seed: int, size: int) -> DigitsWorld:
    world = DigitsWorld(folder, DigitsKit(), seed)
    rows, questions = digits_task.make_examples(size, f"redteam-big-{seed}", ())
    world.rows = sorted((replace(row, contributor_id=f"h{row.contributor_id}") for row in rows), key=_contributor)
    world.sold, world.held_out = questions[:NUM_SOLD], questions[NUM_SOLD:]
    return world


def figures(world: DigitsWorld) -> dict[str, float]:
    observed = world.observe(world.rows, COALITIONS)
    fees = world.fees(observed)
    scores = period_scores(observed, fees)
    parts: tuple[tuple[str, ContributorScores, slice, Weights], ...] = (
        ("use", scores.use, slice(0, observed.num_sold), fees),
        ("improvement", scores.improvement, slice(observed.num_sold, None), 1.0),
    )
    result = {"paid": _paid(scores), "without G": _paid(_ungained(scores))}
    for name, own, columns, weights in parts:
        whole = max(own.gain_nano, ceiling_nano(own.ceilings))
        error = float(sum(float(value) ** 2 for value in own.errors_nano.values())) ** 0.5
        result |= {
            f"{name}: sum I": sum(own.scores_nano.values()) / whole,
            f"{name}: slope": slope(observed, columns, weights) * 1e9 / whole,
            f"{name}: z": PARAMETERS.z_milli / 1000 * error / whole,
            f"{name}: repeats": sum(own.unpaid_nano.values()) / whole,
        }
    return result


def slope(observed: Observed, columns: slice, weights: Weights) -> float:
    """Twice what coalitions of more than five eighths of the blocks have over those of less than three eighths."""
    outcomes_M = (observed.outcomes_MQ[:, columns] * weights).sum(axis=1)
    there_M = observed.members_MG.mean(axis=1)
    return 2 * float(outcomes_M[there_M > 5 / 8].mean() - outcomes_M[there_M < 3 / 8].mean())


def _paid(scores: Scores) -> float:
    return 1 - shipped_pay(scores)[UNATTRIBUTED]


def _ungained(scores: Scores) -> Scores:
    def own(part: ContributorScores) -> ContributorScores:
        return replace(part, gain_nano=0, ceilings=())

    return Scores(use=own(scores.use), improvement=own(scores.improvement))


def _contributor(row: digits_task.Digit) -> str:
    return row.contributor_id


if __name__ == "__main__":
    sys.exit(main())
