"""How a command is declared: its parser, the options that many share, the types of their values."""

import argparse
import os
from typing import Any, NoReturn

from openledger.core.errors import InvalidInput

DEFAULT_URL = "http://127.0.0.1:8420"  # where the quickstart serves


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InvalidInput(message, code="usage", fix=f"see {self.prog} --help")


def group(commands: Any, name: str, about: str) -> Any:
    return commands.add_parser(name, help=about).add_subparsers(metavar="ACTION", required=True, parser_class=Parser)


def add_idempotency(action: argparse.ArgumentParser) -> None:
    action.add_argument("--idempotency-key", metavar="KEY", help="stands for this call alone")


def add_schema(parser: argparse.ArgumentParser) -> None:
    about = "the Datanet's row schema as JSON, for a dry run; else the server is asked"
    parser.add_argument("--schema", metavar="FILE", help=about)


def command(commands: Any, name: str, run: Any, about: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=about, description=f"{about}.")
    parser.add_argument("--json", action="store_true", help="machine-readable output, errors too")
    parser.set_defaults(run=run)
    return parser


def remote_command(commands: Any, name: str, run: Any, about: str) -> argparse.ArgumentParser:
    parser = command(commands, name, run, about)
    parser.add_argument("--url", default=os.environ.get("OPENLEDGER_URL") or DEFAULT_URL, help="the server")
    parser.add_argument("--api-key", default=os.environ.get("OPENLEDGER_API_KEY"), metavar="KEY")
    return parser


def port(text: str) -> int:
    port = int(text)
    if not 0 <= port <= 65535:
        raise argparse.ArgumentTypeError(f"{text} is no port: 1 to 65535, or 0 for any free one")
    return port


def ordinal(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{text} is no place: rows are counted from 0")
    return number


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not positive")
    return number
