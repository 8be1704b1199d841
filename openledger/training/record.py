"""The run record: what makes a fine-tuning run repeatable, beside the adapter that it made.

    RUN/adapter_config.json, adapter_model.safetensors    the PEFT directory
    RUN/run.json                                          recipe, public constants, rows, environment
    RUN/checkpoints/epoch-N.safetensors                   the LoRA matrices after each epoch, by PEFT's names
    RUN/start/                                            the adapter it went on from, where it did (start.py)
    RUN/held_out.json                                     rows that the run is measured on, where some were held out
    RUN/bank/                                             counterfactual runs (attribution/bank.py)

`run.json` is written last: a folder that has it is complete. It says whose rows were first, too: what an index of the
run makes of that anybody can check against the version's manifest (`check_credit`).
"""

import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save

from openledger.adapters.base_model import BaseModel, load_model
from openledger.adapters.card import adapter_digest
from openledger.core.errors import Corrupt, InvalidInput, NotFound
from openledger.core.files import read_document, write_durably, write_json_durably
from openledger.core.hashing import digest_json
from openledger.core.values import Row
from openledger.training.examples import Example
from openledger.training.loop import Progress, train
from openledger.training.lora import attach_lora, save_adapter
from openledger.training.members import Weights
from openledger.training.recipe import Recipe, from_adapter, parent_digest, recipe_from, row_root_constant
from openledger.training.start import Parent, check_parent, keep_start, start_folder

RUN_FORMAT = "openledger.run/1"
HELD_OUT_FORMAT = "openledger.held_out/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """`initial` and `order` are the public constants of LoRA's A and of the order of rows; where the run went on from
    another adapter, `initial` names it (`recipe.from_adapter`). `examples_digest` covers the rows' ids, contributors
    and tokens in their order.

    `credit` is each row's place in the order of credit of its Datanet's version, `credit_root` the version's root over
    that order (`datanets.versions`). Empty in runs of before, and of rows that belong to no Datanet: whose row was
    first is known of none of these."""

    adapter_digest: str
    base_digest: str
    recipe: Recipe
    initial: str
    order: str
    row_ids: tuple[str, ...]
    examples_digest: str
    environment: dict[str, Any]
    curve: tuple[float, ...] = ()
    credit: tuple[int, ...] = ()
    credit_root: str = ""

    @property
    def places(self) -> dict[str, int] | None:
        """`credit` by row id; None where it isn't known."""
        return dict(zip(self.row_ids, self.credit, strict=True)) if self.credit else None


def run_environment(threads: int, world_size: int = 1, *, device: torch.device) -> dict[str, Any]:
    """What decides the last bits of a run beside its recipe and rows. `device` is where its module was trained."""
    on_gpu = device.type == "cuda"
    return {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "device": device.type,
        "accelerator": torch.cuda.get_device_name(device) if on_gpu else "",
        "blas": "mkl" if torch.backends.mkl.is_available() else "other",
        "threads": threads,
        "world_size": world_size,
    }


def examples_digest(examples: Sequence[Example]) -> str:
    return digest_json([[e.row_id, e.contributor_id, e.num_prompt, list(e.ids)] for e in examples])


def run_constant(base: BaseModel, examples: Sequence[Example]) -> str:
    """The public constant of a run that belongs to no Datanet: from the base and the rows themselves."""
    return row_root_constant(base.digest, "", 0, examples_digest(examples))


