"""What happens in a red team's world: rows are taken or not, trained on, and answers sold, by the house's own modules.

A world's rows come in the order of training; `credit` has their places in the order of contribution. What `observe`
measures of them (a run, an index, a bank of coalitions) is kept under FOLDER by the digest of all that decides it, so
that worlds which train on the same rows are trained once, and a killed benchmark goes on.
Shapes: M coalitions, G groups, R rows, Q questions (the answers sold, then the held-out ones).
"""

import io
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from benchmarks import digits_task
from openledger.adapters.base_model import BaseModel, load_model, load_tokenizer
from openledger.attribution import likeness, likeness_3
from openledger.attribution.bank import Bank, plan_bank
from openledger.attribution.bank_folder import BANK_FORMAT
from openledger.attribution.index import METHOD, build_index
from openledger.attribution.likeness import Repeat, Repeats
from openledger.attribution.records import encode_record
from openledger.core.files import write_durably, write_json_durably
from openledger.core.hashing import digest_json
from openledger.core.values import Row, RowDraft
from openledger.datanets.clusters import ClusterRow, WordWeights, cluster_rows, row_words
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
    row_ids: tuple[str, ...]
    num_sold: int
    wrong_Q: npt.NDArray[np.bool_]
    groups: tuple[tuple[str, ...], ...]
    members_MG: npt.NDArray[np.bool_]
    outcomes_MQ: Array
    gains_Q: Array
    index_RQ: Array
    repeats: Repeats | None = None


def observe(
    kit: Any,
    folder: Path,
    rows: Sequence[Any],
    sold: Sequence[Any],
    held_out: Sequence[Any],
    constants: Constants,
    num_coalitions: int,
    credit: Mapping[str, int],
    extra: Sequence[Any] = (),
) -> Observed:
    """Train on `rows` (all), sell answers to `sold`, and measure; `extra` are sold answers taken as they are. `credit`
    is each row's place in the order of contribution."""
    found = _trained(kit, folder, rows, sold, held_out, constants, num_coalitions, extra)
    return replace(found, repeats=repeats_of(kit, folder, rows, constants, credit)) if num_coalitions else found


def repeats_of(kit: Any, folder: Path, rows: Sequence[Any], constants: Constants, credit: Mapping[str, int]) -> Repeats:
    given = [kit.identity, [repr(row) for row in rows], constants.initial, constants.order]
    key = digest_json([*given, sorted(credit, key=credit.__getitem__), _constants_of(likeness_3)])
    path = folder / "repeats" / f"{kit.name}-{key[:24]}.json"
    if not path.exists():
        module = kit.module(kit.start(constants.initial))
        found = likeness.find_repeats(module, kit.encode(rows), kit.task, credit=credit, salt=constants.order)
        write_json_durably(path, asdict(found))
    kept = json.loads(path.read_text())
    lists = {name: tuple(Repeat(**values) for values in kept[name]) for name in ("own", "anybodys_2", "anybodys")}
    return Repeats(**lists)


def _constants_of(rule: Any) -> dict[str, Any]:
    """All that a rule of likeness is published with."""
    return {name: value for name, value in sorted(vars(rule).items()) if name.isupper()}


def _trained(
    kit: Any,
    folder: Path,
    rows: Sequence[Any],
    sold: Sequence[Any],
    held_out: Sequence[Any],
    constants: Constants,
    num_coalitions: int,
    extra: Sequence[Any],
) -> Observed:
    parts = [[repr(value) for value in values] for values in (rows, sold, held_out, extra)]
    players = BANK_FORMAT if num_coalitions else ""
    given = [kit.identity, parts, constants.initial, constants.order]
    key = digest_json([*given, num_coalitions, players, METHOD])[:24]
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
        row_ids=tuple(example.row_id for example in examples),
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


def without_restated(
    rows: Sequence[ClusterRow], weights: WordWeights, question: float = 0.6, answer: float = 0.3
) -> list[ClusterRow]:
    """A stricter rule for one's own rows, which is not in the house: a later one goes where most of the shorter
    question stands in the other's, and the answers share some of their weight."""
    kept: list[ClusterRow] = []
    for row in sorted(rows, key=lambda row: row.order):
        own = [other for other in kept if other.contributor_id == row.contributor_id]
        if not any(_restates(other, row, weights, question, answer) for other in own):
            kept.append(row)
    return kept


def _restates(one: ClusterRow, other: ClusterRow, weights: WordWeights, question: float, answer: float) -> bool:
    asked, told = (
        (row_words(a), row_words(b)) for a, b in ((one.prompt, other.prompt), (one.completion, other.completion))
    )
    shorter = min(weights.total(asked[0]), weights.total(asked[1]))
    return weights.total(asked[0] & asked[1]) >= question * shorter and weights.total(
        told[0] & told[1]
    ) >= answer * weights.total(told[0] | told[1])


def selected(rows: Sequence[ClusterRow], max_rows: int, lot: str) -> list[ClusterRow]:
    """What the factory's selection trains on of a version with `rows`."""
    as_rows = [
        Row(
            row_id=row.row_id, datanet="d", contributor_id=row.contributor_id, contribution_id="", ordinal=0, source="",
            prompt=row.prompt, completion=row.completion,
        )
        for row in rows
    ]  # fmt: skip
    chosen = {row.row_id for row in choose_rows(as_rows, max_rows, lot, max_decoys=0, max_held_out=0).trained}
    return [row for row in rows if row.row_id in chosen]


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
    kept = {"who": found.who, "row_ids": found.row_ids, "groups": found.groups, "num_sold": found.num_sold}
    texts = json.dumps(kept)
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
            row_ids=tuple(texts["row_ids"]),
            num_sold=texts["num_sold"],
            wrong_Q=kept["wrong"],
            groups=tuple(tuple(group) for group in texts["groups"]),
            members_MG=kept["members"],
            outcomes_MQ=kept["outcomes"],
            gains_Q=kept["gains"],
            index_RQ=kept["index"],
        )
