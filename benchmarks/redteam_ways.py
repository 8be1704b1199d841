"""Other ways of paying in the red team's worlds: what each would bring an attacker, and what it costs honest ones.

    python -m benchmarks.redteam_ways FOLDER index                         digits, seeds 200 to 207
    python -m benchmarks.redteam_ways FOLDER index --world language --first 100 --seeds 1
    python -m benchmarks.redteam_ways FOLDER falsehoods --first 300 --seeds 6
    python -m benchmarks.redteam_ways FOLDER early --report                only what has been measured so far

FOLDER is `benchmarks.redteam`'s: trainings that are there are used, others are made and kept. Resumable. Parts:

    index        adapters without a bank: the index alone, with decoys, as `period.Measurement` pays without a design
    falsehoods   use pay held against improvement: by contributor, block or row, or less of it
    early        who is paid where a row repeats another's: the earlier, both, or nobody
    division     how a block that several share is divided, by the same bank
    mates        the same, and who lies in it: banks that are trained anew, a minute a seed
    orders       constants shopped for by the owner, undefended too, and how honest pay differs between them

Payers are the columns, attacks the rows; "honest" is the part of the pool that is paid where nobody attacks. "shares/4"
is the house with its bank. Nothing of this is in force.

**The index alone.** Rows are chosen as the factory does: a tenth of the version's rows, drawn from everybody in
proportion, are decoys and not trained on (in language what the quotas leave out). Views are those of the first half of
the run, as in `instruments.index_views`. Mends of it, S_i being a row's influence on the sum and m the median of |S_i|:

    bounded      S_i counts between -m and m, decoys too
    own errors   SE_c^2 = a^2 * sum of S_i^2 over c's rows, in place of n_c sigma_0^2
    blocks       rows are dealt into blocks as for a bank; each gets an equal part of its block's sum
    divided      the same, and inside a block as a bank divides it: max(-m, min(m, S_i)), and an equal part of the rest

Shapes: R rows (decoys too where the index stands alone), Q questions, G blocks.
"""

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from benchmarks import language_task
from benchmarks import redteam as house
from benchmarks import redteam_attacks as attacks
from benchmarks.redteam import DIGITS, INSIDER, LANGUAGE, Attack, DigitsWorld, LanguageWorld, World
from benchmarks.redteam_pay import (
    NAIVE,
    PARAMETERS,
    Pay,
    Record,
    Scores,
    jackknife,
    measured,
    naive_pay,
    shipped_pay,
)
from benchmarks.redteam_world import (
    Constants,
    DigitsKit,
    LanguageKit,
    Observed,
    admitted,
    full_weights,
    repeats_of,
    without_restated,
)
from openledger.adapters.base_model import find_base_model
from openledger.attribution.bank import plan_bank
from openledger.attribution.coalitions import Design, deal_blocks
from openledger.attribution.index import METHOD, IndexEntry, build_index
from openledger.attribution.index_folder import View
from openledger.attribution.instruments import first_half
from openledger.attribution.likeness import Repeat
from openledger.attribution.period import BankRows, Measurement, ceiling_pair, contributor_scores
from openledger.core.files import write_json_durably
from openledger.core.hashing import digest_json
from openledger.core.money import NANO_PER_OPEN
from openledger.core.shares import WHOLE_PPB, shares_ppb
from openledger.core.values import UNATTRIBUTED, ContributorScores, Row
from openledger.factory.selection import choose_rows
from openledger.training.members import Member, Weights
from openledger.training.recipe import generator

Array = npt.NDArray[np.float64]
NANO = 10**9
MOST_BLOCKS = 16


# the index alone


@dataclass(frozen=True, slots=True, kw_only=True)
class Indexed:
    """A run by its index: `entries` are the trained rows, then decoys of the version, then `num_strangers` rows that
    are in no version. Questions are the answers sold, then the held-out ones."""

    entries: tuple[IndexEntry, ...]
    scores_RQ: Array
    gains_Q: Array
    num_sold: int
    wrong_Q: npt.NDArray[np.bool_]
    num_strangers: int = 0
    repeats: tuple[Repeat, ...] = ()

    def with_decoys(self, *, strangers: bool) -> "Indexed":
        """With decoys of the version alone, or with strangers alone."""
        last = len(self.entries) - self.num_strangers
        kept = [n for n, e in enumerate(self.entries) if e.trained or (n >= last) == strangers]
        return replace(
            self, entries=tuple(self.entries[n] for n in kept), scores_RQ=self.scores_RQ[kept], num_strangers=0
        )

    def first_sold(self, number: int) -> "Indexed":
        kept = [*range(number), *range(self.num_sold, len(self.gains_Q))]
        return replace(
            self,
            num_sold=number,
            scores_RQ=self.scores_RQ[:, kept],
            gains_Q=self.gains_Q[kept],
            wrong_Q=self.wrong_Q[kept],
        )


