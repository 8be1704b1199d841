"""`python -m openledger.attribution score|evaluate|plan`: attribution from files, without any server."""

import argparse
import io
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openledger.attribution.options import ABOUT, add_commands
from openledger.core.errors import InvalidInput, NotFound, OpenLedgerError
from openledger.core.files import write_durably, write_json_durably

_UNCHECKED = "{} has no run.json: nothing says which rows it was trained on, and rows it never saw get scores too"

if TYPE_CHECKING:
    from openledger.attribution.subject import Subject
    from openledger.training.examples import Example


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 0, or the error's."""
    options = _parser().parse_args(arguments)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    commands: dict[str, Callable[[argparse.Namespace], dict[str, Any]]]
    commands = {"score": score, "evaluate": evaluate, "plan": plan}
    try:
        result = commands[options.action](options)
    except OpenLedgerError as error:
        _print_error(error, as_json=options.json)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted: the same command goes on where it stopped", file=sys.stderr)
        return 130
    print(json.dumps(result, indent=2, sort_keys=True) if options.json else _lines(result))
    return 0


def score(options: argparse.Namespace) -> dict[str, Any]:
    """Write the scores; what was written and how good it is."""
    import torch

    from openledger.attribution import instruments

    _quiet()
    torch.set_num_threads(options.threads)
    if options.dry_run and options.recipe and not (options.adapter / "run.json").exists():
        return _first_plan(options)
    subject, queries = _inputs(options)
    weights = _weights(options.weights, len(queries))
    if subject.record is None:
        _report(f"warning: {_UNCHECKED.format(options.adapter)}")
    attributor = instruments.make(
        options.method,
        subject,
        num_coalitions=options.coalitions,
        num_twins=options.twins,
        may_train=not options.no_train,
        weights=weights,
        report=_report,
    )
    if options.dry_run:
        return {"would_train": instruments.missing(attributor), "adapter": str(options.adapter)}
    found = attributor.attribute(queries)
    _write_array(options.out, found.scores)
    if options.errors is not None and found.errors is not None:
        _write_array(options.errors, found.errors)
    summary = {
        "method": found.method,
        "quantity": found.quantity,
        "unit": found.unit,
        "shape": list(found.scores.shape),
        "players": list(found.players),
        "queries": [query.row_id for query in queries] if found.method != "replay" else ["weighted sum"],
        "quality": found.quality,
        "rows": "checked against run.json" if subject.record else _UNCHECKED.format(options.adapter.name),
    }
    options.out.with_suffix(".json").write_text(json.dumps(summary, indent=2) + "\n")
    shown = {name: summary[name] for name in ("method", "quantity", "unit", "shape", "quality")}
    return {**shown, "written": str(options.out)}


def _first_plan(options: argparse.Namespace) -> dict[str, Any]:
    """What a method trains where there is no adapter yet. Reads the recipe and the rows' contributors."""
    from openledger.attribution.subject import read_recipe

    recipe, counts = read_recipe(options.recipe), Counter(_contributors(options.rows))
    retrains = options.method in ("bank", "estimate") and len(counts) > 1
    found = {"adapter": 1, **({"coalitions": options.coalitions, "twins": options.twins} if retrains else {})}
    return {
        "would_train": found,
        "trainings": sum(found.values()),
        "rows": counts.total(),
        "epochs": recipe.num_epochs,
        "adapter": str(options.adapter),
    }


def evaluate(options: argparse.Namespace) -> dict[str, Any]:
    """Train what the audit needs and report. The bank is finished, for settlements, unless the adapter has one."""
    import torch

    from openledger.attribution.audit import audit, plan_audit, save_audit
    from openledger.attribution.bank import DEFAULT_TWINS
    from openledger.attribution.bank_folder import find_bank, finish_bank
    from openledger.attribution.coalitions import DEFAULT_COALITIONS
    from openledger.attribution.instruments import subject_plan
    from openledger.attribution.records import read_examples

    _quiet()
    torch.set_num_threads(options.threads)
    subject, queries = _inputs(options)
    decoys = read_examples(options.decoys, subject.base) if options.decoys else []
    planted = _read_planted(options.planted) if options.planted else None
    kept = find_bank(subject.folder, subject.digest)
    coalitions, twins = (len(kept.coalitions), len(kept.twins)) if kept else (DEFAULT_COALITIONS, DEFAULT_TWINS)
    bank_plan = subject_plan(
        subject,
        coalitions if options.coalitions is None else options.coalitions,
        twins if options.twins is None else options.twins,
    )
    audit_plan = plan_audit(
        subject, bank_plan, options.audits, second_initial=options.second_initial, check_replay=options.check_replay
    )
    missing = subject.bank().missing([*bank_plan.members, *audit_plan.members])
    if options.dry_run:
        return {"would_train": [member.name for member in missing], "adapter": str(options.adapter)}
    if missing and options.no_train:
        subject.bank().weights(missing)
    found = audit(subject, bank_plan, audit_plan, queries, decoys=decoys, planted=planted, report=_report)
    if kept is None:
        finish_bank(subject.bank(), bank_plan, subject.digest)
    elif kept.digest != found["instrument"]["bank"]:
        _report("the adapter has another bank, which stays: settlements quote of this audit what it found of the index")
    save_audit(subject.folder, subject.digest, found)
    if options.out is not None:
        write_json_durably(options.out, found)
    return found


