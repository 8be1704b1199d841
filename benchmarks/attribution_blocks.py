"""Banks of blocks of rows, which settlements pay by, on both tasks: what their design and their fit change.

    python -m benchmarks.attribution_blocks FOLDER [--task digits|language] [--banks 4] [--contributors 8|12]

Twelve contributors, LDS over 40 unseen halves, two orders each; eight contributors, Spearman with the exact Banzhaf
and Shapley values of all 256 coalitions. Trainings that no bank saw are those of `attribution_digits` or
`attribution_truth`, found in FOLDER or made there. Each figure is the mean over banks of as many public constants for
the order (the initial weights are the same), with its standard error. Digits: four banks, some 900 small trainings.
Language: one bank by default, some 450 trainings. Resumable. Prints the tables and writes FOLDER/blocks.json.
"""

import argparse
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from benchmarks import attribution_digits as digits
from benchmarks import attribution_truth as truth
from benchmarks import digits_task as task
from benchmarks.attribution import (
    Figures,
    Halves,
    Study,
    block_members,
    contributor_halves,
    exact_game,
    exact_index,
    index_scores,
    table,
)
from openledger.attribution.bank import Bank
from openledger.attribution.coalitions import Design, design
from openledger.attribution.estimate import contributor_sums, corrected_rows, group_sums
from openledger.attribution.evaluation import spearman
from openledger.attribution.expected import fit_expected
from openledger.attribution.index import View, build_index
from openledger.attribution.instruments import first_half
from openledger.core.files import write_json_durably
from openledger.core.hashing import digest_json
from openledger.training.members import Member, Weights

Array = npt.NDArray[np.float64]
Scores = tuple[Array, Array]  # of the contributors, for each answer [C, Q] and for their sum [C, 1]
Ratios = dict[str, float]
Judge = Callable[[Array, Array], Figures]  # of the contributors' scores for each answer and for their sum
Sizes = Mapping[int, Sequence[int]]  # numbers of blocks, by coalitions; the default is there named first
ENDS = 8  # ends of coalitions that are views
HALVES, EXACT = "twelve contributors, LDS over unseen halves", "eight contributors, exact values"


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """How scores follow from a bank's outcomes. `index` says at which views the prior is taken, "" for none; `bound`
    how many medians of all rows' scores a row counts inside its block; `players` what the bank is fitted to; `ratios`
    from which answers those of the sum and of each answer come; with `added` the sum is that of the answers' scores."""

    index: str = "run"
    bound: float = 1.0
    players: Literal["blocks", "rows"] = "blocks"
    ratios: Literal["all answers", "the sum's own", "each answer's"] = "all answers"
    added: bool = False


