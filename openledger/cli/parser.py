"""The command line's grammar: every command, its options, its help. Knows no command's work."""

import argparse
import os
from typing import Any, NoReturn

from openledger import __version__
from openledger.attribution.options import add_commands
from openledger.cli import contributing, keys, processes, remote, withdrawing
from openledger.core.errors import InvalidInput

DEFAULT_URL = "http://127.0.0.1:8420"  # where the quickstart serves
_EXAMPLES = """examples:
  openledger quickstart --exit             run everything once and print the report
  openledger models                        what can be asked, and for how much
  openledger ask MODEL "What does os.path.join do?"
  openledger keys new --out my.key         an identity to contribute with
  openledger contribute DATANET notes/ --key my.key
  openledger withdraw DATANET ROW_ID --key my.key
  openledger payouts                       what this account was paid
  openledger proof TRANSFER_ID -o payout.json
  openledger ledger verify payout.json --key KEY
  openledger attribution score --help      influence of rows and contributors, from files

OPENLEDGER_URL and OPENLEDGER_API_KEY stand in for --url and --api-key.
"""


_CONTRIBUTE_HELP = """formats:
  .jsonl .ndjson .csv .tsv .parquet .arrow     records with prompt and completion (or instruction and response,
                                               question and answer, messages, text), and optionally source
  .md .txt .pdf .docx                          a row for each paragraph, asked by the heading above it
  a folder                                     its files, by name; also a Hugging Face dataset directory

What can't be read is told with its file and place, and the rest goes on. Large files are sent in parts of 1,000 rows;
after a broken connection run the same command again: what is stored already is not sent twice.

examples:
  openledger contribute DATANET notes/ --key my.key --dry-run
  openledger contribute DATANET rows.jsonl --key my.key --receipts verdicts.jsonl
"""


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InvalidInput(message, code="usage", fix=f"see {self.prog} --help")


