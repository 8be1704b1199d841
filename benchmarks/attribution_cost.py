"""What attribution costs, as ratios to the plain work it stands beside, and how it grows with the number of rows.

    python -m benchmarks.attribution_cost FOLDER
    python -m benchmarks.attribution_cost FOLDER --part query score --rounds 9
    python -m benchmarks.attribution_cost FOLDER --part flat --sizes 1000 10000 --scratch /scratch

FOLDER is that of benchmarks/attribution.py with its run and 32 coalitions of its bank; nothing in it is changed. Prints
tables and writes them to --out (JSON), by part: parts run apart are joined there.

    query    index against gradient dot over stored gradients, for each answer
    build    index of one checkpoint against a plain forward and backward pass over the same rows, as in training
    score    answers under 32 adapters of the bank, packed, against 32 plain passes over each
    replay   one settlement replay against one training
    flat     time and bytes for each row, and contributors' query time, from 10^3 to 10^5 rows of a small classifier

What is compared runs in one process on one thread, in turn, round after round. A cell is the median over rounds of CPU
time (time.process_time), a ratio the median of the rounds' ratios with their range: other load on the machine slows
both sides of a round alike. Wall time is printed beside.

Shapes: R rows, Q queries, P parameters.
"""

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from benchmarks import attribution_truth as truth
from openledger.adapters.base_model import BaseModel, load_model
from openledger.attribution.bank import run_bank
from openledger.attribution.ekfac import fit
from openledger.attribution.index import GradientIndex, build_index, gradient_vectors, row_vectors
from openledger.attribution.records import read_examples
from openledger.attribution.replay import replay
from openledger.core.files import write_json_durably
from openledger.training.examples import Example, collate, row_losses
from openledger.training.loop import train
from openledger.training.lora import attach_lora, load_lora
from openledger.training.members import Weights
from openledger.training.packed import Pack, score_members
from openledger.training.recipe import Recipe, epoch_batches
from openledger.training.record import RunRecord
from openledger.training.task import trainable_parameters

ADAPTERS, SCORED, ASKED = 32, 32, 16
REPLAY_ROWS, REPLAY_EPOCHS, REPLAY_QUERIES = 160, 3, 16
FLAT_CONTRIBUTORS, FLAT_QUERIES = 20, 32
SEED = 20261125

Figures = dict[str, str]
Table = dict[str, Figures]


@dataclass(frozen=True, slots=True)
class Spent:
    cpu_s: float
    wall_s: float


