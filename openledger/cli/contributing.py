"""Signing rows from a file and sending them to a Datanet."""

from argparse import Namespace
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from openledger.cli import output
from openledger.cli.keys import load_key
from openledger.cli.remote import connect
from openledger.core.values import Contribution, ContributionReceipt


def contribute(options: Namespace) -> None:
    contribution = _signed(options)
    if options.dry_run:
        output.print_pairs(_summary(contribution), as_json=options.json)
        return
    with connect(options) as client:
        receipt = client.contribute(contribution)
    output.print_rows("Verdicts", _verdicts(receipt), as_json=options.json, whole=asdict(receipt))


def _signed(options: Namespace) -> Contribution:
    from openledger.datanets.contribution import read_jsonl, sign_contribution

    return sign_contribution(
        load_key(options.key), options.datanet, list(read_jsonl(Path(options.rows))), options.nonce
    )


def _summary(contribution: Contribution) -> dict[str, Any]:
    return {
        "datanet": contribution.datanet,
        "contributor_id": contribution.contributor_id,
        "rows": len(contribution.drafts),
        "content_root": contribution.content_root,
        "sent": False,
    }


def _verdicts(receipt: ContributionReceipt) -> list[dict[str, Any]]:
    counts = Counter((verdict.outcome, ", ".join(verdict.reasons)) for verdict in receipt.verdicts)
    return [{"outcome": outcome, "reasons": reasons, "rows": n} for (outcome, reasons), n in sorted(counts.items())]
