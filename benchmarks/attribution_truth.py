"""The truth that attribution is measured against: adapters retrained on parts of the rows.

    python -m benchmarks.attribution_truth FOLDER        resumable; about an hour and a half on one core

Every run is one file of LoRA matrices under FOLDER/truth, and no method reads them. Seeds are the runs' names.

    halves-K-ORDER       a random half of the contributors, two orders each, the recipe's own initial A
    other-initial-K      the same halves from a second initial A
    rows-K-ORDER         a random half of the rows of all contributors
    removed-P-K          the run itself with P % of the rows at weight 0, every batch as it was
    perturbed-K-SIGN     the run itself with every row's weight 1 + SIGN 0.1 u, u drawn from N(0, 1)
    exact-K, exact-bank-K     all coalitions of eight contributors with 20 rows each, and a bank of their own
    kernel-bank-K        a bank of coalitions in the sizes that Shapley values weigh; exact-run: the run on these rows
    reformed-NAME        the run without a contributor's rows, batches formed anew from the same order
"""

import argparse
import itertools
import json
import sys
import time
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from benchmarks import language_task
from openledger.adapters.base_model import BaseModel, find_base_model, load_model, load_tokenizer
from openledger.attribution.bank import Bank, BankPlan, plan_bank, run_bank
from openledger.attribution.coalitions import Design, Membership, contributor_design
from openledger.attribution.records import contributors_of, read_examples
from openledger.core.files import write_durably
from openledger.core.hashing import digest_json
from openledger.training.examples import Example
from openledger.training.lora import load_lora
from openledger.training.members import Member
from openledger.training.recipe import Recipe, generator
from openledger.training.record import RunRecord, load_run, train_run

COALITIONS, TWINS = 64, 4
HALVES, ROW_HALVES = 40, 30
REMOVALS = {10: 36, 5: 12, 1: 12, 20: 12}  # by percent; with 12 of 10 % the LDS lay between 0.82 and 0.85
EXACT_CONTRIBUTORS, EXACT_ROWS = 8, 20
PERTURBATIONS, PERTURBED_BY = 4, 0.1
RECIPE = Recipe(max_rows=10**6)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--part", default="0/1", metavar="I/N", help="train every N-th run, for N processes")
    options = parser.parse_args()
    part, parts = (int(number) for number in options.part.split("/"))
    torch.set_num_threads(1)
    base, examples, record = make_task(options.folder)
    bank = run_bank(options.folder / "run" / "bank", record, base, examples)
    plan = bank_plan(record, examples)
    truth = run_bank(options.folder / "truth", record, base, examples)
    stages = [(bank, plan.members), *((truth, members) for members in truth_members(record, examples).values())]
    for store, members in stages:
        _train(store, members[part::parts])
    return 0


def make_task(folder: Path) -> tuple[BaseModel, list[Example], RunRecord]:
    """The base model, the rows and the run under `folder`, made where they are not there; queries.jsonl beside."""
    base = find_base_model(str(language_task.make_base(folder / "base")))
    rows_file, _ = language_task.make_rows(Path(base.path), folder)
    examples = read_examples(rows_file, base)
    train_run(base, examples, RECIPE, folder / "run")
    if not (folder / "queries.jsonl").exists():
        language_task.write_queries(folder, _generated(base, folder / "run", rows_file))
    return base, examples, load_run(folder / "run")


def bank_plan(record: RunRecord, examples: Sequence[Example]) -> BankPlan:
    names = contributors_of(examples)
    return plan_bank(
        record, examples, num_coalitions=COALITIONS, num_twins=TWINS, without=names, players="contributors"
    )