def train_run(
    base: BaseModel,
    examples: Sequence[Example],
    recipe: Recipe,
    folder: Path,
    *,
    initial: str | None = None,
    order: str | None = None,
    parent: Parent | None = None,
    on_epoch: Callable[[Progress], None] | None = None,
) -> RunRecord:
    """Train an adapter into `folder` with its record, or find it there: a run of other rows, recipe or base in the
    folder is refused (InvalidInput, code `other_run`). With `parent` it goes on from that adapter; raises as
    `check_parent`."""
    constant = run_constant(base, examples)
    if parent is not None:
        initial = from_adapter(parent.digest)
    initial, order = initial or constant, order or constant
    if (folder / "run.json").exists():
        record = load_run(folder)
        check_run(record, base, examples)
        if (record.recipe, record.initial, record.order) != (recipe, initial, order):
            raise _other_run(folder, "recipe or constants")
        return record
    if parent is not None:
        check_parent(parent, base, recipe)
        keep_start(folder, parent)
    torch.set_num_threads(recipe.threads)
    module = attach_lora(load_model(base), recipe, initial, start_folder(folder))

    def keep(progress: Progress) -> None:
        save_checkpoint(folder, progress.epoch, progress.lora)
        if on_epoch is not None:
            on_epoch(progress)

    progress = train(module, examples, recipe, order, on_epoch=keep)
    save_adapter(module, folder)
    record = RunRecord(
        adapter_digest=adapter_digest(folder),
        base_digest=base.digest,
        recipe=recipe,
        initial=initial,
        order=order,
        row_ids=tuple(example.row_id for example in examples),
        examples_digest=examples_digest(examples),
        environment=run_environment(recipe.threads, device=next(module.parameters()).device),
        curve=tuple(round(loss, 6) for loss in progress.curve),
    )
    save_run(folder, record)
    return record


def save_run(folder: Path, record: RunRecord) -> None:
    values = {name: getattr(record, name) for name in RunRecord.__dataclass_fields__}
    write_json_durably(folder / "run.json", {**values, "recipe": record.recipe.to_dict(), "format": RUN_FORMAT})


def load_run(folder: Path) -> RunRecord:
    """Raises NotFound where there is no record, Corrupt where it can't be read or names another adapter."""
    path = folder / "run.json"
    if not path.exists():
        raise NotFound(
            f"{folder} has no run.json: it is an adapter without a record of its training",
            code="no_run_record",
            param=str(folder),
            fix="use --method index, or train one with --recipe and --rows into an empty folder",
        )

    def parse(values: dict[str, Any]) -> tuple[RunRecord, str]:
        lists = {name: tuple(values.get(name, ())) for name in ("row_ids", "curve", "credit")}
        record = RunRecord(**{**values, **lists, "recipe": recipe_from(values["recipe"])})
        _check_form(record)
        return record, adapter_digest(folder)

    record, digest = read_document(
        path, RUN_FORMAT, parse, lambda reason: _corrupt(folder, f"run.json can't be read ({reason})")
    )
    if digest != record.adapter_digest:
        raise _corrupt(folder, "the adapter is not the one that run.json names")
    return record


def _check_form(record: RunRecord) -> None:
    """What a record alone shows of its order of credit; whether it is the version's, `check_credit` says."""
    if any(type(place) is not int or place < 0 for place in record.credit):
        raise ValueError("a place in the order of credit is a whole number, from 0")
    if record.credit and not len({*record.credit}) == len(record.credit) == len(record.row_ids):
        raise ValueError("it has not one place in the order of credit for each row")
    if bool(record.credit) != bool(record.credit_root):
        raise ValueError("an order of credit and the root over it come together")


def run_start(folder: Path, record: RunRecord) -> Path | None:
    """Where the run in `folder` keeps the adapter that it went on from; None for a run of its own."""
    return start_folder(folder) if parent_digest(record.initial) else None


def check_run(record: RunRecord, base: BaseModel, examples: Sequence[Example]) -> None:
    """Raises InvalidInput where the run has another base or was trained on other rows."""
    if record.base_digest != base.digest:
        raise InvalidInput("the run was trained on another base model", code="other_base", param="base")
    if record.examples_digest != examples_digest(examples):
        theirs, ours = set(record.row_ids), {example.row_id for example in examples}
        raise InvalidInput(
            f"the run was trained on other rows: {len(theirs - ours)} of its rows are missing, {len(ours - theirs)} "
            "are not its own, and what both have must be equal in text, contributor and order",
            code="other_rows",
            param="rows",
            fix="give the rows of the run: jobs/rows.py writes those of an adapter of a working folder",
        )


def rows_in_order(row_ids: Sequence[str], rows: Sequence[Row], whose: str) -> list[Row]:
    """Those of `rows` that a run was trained on, in the order of `row_ids`; `whose` they are an error says. Raises
    NotFound (`rows_gone`)."""
    by_id = {row.row_id: row for row in rows}
    if gone := [row_id for row_id in row_ids if row_id not in by_id]:
        raise NotFound(
            f"{len(gone)} rows of {whose} are gone, {gone[0]} among them",
            code="rows_gone",
            param="rows",
            fix="train a clean adapter on what is left: jobs/train.py",
        )
    return [by_id[row_id] for row_id in row_ids]


