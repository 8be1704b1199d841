"""The worlds of the red team: rows are trained on, answers sold, scores taken, a pool paid. The house's own modules.

A world's rows come in the order of contribution. What `observe` measures of them (a run, an index, a bank of
coalitions) is kept under FOLDER by the digest of all that decides it, so that worlds which train on the same rows are
trained once, and a killed benchmark goes on.

**Paid as shipped**: a pool of 1 for the period, 0.7 by influence on the answers sold and 0.3 by influence on held-out
answers, each by `bank_scores` (expected influence, with the index as prior) and `shares_ppb` with z = 1.

**Paid naively** (what the literature attacks): one run, one index (EK-FAC at the run's end), answers sold alone, all of
the pool paid out, each answer's fee divided by itself:

    absolute   in proportion to |score| of each row                      clipped    to max(0, score) of each row
    rank       evenly over the tenth of the rows with the largest |score| (the metric of arXiv 2409.05657)
    sums       in proportion to max(0, a contributor's signed sum over rows and answers)

Shapes: M coalitions, G groups, R rows, Q questions (the answers sold, then the held-out ones).
"""

import io
import json
import math
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from benchmarks import digits_task
from openledger.adapters.base_model import BaseModel, load_model, load_tokenizer
from openledger.attribution.bank import Bank, plan_bank
from openledger.attribution.coalitions import Design
from openledger.attribution.index import IndexEntry, build_index
from openledger.attribution.period import bank_scores
from openledger.attribution.records import encode_record
from openledger.core.files import write_durably
from openledger.core.hashing import digest_json
from openledger.core.money import NANO_PER_OPEN
from openledger.core.shares import WHOLE_PPB, shares_ppb
from openledger.core.values import UNATTRIBUTED, ContributorScores, Row, RowDraft
from openledger.datanets.clusters import ClusterRow, WordWeights, cluster_rows
from openledger.datanets.dedupe import DuplicateIndex
from openledger.datanets.gate import judge
from openledger.factory.selection import choose_rows
from openledger.training.examples import Example
from openledger.training.lora import attach_lora
from openledger.training.members import Member, Weights
from openledger.training.packed import Pack, PackedRuns, initial_weights
from openledger.training.recipe import Recipe
from openledger.training.task import LANGUAGE, trainable_parameters

Array = npt.NDArray[np.float64]
Pay = dict[str, float]

USE, IMPROVEMENT = 0.7, 0.3
Z_MILLI = 1000


@dataclass(frozen=True, slots=True)
class Constants:
    initial: str
    order: str


class LanguageKit:
    """Adapters of the language task's small Llama. Rows are `ClusterRow`s; what is sold is what was asked for."""

    name, task, keeps_members = "language", LANGUAGE, True

    def __init__(self, base: BaseModel):
        self.base, self.recipe = base, Recipe(num_epochs=4, batch_rows=8, max_rows=10**6)
        self.identity = digest_json([base.digest, repr(self.recipe)])
        self._tokenizer = load_tokenizer(base)

    def encode(self, rows: Sequence[ClusterRow]) -> list[Example]:
        return [
            encode_record(
                self._tokenizer,
                {
                    "row_id": row.row_id,
                    "contributor": row.contributor_id,
                    "prompt": f"{row.prompt.strip()}\n",
                    "completion": f"{row.completion.strip()}\n",
                },
                row.row_id,
                self.base.max_positions,
            )
            for row in rows
        ]

    def runs(self, examples: Sequence[Example]) -> PackedRuns:
        return PackedRuns(base=self.base, examples=examples, recipe=self.recipe, pack_members=8)

    def start(self, initial: str) -> Weights:
        return initial_weights(Pack(self.base, self.recipe, 1), initial)

    def module(self, weights: Weights) -> Any:
        return _with_weights(attach_lora(load_model(self.base), self.recipe, ""), weights).eval()

    def sold(self, weights: Weights, questions: Sequence[Example]) -> list[Example]:
        return list(questions)


