"""What is attributed: an adapter over its base, the rows it was trained on, and its run record if there is one."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from openledger.adapters.base_model import BaseModel, find_base_model, load_model
from openledger.adapters.card import adapter_digest
from openledger.attribution.bank import Bank, run_bank
from openledger.attribution.coalitions import Row
from openledger.attribution.records import read_examples, read_records
from openledger.core.errors import InvalidInput, NotFound
from openledger.training.examples import Example
from openledger.training.lora import load_lora
from openledger.training.members import Weights
from openledger.training.recipe import Recipe, recipe_from
from openledger.training.record import RunRecord, check_run, checkpoints, load_run, run_start, train_run


@dataclass(frozen=True, kw_only=True)
class Subject:
    """`record` is None for a plain PEFT directory: the index works on it, what retrains doesn't."""

    base: BaseModel
    folder: Path
    examples: tuple[Example, ...]
    record: RunRecord | None = None
    device: str = "cpu"
    pack_members: int = 1

    @cached_property
    def module(self) -> Any:
        """The adapter over its base, its matrices requiring gradients."""
        try:
            return load_lora(load_model(self.base).to(self.device), self.folder)
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise InvalidInput(
                f"{self.folder} holds no adapter of this base model: {error}",
                code="unreadable_adapter",
                param="adapter",
            ) from error

    @cached_property
    def digest(self) -> str:
        return adapter_digest(self.folder)

    @property
    def start(self) -> Path | None:
        """The adapter that the run went on from; None for a run of its own."""
        return run_start(self.folder, self.record) if self.record else None

    @property
    def contributors(self) -> list[str]:
        return sorted({example.contributor_id for example in self.examples})

    @property
    def rows(self) -> list[Row]:
        """Each row's id and contributor, in the order of the examples."""
        return [(example.row_id, example.contributor_id) for example in self.examples]

    def needed_record(self) -> RunRecord:
        """The record. Raises NotFound where there is none."""
        return self.record if self.record is not None else load_run(self.folder)

    def bank(self) -> Bank:
        record = self.needed_record()
        return run_bank(
            self.folder / "bank",
            record,
            self.base,
            self.examples,
            pack_members=self.pack_members,
            device=self.device,
            start=self.start,
        )

    def checkpoints(self) -> dict[int, Weights]:
        return checkpoints(self.folder) if self.record is not None else {}


def open_subject(
    base: str, adapter: Path, rows: Path, *, recipe: Path | None = None, device: str = "cpu", pack_members: int = 1
) -> Subject:
    """The adapter at `adapter` with its rows; with `recipe` (YAML) it is trained there where it isn't yet.

    Raises NotFound and InvalidInput for files that are missing, unreadable or of another run.
    """
    _check_ids(adapter, rows)
    found = find_base_model(base)
    examples = tuple(read_examples(rows, found))
    record = None
    if recipe is not None:
        record = train_run(found, examples, read_recipe(recipe), adapter)
    elif not (adapter / "adapter_config.json").exists():
        raise NotFound(
            f"{adapter} holds no PEFT adapter",
            code="no_adapter",
            param="adapter",
            fix="name a folder with adapter_config.json, or give --recipe to train one there",
        )
    elif (adapter / "run.json").exists():
        record = load_run(adapter)
        check_run(record, found, examples)
    return Subject(
        base=found, folder=adapter, examples=examples, record=record, device=device, pack_members=pack_members
    )


def _check_ids(adapter: Path, rows: Path) -> None:
    """Before anything is loaded: a run's rows have its rows' ids. Their text is checked by `check_run`."""
    if not (adapter / "run.json").exists():
        return
    theirs = set(load_run(adapter).row_ids)
    ours = {record.get("row_id") for record in read_records(rows) if isinstance(record, dict)}
    if theirs != ours:
        raise InvalidInput(
            f"{adapter.name} was trained on other rows: {len(theirs - ours)} of its {len(theirs)} rows are missing,"
            f" and {len(ours - theirs)} are not its own",
            code="other_rows",
            param="rows",
            fix="give the rows of the run: jobs/rows.py writes those of an adapter of a working folder",
        )


def read_recipe(path: Path) -> Recipe:
    """The recipe in a YAML file; an empty file is the default recipe."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise NotFound(f"the recipe {path} can't be read: {error}", code="unreadable_file", param="recipe") from error
    if values is None:
        return Recipe()
    if not isinstance(values, dict):
        raise InvalidInput("a recipe is a YAML mapping of settings", code="invalid_recipe", param="recipe")
    return recipe_from(values)


def read_queries(path: Path, base: BaseModel) -> Sequence[Example]:
    return read_examples(path, base, queries=True)
