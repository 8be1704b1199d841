"""Contesting a period's share: looking at a pool's disputes, opening one, deciding it by signed scores."""

import json
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openledger.cli import output
from openledger.cli.keys import load_key
from openledger.cli.remote import connect
from openledger.core.errors import InvalidInput, NotFound
from openledger.core.money import parse_open

if TYPE_CHECKING:
    pass

_SHORT = ("dispute_id", "contributor", "state", "paid_nano", "claimed_nano", "contested_nano", "award_nano")
_TIMES = ("opened_ms", "deadline_ms", "closed_ms")


def show_pool(options: Namespace) -> None:
    with connect(options) as client:
        found = client.disputes(options.adapter, options.period)
    output.print_found(f"Disputes of {options.adapter} in {options.period}", found, _SHORT, as_json=options.json)


def show(options: Namespace) -> None:
    with connect(options) as client:
        _print(client.dispute(options.dispute_id), as_json=options.json)


def open_claim(options: Namespace) -> None:
    claimed_nano = parse_open(options.claimed)
    key = load_key(options.key) if options.key else None
    pool = options.adapter, options.period
    if options.dry_run:
        told = {"pool": ":".join(pool), "claimed_nano": claimed_nano, "signed": key is not None, "sent": False}
        output.print_pairs(told, as_json=options.json)
        return
    with connect(options) as client:
        opened = client.open_dispute(
            *pool,
            claimed_nano,
            options.reason,
            key=key,
            contributor_id=options.contributor,
            idempotency_key=options.idempotency_key,
        )
    _print(opened, as_json=options.json)


def resolve(options: Namespace) -> None:
    found = _signed(options)
    if options.dry_run:
        output.print_json({**found, "sent": False})
        return
    with connect(options) as client:
        _print(client.resolve_dispute(options.dispute_id, found), as_json=options.json)


def _signed(options: Namespace) -> dict[str, Any]:
    """The scores of a file, as `scorer` signs them."""
    from openledger.ledger.disputes import Basis, Scores, recomputation_json, sign_recomputation

    values = _read(Path(options.scores))
    try:
        scores = {str(name): Scores(**part) for name, part in values["scores"].items()}
        basis = Basis(num_answers=values["num_answers"], answers_nano=values["answers_nano"])
        pool = values["adapter"], values["period"]
    except (KeyError, TypeError, AttributeError) as error:
        raise InvalidInput(
            f"{options.scores} doesn't hold a recomputation: {error}",
            code="invalid_scores",
            param="scores",
            fix="write adapter, period, num_answers, answers_nano and scores, by part: docs/concepts/disputes.md",
        ) from error
    return recomputation_json(sign_recomputation(load_key(options.key), *pool, options.scorer, basis, scores))


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise NotFound(f"there is no file {path}", code="unknown_file", param="scores") from error
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"{path} isn't JSON: {error}", code="invalid_scores", param="scores") from error


def _print(found: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        return output.print_json(found)
    verdict = found.get("verdict") or {}
    told = {**{name: value for name, value in found.items() if name not in ("object", "verdict")}, **verdict}
    return output.print_pairs(output.with_times(told, *_TIMES), as_json=False)