SETTLED = Way()
WAYS = {
    "as settled": SETTLED,
    "the sum's own ratios": Way(ratios="the sum's own"),
    "each answer's own ratios": Way(ratios="each answer's"),
    "answers' scores added up": Way(added=True),
    "without the index": Way(index=""),
    "index of all epochs": Way(index="epochs"),
    "index of the run and of eight coalitions' ends": Way(index="ends"),
    "index of the run and its twins": Way(index="twins"),
    "rows bounded by twice the median": Way(bound=2.0),
    "rows not bounded": Way(bound=np.inf),
    "rows as players": Way(players="rows"),
    "rows as players, not bounded": Way(players="rows", bound=np.inf),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """A task: its rows, its runs and a truth that no bank saw. `outcomes` trains what is missing; `index` gives the
    scores of rows [R, Q] at the views that a `Way` names, of a bank's members where it asks for their ends."""

    rows: Sequence[tuple[str, str]]
    numbers: Sequence[int]
    initial: str
    sizes: Sizes
    outcomes: Callable[[Sequence[Member]], Array]
    index: Callable[[str, tuple[Member, ...]], Array]
    figures: Judge
    has_twins: bool = False

    @property
    def names(self) -> list[str]:
        return sorted({name for _, name in self.rows})

    def bank(self, num_coalitions: int, num_blocks: int, constant: str, part: slice = slice(None)) -> "Banked":
        """The coalitions `part` of a bank, trained and asked."""
        whole = design(self.rows, num_coalitions, constant, num_blocks)
        drawn, group_R = replace(whole, members_MG=whole.members_MG[part]), whole.numbers(self.rows)
        members = tuple(block_members(drawn, group_R, self.initial, constant, self.numbers))
        present_MR = drawn.members_MG[:, group_R]
        outcomes_MQ = self.outcomes(members)
        return Banked(drawn=drawn, group_R=group_R, present_MR=present_MR, outcomes_MQ=outcomes_MQ, members=members)


@dataclass(frozen=True, slots=True, kw_only=True)
class Banked:
    """A bank that is trained and asked: which rows each member had, [M, R], and what each answer is worth there."""

    drawn: Design
    group_R: npt.NDArray[np.int64]
    present_MR: npt.NDArray[np.bool_]
    outcomes_MQ: Array
    members: tuple[Member, ...]

    def beside(self, other: "Banked") -> "Banked":
        """Coalitions of two partitions of the same rows; only rows can be the players of both."""
        return replace(
            self,
            present_MR=np.concatenate([self.present_MR, other.present_MR]),
            outcomes_MQ=np.concatenate([self.outcomes_MQ, other.outcomes_MQ]),
            members=(*self.members, *other.members),
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--task", choices=("digits", "language"), default="digits")
    parser.add_argument("--banks", type=int, metavar="N", help="of as many constants (default: digits 4, language 1)")
    parser.add_argument("--contributors", type=int, choices=(8, 12), help="only exact values (8), or halves (12)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.task == "digits":
        worlds = digits_worlds(options.folder)
        constants = [digest_json([digits.CONSTANTS.order, "blocks", number]) for number in range(options.banks or 4)]
    else:
        study = Study(options.folder)
        worlds, first = language_worlds(study), study.record.order
        constants = [first, *(digest_json([first, "blocks", number]) for number in range(1, options.banks or 1))]
    chosen = [name for name, number in ((HALVES, 12), (EXACT, 8)) if options.contributors in (None, number)]
    results = {name: spread(scored(worlds[name], one) for one in constants) for name in chosen}
    write_json_durably(options.folder / "blocks.json", results)
    for name, value in results.items():
        print(table(name, value))
    return 0


def scored(world: World, constant: str) -> dict[str, Figures]:
    """Every way on the banks of one constant."""
    found: dict[str, Figures] = {}
    for number, sizes in world.sizes.items():
        for num_blocks in sizes:
            bank = world.bank(number, num_blocks, constant)
            for name, way in (WAYS if num_blocks == sizes[0] else {"as settled": SETTLED}).items():
                if way.index != "twins" or world.has_twins:
                    label = f"{number} coalitions of {num_blocks} blocks, {name}"
                    found[label] = world.figures(*contributor_scores(world, bank, way))
        partitions = (constant, digest_json([constant, "another partition"]))
        one, other = (world.bank(number, sizes[0], own, slice(0, number // 2)) for own in partitions)
        label = f"{number} coalitions of {sizes[0]} blocks, two partitions, rows as players"
        found[label] = world.figures(*contributor_scores(world, one.beside(other), WAYS["rows as players"]))
    return found


def contributor_scores(world: World, bank: Banked, way: Way) -> Scores:
    shape = (len(world.rows), bank.outcomes_MQ.shape[1])
    index_RQ = world.index(way.index, bank.members) if way.index else np.zeros(shape)
    each_RQ, total_R1 = row_scores(bank, index_RQ, way)
    who = [name for _, name in world.rows]
    each = contributor_sums(each_RQ, who, world.names)
    return each, each.sum(axis=1, keepdims=True) if way.added else contributor_sums(total_R1, who, world.names)


def row_scores(bank: Banked, index_RQ: Array, way: Way) -> Scores:
    """The rows' scores for each answer, [R, Q], and for their sum, [R, 1]."""
    players = row_players if way.players == "rows" else block_players
    sums = (bank.outcomes_MQ.sum(axis=1, keepdims=True), index_RQ.sum(axis=1, keepdims=True))
    if way.ratios == "each answer's":
        columns = [slice(number, number + 1) for number in range(index_RQ.shape[1])]
        alone = [players(bank, bank.outcomes_MQ[:, one], index_RQ[:, one], way, None)[0] for one in columns]
        return np.concatenate(alone, axis=1), players(bank, *sums, way, None)[0]
    each, ratios = players(bank, bank.outcomes_MQ, index_RQ, way, None)
    return each, players(bank, *sums, way, ratios if way.ratios == "all answers" else None)[0]


def block_players(
    bank: Banked, outcomes_MQ: Array, index_RQ: Array, way: Way, ratios: Ratios | None
) -> tuple[Array, Ratios]:
    """As settlements do it (`period.py`): blocks are the bank's players, and rows of a block are told apart by the
    index within bounds."""
    prior_GQ = group_sums(index_RQ, bank.group_R, len(bank.drawn.groups))
    expected, _ = fit_expected(bank.drawn.members_MG, outcomes_MQ, prior_GQ, ratios=ratios)
    own, even = bounded(index_RQ, way), np.ones_like(index_RQ)
    return corrected_rows(own, even, bank.group_R, expected.mean_GQ, expected.prior_scale), expected.ratios


def row_players(
    bank: Banked, outcomes_MQ: Array, index_RQ: Array, way: Way, ratios: Ratios | None
) -> tuple[Array, Ratios]:
    """Rows are the bank's players, and coalitions may be of any rows: those that are always together share what the
    bank says of them by their prior variances."""
    expected, _ = fit_expected(bank.present_MR, outcomes_MQ, bounded(index_RQ, way), ratios=ratios)
    return expected.mean_GQ, expected.ratios


def bounded(index_RQ: Array, way: Way) -> Array:
    most = way.bound * np.median(np.abs(index_RQ), axis=0) if np.isfinite(way.bound) else np.inf
    return np.clip(index_RQ, -most, most)


def digits_worlds(folder: Path) -> dict[str, World]:
    examples, queries, outcomes_NQ, members = digits.unseen_halves(folder)
    true = Halves(outcomes_NQ[0::2], outcomes_NQ[1::2], members)
    eight, asked, exact = digits.exact_truth(folder)
    return {
        HALVES: _digits_world(folder, examples, queries, 12, true.figures),
        EXACT: _digits_world(folder, eight, asked, 8, partial(exact_figures, exact)),
    }


def _digits_world(
    folder: Path, examples: Sequence[task.Digit], queries: Sequence[task.Digit], size: int, figures: Judge
) -> World:
    bank = Bank(folder / f"blocks{size}", digest_json([task.SEED, size]), task.make_runs(examples))
    everything = tuple(range(len(examples)))
    full = Member(name="full", rows=everything, initial=digits.CONSTANTS.initial, order=digits.CONSTANTS.order,
                  keeps_epochs=True)  # fmt: skip

    def outcomes(members: Sequence[Member]) -> Array:
        bank.train(members)
        return bank.score(members, queries)

    @cache
    def index(name: str, members: tuple[Member, ...]) -> Array:
        bank.train([full])
        views = chosen_views(name, bank.epochs(full), members, bank.weights)
        module = task.make_module(digits.CONSTANTS.initial)
        with TemporaryDirectory() as temporary:
            built = build_index(module, examples, (), Path(temporary) / "index", "full", views=views, task=task.TASK)
            return built.score(built.query_vectors(module, queries, views=views, task=task.TASK)).astype(np.float64)

    return World(
        rows=[(example.row_id, example.contributor_id) for example in examples],
        numbers=everything, initial=digits.CONSTANTS.initial,
        sizes={32: (16, 8, 24), 64: (32, 8, 16)}, outcomes=outcomes, index=index, figures=figures,
    )  # fmt: skip


def language_worlds(study: Study) -> dict[str, World]:
    exact, eight = exact_game(study), truth.exact_rows(study.examples)

    def index(name: str, members: Sequence[Member]) -> Array:
        if name == "twins":
            return index_scores(study)
        views = chosen_views(name, study.subject.checkpoints(), members, study.bank.weights)
        return np.mean([study.view(view) for view in views], axis=0)

    def few_index(name: str, members: Sequence[Member]) -> Array:
        return exact_index(study, lambda epochs: chosen_views(name, epochs, members, study.truth.weights))

    return {
        HALVES: World(
            rows=study.rows, numbers=range(len(study.rows)), initial=study.record.initial,
            sizes={32: (16, 24), 64: (32, 24, 16)}, outcomes=partial(study.outcomes, study.bank), index=index,
            figures=contributor_halves(study).figures, has_twins=True,
        ),
        EXACT: World(
            rows=[study.rows[row] for row in eight], numbers=eight, initial=study.record.initial,
            sizes={32: (16, 8), 64: (20, 8)}, outcomes=partial(study.outcomes, study.truth), index=few_index,
            figures=partial(exact_figures, exact),
        ),
    }  # fmt: skip


def chosen_views(
    name: str, epochs: Mapping[int, Weights], members: Sequence[Member], weights: Callable[..., list[Weights]]
) -> list[View]:
    """Those that a `Way` names, of a run with `epochs` and a bank with `members`."""
    of_run = epochs if name == "epochs" else first_half(epochs)
    found = [View(name=f"epoch-{number}", weights=own) for number, own in of_run.items()]
    if name == "ends":
        some = members[:ENDS]
        ends = zip(some, weights(some), strict=True)
        found += [View(name=digest_json([one.name, list(one.rows), one.order])[:16], weights=own) for one, own in ends]
    return found


def exact_figures(exact: Mapping[str, Array], each_CQ: Array, total_C1: Array) -> Figures:
    return {
        f"{kind}, {what}": float(spearman(mine, true).mean())
        for kind, values in exact.items()
        for what, mine, true in (
            ("per answer", each_CQ, values),
            ("sum", total_C1, values.sum(axis=1, keepdims=True)),
        )
    }


def spread(found: Iterable[dict[str, Figures]]) -> dict[str, Figures]:
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
