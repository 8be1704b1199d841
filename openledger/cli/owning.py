"""What owners of Datanets do, and who asks them: creating, terms, permissions."""

import time
from argparse import Namespace
from dataclasses import asdict
from pathlib import Path
from typing import Any

from openledger.cli import output
from openledger.cli.contributing import read_json
from openledger.cli.keys import load_key
from openledger.cli.remote import connect, find_datanet
from openledger.core.clock import format_span
from openledger.core.errors import InvalidInput

_DAY_MS = 24 * 60 * 60 * 1000
_SHOWN = ("name", "summary", "owner", "version", "rows_in", "accepted", "rejected", "review", "display")
_PERSON = ("contributor_id", "name", "accepted", "rejected", "review", "earned_nano")


def show(options: Namespace) -> None:
    with connect(options) as client:
        found = client.datanet(options.datanet)
    if options.json:
        return output.print_json(found)
    schema = found.get("row_schema") or {}
    columns = ", ".join(f"{one['name']} {one['type']}" for one in schema.get("columns", [])) or None
    told = {name: found.get(name) for name in _SHOWN}
    output.print_pairs({**told, "rows are": schema.get("kind"), "columns": columns}, as_json=False)
    people = [{name: person.get(name) for name in _PERSON} for person in found.get("contributors") or []]
    return output.print_rows("Contributors", people)


def create(options: Namespace) -> None:
    from openledger.datanets.row_schema import RowSchema
    from openledger.datanets.terms import changed_terms

    schema = RowSchema.from_json(read_json(options.schema, "schema") if options.schema else {}).to_json()
    changes = _changes(options)
    changed_terms(None, changes)
    if options.dry_run:
        told = {"name": options.datanet, "summary": options.summary, "row_schema": schema, "terms": changes}
        told |= {"display": options.display} if options.display else {}
        return output.print_pairs({**told, "sent": False}, as_json=options.json)
    with connect(options) as client:
        given = {"row_schema": schema, "terms": changes, "display": options.display}
        made = client.create_datanet(options.datanet, options.summary, **given)
    return output.print_pairs({name: value for name, value in made.items() if name != "object"}, as_json=options.json)


def terms(options: Namespace) -> None:
    changes = _changes(options)
    with connect(options) as client:
        if changes and not options.dry_run:
            found = client.set_terms(options.datanet, **changes)
        else:
            found = client.terms(options.datanet)
        display = options.display
        if display and not options.dry_run:
            display = client.set_display(options.datanet, display)["display"]
    shown = {name: value for name, value in found.items() if name != "object"}
    if options.dry_run:
        from openledger.datanets.terms import changed_terms

        shown = {**asdict(changed_terms(changed_terms(None, shown), changes)), "sent": False}
    shown |= {"display": display} if display else {}
    told = shown if options.json else {name: _flat(value) for name, value in shown.items()}
    output.print_pairs(told, as_json=options.json)


def leaderboard(options: Namespace) -> None:
    with connect(options) as client:
        found = client.leaderboard(options.datanet, after=options.after, limit=options.limit)
    if options.json:
        return output.print_json(found)
    rows = [
        {
            **{name: one.get(name) for name in ("rank", "name", "accepted", "duplicates", "rows_a_day", "rows_a_week")},
            "weeks active": one.get("weeks_active"),
            "feedback": sum((one.get("feedback") or {}).values()),
            "earned_nano": one.get("earned_nano"),
            "to first payout": None if one.get("first_payout_ms") is None else format_span(one["first_payout_ms"]),
        }
        for one in found["contributors"]
    ]
    output.print_rows(f"Contributors of {options.datanet}", rows)
    if found.get("has_more"):
        output.print_note(f"more of {found['num_contributors']}: --after {found['contributors'][-1]['contributor_id']}")
    weeks = [
        {"began in the week of": output.format_time(one["week_ms"])[:10], "contributors": one["active"][0],
         "active in the weeks after": " ".join(map(str, one["active"][1:])) or "-"}
        for one in found["cohorts"]
    ]  # fmt: skip
    output.print_rows("Retention", weeks)
    return output.print_rows("Reviewers", found["reviewers"])


def permissions(options: Namespace) -> None:
    with connect(options) as client:
        found = client.permissions(options.datanet)
    rows = [_permission(one) for one in found]
    output.print_rows(f"Permissions of {options.datanet}", rows, as_json=options.json, whole=found)


def request(options: Namespace) -> None:
    key = load_key(options.key) if options.key else None
    if options.dry_run:
        find_datanet(options)
        party = key.contributor_id if key else None
        told = {"datanet": options.datanet, "action": "contribute" if key else "train", "party": party, "sent": False}
        return output.print_pairs(told, as_json=options.json)
    with connect(options) as client:
        return _print(client.request_permission(options.datanet, key), options)


def approve(options: Namespace) -> None:
    if options.days is not None and options.days < 1:
        raise InvalidInput("a permission lasts a day or more", code="usage", param="days", fix="leave --days out")
    expires_ms = int(time.time() * 1000) + options.days * _DAY_MS if options.days else 0
    with connect(options) as client:
        _print(client.approve(options.datanet, options.party, options.action, expires_ms), options)


def revoke(options: Namespace) -> None:
    with connect(options) as client:
        _print(client.revoke(options.datanet, options.party, options.action), options)


def _changes(options: Namespace) -> dict[str, Any]:
    """As the API has them, what was named alone."""
    given = {
        "tags": options.tag,
        "languages": options.language,
        "licence": options.licence,
        "contribute": options.contribute,
        "train": options.train,
        "max_rows_a_day": options.max_rows_a_day,
        "max_rows_an_hour": options.max_rows_an_hour,
        "min_reviews": options.min_reviews,
        "panel": None if options.panel is None else options.panel == "yes",
        "only_languages": None if options.only_languages is None else options.only_languages == "yes",
        "description": None if options.description is None else _text(options.description),
    }
    return {name: value for name, value in given.items() if value is not None}


def _text(name: str) -> str:
    try:
        return Path(name).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InvalidInput(f"{name} can't be read as text", code="unreadable_file", param="description") from error


def _print(permission: dict[str, Any], options: Namespace) -> None:
    output.print_pairs(permission if options.json else _permission(permission), as_json=options.json)


def _permission(one: dict[str, Any]) -> dict[str, Any]:
    expires = output.format_time(one["expires_ms"]) if one.get("expires_ms") else "never"
    return {**{name: one.get(name) for name in ("party", "action", "state")}, "expires": expires}


def _flat(value: Any) -> Any:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else value
