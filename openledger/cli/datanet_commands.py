"""The grammar of a Datanet's people: owners, who asks for permission, reviewers, customers who say what an answer was
worth. Knows no command's work."""

import argparse
from typing import Any

from openledger.cli import owning, publications, reviewing
from openledger.cli.commands import group, positive, remote_command

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
  openledger datanet terms bees --display none
  openledger datanet terms bees --language en --language de --only-languages yes --dry-run
"""
_VERSION_HELP = """The ids of its rows are asked for, and both roots computed from them. Another result is an error.

examples:
  openledger datanet versions bees
  openledger datanet version bees 3 --since 2
  openledger datanet version bees 3 -o manifest.json
"""
_PERMISSION_HELP = """examples:
  openledger permissions request bees --key my.key           to contribute, signed by the contributor's key
  openledger permissions request bees                        to train, as the API key's account
  openledger permissions approve bees ctr_... --to contribute --days 30
  openledger permissions revoke bees user:lab --to train
"""

_REVIEW_HELP = """Among the rows stand some of which the owner knows the answer: they measure who reviews.

examples:
  openledger reviews list bees
  openledger reviews decide bees row_... --accept
  openledger reviews known bees "What is a hive?" "Call 555-0100 for cheap pills." --reject
  openledger reviews records bees

where the Datanet has panels (datanet terms --panel yes):
  openledger reviews commit bees row_... --accept --key my.key
  openledger reviews panels bees
  openledger reviews reveal bees --key my.key
"""
_FEEDBACK_HELP = """The API key is that of the account that paid for the answer; the key signs, and is credited.

examples:
  openledger feedback rate ans_... 4 --key my.key
  openledger feedback correct ans_... bees "Who feeds the brood?" "The younger workers do." --key my.key --consent