def indexed(
    kit: Any,
    folder: Path,
    trained: Sequence[Any],
    decoys: Sequence[Any],
    strangers: Sequence[Any],
    asked: tuple[Sequence[Any], Sequence[Any], Sequence[Any]],
    constants: Constants,
) -> Indexed:
    """Train on `trained`, and score it and the decoys at the first half of the run's epochs. `asked` are questions,
    answers sold as they are, and held-out ones."""
    parts = [[repr(value) for value in values] for values in (trained, decoys, strangers, *asked)]
    key = digest_json([kit.identity, parts, constants.initial, constants.order, METHOD])
    path = folder / "ways" / f"{kit.name}-{key}.npz"
    if not path.exists():
        found = _indexed(kit, trained, decoys, strangers, asked, constants)
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=path.parent) as temporary:
            np.savez(
                Path(temporary) / "new.npz",
                entries=np.array(json.dumps([asdict(entry) for entry in found.entries])),
                scores=found.scores_RQ,
                gains=found.gains_Q,
                wrong=found.wrong_Q,
            )
            (Path(temporary) / "new.npz").replace(path)
    with np.load(path) as kept:
        return Indexed(
            entries=tuple(IndexEntry(**values) for values in json.loads(str(kept["entries"]))),
            scores_RQ=kept["scores"],
            gains_Q=kept["gains"],
            wrong_Q=kept["wrong"],
            num_sold=len(asked[0]) + len(asked[1]),
            num_strangers=len(strangers),
        )


def _indexed(
    kit: Any,
    trained: Sequence[Any],
    decoys: Sequence[Any],
    strangers: Sequence[Any],
    asked: tuple[Sequence[Any], Sequence[Any], Sequence[Any]],
    constants: Constants,
) -> Indexed:
    examples, epochs = kit.encode(trained), dict[int, Weights]()

    def keep(epoch: int, weights: list[Weights]) -> None:
        epochs[epoch] = {name: value.detach().clone() for name, value in weights[0].items()}

    everything = tuple(range(len(examples)))
    runs = kit.runs(examples)
    (full,) = runs.train([Member(name="run", rows=everything, initial=constants.initial, order=constants.order)], keep)
    wanted, bought, held_out = (kit.encode(values) for values in asked)
    answers = kit.sold(full, wanted)
    questions = [*answers, *bought, *held_out]
    before, after = runs.score([kit.start(constants.initial), full], questions)
    views = [View(name=f"epoch-{number}", weights=weights) for number, weights in first_half(epochs).items()]
    module = kit.module(full)
    with TemporaryDirectory(prefix="redteam-ways-") as temporary:
        others = kit.encode([*decoys, *strangers])
        index = build_index(module, examples, others, Path(temporary) / "index", "ways", task=kit.task, views=views)
        scores_RQ = np.asarray(
            index.score(index.query_vectors(module, questions, views=views, task=kit.task)), dtype=np.float64
        )
        entries = tuple(index.entries)
    wrong = [given != asker for given, asker in zip(answers, wanted, strict=True)]
    return Indexed(
        entries=entries,
        scores_RQ=scores_RQ,
        gains_Q=np.asarray(after - before, dtype=np.float64),
        wrong_Q=np.array([*wrong, *[False] * (len(bought) + len(held_out))]),
        num_sold=len(answers) + len(bought),
    )


def chosen(rows: Sequence[Any], max_rows: int, lot: str) -> tuple[list[Any], list[Any]]:
    """(rows trained on, decoys) of a version, as the factory chooses them; held-out rows are the world's own."""
    as_rows = [
        Row(
            row_id=row.row_id, datanet="d", contributor_id=row.contributor_id, contribution_id="", ordinal=0, source="",
            prompt="", completion="",
        )
        for row in rows
    ]  # fmt: skip
    found = choose_rows(as_rows, max_rows, lot, max_held_out=0)
    trained, decoys = ({row.row_id for row in part} for part in (found.trained, found.decoys))
    return [row for row in rows if row.row_id in trained], [row for row in rows if row.row_id in decoys]


def index_pays(found: Indexed, fees: Array, constant: str) -> dict[str, Pay]:
    """By the index alone, and by each mend of it."""
    own = found.with_decoys(strangers=False)
    plain = index_scores(own, fees)
    paid = {
        "index": shipped_pay(plain),
        "index, z = 1": shipped_pay(plain, 1000),
        "index, z = 2": shipped_pay(plain, 2000),
        "bounded": shipped_pay(index_scores(own, fees, bounded)),
        "own errors": shipped_pay(index_scores(own, fees, own_errors=True)),
        "bounded, own errors": shipped_pay(index_scores(own, fees, bounded, own_errors=True)),
        "blocks": shipped_pay(index_scores(own, fees, in_blocks(own.entries, constant, divided=False))),
        "divided": shipped_pay(index_scores(own, fees, in_blocks(own.entries, constant, divided=True))),
    }
    if found.num_strangers:
        paid["strangers as decoys"] = shipped_pay(index_scores(found.with_decoys(strangers=True), fees))
    return paid