def credit_of(row_ids: Sequence[str], order: Sequence[str]) -> tuple[int, ...]:
    """Each row's place in `order`, all of a version's row ids in the order of credit; empty where that isn't known.
    Raises InvalidInput (`unknown_credit`) for a row that isn't in it."""
    if not order:
        return ()
    places = {row_id: place for place, row_id in enumerate(order)}
    if missing := [row_id for row_id in row_ids if row_id not in places]:
        raise InvalidInput(
            f"{missing[0]} stands nowhere in the version's order of credit",
            code="unknown_credit",
            param="credit",
            fix="give the order of the version that the rows are of",
        )
    return tuple(places[row_id] for row_id in row_ids)


def check_credit(record: RunRecord, order: Sequence[str], credit_root: str) -> None:
    """Whether the run goes by the order of credit that its Datanet's version states, with `order` as
    `datanets.versions.read_credit` gives it: checked before an index is built, and by a second scorer. Raises
    InvalidInput (`other_credit`)."""
    check_places(record, credit_of(record.row_ids, order), credit_root)


def check_places(record: RunRecord, credit: Sequence[int], credit_root: str) -> None:
    """The same with the rows' places in that order, as `credit_of` gives them."""
    if (record.credit_root, record.credit) != (credit_root, tuple(credit)):
        raise InvalidInput(
            "the run's record has its rows in another order of credit than their Datanet's version",
            code="other_credit",
            param="credit",
            fix="trust the version's manifest: find the repeated rows by its order, and compare",
        )


def checkpoints(folder: Path) -> dict[int, Weights]:
    """The run's matrices after each epoch that was kept, by epoch."""
    return {epoch: load_weights(path) for epoch, path in checkpoint_paths(folder).items()}


def checkpoint_paths(folder: Path) -> dict[int, Path]:
    """Where the run's matrices after each epoch that was kept lie, by epoch."""
    found = {int(path.stem.split("-")[1]): path for path in (folder / "checkpoints").glob("epoch-*.safetensors")}
    return dict(sorted(found.items()))


def save_checkpoint(folder: Path, epoch: int, weights: Weights) -> None:
    save_weights(folder / "checkpoints" / f"epoch-{epoch}.safetensors", weights)


def save_held_out(folder: Path, examples: Sequence[Example]) -> None:
    """Keep the rows that the run is measured on beside it, as tokens."""
    rows = [[e.row_id, e.contributor_id, e.num_prompt, list(e.ids)] for e in examples]
    write_json_durably(folder / "held_out.json", {"format": HELD_OUT_FORMAT, "rows": rows})


def load_held_out(folder: Path) -> list[Example]:
    """Empty where nothing was held out. Raises Corrupt (`corrupt_held_out`)."""
    path = folder / "held_out.json"
    if not path.exists():
        return []
    return read_document(
        path,
        HELD_OUT_FORMAT,
        lambda values: [
            Example(row_id=row_id, contributor_id=contributor_id, num_prompt=num_prompt, ids=tuple(ids))
            for row_id, contributor_id, num_prompt, ids in values["rows"]
        ],
        lambda reason: Corrupt(
            f"the held-out rows in {path} can't be read: {reason}",
            code="corrupt_held_out",
            param=str(path),
            fix="restore the file from a backup, or train the adapter again",
        ),
    )


def save_weights(path: Path, weights: Weights) -> None:
    """Put LoRA matrices at `path`, whole or not at all; when this returns, they are on disk."""
    write_durably(path, save({name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}))


def load_weights(path: Path) -> Weights:
    try:
        return dict(load_file(path))
    except Exception as error:  # safetensors raises its own types for damaged files
        raise Corrupt(
            f"the weights at {path} can't be read: {error}",
            code="corrupt_weights",
            param=str(path),
            fix="remove the file: it is trained again",
        ) from error


def _other_run(folder: Path, what: str) -> InvalidInput:
    return InvalidInput(f"{folder} holds a run of another {what}", code="other_run", param=str(folder))


def _corrupt(folder: Path, reason: str) -> Corrupt:
    return Corrupt(
        f"the run in {folder} is damaged: {reason}",
        code="corrupt_run",
        param=str(folder),
        fix="remove the folder and train the run again",
    )