def build_parser() -> Parser:
    parser = Parser(
        prog="openledger",
        description="Pay the people whose data made the answer.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"openledger {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=Parser)
    _add_quickstart(commands)
    _add_ledger(commands)
    _add_attribution(commands)
    _add_questions(commands)
    _add_data(commands)
    _add_removals(commands)
    _add_money(commands)
    _add_keys(commands)
    return parser


def _add_quickstart(commands: Any) -> None:
    parser = _command(commands, "quickstart", processes.quickstart, "run the whole loop on this machine, then serve it")
    parser.add_argument("--workdir", metavar="DIR", help="where everything is kept, and found again by the next run")
    parser.add_argument("--base-model", metavar="ID_OR_PATH", help="a Hugging Face causal LM; without it the embedded")
    parser.add_argument("--port", type=_port, metavar="N", help="for API and console; 0 for any free one")
    parser.add_argument("--config", metavar="FILE", help="settings as YAML, as a run leaves them in config.yaml")
    parser.add_argument("--exit", action="store_true", help="end after the report instead of serving on")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done and do nothing")


def _add_ledger(commands: Any) -> None:
    ledger = commands.add_parser("ledger", help="check proofs and books without trusting a server")
    actions = ledger.add_subparsers(metavar="ACTION", required=True, parser_class=Parser)
    verify = _command(actions, "verify", processes.ledger_verify, "verify a proof file offline")
    verify.add_argument("file", metavar="PROOF")
    audit = _command(actions, "audit", processes.ledger_audit, "recompute every balance and hash of a ledger")
    audit.add_argument("file", metavar="LEDGER", help="the database file, or an export of it")
    for action in (verify, audit):
        action.add_argument("--key", required=True, metavar="KEY", help="the ledger's public key, or a file with it")


def _add_attribution(commands: Any) -> None:
    group = commands.add_parser("attribution", help="measure influence from files, without any server")
    actions = group.add_subparsers(metavar="ACTION", required=True, parser_class=Parser)
    add_commands(actions)
    for action in actions.choices.values():
        action.set_defaults(run=processes.attribution)


def _add_questions(commands: Any) -> None:
    _remote(commands, "models", remote.models, "list the adapters and their prices")
    ask = _remote(commands, "ask", remote.ask, "ask one question, paid from your account")
    ask.add_argument("model", metavar="MODEL")
    ask.add_argument("question", metavar="QUESTION")
    ask.add_argument("--max-tokens", type=_positive, metavar="N")
    ask.add_argument("--temperature", type=float, metavar="T", help="0 is greedy, the default")
    ask.add_argument("--seed", type=int, metavar="N", help="makes sampling repeatable")
    _remote(commands, "report", remote.report, "who contributed, who was paid, what gaming earned")
    _remote(commands, "status", remote.status, "is the server there, and what does it hold")


def _add_data(commands: Any) -> None:
    _remote(commands, "datanets", remote.datanets, "list the Datanets")
    contribute = _remote(commands, "contribute", contributing.contribute, "sign rows and send them to a Datanet")
    contribute.formatter_class = argparse.RawDescriptionHelpFormatter
    contribute.epilog = _CONTRIBUTE_HELP
    contribute.add_argument("datanet", metavar="DATANET")
    contribute.add_argument("rows", metavar="PATH", help="a file, or a folder of files; see below")
    contribute.add_argument("--key", required=True, metavar="KEYFILE", help="made by 'openledger keys new'")
    contribute.add_argument("--nonce", default="0", help="another one sends the same rows as a new contribution")
    contribute.add_argument("--receipts", metavar="FILE", help="write each row's id and verdict there, one a line")
    trial = contribute.add_mutually_exclusive_group()
    trial.add_argument("--dry-run", action="store_true", help="judge the rows by the gate here; send nothing")
    trial.add_argument("--preview", action="store_true", help="ask the server for the verdicts; store nothing")


def _add_removals(commands: Any) -> None:
    withdraw = _remote(commands, "withdraw", withdrawing.withdraw, "take back rows that you contributed")
    withdraw.add_argument("--key", required=True, metavar="KEYFILE", help="the key that contributed them")
    withdraw.add_argument("--nonce", default="0", help="another one makes another withdrawal of the same rows")
    withdraw.add_argument("--dry-run", action="store_true", help="sign it and send nothing")
    remove = _remote(commands, "remove", withdrawing.remove, "remove rows from a Datanet that you own")
    remove.add_argument("--reason", required=True, metavar="WORD", help="such as court_order; it stands in the log")
    for parser in (withdraw, remove):
        parser.add_argument("datanet", metavar="DATANET")
        parser.add_argument("row_ids", metavar="ROW_ID", nargs="+", help="or - for one a line from standard input")


def _add_money(commands: Any) -> None:
    _remote(commands, "balance", remote.balance, "what your account holds")
    _remote(commands, "payouts", remote.payouts, "what your account was paid")
    proof = _remote(commands, "proof", remote.proof, "download the proof of one transfer")
    proof.add_argument("transfer_id", metavar="TRANSFER_ID")
    proof.add_argument("-o", "--out", metavar="FILE", help="standard output without it")


def _add_keys(commands: Any) -> None:
    group = commands.add_parser("keys", help="your identity as a contributor")
    actions = group.add_subparsers(metavar="ACTION", required=True, parser_class=Parser)
    new = _command(actions, "new", keys.new, "make an Ed25519 key; the file is yours alone to keep")
    new.add_argument("-o", "--out", default="contributor.key", metavar="KEYFILE")


def _command(commands: Any, name: str, run: Any, about: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=about, description=f"{about}.")
    parser.add_argument("--json", action="store_true", help="machine-readable output, errors too")
    parser.set_defaults(run=run)
    return parser


def _remote(commands: Any, name: str, run: Any, about: str) -> argparse.ArgumentParser:
    parser = _command(commands, name, run, about)
    parser.add_argument("--url", default=os.environ.get("OPENLEDGER_URL") or DEFAULT_URL, help="the server")
    parser.add_argument("--api-key", default=os.environ.get("OPENLEDGER_API_KEY"), metavar="KEY")
    return parser


def _port(text: str) -> int:
    port = int(text)
    if not 0 <= port <= 65535:
        raise argparse.ArgumentTypeError(f"{text} is no port: 1 to 65535, or 0 for any free one")
    return port


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not positive")
    return number