def index_scores(found: Indexed, fees: Array, mend: "Mend | None" = None, *, own_errors: bool = False) -> Scores:
    weights_nano = tuple(round(fee * NANO_PER_OPEN) for fee in fees.tolist())
    measurement = Measurement(
        adapter="adapter",
        period="period",
        entries=found.entries,
        scores=found.scores_RQ.astype(np.float32),
        weights_nano=weights_nano,
        gains=tuple(found.gains_Q.tolist()),
        fees_nano=(NANO_PER_OPEN,) * found.num_sold,
        repeats=found.repeats,
    )
    pair = ceiling_pair(measurement.owed, (NANO_PER_OPEN,) * found.num_sold)
    sold, held_out = slice(0, found.num_sold), slice(found.num_sold, None)
    counted = np.array(measurement.counted_nano) / NANO_PER_OPEN
    ones = np.ones(len(found.gains_Q) - found.num_sold)
    use = _mended(found, sold, counted, mend, own_errors)
    return Scores(use=replace(use, ceilings=(pair,)), improvement=_mended(found, held_out, ones, mend, own_errors))


Mend = Callable[[Array, npt.NDArray[np.bool_]], Array]


def _mended(found: Indexed, part: slice, fees: Array, mend: Mend | None, own_errors: bool) -> ContributorScores:
    """`period.contributor_scores` of rows' influence on the weighted sum, after the mend."""
    influence_R = found.scores_RQ[:, part] @ fees
    trained_R = np.array([entry.trained for entry in found.entries])
    if mend is not None:
        influence_R = mend(influence_R, trained_R)
    gain = float(found.gains_Q[part] @ fees)
    scores = contributor_scores(
        "adapter",
        "period",
        found.entries,
        influence_R[:, None].astype(np.float32),
        (NANO_PER_OPEN,),
        (gain,),
        repeats={repeat.row_id for repeat in found.repeats},
    )
    if not own_errors:
        return scores
    squares: defaultdict[str, float] = defaultdict(float)
    for entry, value in zip(found.entries, influence_R.tolist(), strict=True):
        squares[entry.contributor_id] += value**2 * entry.trained
    factor = float(scores.quality["calibration_factor"])
    errors = {name: round(factor * squares[name] ** 0.5 * NANO) for name in scores.errors_nano}
    return replace(scores, errors_nano=errors)


def bounded(influence_R: Array, trained_R: npt.NDArray[np.bool_]) -> Array:
    most = float(np.median(np.abs(influence_R[trained_R])))
    return np.clip(influence_R, -most, most)