def truth_members(record: RunRecord, examples: Sequence[Example]) -> dict[str, list[Member]]:
    """By kind, in the order of their seeds."""
    halves = contributor_halves(examples)
    row_halves = [_half(len(examples), f"truth-rows-{number}") for number in range(ROW_HALVES)]
    names = contributors_of(examples)
    without = {name: _rows_of(examples, set(names) - {name}) for name in names}
    other = digest_json(["second initial", record.initial])
    kinds = {
        "halves": [
            _run(record, f"halves-{k}-{o}", _rows_of(examples, half)) for k, half in enumerate(halves) for o in (0, 1)
        ],
        "rows": [_run(record, f"rows-{k}-{o}", half) for k, half in enumerate(row_halves) for o in (0, 1)],
        "reformed": [
            Member(name=f"reformed-{name}", rows=rows, initial=record.initial, order=record.order)
            for name, rows in without.items()
        ],
    }
    for percent, number in REMOVALS.items():
        kinds[f"removed-{percent}"] = [removal(record, len(examples), percent, k) for k in range(number)]
    kinds["other-initial"] = [
        Member(
            name=f"other-initial-{k}",
            rows=_rows_of(examples, half),
            initial=other,
            order=digest_json([record.order, f"other-initial-{k}"]),
        )
        for k, half in enumerate(halves)
    ]
    kinds["perturbed"] = [
        perturbed(record, len(examples), number, sign) for number in range(PERTURBATIONS) for sign in (1, -1)
    ]
    kinds["exact"] = [*exact_members(record, examples), *exact_bank(record, examples)[1]]
    return kinds


def exact_coalitions(examples: Sequence[Example]) -> list[frozenset[str]]:
    """All but the empty one of the first eight contributors."""
    names = contributors_of(examples)[:EXACT_CONTRIBUTORS]
    sizes = range(1, len(names) + 1)
    return [frozenset(c) for size in sizes for c in itertools.combinations(names, size)]


def exact_members(record: RunRecord, examples: Sequence[Example]) -> list[Member]:
    """One run for each of `exact_coalitions`, on the first rows of each contributor."""
    rows = exact_rows(examples)
    found = exact_coalitions(examples)
    return [_run(record, f"exact-{n}", _chosen(rows, examples, coalition)) for n, coalition in enumerate(found)]


def exact_bank(record: RunRecord, examples: Sequence[Example]) -> tuple[Design, list[Member]]:
    """A bank of the same eight contributors and rows, with orders of its own."""
    rows = exact_rows(examples)
    names = contributors_of(examples)[:EXACT_CONTRIBUTORS]
    found = contributor_design(dict.fromkeys(names, EXACT_ROWS), COALITIONS, record.order)
    members = []
    for number, line in enumerate(found.members_MG):
        there = {group[0] for group, on in zip(found.groups, line, strict=True) if on}
        members.append(_run(record, f"exact-bank-{number}", _chosen(rows, examples, there)))
    return found, members


