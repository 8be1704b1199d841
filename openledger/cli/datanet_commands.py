"""The grammar of a Datanet's people: its owner, who asks for permission. Knows no command's work."""

import argparse
from typing import Any

from openledger.cli import owning
from openledger.cli.commands import group, remote_command

_CREATE_HELP = """A row schema says of what kind rows are (instruction, chat or text) and which typed columns they have:

  {"kind": "chat", "columns": [{"name": "year", "type": "int64"}, {"name": "mood", "type": "bool", "required": false}]}

examples:
  openledger datanet create bees --summary "Who does what in a hive" --dry-run
  openledger datanet create bees --summary "Who does what in a hive" --schema bees.json --licence CC-BY-4.0
"""
_TERMS_HELP = """Without an option the terms are shown. What isn't named stays as it is.

examples:
  openledger datanet terms bees
  openledger datanet terms bees --contribute approval --max-rows-a-day 5000
  openledger datanet terms bees --language en --language de --only-languages yes --dry-run
"""
_PERMISSION_HELP = """examples:
  openledger permissions request bees --key my.key           to contribute, signed by the contributor's key
  openledger permissions request bees                        to train, as the API key's account
  openledger permissions approve bees ctr_... --to contribute --days 30
  openledger permissions revoke bees user:lab --to train
"""


def add_datanet_commands(commands: Any) -> None:
    actions = group(commands, "datanet", "create a Datanet, and say on what terms it is open")
    show = remote_command(actions, "show", owning.show, "one Datanet: its counts, contributors and row schema")
    create = _explained(remote_command(actions, "create", owning.create, "a Datanet of your account's"), _CREATE_HELP)
    terms = _explained(remote_command(actions, "terms", owning.terms, "show or set a Datanet's terms"), _TERMS_HELP)
    for parser in (show, create, terms):
        parser.add_argument("datanet", metavar="DATANET")
    create.add_argument("--summary", required=True, metavar="TEXT", help="one line")
    create.add_argument("--schema", metavar="FILE", help="the rows' kind and columns, as JSON; fixed from then on")
    for parser in (create, terms):
        _add_terms(parser)
        parser.add_argument("--dry-run", action="store_true", help="check it here; send nothing")
    _add_permissions(commands)


def _add_terms(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--description", metavar="FILE", help="Markdown")
    parser.add_argument("--tag", action="append", metavar="TAG", help="may be repeated")
    parser.add_argument("--language", action="append", metavar="TAG", help="such as en or de-CH; may be repeated")
    parser.add_argument("--only-languages", choices=("yes", "no"), help="whether rows in other languages are rejected")
    parser.add_argument("--licence", metavar="ID", help="an SPDX id, or withdrawn")
    parser.add_argument("--contribute", choices=("open", "approval", "invited"), help="who may send rows")
    parser.add_argument("--train", choices=("open", "request", "private"), help="who may train on them")
    parser.add_argument("--max-rows-a-day", type=int, metavar="N", help="of one contributor; 0 for any number")
    parser.add_argument("--min-reviews", type=int, metavar="N", help="how many look at a row that waits for review")


def _add_permissions(commands: Any) -> None:
    actions = group(commands, "permissions", "who may contribute to a Datanet, and train on it")
    listed = remote_command(actions, "list", owning.permissions, "all of your Datanet; of another one your own")
    request = remote_command(actions, "request", owning.request, "ask the owner")
    approve = remote_command(actions, "approve", owning.approve, "let somebody in, also who never asked")
    revoke = remote_command(actions, "revoke", owning.revoke, "let somebody in no more")
    for parser in (listed, request, approve, revoke):
        _explained(parser, _PERMISSION_HELP).add_argument("datanet", metavar="DATANET")
    request.add_argument("--key", metavar="KEYFILE", help="to contribute with; without it, to train")
    request.add_argument("--dry-run", action="store_true", help="sign it; send nothing")
    for parser in (approve, revoke):
        parser.add_argument("party", metavar="PARTY", help="a contributor's id to contribute, an account to train")
        parser.add_argument("--to", required=True, choices=("contribute", "train"), dest="action")
    approve.add_argument("--days", type=int, metavar="N", help="after which it expires; without it never")


def _explained(parser: argparse.ArgumentParser, text: str) -> argparse.ArgumentParser:
    parser.epilog, parser.formatter_class = text, argparse.RawDescriptionHelpFormatter
    return parser
