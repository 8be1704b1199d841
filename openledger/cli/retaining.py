"""What is kept of this account's prompts and answers."""

from argparse import Namespace
from typing import Any

from openledger.cli import output
from openledger.cli.remote import connect
from openledger.core.errors import InvalidInput


def show(options: Namespace) -> None:
    with connect(options) as client:
        _print(client.retention(), as_json=options.json)


def change(options: Namespace) -> None:
    with connect(options) as client:
        _print(client.set_retention(options.keep == "yes"), as_json=options.json)
    if options.keep == "no":
        output.print_note("from now on; what is kept already stays: 'openledger retention forget' deletes it")


def forget(options: Namespace) -> None:
    if not options.yes:
        raise InvalidInput(
            "what is deleted can't be brought back, nor attributed; what it paid stays",
            code="confirmation_missing",
            param="yes",
            fix="add --yes to delete it",
        )
    with connect(options) as client:
        _print(client.forget_content(), as_json=options.json)


def _print(found: dict[str, Any], *, as_json: bool) -> None:
    output.print_pairs({name: value for name, value in found.items() if name != "object"}, as_json=as_json)