"""


_DISPLAY_HELP = "what a customer sees of rows that an answer rests on: nothing, id and contributor, or the text too"


def add_datanet_commands(commands: Any) -> None:
    actions = group(commands, "datanet", "create a Datanet, and say on what terms it is open")
    show = remote_command(actions, "show", owning.show, "one Datanet: its counts, contributors and row schema")
    create = _explained(remote_command(actions, "create", owning.create, "a Datanet of your account's"), _CREATE_HELP)
    terms = _explained(remote_command(actions, "terms", owning.terms, "show or set a Datanet's terms"), _TERMS_HELP)
    board = remote_command(actions, "leaderboard", owning.leaderboard, "who contributes, how fast, and what it earned")
    listed = remote_command(actions, "versions", publications.versions, "what was published")
    version = _explained(
        remote_command(actions, "version", publications.version, "one version, its roots recomputed here"),
        _VERSION_HELP,
    )
    for parser in (show, create, terms, board, listed, version):
        parser.add_argument("datanet", metavar="DATANET")
    version.add_argument("number", metavar="N", type=positive)
    version.add_argument(
        "--since", type=positive, metavar="N", help="which rows came and went since this older version"
    )
    version.add_argument("-o", "--out", metavar="FILE", help="write it with all of its rows' ids, as JSON")
    board.add_argument("--limit", type=positive, default=100, metavar="N", help="contributors shown, at most 100")
    board.add_argument("--after", default="", metavar="CONTRIBUTOR_ID", help="begin behind this one")
    create.add_argument("--summary", required=True, metavar="TEXT", help="one line")
    create.add_argument("--schema", metavar="FILE", help="the rows' kind and columns, as JSON; fixed from then on")
    for parser in (create, terms):
        _add_terms(parser)
        parser.add_argument("--dry-run", action="store_true", help="check it here; send nothing")
    _add_permissions(commands)
    _add_reviews(commands)
    _add_feedback(commands)


def _add_terms(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--description", metavar="FILE", help="Markdown")
    parser.add_argument("--tag", action="append", metavar="TAG", help="may be repeated")
    parser.add_argument("--language", action="append", metavar="TAG", help="such as en or de-CH; may be repeated")
    parser.add_argument("--only-languages", choices=("yes", "no"), help="whether rows in other languages are rejected")
    parser.add_argument("--licence", metavar="ID", help="an SPDX id, or withdrawn")
    parser.add_argument("--contribute", choices=("open", "approval", "invited"), help="who may send rows")
    parser.add_argument("--train", choices=("open", "request", "private"), help="who may train on them")
    parser.add_argument("--max-rows-a-day", type=int, metavar="N", help="of one contributor; 0 for any number")
    parser.add_argument("--max-rows-an-hour", type=int, metavar="N", help="of one contributor; 0 for any number")
    parser.add_argument("--display", choices=("none", "reference", "text"), help=_DISPLAY_HELP)
    parser.add_argument("--min-reviews", type=int, metavar="N", help="how many look at a row that waits for review")
    parser.add_argument("--panel", choices=("yes", "no"), help="whether they commit before anybody tells his verdict")


def _add_permissions(commands: Any) -> None:
    actions = group(commands, "permissions", "who may contribute to a Datanet, and train on it")
    listed = remote_command(actions, "list", owning.permissions, "all of your Datanet; of another one your own")
    request = remote_command(actions, "request", owning.request, "ask the owner")
    approve = remote_command(actions, "approve", owning.approve, "let somebody in, also who never asked")
    revoke = remote_command(actions, "revoke", owning.revoke, "let somebody in no more")
    for parser in (listed, request, approve, revoke):
        _explained(parser, _PERMISSION_HELP).add_argument("datanet", metavar="DATANET")
    request.add_argument("--key", metavar="KEYFILE", help="to contribute with; without it, to train")
    request.add_argument("--dry-run", action="store_true", help="sign it; send the Datanet's name alone")
    for parser in (approve, revoke):
        parser.add_argument("party", metavar="PARTY", help="a contributor's id to contribute, an account to train")
        parser.add_argument("--to", required=True, choices=("contribute", "train"), dest="action")
    approve.add_argument("--days", type=int, metavar="N", help="after which it expires; without it never")


def _add_reviews(commands: Any) -> None:
    actions = group(commands, "reviews", "look at rows that the gate sent to review")
    queue = remote_command(actions, "list", reviewing.queue, "what waits for you")
    queue.add_argument("--limit", type=positive, default=20, metavar="N", help="at most 100")
    decide = remote_command(actions, "decide", reviewing.review, "take a row, or turn it away")
    known = remote_command(actions, "known", reviewing.add_known, "show reviewers an item whose answer you know")
    records = remote_command(actions, "records", reviewing.records, "how much each reviewer did, and how well")
    commit = remote_command(actions, "commit", reviewing.commit, "on a panel: commit to a verdict that nobody can see")
    reveal = remote_command(actions, "reveal", reviewing.reveal, "tell your verdicts of panels that are full")
    panels = remote_command(actions, "panels", reviewing.panels, "your seats on panels, and by when you reveal")
    for parser in (commit, reveal):
        parser.add_argument("--key", required=True, metavar="KEYFILE", help="hides the verdict; keep it to reveal")
        parser.add_argument("--dry-run", action="store_true", help="say what would be sent")
    for parser in (queue, decide, known, records, commit, reveal, panels):
        _explained(parser, _REVIEW_HELP).add_argument("datanet", metavar="DATANET")
    for parser in (decide, commit):
        parser.add_argument("row_id", metavar="ROW_ID")
    known.add_argument("prompt", metavar="PROMPT")
    known.add_argument("completion", metavar="COMPLETION")
    known.add_argument("--source", default="", metavar="TEXT", help="as rows of this Datanet have it")
    for parser in (decide, known, commit):
        either = parser.add_mutually_exclusive_group(required=True)
        either.add_argument("--accept", action="store_true")
        either.add_argument("--reject", action="store_true")


def _add_feedback(commands: Any) -> None:
    actions = group(commands, "feedback", "say what an answer you paid for should have been, or was worth")
    correct = remote_command(actions, "correct", reviewing.correct, "send a better answer, as a row that is yours")
    rate = remote_command(actions, "rate", reviewing.rate, "rate an answer from 1 (bad) to 5 (good)")
    for parser in (correct, rate):
        _explained(parser, _FEEDBACK_HELP).add_argument("answer_id", metavar="ANSWER_ID")
        parser.add_argument("--key", required=True, metavar="KEYFILE", help="of whom it is credited to")
    rate.add_argument("--dry-run", action="store_true", help="sign it; send nothing")
    correct.add_argument("--dry-run", action="store_true", help="sign it; send the Datanet's name alone")
    correct.add_argument("datanet", metavar="DATANET", help="of the model that answered")
    correct.add_argument("prompt", metavar="PROMPT", help="what was asked, in the words to be kept")
    correct.add_argument("completion", metavar="COMPLETION", help="what would have been right")
    correct.add_argument("--edge-case", action="store_true", help="another question that the model gets wrong")
    correct.add_argument("--consent", action="store_true", help="the row may be kept, shown and trained on")
    rate.add_argument("rating", type=int, choices=(1, 2, 3, 4, 5))


def _explained(parser: argparse.ArgumentParser, text: str) -> argparse.ArgumentParser:
    parser.epilog, parser.formatter_class = text, argparse.RawDescriptionHelpFormatter
    return parser
