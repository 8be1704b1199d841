"""Taking rows back: by their contributor, who signs, or by the Datanet's owner."""

import sys
from argparse import Namespace
from typing import Any

from openledger.cli import output
from openledger.cli.keys import load_key
from openledger.cli.remote import connect, find_datanet


def withdraw(options: Namespace) -> None:
    from openledger.datanets.removal import sign_withdrawal

    withdrawal = sign_withdrawal(load_key(options.key), options.datanet, _row_ids(options), options.nonce)
    if options.dry_run:
        find_datanet(options)
        told = {"datanet": options.datanet, "contributor_id": withdrawal.contributor_id}
        output.print_pairs({**told, "rows": len(withdrawal.row_ids), "sent": False}, as_json=options.json)
        return
    with connect(options) as client:
        _print(client.withdraw_rows(withdrawal), as_json=options.json)


def remove(options: Namespace) -> None:
    with connect(options) as client:
        _print(client.remove_rows(options.datanet, _row_ids(options), options.reason), as_json=options.json)


def _row_ids(options: Namespace) -> list[str]:
    """From the command line, or one a line from standard input where that is `-`."""
    return sys.stdin.read().split() if options.row_ids == ["-"] else list(options.row_ids)


def _print(found: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        output.print_json(found)
        return
    output.print_pairs({key: value for key, value in found.items() if key not in ("adapters", "object")}, as_json=False)
    columns = ("name", "served", "num_trained", "num_held_out", "adapter_digest")
    adapters = [{column: adapter.get(column) for column in columns} for adapter in found.get("adapters") or []]
    output.print_rows("Adapters that have learnt from these rows", adapters)
