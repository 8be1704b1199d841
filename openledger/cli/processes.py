"""Commands that need no server: this process becomes `python -m openledger.<package>`.

It is replaced, not forked: a Ctrl-C arrives once, the exit code is the command's own, and nothing can be orphaned.
"""

import os
import sys
from argparse import Namespace
from collections.abc import Sequence
from typing import NoReturn

from openledger.attribution.options import arguments_of
from openledger.ledger import options as ledger_options


def quickstart(options: Namespace) -> None:
    become("openledger.platform", quickstart_arguments(options))


def ledger(options: Namespace) -> None:
    become("openledger.ledger", ledger_options.arguments_of(options))


def attribution(options: Namespace) -> None:
    become("openledger.attribution", arguments_of(options))


def quickstart_arguments(options: Namespace) -> list[str]:
    """The quickstart's own command line, with only what the user gave."""
    return [
        "quickstart",
        *_given(options, "workdir", "base_model", "port", "config"),
        *_set(options, "exit", "json", "dry_run"),
    ]


def become(module: str, arguments: Sequence[str]) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, "-m", module, *arguments])


def _given(options: Namespace, *names: str) -> list[str]:
    values = {name: getattr(options, name) for name in names}
    return [f"{_option(name)}={value}" for name, value in values.items() if value is not None]


def _set(options: Namespace, *names: str) -> list[str]:
    return [_option(name) for name in names if getattr(options, name)]


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")
