"""How the scripts in `jobs/` begin and end: environment first, then one JSON object, or an error with its exit code."""

import json
import sys
from argparse import Namespace
from collections.abc import Callable
from typing import Any

from openledger.core.errors import OpenLedgerError
from openledger.platform.environment import prepare_environment
from openledger.platform.workdir import Workdir


def run_job(act: Callable[[Workdir, Namespace], Any], arguments: Namespace) -> int:
    """Print what `act` returns for the working folder `arguments.workdir`; the exit status. `act` imports what needs
    ray: the environment has to stand before."""
    try:
        workdir = Workdir(arguments.workdir.resolve())
        prepare_environment(workdir)
        print(json.dumps(act(workdir, arguments)))
    except OpenLedgerError as error:
        print(json.dumps({"error": error.to_dict()}), file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted: the same command goes on where it stopped", file=sys.stderr)
        return 130
    return 0