def in_blocks(entries: Sequence[IndexEntry], constant: str, *, divided: bool) -> Mend:
    rows = [(entry.row_id, entry.contributor_id) for entry in entries if entry.trained]
    blocks = deal_blocks(rows, max(8, min(MOST_BLOCKS, len(rows) // 8)), constant)
    number_of = {row_id: number for number, block in enumerate(blocks) for row_id in block}
    group_R = np.array([number_of[row_id] for row_id, _ in rows])

    def mend(influence_R: Array, trained_R: npt.NDArray[np.bool_]) -> Array:
        own_R = influence_R[trained_R]
        found = influence_R.copy()
        found[trained_R] = redivided(own_R, block_sums(own_R, group_R), group_R, 1.0 if divided else 0.0)
        return found

    return mend


def redivided(influence_R: Array, sum_G: Array, group_R: npt.NDArray[np.int64], most: float) -> Array:
    """Each row its influence up to `most` times the median size, and an equal part of what its block's sum lacks."""
    bound = most * float(np.median(np.abs(influence_R)))
    own_R = np.clip(influence_R, -bound, bound)
    lacking_G = (sum_G - block_sums(own_R, group_R)) / np.bincount(group_R)
    return np.asarray(own_R + lacking_G[group_R])


def block_sums(influence_R: Array, group_R: npt.NDArray[np.int64]) -> Array:
    return np.asarray(np.bincount(group_R, influence_R), dtype=np.float64)


# with a bank


@dataclass(frozen=True, slots=True, kw_only=True)
class Banked:
    """A run with its bank, and both parts' scores of the period."""

    observed: Observed
    measurement: Measurement
    scores: Scores

    @classmethod
    def of(cls, observed: Observed, fees: Array) -> "Banked":
        return cls._scored(observed, measured(observed, fees, slice(None)))

    def with_fees(self, fees: Array) -> "Banked":
        """The same bank; its ratios don't depend on fees."""
        weights_nano = tuple(round(fee * NANO_PER_OPEN) for fee in fees.tolist())
        return self._scored(self.observed, replace(self.measurement, weights_nano=weights_nano))

    @classmethod
    def _scored(cls, observed: Observed, measurement: Measurement) -> "Banked":
        improvement = measurement.improvement()
        assert improvement is not None
        scores = Scores(use=measurement.use(), improvement=improvement)
        return cls(observed=observed, measurement=measurement, scores=scores)

    def rows(self, part: str) -> BankRows:
        found = self.measurement.use_rows() if part == "use" else self.measurement.improvement_rows()
        assert found is not None
        return found

    def index_sums(self, part: str) -> Array:
        """Each row's influence on the weighted sum of the part, by the index."""
        sold = self.observed.num_sold
        if part == "improvement":
            return np.asarray(self.observed.index_RQ[:, sold:].sum(axis=1))
        return self.observed.index_RQ[:, :sold] @ (np.array(self.measurement.counted_nano) / NANO_PER_OPEN)

    def repeated(self) -> npt.NDArray[np.bool_]:
        repeats = {repeat.row_id for repeat in self.measurement.repeats}
        return np.array([entry.row_id in repeats for entry in self.measurement.entries])

    def sums(self, influence_R: Array) -> dict[str, int]:
        """Contributors' sums over rows, in billionths."""
        found: defaultdict[str, float] = defaultdict(float)
        for entry, value in zip(self.measurement.entries, influence_R.tolist(), strict=True):
            found[entry.contributor_id] += value
        return {name: round(value * NANO) for name, value in sorted(found.items())}

    def unpaid(self, influence_R: Array, part_R: Array) -> dict[str, int]:
        """U_c where `part_R` of each row's influence isn't paid."""
        return {name: nano for name, nano in self.sums(influence_R * part_R).items() if nano > 0}


def falsehood_pays(bank: Banked) -> dict[str, Pay]:
    rows, scores = bank.rows("improvement"), bank.scores
    block_G = block_sums(rows.influence_R, rows.group_R)
    gated = {
        "block, k = 1/2": (block_G < -0.5 * rows.error_G)[rows.group_R],
        "block, k = 0": (block_G < 0)[rows.group_R],
        "row, by the bank": rows.influence_R < 0,
        "row, by the index": bank.index_sums("improvement") < 0,
    }
    paid = {"shares/4": shipped_pay(scores), "contributor, k = 1/2": shipped_pay(_use_gated(scores))}
    paid |= {name: shipped_pay(_use_unpaid(bank, without_R)) for name, without_R in gated.items()}
    use, improvement = (_ppb_pay(part) for part in (scores.use, scores.improvement))
    for part in (50, 30):
        paid[f"{part} : {100 - part}"] = _mixed(use, improvement, part / 100)
    for times in (1, 2, 3):
        capped = {name: min(value, times * improvement[name]) for name, value in use.items() if name != UNATTRIBUTED}
        capped[UNATTRIBUTED] = 1 - sum(capped.values())
        paid[f"use up to {times} times"] = _mixed(capped, improvement, PARAMETERS.pool_split["use"] / 1e6)
    return paid | {"use alone": use, "improvement alone": improvement}


def _use_gated(scores: Scores, k: float = 0.5) -> Scores:
    """Nothing of use for whose influence on the held-out rows is below -k SE."""
    helped, errors = scores.improvement.scores_nano, scores.improvement.errors_nano
    unpaid = {
        name: score for name, score in scores.use.scores_nano.items() if score > 0 and helped[name] < -k * errors[name]
    }
    return replace(scores, use=replace(scores.use, unpaid_nano={**scores.use.unpaid_nano, **unpaid}))


def _use_unpaid(bank: Banked, without_R: npt.NDArray[np.bool_]) -> Scores:
    """What such rows moved of use is unpaid, beside the rows that repeat others."""
    unpaid = bank.unpaid(bank.rows("use").influence_R, (without_R | bank.repeated()).astype(float))
    return replace(bank.scores, use=replace(bank.scores.use, unpaid_nano=unpaid))


def _ppb_pay(part: ContributorScores) -> Pay:
    found = shares_ppb(
        part.scores_nano,
        part.errors_nano,
        part.gain_nano,
        PARAMETERS.z_milli,
        ceilings=part.ceilings,
        unpaid_nano=part.unpaid_nano,
    )
    return {name: value / WHOLE_PPB for name, value in found.items()}


def _mixed(use: Pay, improvement: Pay, part: float) -> Pay:
    return {name: part * use[name] + (1 - part) * improvement[name] for name in use}


def early_pays(bank: Banked) -> dict[str, Pay]:
    """Rows that repeat another contributor's: `shares/4` pays the earlier. Rows that repeat their own contributor's are
    unpaid by each of these."""
    groups = alike(bank.measurement.entries, bank.measurement.repeats)
    return {
        "shares/4": shipped_pay(bank.scores),
        "each a part of his own": shipped_pay(_parted(bank, groups, "own")),
        "the sum, evenly": shipped_pay(_parted(bank, groups, "sum")),
        "neither": shipped_pay(_parted(bank, groups, "none")),
    }


def alike(entries: Sequence[IndexEntry], repeats: Iterable[Repeat]) -> list[tuple[int, ...]]:
    """Numbers of the rows that repeat one another across contributors, the first of each contributor's alone; further
    ones of his are in no group, and unpaid by `parts_of`."""
    number_of = {entry.row_id: number for number, entry in enumerate(entries)}
    groups: dict[str, dict[str, int]] = {}
    first_of: dict[str, str] = {}
    for repeat in sorted(repeats, key=lambda repeat: number_of[repeat.earlier]):
        first = first_of.get(repeat.earlier, repeat.earlier)
        first_of[repeat.row_id] = first
        own = groups.setdefault(first, {entries[number_of[first]].contributor_id: number_of[first]})
        own.setdefault(entries[number_of[repeat.row_id]].contributor_id, number_of[repeat.row_id])
    return [tuple(own.values()) for own in groups.values() if len(own) > 1]


def _parted(bank: Banked, groups: Sequence[tuple[int, ...]], way: str) -> Scores:
    part_R = bank.repeated().astype(float)
    for group in groups:
        part_R[list(group)] = {"own": 1 - 1 / len(group), "sum": 0.0, "none": 1.0}[way]

    def part(of: ContributorScores, name: str) -> ContributorScores:
        influence_R = bank.rows(name).influence_R.copy()
        for group in groups if way == "sum" else ():
            influence_R[list(group)] = influence_R[list(group)].mean()
        return replace(of, scores_nano=bank.sums(influence_R), unpaid_nano=bank.unpaid(influence_R, part_R))

    return Scores(use=part(bank.scores.use, "use"), improvement=part(bank.scores.improvement, "improvement"))


def division_pays(bank: Banked) -> dict[str, Pay]:
    """The same bank, with shared blocks divided otherwise: the bound on a row, in medians; 0 is evenly."""

    def part(of: ContributorScores, name: str, most: float) -> ContributorScores:
        rows, prior_R = bank.rows(name), float(of.quality["index_scale"]) * bank.index_sums(name)
        influence_R = redivided(prior_R, block_sums(rows.influence_R, rows.group_R), rows.group_R, most)
        unpaid = bank.unpaid(influence_R, bank.repeated().astype(float))
        return replace(of, scores_nano=bank.sums(influence_R), unpaid_nano=unpaid)

    paid = {"shares/4": shipped_pay(bank.scores)}
    for title, most in (("evenly", 0.0), ("bound 1/2", 0.5), ("bound 2", 2.0), ("no bound", 1e9)):
        use, improvement = part(bank.scores.use, "use", most), part(bank.scores.improvement, "improvement", most)
        paid[title] = shipped_pay(Scores(use=use, improvement=improvement))
    return paid


# worlds


class WaysDigits(DigitsWorld):
    """The red team's digits, paid in the ways of one part."""

    part = "falsehoods"

    def payments(self, rows: Sequence[Any]) -> dict[str, Pay]:
        key = digest_json([repr(row) for row in rows])
        if key not in self._paid:
            self._paid[key] = PAYERS[self.part](self, rows)
        return self._paid[key]

    def defended(self, observed: Observed) -> dict[str, Pay]:
        return {"shares/4": shipped_pay(Banked.of(observed, fees_of(self, observed)).scores)}

    def version(self, rows: Sequence[Any]) -> list[Any]:
        return self.defended_rows(rows)

    def strangers(self) -> list[Any]:
        """Images that are in nobody's rows, and not asked for, with their true labels."""
        from sklearn.datasets import load_digits

        data = load_digits()
        taken = {row.pixels for row in (*self.rows, *self.pool, *self.sold, *self.held_out)}
        drawn = generator(f"ways-{self.seed}", "strangers").permutation(len(data.target)).tolist()
        images = [(n, tuple((data.data[n] / 16).tolist()), int(data.target[n])) for n in drawn]
        free = [(n, pixels, label) for n, pixels, label in images if pixels not in taken]
        return [replace(self.sold[0], row_id=f"s-{n}", pixels=pixels, label=label) for n, pixels, label in free[:64]]


class WaysLanguage(LanguageWorld):
    """The red team's language, paid in the ways of one part."""

    part = "index"
    payments, defended = WaysDigits.payments, WaysDigits.defended

    def version(self, rows: Sequence[Any]) -> list[Any]:
        kept = admitted(rows, self.weights)[1]
        return without_restated(kept, self.weights) if self.stricter else kept

    def strangers(self) -> list[Any]:
        return []


def index_of(world: Any, rows: Sequence[Any], bought: Sequence[Any] = ()) -> Indexed:
    most = house.MAX_ROWS if isinstance(world, LanguageWorld) else 10**6
    trained, decoys = chosen(world.version(rows), most, f"redteam-{world.seed}")
    trained = house._attackers_last(trained)
    credit = {row.row_id: place for place, row in enumerate(rows)}
    found = indexed(
        world.kit,
        world.folder,
        trained,
        decoys,
        world.strangers(),
        (world.sold, bought, world.held_out),
        world.constants,
    )
    repeats = repeats_of(world.kit, world.folder, trained, world.constants, credit)
    return replace(found, repeats=repeats.listed()[1])


def _index_payers(world: Any, rows: Sequence[Any]) -> dict[str, Pay]:
    """All of them, and the undefended ones on the whole of what was sent, which attacks ask for by name."""
    undefended = world.observe(rows, 0)
    found = index_of(world, rows, world.bought).first_sold(len(world.sold))
    naive = {kind: naive_pay(undefended, kind) for kind in NAIVE}
    return naive | index_pays(found, fees_of(world, found), world.constants.order)


def fees_of(world: World, found: Indexed | Observed, told: float = house.COMPLAINTS) -> Array:
    """1 OPEN an answer, and 0 for a wrong one that somebody told of."""
    tells = generator(f"complaints-{world.seed}", "tells").random(found.num_sold) < told
    return np.where(found.wrong_Q[: found.num_sold] & tells, 0.0, 1.0)


def _falsehood_payers(world: Any, rows: Sequence[Any]) -> dict[str, Pay]:
    """Where half of wrong answers are told of, and where none is."""
    bank = bank_of(world, rows)
    untold = bank.with_fees(fees_of(world, bank.observed, 0.0))
    found = falsehood_pays(bank) | division_pays(bank)
    return found | {f"{name}; nobody tells": pay for name, pay in falsehood_pays(untold).items()}


def _mates_payers(world: Any, rows: Sequence[Any]) -> dict[str, Pay]:
    """Ways of dividing blocks, and banks whose shared blocks are laid in another order."""
    bank, order = bank_of(world, rows), world.constants.order
    fees, number = fees_of(world, bank.observed), world.num_coalitions
    laid = {title: laid_anew(world, rows, bank.observed, number, lay, order) for title, lay in LAID.items()}
    found = division_pays(bank) | {title: shipped_pay(Banked.of(other, fees).scores) for title, other in laid.items()}
    halves = [
        shipped_pay(Banked.of(laid_anew(world, rows, bank.observed, number // 2, by_hash, constant), fees).scores)
        for constant in (order, digest_json([order, "second"]))
    ]
    found["by a hash, two banks of half the size"] = {n: sum(pay[n] for pay in halves) / 2 for n in halves[0]}
    return found


def bank_of(world: Any, rows: Sequence[Any]) -> Banked:
    observed = world.observe(world.defended_rows(rows), world.num_coalitions)
    return Banked.of(observed, fees_of(world, observed))


Lay = Callable[[str, Sequence[str]], Any]


def by_hash(constant: str, own: Sequence[str]) -> Any:
    return digest_json([constant, "laid", list(own)])


def by_rows(constant: str, own: Sequence[str]) -> Any:
    return len(own), by_hash(constant, own)


LAID: dict[str, Lay] = {"by a hash": by_hash, "fewest rows first": by_rows}


def laid_blocks(
    rows: Sequence[tuple[str, str]], num_blocks: int, constant: str, lay: Lay
) -> tuple[tuple[str, ...], ...]:
    """`deal_blocks`, with what is left of everybody's rows laid end to end in the order of `lay`."""
    dealt, whose = deal_blocks(rows, num_blocks, constant), dict(rows)
    whole = [block for block in dealt if len({whose[row] for row in block}) == 1]
    shared = [block for block in dealt if len({whose[row] for row in block}) > 1]
    left: defaultdict[str, list[str]] = defaultdict(list)
    for row in (row for block in shared for row in block):
        left[whose[row]].append(row)
    rest = [row for own in sorted(left.values(), key=lambda own: lay(constant, own)) for row in own]
    for block in shared:
        whole.append(tuple(rest[: len(block)]))
        rest = rest[len(block) :]
    return tuple(whole)


def laid_anew(
    world: Any, rows: Sequence[Any], observed: Observed, num_coalitions: int, lay: Lay, constant: str
) -> Observed:
    """The same run with a bank of its own, by the public `constant`, whose shared blocks are laid by `lay`."""
    trained = house._attackers_last(world.defended_rows(rows))
    constants = Constants(initial=world.constants.initial, order=constant)
    plan = plan_bank(constants, world.kit.encode(trained), num_coalitions=num_coalitions, num_twins=0)
    pairs = [(row.row_id, row.contributor_id) for row in trained]
    groups = laid_blocks(pairs, len(plan.design.groups), constant, lay)
    design = Design(groups=groups, members_MG=plan.design.members_MG)
    group_R = design.numbers(pairs)
    members = [
        replace(member, rows=tuple(np.flatnonzero(present_G[group_R]).tolist()))
        for member, present_G in zip(plan.coalitions, design.members_MG, strict=True)
    ]
    runs = world.kit.runs(world.kit.encode(trained))
    full = full_weights(world.kit, trained, world.constants)
    questions = [*world.kit.sold(full, world.sold), *world.held_out]
    outcomes_MQ = np.asarray(runs.score(runs.train(members), questions))
    return replace(observed, groups=design.groups, members_MG=design.members_MG, outcomes_MQ=outcomes_MQ)


def _order_payers(world: Any, rows: Sequence[Any]) -> dict[str, Pay]:
    undefended = world.observe(rows, 0)
    return {kind: naive_pay(undefended, kind) for kind in NAIVE} | {
        "shares/4": shipped_pay(bank_of(world, rows).scores)
    }


PAYERS: dict[str, Callable[[Any, Sequence[Any]], dict[str, Pay]]] = {
    "index": _index_payers,
    "falsehoods": _falsehood_payers,
    "early": lambda world, rows: early_pays(bank_of(world, rows)),
    "division": lambda world, rows: division_pays(bank_of(world, rows)),
    "mates": _mates_payers,
    "orders": _order_payers,
}


# attacks that the red team has not, or not by these payers

NAMED: dict[str, Attack] = {}
ORDERS: dict[str, Attack] = {}


@house.on(NAMED, "confident falsehoods, each under a name of its own")
def falsehoods_named(world: Any) -> Record:
    images, told = _false_images(world)
    rows = attacks.falsehoods(images, INSIDER, told)
    found = world.record([*world.but(), *attacks.sybils(rows, INSIDER, len(rows))], INSIDER)
    per_row = len(world.own()) / len(images)
    return replace(found, attacker={payer: per_row * pay for payer, pay in found.attacker.items()})


@house.on(NAMED, "confident falsehoods under a second name, beside own rows")
def falsehoods_beside(world: Any) -> Record:
    images, told = _false_images(world)
    rows = attacks.falsehoods(images, f"{INSIDER}.false", told)
    return world.record([*world.rows, *rows], INSIDER)


def _false_images(world: Any) -> tuple[list[Any], int]:
    digit = world.seed % 10
    images = [row for row in world.pool if row.label == digit][: len(world.own())]
    return images, (digit + 5) % 10


@house.on(ORDERS, "blocks shopped among 8, nobody else gives a nonce")
def blocks_shopped(world: Any) -> Record:
    """Undefended there are no blocks: the owner chooses the order of training."""
    tried = [_at_order(world, number) for number in range(house.SHOPPED)]
    best = {payer: max((pays[payer] for pays in tried), key=lambda pay: pay[INSIDER]) for payer in tried[0]}
    return house._shop_record(best, tried[0])


for _name in house.DIGITS:
    if _name.startswith("seed shopping"):
        ORDERS[_name] = house.DIGITS[_name]


def _other_order(number: int) -> Attack:
    """No attack: what an honest insider is paid by another order, and so other blocks and coalitions."""

    def run(world: Any) -> Record:
        return house._shop_record(_at_order(world, number), _at_order(world, 0))

    return run


for _number in range(1, house.SHOPPED):
    ORDERS[f"no attack, other blocks ({_number})"] = _other_order(_number)


def _at_order(world: Any, number: int) -> dict[str, Pay]:
    kept = f"order-{number}"
    if kept not in world._paid:
        constants, rows = house.block_constants(world, number), world.defended_rows(world.rows)
        naive = world.observe(world.rows, 0, constants)
        defended = world.defended(world.observe(rows, world.num_coalitions, constants))
        world._paid[kept] = {kind: naive_pay(naive, kind) for kind in NAIVE} | defended
    found: dict[str, Pay] = world._paid[kept]
    return found


# running and printing


def _only(table: Mapping[str, Attack], *words: str) -> dict[str, Attack]:
    return {name: attack for name, attack in table.items() if any(word in name for word in words)}


def _but(table: Mapping[str, Attack], *words: str) -> dict[str, Attack]:
    return {name: attack for name, attack in table.items() if not any(word in name for word in words)}


PARTS: dict[str, dict[str, dict[str, Attack]]] = {
    "index": {"digits": _but(DIGITS, "shop", "16 names"), "language": _but(LANGUAGE, "self-querying")},
    "falsehoods": {"digits": _only(DIGITS, "falsehood") | NAMED | _only(DIGITS, "flipping", "split good")},
    "early": {"digits": _only(DIGITS, "copy")},
    "division": {"digits": _only(DIGITS, "block-mates")},
    "mates": {"digits": _only(DIGITS, "block-mates")},
    "orders": {"digits": ORDERS},
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("part", choices=tuple(PARTS))
    parser.add_argument("--world", choices=("digits", "language"), help="only this world (the part's first)")
    parser.add_argument("--first", type=int, metavar="SEED", help="the first seed (digits 200, language 100)")
    parser.add_argument("--seeds", type=int, metavar="N", help="how many seeds (digits 8, language 3)")
    parser.add_argument("--attack", action="append", metavar="NAME", help="only this one; may be given several times")
    parser.add_argument("--report", action="store_true", help="only print what has been measured so far")
    options = parser.parse_args()
    torch.set_num_threads(1)
    kind = options.world or next(iter(PARTS[options.part]))
    if kind not in PARTS[options.part]:
        parser.error(f"{options.part} is not measured in {kind}")
    played = {n: attack for n, attack in PARTS[options.part][kind].items() if n in (options.attack or (n,))}
    first = {"digits": 200, "language": 100}[kind] if options.first is None else options.first
    seeds = range(first, first + (options.seeds or {"digits": 8, "language": 3}[kind]))
    worlds = [_world(options.folder, kind, seed, options.part) for seed in seeds]
    records: dict[str, list[Record]] = {}
    honest: list[dict[str, Pay]] = []
    for world in worlds:
        for name, attack in played.items():
            path = options.folder / "ways-records" / options.part / f"{kind}-{_file(name)}-{world.seed}.json"
            if not path.exists() and not options.report:
                write_json_durably(path, asdict(attack(world)))
                print(f"{kind}, seed {world.seed}: {name}", file=sys.stderr, flush=True)
            if path.exists():
                records.setdefault(name, []).append(Record(**json.loads(path.read_text())))
        path = options.folder / "ways-records" / options.part / f"honest-{kind}-{world.seed}.json"
        if not path.exists() and not options.report:
            write_json_durably(path, world.payments(world.rows))
        if path.exists():
            honest.append(json.loads(path.read_text()))
    print(table(records, honest))
    return 0


def _world(folder: Path, kind: str, seed: int, part: str) -> Any:
    if kind == "digits":
        world: WaysDigits | WaysLanguage = WaysDigits(folder, DigitsKit(), seed)
    else:
        base = find_base_model(str(language_task.make_base(folder / "base")))
        world = WaysLanguage(folder, LanguageKit(base), seed)
    world.part = part
    return world


def _file(name: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in name)


def table(records: Mapping[str, Sequence[Record]], honest: Sequence[Mapping[str, Pay]] = ()) -> str:
    """Returns; under each, where there is one, the insider's change and the rival's."""
    payers = list(dict.fromkeys(payer for own in records.values() for payer in own[0].attacker))
    lines = [f"| attack | seeds | {' | '.join(payers)} |", "|" + " --- |" * (len(payers) + 2)]
    for name, own in records.items():
        figures = house.figures_of(own)
        lines.append(_line(name, len(own), [house._cell(figures["roi"].get(payer)) for payer in payers]))
        for which in ("change", "rival"):
            cells = [house._cell(figures[which].get(payer), percent=True) for payer in payers]
            if any(cells):
                lines.append(_line(f"{name}: {which}", len(own), cells))
    for title, measure in (("honest: paid of the pool", _paid_part), ("honest: moved against shares/4", _moved)):
        if honest:
            found = [
                jackknife([measure(pays, p) for pays in honest], lambda some: float(np.mean(some)))
                if p in honest[0] and p not in NAIVE and (measure is _paid_part or "shares/4" in honest[0])
                else None
                for p in payers
            ]
            lines.append(_line(title, len(honest), [house._cell(asdict(f), percent=True) if f else "" for f in found]))
    return "\n".join(lines)


def _line(name: str, num_seeds: int, cells: Sequence[str]) -> str:
    return f"| {name} | {num_seeds} | {' | '.join(cells)} |"


def _paid_part(pays: Mapping[str, Pay], payer: str) -> float:
    return 1 - pays[payer][UNATTRIBUTED]


def _moved(pays: Mapping[str, Pay], payer: str) -> float:
    """What part of the pool honest contributors are paid less of than by `shares/4`, each for himself."""
    base = pays["shares/4"]
    return sum(max(0.0, base[name] - pays[payer].get(name, 0.0)) for name in base if name != UNATTRIBUTED)


if __name__ == "__main__":
    sys.exit(main())
