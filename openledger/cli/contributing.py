"""Signing rows from a file; sealing them, and sending them to a Datanet."""

from argparse import Namespace
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openledger.cli import output
from openledger.cli.remote import connect
from openledger.core.errors import NotFound
from openledger.core.values import Contribution, ContributionReceipt

if TYPE_CHECKING:
    from openledger.client import OpenLedger
    from openledger.core.sealing import Seal, SealReceipt


def contribute(options: Namespace) -> None:
    contribution, seal = _signed(options)
    if options.dry_run:
        output.print_pairs({**_summary(contribution), "seal": seal.digest, "sent": False}, as_json=options.json)
        return
    with connect(options) as client:
        if options.seal:
            output.print_pairs(_sealed(client.seal(seal)), as_json=options.json)
            output.print_note("the place is yours; send the same rows with the same key and nonce before it expires")
            return
        receipt = client.contribute(contribution)
        _tell_place(client, seal)
    output.print_rows("Verdicts", _verdicts(receipt), as_json=options.json, whole=asdict(receipt))


def _signed(options: Namespace) -> "tuple[Contribution, Seal]":
    from openledger.core.signing import SigningKey
    from openledger.datanets.contribution import read_jsonl, sign_contribution
    from openledger.datanets.seals import seal_of

    key = SigningKey.load_or_create(existing_key(options.key))
    contribution = sign_contribution(key, options.datanet, list(read_jsonl(Path(options.rows))), options.nonce)
    return contribution, seal_of(key, contribution)


def _tell_place(client: "OpenLedger", seal: "Seal") -> None:
    """Which place the rows have, where they were sealed before: losing it must not go unseen."""
    try:
        found = client.find_seal(seal)
    except NotFound:
        return
    if found.state == "opened":
        output.print_note(f"sealed {output.format_time(found.sealed_ms)}: that is their place in the order of credit")
    else:
        output.print_note("their seal had expired: they stand where they arrived")


def _sealed(receipt: "SealReceipt") -> dict[str, Any]:
    told = {name: getattr(receipt, name) for name in ("datanet", "contributor_id", "digest", "state")}
    times = {name: getattr(receipt, f"{name}_ms") for name in ("sealed", "expires")}
    return {**told, **{name: output.format_time(time_ms) for name, time_ms in times.items()}}


def existing_key(name: str) -> Path:
    """Loading makes a key where there is none; a mistyped name must not become an identity."""
    path = Path(name)
    if not path.is_file():
        raise NotFound(
            f"there is no key file {name}", code="unknown_file", param="key", fix="make one with 'openledger keys new'"
        )
    return path


def _summary(contribution: Contribution) -> dict[str, Any]:
    return {
        "datanet": contribution.datanet,
        "contributor_id": contribution.contributor_id,
        "rows": len(contribution.drafts),
        "content_root": contribution.content_root,
    }


def _verdicts(receipt: ContributionReceipt) -> list[dict[str, Any]]:
    counts = Counter((verdict.outcome, ", ".join(verdict.reasons)) for verdict in receipt.verdicts)
    return [{"outcome": outcome, "reasons": reasons, "rows": n} for (outcome, reasons), n in sorted(counts.items())]