class DigitsKit:
    """The digits task's classifier. What is sold is the label that the model gives."""

    name, task, keeps_members = "digits", digits_task.TASK, False

    def __init__(self) -> None:
        self.recipe = digits_task.RECIPE
        self.identity = digest_json(["digits", digits_task.HIDDEN, repr(self.recipe)])

    def encode(self, rows: Sequence[digits_task.Digit]) -> list[digits_task.Digit]:
        return list(rows)

    def runs(self, examples: Sequence[digits_task.Digit]) -> Any:
        return digits_task.make_runs(examples)

    def start(self, initial: str) -> Weights:
        parameters = trainable_parameters(digits_task.make_module(initial))
        return {name: parameter.detach().clone() for name, parameter in parameters.items()}

    def module(self, weights: Weights) -> Any:
        return _with_weights(digits_task.make_module(""), weights)

    def sold(self, weights: Weights, questions: Sequence[digits_task.Digit]) -> list[digits_task.Digit]:
        module = self.module(weights)
        with torch.no_grad():
            pixels_BI = torch.tensor([question.pixels for question in questions], dtype=torch.float32)
            labels = module(pixels_BI).argmax(dim=1).tolist()
        return [replace(question, label=label) for question, label in zip(questions, labels, strict=True)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """What a run says of its rows. The first `num_sold` of the questions were sold; `wrong_Q` tells which of them are
    not what the asker would call right. Without coalitions only the naive payers can pay."""

    who: tuple[str, ...]
    num_sold: int
    wrong_Q: npt.NDArray[np.bool_]
    groups: tuple[tuple[str, ...], ...]
    members_MG: npt.NDArray[np.bool_]
    outcomes_MQ: Array
    gains_Q: Array
    index_RQ: Array


def observe(
    kit: Any,
    folder: Path,
    rows: Sequence[Any],
    sold: Sequence[Any],
    held_out: Sequence[Any],
    constants: Constants,
    num_coalitions: int,
    extra: Sequence[Any] = (),
) -> Observed:
    """Train on `rows` (all), sell answers to `sold`, and measure; `extra` are sold answers taken as they are."""
    parts = [[repr(value) for value in values] for values in (rows, sold, held_out, extra)]
    key = digest_json([kit.identity, parts, constants.initial, constants.order, num_coalitions])[:24]
    path = folder / "worlds" / f"{kit.name}-{key}.npz"
    if path.exists():
        return _read(path)
    examples, asked, bought = kit.encode(rows), kit.encode(sold), kit.encode(extra)
    full = full_weights(kit, rows, constants)
    answers = kit.sold(full, asked)
    wrong = [given != wanted for given, wanted in zip(answers, asked, strict=True)]
    questions = [*answers, *bought, *kit.encode(held_out)]
    runs = kit.runs(examples)
    ends = runs.score([kit.start(constants.initial), full], questions)
    groups, members_MG, outcomes_MQ = (), np.zeros((0, 0), dtype=bool), np.zeros((0, len(questions)))
    if num_coalitions:
        plan = plan_bank(constants, examples, num_coalitions=num_coalitions, num_twins=0)
        groups, members_MG = plan.design.groups, plan.design.members_MG
        outcomes_MQ = _outcomes(kit, folder / "members" / key, runs, plan.coalitions, questions)
    found = Observed(
        who=tuple(example.contributor_id for example in examples),
        num_sold=len(answers) + len(bought),
        wrong_Q=np.array([*wrong, *[False] * (len(bought) + len(held_out))]),
        groups=groups,
        members_MG=members_MG,
        outcomes_MQ=outcomes_MQ,
        gains_Q=ends[1] - ends[0],
        index_RQ=_index(kit, full, examples, questions),
    )
    _write(path, found)
    shutil.rmtree(folder / "members" / key, ignore_errors=True)
    return found


def first_sold(observed: Observed, number: int) -> Observed:
    """As if the first `number` of the answers had been all that were sold."""
    kept = [*range(number), *range(observed.num_sold, len(observed.gains_Q))]
    return replace(
        observed,
        num_sold=number,
        wrong_Q=observed.wrong_Q[kept],
        outcomes_MQ=observed.outcomes_MQ[:, kept],
        gains_Q=observed.gains_Q[kept],
        index_RQ=observed.index_RQ[:, kept],
    )


def full_weights(kit: Any, rows: Sequence[Any], constants: Constants) -> Weights:
    """The run's parameters: what an attacker sees who may look into the deployed model."""
    examples = kit.encode(rows)
    member = Member(name="run", rows=tuple(range(len(rows))), initial=constants.initial, order=constants.order)
    return kit.runs(examples).train([member])[0]


def admitted(rows: Sequence[ClusterRow], weights: WordWeights) -> tuple[list[ClusterRow], list[ClusterRow]]:
    """(rows that the gate accepts, those of them that represent an evidence cluster), in the order of contribution."""
    ordered = sorted(rows, key=lambda row: row.order)
    drafts = [RowDraft(prompt=row.prompt, completion=row.completion, source=row.row_id) for row in ordered]
    verdicts = judge(drafts, [row.row_id for row in ordered], DuplicateIndex())
    accepted = [row for row, verdict in zip(ordered, verdicts, strict=True) if verdict.outcome == "accept"]
    chosen = cluster_rows(accepted, weights=weights)
    return accepted, [row for row in accepted if chosen[row.row_id] == row.row_id]


def selected(rows: Sequence[ClusterRow], max_rows: int, lot: str) -> list[ClusterRow]:
    """What the factory's selection trains on of a version with `rows`."""
    as_rows = [
        Row(
            row_id=row.row_id, datanet="d", contributor_id=row.contributor_id, contribution_id="", ordinal=0, source="",
            prompt=row.prompt, completion=row.completion,
        )
        for row in rows
    ]  # fmt: skip
    chosen = {row.row_id for row in choose_rows(as_rows, max_rows, lot)[0]}
    return [row for row in rows if row.row_id in chosen]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """The two parts' scores of a period."""

    use: ContributorScores
    improvement: ContributorScores


def period_scores(observed: Observed, fees: Array, *, capped: bool = False) -> Scores:
    """`fees` in OPEN for each answer sold. `capped` scales an answer's fee down where its gain is above the mean gain
    of the held-out answers, so that no answer moves more influence than its fee buys elsewhere."""
    sold, held_out = slice(0, observed.num_sold), slice(observed.num_sold, None)
    if capped:
        fees = fees * cap_factors(observed.gains_Q[sold], float(observed.gains_Q[held_out].mean()))
    even = np.full(len(observed.gains_Q) - observed.num_sold, 1.0)
    return Scores(use=_scores(observed, sold, fees), improvement=_scores(observed, held_out, even))


def cap_factors(gains_Q: Array, cap: float) -> Array:
    return np.asarray(np.minimum(1.0, max(cap, 1e-9) / np.maximum(gains_Q, 1e-9)))


def shipped_pay(scores: Scores, z_milli: int = Z_MILLI) -> Pay:
    """By the rule of shares, version 1: parts of the pool for each contributor and `unattributed`."""
    return _both(scores, lambda part: _ppb(shares_ppb(part.scores_nano, part.errors_nano, part.gain_nano, z_milli)))


def use_only_pay(scores: Scores, z_milli: int = Z_MILLI) -> Pay:
    """As shipped, were the whole pool paid by use."""
    part = scores.use
    return _ppb(shares_ppb(part.scores_nano, part.errors_nano, part.gain_nano, z_milli))


def threshold_pay(scores: Scores, z_milli: int = Z_MILLI) -> Pay:
    """Whoever is above z standard errors is paid his whole estimate."""

    def weight(score: int, error: int) -> float:
        return score if 1000 * score > z_milli * error else 0.0

    return _both(scores, lambda part: _by_weight(part, weight))


def pooled_pay(scores: Scores, z_milli: int = Z_MILLI) -> Pay:
    """The whole's uncertainty is taken from the whole, however it is divided: I_c (1 - z sqrt(sum SE^2) / sum I)."""

    def share(part: ContributorScores) -> Pay:
        total = sum(max(0, score) for score in part.scores_nano.values())
        error = math.sqrt(sum(error**2 for error in part.errors_nano.values()))
        keep = max(0.0, 1 - z_milli / 1000 * error / total) if total else 0.0
        return _by_weight(part, lambda score, _: keep * max(0, score))

    return _both(scores, share)


def staked_pay(scores: Scores, stake: float, z_milli: int = Z_MILLI) -> Pay:
    """As shipped, and a name whose influence is below minus z standard errors loses as much of its stake as another
    would have been paid for the opposite."""
    pay = shipped_pay(scores, z_milli)
    lost = _both(
        scores,
        lambda part: _by_weight(part, lambda score, error: max(0.0, -score - z_milli / 1000 * error)),
    )
    return {name: value - (min(stake, lost[name]) if name != UNATTRIBUTED else 0.0) for name, value in pay.items()}


def naive_pay(observed: Observed, kind: str, fees: Array | None = None) -> Pay:
    """`absolute`, `clipped`, `rank` or `sums`, as the module says."""
    scores_RQ = observed.index_RQ[:, : observed.num_sold]
    weights_Q = np.ones(observed.num_sold) if fees is None else fees
    if kind == "sums":
        signed: Counter[str] = Counter()
        for name, value in zip(observed.who, (scores_RQ @ weights_Q).tolist(), strict=True):
            signed[name] += value
        return _normalized({name: max(0.0, value) for name, value in signed.items()})
    magnitude = np.abs(scores_RQ)
    if kind == "clipped":
        magnitude = np.maximum(scores_RQ, 0.0)
    elif kind == "rank":
        top = max(1, len(magnitude) // 10)
        magnitude = (np.argsort(np.argsort(-magnitude, axis=0), axis=0) < top).astype(float)
    per_answer = magnitude / np.maximum(magnitude.sum(axis=0, keepdims=True), 1e-30)
    pay: Counter[str] = Counter()
    for name, value in zip(observed.who, (per_answer @ weights_Q).tolist(), strict=True):
        pay[name] += value
    return _normalized(dict(pay))


def _scores(observed: Observed, columns: slice, fees: Array) -> ContributorScores:
    entries = [
        IndexEntry(row_id=str(number), contributor_id=name, trained=True) for number, name in enumerate(observed.who)
    ]
    return bank_scores(
        "adapter",
        "period",
        Design(groups=observed.groups, members_MG=observed.members_MG),
        observed.outcomes_MQ[:, columns],
        entries,
        observed.index_RQ[:, columns].astype(np.float32),
        [round(fee * NANO_PER_OPEN) for fee in fees.tolist()],
        observed.gains_Q[columns].tolist(),
    )


def _both(scores: Scores, share: Callable[[ContributorScores], Pay]) -> Pay:
    use, improvement = share(scores.use), share(scores.improvement)
    return {name: USE * use[name] + IMPROVEMENT * improvement[name] for name in use}


def _ppb(shares: Mapping[str, int]) -> Pay:
    return {name: value / WHOLE_PPB for name, value in shares.items()}


def _by_weight(part: ContributorScores, weight: Callable[[int, int], float]) -> Pay:
    whole = max(part.gain_nano, sum(max(0, score) for score in part.scores_nano.values()))
    if whole <= 0:
        return {**dict.fromkeys(part.scores_nano, 0.0), UNATTRIBUTED: 1.0}
    pay = {name: weight(score, part.errors_nano[name]) / whole for name, score in part.scores_nano.items()}
    return {**pay, UNATTRIBUTED: 1.0 - sum(pay.values())}


def _normalized(pay: Pay) -> Pay:
    total = sum(pay.values())
    return {name: value / total if total else 0.0 for name, value in pay.items()}


def _outcomes(kit: Any, folder: Path, runs: Any, members: Sequence[Member], questions: Sequence[Any]) -> Array:
    if not kit.keeps_members:
        return np.asarray(runs.score(runs.train(members), questions))
    bank = Bank(folder, folder.name, runs)
    bank.train(members)
    return bank.score(members, questions)


def _index(kit: Any, weights: Weights, examples: Sequence[Any], questions: Sequence[Any]) -> Array:
    module = kit.module(weights)
    with TemporaryDirectory(prefix="redteam-index-") as temporary:
        index = build_index(module, examples, (), Path(temporary) / "index", "redteam", task=kit.task)
        return np.asarray(index.score(index.query_vectors(module, questions, task=kit.task)), dtype=np.float64)


def _with_weights(module: Any, weights: Weights) -> Any:
    for name, parameter in trainable_parameters(module).items():
        parameter.data.copy_(weights[name])
    return module


def _write(path: Path, found: Observed) -> None:
    stream = io.BytesIO()
    texts = json.dumps({"who": found.who, "groups": found.groups, "num_sold": found.num_sold})
    np.savez_compressed(
        stream, texts=np.array(texts), wrong=found.wrong_Q, members=found.members_MG, outcomes=found.outcomes_MQ,
        gains=found.gains_Q, index=found.index_RQ,
    )  # fmt: skip
    write_durably(path, stream.getvalue())


def _read(path: Path) -> Observed:
    with np.load(path) as kept:
        texts = json.loads(str(kept["texts"]))
        return Observed(
            who=tuple(texts["who"]),
            num_sold=texts["num_sold"],
            wrong_Q=kept["wrong"],
            groups=tuple(tuple(group) for group in texts["groups"]),
            members_MG=kept["members"],
            outcomes_MQ=kept["outcomes"],
            gains_Q=kept["gains"],
            index_RQ=kept["index"],
        )