def kernel_bank(record: RunRecord, examples: Sequence[Example]) -> tuple[Membership, list[Member]]:
    """Coalitions of these eight in the sizes that Shapley values weigh: size s of n with a probability in proportion to
    1 / (s (n - s)) (Lundberg and Lee, 2017), each beside its complement."""
    rows, names = exact_rows(examples), contributors_of(examples)[:EXACT_CONTRIBUTORS]
    random, sizes = generator(record.order, "kernel-bank"), np.arange(1, len(names))
    weights = 1 / (sizes * (len(names) - sizes))
    coalitions: list[Membership] = []
    for size in random.choice(sizes, COALITIONS // 2, p=weights / weights.sum()):
        half = np.isin(np.arange(len(names)), random.permutation(len(names))[:size])
        coalitions += [half, ~half]
    members = []
    for number, there in enumerate(coalitions):
        chosen = {name for name, on in zip(names, there, strict=True) if on}
        members.append(_run(record, f"kernel-bank-{number}", _chosen(rows, examples, chosen)))
    return np.array(coalitions), members


def exact_run(record: RunRecord, examples: Sequence[Example]) -> Member:
    """The run of all these rows, which keeps its epochs for an index."""
    return replace(_run(record, "exact-run", tuple(exact_rows(examples))), keeps_epochs=True)


def exact_rows(examples: Sequence[Example]) -> list[int]:
    """The first rows of each of the eight contributors."""
    names, taken = set(contributors_of(examples)[:EXACT_CONTRIBUTORS]), Counter[str]()
    rows = []
    for row, example in enumerate(examples):
        taken[example.contributor_id] += 1
        if example.contributor_id in names and taken[example.contributor_id] <= EXACT_ROWS:
            rows.append(row)
    return rows


def _chosen(rows: Sequence[int], examples: Sequence[Example], there: Collection[str]) -> tuple[int, ...]:
    return tuple(row for row in rows if examples[row].contributor_id in there)


def contributor_halves(examples: Sequence[Example]) -> list[set[str]]:
    names = contributors_of(examples)
    return [{names[number] for number in _half(len(names), f"truth-halves-{k}")} for k in range(HALVES)]


def removal(record: RunRecord, num_rows: int, percent: int, number: int) -> Member:
    count = max(1, num_rows * percent // 100)
    removed = generator(f"removed-{percent}-{number}", "rows").permutation(num_rows)[:count]
    weights = np.ones(num_rows)
    weights[removed] = 0.0
    return Member(
        name=f"removed-{percent}-{number}",
        rows=tuple(range(num_rows)),
        initial=record.initial,
        order=record.order,
        row_weights=tuple(weights.tolist()),
    )


def directions(num_rows: int) -> np.ndarray:  # type: ignore[type-arg]
    """[PERTURBATIONS, R]: how the rows' weights are changed."""
    return np.stack([generator(f"perturbed-{n}", "rows").standard_normal(num_rows) for n in range(PERTURBATIONS)])


def perturbed(record: RunRecord, num_rows: int, number: int, sign: int) -> Member:
    weights = 1.0 + sign * PERTURBED_BY * directions(num_rows)[number]
    return Member(
        name=f"perturbed-{number}-{sign}",
        rows=tuple(range(num_rows)),
        initial=record.initial,
        order=record.order,
        row_weights=tuple(weights.tolist()),
    )


def _half(size: int, seed: str) -> tuple[int, ...]:
    return tuple(sorted(generator(seed, "half").permutation(size)[: size // 2].tolist()))


def _rows_of(examples: Sequence[Example], there: set[str]) -> tuple[int, ...]:
    return tuple(row for row, example in enumerate(examples) if example.contributor_id in there)


def _run(record: RunRecord, name: str, rows: tuple[int, ...]) -> Member:
    return Member(name=name, rows=rows, initial=record.initial, order=digest_json([record.order, "truth", name]))


def _train(store: Bank, members: Sequence[Member]) -> None:
    todo, start = len(store.missing(members)), time.process_time()
    done = 0

    def report(member: Member) -> None:
        nonlocal done
        done += 1
        print(f"{member.name}: {done} of {todo}, {time.process_time() - start:.0f} CPU-s", file=sys.stderr, flush=True)

    store.train(members, on_member=report)


def _generated(base: BaseModel, run: Path, rows_file: Path) -> list[dict[str, str]]:
    """What the adapter answers, greedily, to questions it was trained on: some of every contributor's."""
    tokenizer, model = load_tokenizer(base), load_lora(load_model(base), run)
    records = [json.loads(line) for line in rows_file.read_text().splitlines()]
    generated = []
    for contributor in language_task.CONTRIBUTORS:
        own = [record for record in records if record["contributor"] == contributor]
        for record in own[: language_task.GENERATED_EACH]:
            prompt = tokenizer(record["prompt"], return_tensors="pt")["input_ids"]
            found = model.generate(
                input_ids=prompt, max_new_tokens=language_task.GENERATED_TOKENS, do_sample=False, pad_token_id=0
            )
            completion = tokenizer.decode(found[0, prompt.shape[1] :], skip_special_tokens=True)
            if completion.strip():
                generated.append(
                    {"row_id": f"generated/{record['row_id']}", "prompt": record["prompt"], "completion": completion}
                )
    return generated


def write_array(path: Path, array: np.ndarray) -> None:  # type: ignore[type-arg]
    import io

    stream = io.BytesIO()
    np.save(stream, array)
    write_durably(path, stream.getvalue())


if __name__ == "__main__":
    sys.exit(main())
