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
from openledger.platform.workdir import Workdir, found_workdir, is_begun, named_workdir

LOADING = "loading torch and Ray ..."
GOES_ON = "the same command goes on where it stopped"


def run_job(act: Callable[[Workdir, Namespace], Any], arguments: Namespace, *, makes_workdir: bool = False) -> int:
    """Print what `act` returns for the working folder `arguments.workdir`; the exit status. `act` imports what needs
    ray: the environment has to stand before."""

    def told() -> None:
        print(json.dumps(act(begin(arguments.workdir, makes_workdir=makes_workdir), arguments)))

    return ended(told)


def ended(act: Callable[[], int | None], *, when_interrupted: str = GOES_ON) -> int:
    """The exit status of `act`: its own, an error's, which is told, or that of a run that was interrupted, with what
    to do then."""
    try:
        return act() or 0
    except OpenLedgerError as error:
        print(json.dumps({"error": error.to_dict()}), file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"interrupted: {when_interrupted}", file=sys.stderr)
        return 130


def begin(path: Path, *, makes_workdir: bool = False) -> Workdir:
    """The working folder at `path`, its environment prepared. One that isn't there is made and told of, or an error.
    Raises as `found_workdir`."""
    root = named_workdir(path)
    is_new = makes_workdir and not is_begun(root)
    workdir = Workdir(root) if makes_workdir else found_workdir(root)
    if is_new:
        workdir.folder("keys")  # by which the next run knows it
        tell(f"a new working folder: {root}")
    prepare_environment(workdir)
    tell(LOADING)
    return workdir