def plan(options: argparse.Namespace) -> dict[str, Any]:
    """What a budget buys. Reads the rows' contributors only; trains nothing."""
    from openledger.attribution.planner import budget_from_fees, plan_instruments
    from openledger.attribution.subject import read_recipe

    recipe = read_recipe(options.recipe) if options.recipe else None
    counts = Counter(_contributors(options.rows))
    if options.fees is not None:
        if options.training_cost is None:
            raise InvalidInput("--fees needs --training-cost, in OPEN", code="invalid_budget", param="training_cost")
        if options.answers is None:
            raise InvalidInput(
                "--fees needs --answers, how many of them were sold",
                code="invalid_budget",
                param="answers",
                fix="a replay goes through each answer once, and must not cost more than they brought",
            )
        nano = 10**9
        budget = budget_from_fees(
            round(options.fees * nano), round(options.share * 10**6), round(options.training_cost * nano)
        )
    elif options.hours is not None:
        if not options.training_seconds:
            raise InvalidInput("--hours needs --training-seconds", code="invalid_budget", param="training_seconds")
        budget = options.hours * 3600 / options.training_seconds
    else:
        budget = options.budget
    epochs = recipe.num_epochs if recipe else 6
    return plan_instruments(counts, epochs, budget, num_answers=options.answers or 0).to_dict()


def _inputs(options: argparse.Namespace) -> "tuple[Subject, Sequence[Example]]":
    """The adapter with its rows, trained where it isn't yet and a recipe is given, and the queries."""
    from openledger.attribution.subject import open_subject, read_queries

    subject = open_subject(
        options.base,
        options.adapter,
        options.rows,
        recipe=options.recipe,
        device=options.device,
        pack_members=options.pack,
    )
    return subject, read_queries(options.queries, subject.base)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="openledger attribution", description=ABOUT)
    add_commands(parser.add_subparsers(required=True, metavar="COMMAND"))
    return parser


def _weights(path: Path | None, num_queries: int) -> list[float]:
    from openledger.attribution.instruments import check_weights

    if path is None:
        return [1.0 / num_queries] * num_queries
    values = _read_json(path, "weights")
    if not isinstance(values, list) or not all(type(value) in (int, float) for value in values):
        raise InvalidInput("weights are a JSON list of numbers", code="invalid_weights", param="weights")
    return check_weights(values, num_queries)


def _read_planted(path: Path) -> dict[str, str]:
    values = _read_json(path, "planted")
    if not isinstance(values, dict) or not set(values.values()) <= {"copy", "mislabelled"}:
        raise InvalidInput(
            'planted rows are a JSON object: row id to "copy" or "mislabelled"', code="invalid_planted", param="planted"
        )
    return values


def _read_json(path: Path, param: str) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise NotFound(f"{path} can't be read: {error}", code="unreadable_file", param=param) from error


def _contributors(path: Path) -> list[str]:
    from openledger.attribution.records import read_records

    found = []
    for number, record in enumerate(read_records(path), start=1):
        contributor = record.get("contributor") if isinstance(record, dict) else None
        if not isinstance(contributor, str) or not contributor:
            raise InvalidInput(f"{path.name}:{number} names no contributor", code="invalid_record", param="rows")
        found.append(contributor)
    return found


def _write_array(path: Path, array: Any) -> None:
    import numpy as np

    stream = io.BytesIO()
    np.save(stream, np.asarray(array, dtype=np.float32))
    write_durably(path, stream.getvalue())


def _report(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _quiet() -> None:
    import warnings

    from transformers.utils import logging

    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning)


def _lines(result: dict[str, Any]) -> str:
    return "\n".join(f"{name.replace('_', ' '):<18} {_plain(value)}" for name, value in result.items())


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_plain(item)}" for name, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_plain(item) for item in value) or "nothing"
    return str(value)


def _print_error(error: OpenLedgerError, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"error": error.to_dict()}, indent=2, sort_keys=True))
        return
    told = {"code": error.code, "param": error.param, "fix": error.fix}
    lines = [f"error: {error.message}", *(f"  {name:<5} {text}" for name, text in told.items() if text)]
    print("\n".join(lines), file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