Rounds = dict[str, list[Spent]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """The language task, as it was made by benchmarks/attribution_truth.py."""

    base: BaseModel
    run: Path
    examples: Sequence[Example]
    queries: Sequence[Example]
    record: RunRecord
    rounds: int
    sizes: Sequence[int]
    scratch: Path

    def module(self) -> Any:
        return load_lora(load_model(self.base), self.run)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--part", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000, 10_000, 100_000], help="rows of the part flat")
    parser.add_argument("--scratch", type=Path, help="where indexes are written: 4 GB for the default sizes")
    parser.add_argument("--out", type=Path, default=Path("attribution_cost.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    base, examples, record = truth.make_task(options.folder)
    queries = read_examples(options.folder / "queries.jsonl", base, queries=True)
    results = json.loads(options.out.read_text()) if options.out.exists() else {}
    results["hardware"] = f"{platform.machine()}, 1 thread, torch {torch.__version__}, seed {SEED}"
    for part in options.part:
        with TemporaryDirectory(prefix="attribution-cost-", dir=options.scratch) as scratch:
            setting = Setting(
                base=base, run=options.folder / "run", examples=examples, queries=queries, record=record,
                rounds=options.rounds, sizes=options.sizes, scratch=Path(scratch),
            )  # fmt: skip
            results[part] = PARTS[part](setting)
        write_json_durably(options.out, results)
        print(printed(part, results[part]), flush=True)
    return 0


# Index against gradient dot, for each answer


def query(setting: Setting) -> Table:
    """Gradients of the rows are stored whole (fp32, and fp16 as large stores have it): one answer costs its gradient
    and a matrix-vector product. Both sides have one checkpoint."""
    module, answers = setting.module(), list(setting.queries[:ASKED])
    index = build_index(module, setting.examples, (), setting.scratch / "index", "cost")
    index.score(index.query_vectors(module, answers[:1]))
    rows_RP = torch.from_numpy(gradient_vectors(module, setting.examples))
    half_RP = rows_RP.half()
    table: Table = {}
    for size in (1, 16):
        batches = [answers[at : at + size] for at in range(0, len(answers) - size + 1, size)]
        works = {
            "gradient dot": lambda batches=batches: [rows_RP @ plain_gradients(module, own).T for own in batches],
            "gradient dot, gradients in fp16": lambda batches=batches: [
                half_RP.float() @ plain_gradients(module, own).T for own in batches
            ],
            "gradient dot, this house's gradients": lambda batches=batches: [
                rows_RP @ torch.from_numpy(gradient_vectors(module, own)).T for own in batches
            ],
            "index": lambda batches=batches: [index.score(index.query_vectors(module, own)) for own in batches],
            "index, contributors only": lambda batches=batches: [
                index.contributor_scores(index.query_vectors(module, own)) for own in batches
            ],
        }
        found = interleaved(works, setting.rounds)
        for name in works:
            number = size * len(batches)
            table[f"{name}, {size} at a time"] = against(found, name, "gradient dot", number, "answer")
    return table


def plain_gradients(module: Any, answers: Sequence[Example]) -> torch.Tensor:
    """Gradients [Q, P] as autograd gives them, a pass for each answer."""
    parameters = list(trainable_parameters(module).values())
    found = []
    for answer in answers:
        loss = row_losses(module, collate([answer])).sum()
        found.append(torch.cat([part.flatten() for part in torch.autograd.grad(loss, parameters)]))
    return torch.stack(found)


# Building against a plain pass


def build(setting: Setting) -> Table:
    """A plain pass is an epoch of training without the optimizer, in the run's batches. The index's fit takes a fixed
    number of rows, so that its part shrinks with more of them."""
    module, examples, number = setting.module(), setting.examples, len(setting.examples)
    parameters = list(trainable_parameters(module).values())
    lengths = [example.num_tokens for example in examples]
    batches = epoch_batches(lengths, setting.record.recipe, setting.record.order, 0)
    by_length = sorted(range(number), key=lambda row: lengths[row])
    grouped = [by_length[at : at + 32] for at in range(0, number, 32)]
    basis = fit(module, examples)
    made = iter(range(10**6))

    def passes(batches: Sequence[Sequence[int]]) -> None:
        for rows in batches:
            losses = row_losses(module, collate([examples[row] for row in rows]))
            torch.autograd.grad(losses.sum() / len(rows), parameters)

    works: dict[str, Callable[[], object]] = {
        "forward and backward, the run's batches": lambda: passes(batches),
        "forward and backward, rows of like length": lambda: passes(grouped),
        "index": lambda: build_index(module, examples, (), setting.scratch / f"index-{next(made)}", "cost"),
        "of it: fit of the curvature": lambda: fit(module, examples),
        "of it: row vectors": lambda: row_vectors(module, basis, examples),
    }
    found = interleaved(works, setting.rounds, warm_up=False)
    return {name: against(found, name, "forward and backward, the run's batches", number, "row") for name in works}


# Scoring under many adapters


def score(setting: Setting) -> Table:
    """A plain pass is one forward pass over one answer under one PEFT adapter that is in memory already: its putting
    together is not counted, the pack's is."""
    recipe, queries = setting.record.recipe, list(setting.queries[:SCORED])
    weights = members(setting)
    modules = [peft_module(setting, own) for own in weights]
    pack = Pack(setting.base, recipe, ADAPTERS)
    table: Table = {}
    for size in (1, len(queries)):
        own = queries[:size]
        works: dict[str, Callable[[], object]] = {
            "plain passes": lambda own=own: [plain_scores(module, own) for module in modules],
            "packed": lambda own=own: score_members(setting.base, recipe, weights, own),
            "packed, the pack being there": lambda own=own: kept_scores(pack, weights, own),
        }
        found = interleaved(works, setting.rounds)
        for name in works:
            table[f"{name}, {size} answers"] = against(found, name, "plain passes", size * ADAPTERS, "pass")
    return table


def members(setting: Setting) -> list[Weights]:
    plan = truth.bank_plan(setting.record, setting.examples)
    bank = run_bank(setting.run / "bank", setting.record, setting.base, setting.examples)
    return bank.weights(plan.coalitions[:ADAPTERS])


def peft_module(setting: Setting, weights: Weights) -> Any:
    module = attach_lora(load_model(setting.base), setting.record.recipe, "cost").eval()
    for name, parameter in trainable_parameters(module).items():
        parameter.data.copy_(weights[name])
    return module


@torch.no_grad()  # type: ignore[untyped-decorator]
def plain_scores(module: Any, queries: Sequence[Example]) -> torch.Tensor:
    return torch.cat([-row_losses(module, collate([answer])) for answer in queries])


def kept_scores(pack: Pack, weights: Sequence[Weights], queries: Sequence[Example]) -> torch.Tensor:
    pack.load(weights)
    return torch.stack([pack.token_log_likelihoods(answer).mean(dim=1) for answer in queries], dim=1)


# Replay against training


def settlement(setting: Setting) -> Table:
    recipe = Recipe(**{**setting.record.recipe.to_dict(), "num_epochs": REPLAY_EPOCHS})
    examples, order = setting.examples[:REPLAY_ROWS], setting.record.order
    target = [(answer, 1.0) for answer in setting.queries[:REPLAY_QUERIES]]

    def module() -> Any:
        return attach_lora(load_model(setting.base), recipe, setting.record.initial)

    trained, replayed = [[module() for _ in range(setting.rounds)] for _ in range(2)]
    works: dict[str, Callable[[], object]] = {
        "training": lambda: train(trained.pop(), examples, recipe, order),
        "replay": lambda: replay(replayed.pop(), examples, recipe, order, targets=[target]),
    }
    found = interleaved(works, setting.rounds, warm_up=False)
    return {name: against(found, name, "training", 1, "run") for name in works}


# How it grows with the rows


@dataclass(frozen=True, slots=True)
class Point:
    """A row of the synthetic classifier."""

    row_id: str
    contributor_id: str
    features: np.ndarray[Any, Any]
    label: int
    num_tokens: int = 1


class PointTask:
    def losses(self, module: Any, examples: Sequence[Point]) -> torch.Tensor:
        return cross_entropy(module, examples, torch.tensor([point.label for point in examples]))

    def sampled_losses(self, module: Any, examples: Sequence[Point], seed: int) -> torch.Tensor:
        random = torch.Generator().manual_seed(seed)
        probabilities_BC = module(features(examples)).detach().softmax(-1)
        return cross_entropy(module, examples, torch.multinomial(probabilities_BC, 1, generator=random)[:, 0])


def flat(setting: Setting) -> Table:
    """Everything but the gradient of a language model's row is the index's own: fit, vectors, shards, digests, sums."""
    table: Table = {}
    for number in setting.sizes:
        table[f"{number:,} rows"] = grown(number, setting.scratch / str(number), setting.rounds)
    return table


def grown(number: int, folder: Path, rounds: int) -> Figures:
    module, task = classifier(), PointTask()
    rows, answers = points(number), points(FLAT_QUERIES, "query")
    building = spend(lambda: build_index(module, rows, (), folder, "cost", task=task))
    index = GradientIndex.open(folder, "cost")
    vectors_VQP = index.query_vectors(module, answers, task=task)
    works: dict[str, Callable[[], object]] = {
        "rows": lambda: index.score(vectors_VQP),
        "top": lambda: index.top_rows(vectors_VQP, 20),
        "contributors": lambda: [index.contributor_scores(vectors_VQP) for _ in range(20)],
    }
    first = {name: spend(work) for name, work in works.items()}  # checks the digests
    found = interleaved(works, rounds, warm_up=False)
    cpu_s = {name: median(spent.cpu_s for spent in spents) for name, spents in found.items()}
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return {
        "P": f"{sum(parameter.numel() for parameter in module.parameters()):,}",
        "build, CPU-ms a row": f"{1e3 * building.cpu_s / number:.3f}",
        "build, wall ms a row": f"{1e3 * building.wall_s / number:.3f}",
        "bytes a row": f"{size / number:,.0f}",
        "first query, CPU-us a row": f"{1e6 * first['rows'].cpu_s / number:.1f}",
        f"{FLAT_QUERIES} answers, all rows, CPU-us a row": f"{1e6 * cpu_s['rows'] / number:.2f}",
        f"{FLAT_QUERIES} answers, top 20, CPU-us a row": f"{1e6 * cpu_s['top'] / number:.2f}",
        f"{FLAT_QUERIES} answers, contributors, CPU-ms": f"{1e3 * cpu_s['contributors'] / 20:.3f}",
    }


def classifier() -> torch.nn.Module:
    torch.manual_seed(SEED)
    return torch.nn.Sequential(
        torch.nn.Linear(96, 64, bias=False), torch.nn.Tanh(), torch.nn.Linear(64, 32, bias=False)
    )


def points(number: int, kind: str = "row") -> list[Point]:
    random = np.random.default_rng(SEED if kind == "row" else SEED + 1)
    values, labels = random.standard_normal((number, 96), dtype=np.float32), random.integers(32, size=number)
    return [Point(f"{kind}-{at}", f"c{at % FLAT_CONTRIBUTORS:02}", values[at], int(labels[at])) for at in range(number)]


def features(examples: Sequence[Point]) -> torch.Tensor:
    return torch.from_numpy(np.stack([point.features for point in examples]))


def cross_entropy(module: Any, examples: Sequence[Point], labels_B: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(module(features(examples)), labels_B, reduction="none")


# Measuring


def interleaved(works: dict[str, Callable[[], object]], rounds: int, *, warm_up: bool = True) -> Rounds:
    """Each work once in each round, every second round in the other order."""
    if warm_up:
        for work in works.values():
            work()
    found: Rounds = {name: [] for name in works}
    for number in range(rounds):
        names = list(works)
        for name in names if number % 2 == 0 else reversed(names):
            found[name].append(spend(works[name]))
    return found


def spend(work: Callable[[], object]) -> Spent:
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    return Spent(time.process_time() - cpu, time.perf_counter() - wall)


def against(found: Rounds, name: str, other: str, number: int, unit: str) -> Figures:
    """`name`'s cost for each of `number` units, and its ratio to that of `other` in the same round."""
    ratios = sorted(
        own.cpu_s / theirs.cpu_s for own, theirs in zip(found[name], found[other], strict=True) if theirs.cpu_s > 0
    )
    return {
        f"CPU-ms for each {unit}": f"{1e3 * median(spent.cpu_s for spent in found[name]) / number:.2f}",
        "wall ms": f"{1e3 * median(spent.wall_s for spent in found[name]) / number:.2f}",
        f"to {other}": f"{median(ratios):.2f}",
        "range": f"{ratios[0]:.2f} to {ratios[-1]:.2f}",
    }


def printed(title: str, table: Table) -> str:
    columns = list(dict.fromkeys(column for figures in table.values() for column in figures))
    lines = [f"\n{title}\n", f"| | {' | '.join(columns)} |", "| --- |" + " --- |" * len(columns)]
    for name, figures in table.items():
        lines.append(f"| {name} | {' | '.join(figures.get(column, '') for column in columns)} |")
    return "\n".join(lines)


PARTS: dict[str, Callable[[Setting], Table]] = {
    "query": query,
    "build": build,
    "score": score,
    "replay": settlement,
    "flat": flat,
}


if __name__ == "__main__":
    sys.exit(main())
