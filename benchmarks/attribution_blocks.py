"""Banks of blocks of rows, which settlements pay by, on the digits: what their design and their fit change.

    python -m benchmarks.attribution_blocks FOLDER [--banks 4]      resumable; some 900 small trainings

Twelve contributors, LDS over 40 unseen halves, two orders each; eight contributors, Spearman with the exact Banzhaf
and Shapley values of all 256 coalitions. Trainings that no bank saw are those of `attribution_digits`, found in FOLDER
or made there. Each figure is the mean over banks of as many public constants for the order (the initial weights are the
same), with its standard error. Prints the tables and writes FOLDER/blocks.json.
"""

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from benchmarks import attribution_digits as digits
from benchmarks import digits_task as task
from benchmarks.attribution import Figures, Halves, table
from openledger.attribution.bank import Bank
from openledger.attribution.coalitions import Design, design
from openledger.attribution.estimate import contributor_sums, corrected_rows, group_sums
from openledger.attribution.evaluation import spearman
from openledger.attribution.expected import fit_expected
from openledger.core.files import write_json_durably
from openledger.core.hashing import digest_json
from openledger.training.members import Member

Array = npt.NDArray[np.float64]
BLOCKS = {32: (8, 16, 24), 64: (8, 16, 32)}  # by coalitions; half as many are the default
WAYS = ("as settled", "the sum's own ratios", "answers' scores added up", "without the index", "rows not bounded")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--banks", type=int, default=4, metavar="N", help="of as many constants (default 4)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    constants = [digest_json([digits.CONSTANTS.order, "blocks", number]) for number in range(options.banks)]
    results = {
        "twelve contributors, LDS over unseen halves": _spread(_halves(options.folder, one) for one in constants),
        "eight contributors, exact values": _spread(_exact(options.folder, one) for one in constants),
    }
    write_json_durably(options.folder / "blocks.json", results)
    for name, value in results.items():
        print(table(name, value))
    return 0


def _halves(folder: Path, constant: str) -> dict[str, Figures]:
    examples, queries, outcomes_NQ, members = digits.unseen_halves(folder)
    true = Halves(outcomes_NQ[0::2], outcomes_NQ[1::2], members)
    return {
        label: true.figures(each, total) for label, (each, total) in _scores(folder, constant, examples, queries, 12)
    }


def _exact(folder: Path, constant: str) -> dict[str, Figures]:
    examples, queries, exact = digits.exact_truth(folder)
    found = {}
    for label, (each, total) in _scores(folder, constant, examples, queries, 8):
        found[label] = {
            f"{kind}, {what}": float(spearman(mine, true).mean())
            for kind, values in exact.items()
            for what, mine, true in (("per answer", each, values), ("sum", total, values.sum(axis=1, keepdims=True)))
        }
    return found


def _scores(
    folder: Path, constant: str, examples: Sequence[task.Digit], queries: Sequence[task.Digit], size: int
) -> list[tuple[str, tuple[Array, Array]]]:
    """Each way's scores of the contributors, for each answer [C, Q] and for their sum [C, 1]."""
    rows = [(example.row_id, example.contributor_id) for example in examples]
    bank = Bank(folder / f"blocks{size}", digest_json([task.SEED, size]), task.make_runs(examples))
    index_RQ = digits.index_scores(Bank(folder / f"bank{size}", digest_json([task.SEED, size]),
                                        task.make_runs(examples)), examples, queries)  # fmt: skip
    found = []
    for number, sizes in BLOCKS.items():
        for num_blocks in sizes:
            drawn = design(rows, number, constant, num_blocks)
            members = _members(drawn, rows, constant)
            bank.train(members)
            outcomes_MQ = bank.score(members, queries)
            default = num_blocks == number // 2
            for way in WAYS if default else WAYS[:1]:
                label = f"{number} coalitions of {num_blocks} blocks, {way}"
                found.append((label, _divided(drawn, outcomes_MQ, index_RQ, rows, way)))
    return found


def _members(drawn: Design, rows: Sequence[tuple[str, str]], constant: str) -> list[Member]:
    group_R = drawn.numbers(rows)
    return [
        Member(
            name=f"blocks-{len(drawn.groups)}-{number:03}",
            rows=tuple(np.flatnonzero(present_G[group_R]).tolist()),
            initial=digits.CONSTANTS.initial,
            order=digest_json([constant, len(drawn.groups), number]),
        )
        for number, present_G in enumerate(drawn.members_MG)
    ]


def _divided(
    drawn: Design, outcomes_MQ: Array, index_RQ: Array, rows: Sequence[tuple[str, str]], way: str
) -> tuple[Array, Array]:
    group_R = drawn.numbers(rows)
    prior_GQ = None if way == "without the index" else group_sums(index_RQ, group_R, len(drawn.groups))
    each, _ = fit_expected(drawn.members_MG, outcomes_MQ, prior_GQ)
    total, _ = fit_expected(
        drawn.members_MG,
        outcomes_MQ.sum(axis=1, keepdims=True),
        None if prior_GQ is None else prior_GQ.sum(axis=1, keepdims=True),
        ratios=None if way == "the sum's own ratios" else each.ratios,
    )
    found = []
    for index, expected in ((index_RQ, each), (index_RQ.sum(axis=1, keepdims=True), total)):
        most = np.full(index.shape[1], np.inf) if way == "rows not bounded" else np.median(np.abs(index), axis=0)
        scale = 0.0 if prior_GQ is None else expected.prior_scale
        divided = corrected_rows(np.clip(index, -most, most), np.ones_like(index), group_R, expected.mean_GQ, scale)
        found.append(contributor_sums(divided, [name for _, name in rows], sorted({name for _, name in rows})))
    if way == "answers' scores added up":
        return found[0], found[0].sum(axis=1, keepdims=True)
    return found[0], found[1]


def _spread(found: Iterable[dict[str, Figures]]) -> dict[str, Figures]:
    """Mean and standard error of each figure over banks."""
    runs = list(found)
    result: dict[str, Figures] = {}
    for label, figures in runs[0].items():
        result[label] = {}
        for name in figures:
            values = np.array([run[label][name] for run in runs])
            error = float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")
            result[label] |= {name: float(values.mean()), f"{name}, ±": error}
    return result


if __name__ == "__main__":
    sys.exit(main())
