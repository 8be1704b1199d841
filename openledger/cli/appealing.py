"""Contesting a verdict of the gate, and deciding on one: appeals, spot checks, who makes them, and whom one trusts."""

from argparse import Namespace
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openledger.cli import output
from openledger.cli.contributing import row_schema, signed_parts
from openledger.cli.keys import load_key
from openledger.cli.remote import connect
from openledger.core.errors import InvalidInput
from openledger.core.values import Contribution

if TYPE_CHECKING:
    pass

_SHORT = ("row_id", "state", "outcome", "reasons", "contributor_id")
_DRAWN = ("row_id", "contributor", "contribution_id", "drawn_ms")
_STANDING = ("datanet", "contributor", "ppm", "quota_rows", "vouched_rows", "review_ppm")
_TEXTS = ("prompt", "completion", "source")
_TIMES = ("opened_ms", "deadline_ms", "closed_ms")


def show_all(options: Namespace) -> None:
    with connect(options) as client:
        found = client.appeals(options.datanet)
    rows = [{name: _flat(one.get(name)) for name in _SHORT} for one in found]
    output.print_rows(f"Appeals of {options.datanet}", rows, as_json=options.json, whole=found)


def show(options: Namespace) -> None:
    with connect(options) as client:
        found = client.find_appeal(options.datanet, options.row_id)
        row = client.appealed_row(options.datanet, options.row_id) if options.row else {}
    _print({**found, **{name: value for name, value in row.items() if name in _TEXTS}}, as_json=options.json)


def show_spot_checks(options: Namespace) -> None:
    with connect(options) as client:
        found = client.spot_checks(options.datanet)
    output.print_found(f"To review in {options.datanet}", found, (*_DRAWN, *_TEXTS), as_json=options.json)


def spot_check(options: Namespace) -> None:
    with connect(options) as client:
        found = client.spot_check(options.datanet, options.row_id, options.finding)
    output.print_pairs({name: found.get(name) for name in (*_DRAWN, "finding")}, as_json=options.json)


def vouch(options: Namespace) -> None:
    with connect(options) as client:
        found = client.vouch(options.datanet, options.contributor_id, not options.back)
    output.print_pairs({name: found.get(name) for name in _STANDING}, as_json=options.json)


def trust(options: Namespace) -> None:
    with connect(options) as client:
        found = client.seed_trust(options.datanet, options.contributor_id, not options.back)
    output.print_pairs({name: found.get(name) for name in _STANDING}, as_json=options.json)


def open_appeal(options: Namespace) -> None:
    from openledger.datanets.appeals import appeal_of
    from openledger.datanets.reading import read_drafts
    from openledger.datanets.records import Refused

    key = load_key(options.key)
    rows = (row for row in read_drafts(Path(options.rows), row_schema(options)) if not isinstance(row, Refused))
    contribution, ordinal = _holding(signed_parts(key, options, rows), options.row)
    appeal = appeal_of(key, contribution, ordinal, options.reason)
    if options.dry_run:
        told = {"contribution_id": appeal.contribution_id, "row_id": appeal.row_id, "prompt": appeal.draft.prompt}
        output.print_pairs({**told, "sent": False}, as_json=options.json)
        return
    with connect(options) as client:
        _print(client.appeal(appeal, idempotency_key=options.idempotency_key), as_json=options.json)


def decide(options: Namespace) -> None:
    from openledger.core.appealing import sign_decision

    place = options.datanet, options.row_id, options.account
    decision = sign_decision(load_key(options.key), *place, overturned=options.overturn, note=options.note)
    with connect(options) as client:
        _print(client.decide(decision), as_json=options.json)


def sign_reviewer(options: Namespace) -> None:
    """What a reviewer gives the owner: nobody can name a key that isn't there."""
    output.print_pairs(_signed(options), as_json=options.json)


def add_reviewer(options: Namespace) -> None:
    given = options.public_key, options.signature
    if (options.key is None) == (None in given):
        raise InvalidInput(
            "a reviewer is named by --key, or by --public-key and --signature",
            code="usage",
            param="key",
            fix="let the reviewer run 'openledger reviewers sign' and send you what it prints",
        )
    signed = _signed(options) if options.key else dict(zip(("public_key", "signature"), given, strict=True))
    with connect(options) as client:
        added = client.add_reviewer(options.datanet, options.account, signed["public_key"], signed["signature"])
    output.print_pairs(_plain(added), as_json=options.json)


def end_reviewer(options: Namespace) -> None:
    with connect(options) as client:
        ended = client.end_reviewer(options.datanet, options.account, options.public_key)
    output.print_pairs(_plain(ended), as_json=options.json)


def _signed(options: Namespace) -> dict[str, str]:
    from openledger.ledger.signers import sign_signer

    statement = sign_signer(load_key(options.key), "reviewer", options.account, options.datanet)
    return {name: statement[name] for name in ("datanet", "account", "public_key", "signature")}


def _holding(contributions: Iterable[Contribution], row: int) -> tuple[Contribution, int]:
    """The contribution that row number `row` of all went into, and its number there."""
    first = 0
    for contribution in contributions:
        if row < first + len(contribution.drafts):
            return contribution, row - first
        first += len(contribution.drafts)
    raise InvalidInput(
        f"there are {first} rows, and no row {row}",
        code="unknown_ordinal",
        param="row",
        fix="name the same files as were contributed; rows are counted from 0 over all of them",
    )


def _print(found: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        return output.print_json(found)
    decision = dict(found.get("decision") or {})
    if decision:
        decision = {"decided_by": decision.pop("account", None), **decision}
    told = {name: _flat(value) for name, value in _plain(found).items() if name != "decision"}
    return output.print_pairs(output.with_times({**told, **decision}, *_TIMES), as_json=False)


def _plain(found: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in found.items() if name != "object"}


def _flat(value: Any) -> Any:
    return ", ".join(map(str, value)) if isinstance(value, list) else value
