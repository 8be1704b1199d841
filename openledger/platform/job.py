"""How the scripts in `jobs/` begin and end: environment first, then one JSON object, or an error with its exit code.

Loading torch and starting Ray take seconds, and a person waits: a line on standard error says so at once.
"""

import json
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

from openledger.core.errors import OpenLedgerError
from openledger.platform.environment import prepare_environment
from openledger.platform.stages import tell
from openledger.platform.workdir import Workdir, found_workdir, is_workdir, named_workdir

LOADING = "loading torch and Ray ..."


def run_job(act: Callable[[Workdir, Namespace], Any], arguments: Namespace, *, makes_workdir: bool = False) -> int:
    """Print what `act` returns for the working folder `arguments.workdir`; the exit status. `act` imports what needs
    ray: the environment has to stand before."""

    def told() -> None:
        print(json.dumps(act(begin(arguments.workdir, makes_workdir=makes_workdir), arguments)))

    return ended(told)


def ended(act: Callable[[], int | None]) -> int:
    """The exit status of `act`: its own, an error's, which is told, or that of a run that was interrupted."""
    try:
        return act() or 0
    except OpenLedgerError as error:
        print(json.dumps({"error": error.to_dict()}), file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted: the same command goes on where it stopped", file=sys.stderr)
        return 130


def begin(path: Path, *, makes_workdir: bool = False) -> Workdir:
    """The working folder at `path`, its environment prepared. One that isn't there is made and told of, or an error.
    Raises as `found_workdir`."""
    root = named_workdir(path)
    if makes_workdir and not is_workdir(root):
        tell(f"a new working folder: {root}")
    workdir = Workdir(root) if makes_workdir else found_workdir(root)
    prepare_environment(workdir)
    tell(LOADING)
    return workdir
