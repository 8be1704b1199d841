"""How a command is declared: its parser, the options that many share, the types of their values."""

import argparse
import os
from functools import cache, wraps
from typing import Any, NoReturn

from openledger.core.errors import InvalidInput
from openledger.core.money import Unit, showing

DEFAULT_URL = "http://127.0.0.1:8420"  # where the quickstart serves
_UNIT_TIMEOUT_S = 10.0


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
    """One that asks a server; amounts are read and written in that server's unit of account, which is asked for with
    the first of them: where it can't be learned no amount is taken for another."""
    parser = command(commands, name, _in_unit(run), about)
    parser.add_argument("--url", default=os.environ.get("OPENLEDGER_URL") or DEFAULT_URL, help="the server")
    parser.add_argument("--api-key", default=os.environ.get("OPENLEDGER_API_KEY"), metavar="KEY")
    return parser


def _in_unit(run: Any) -> Any:
    @wraps(run)
    def shown(options: argparse.Namespace) -> None:
        with showing(cache(lambda: _unit_of(options))):
            run(options)

    return shown


def _unit_of(options: argparse.Namespace) -> Unit:
    from openledger.client import OpenLedger  # the HTTP library is half of a second: only commands that need it pay

    with OpenLedger(options.url, timeout_s=_UNIT_TIMEOUT_S) as client:
        return client.unit()


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
