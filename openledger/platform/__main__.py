"""`python -m openledger.platform quickstart`: what the `openledger quickstart` command runs in a child process."""

import argparse
import json
import logging
import os
import signal
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from openledger.core.errors import Interrupted, OpenLedgerError

if TYPE_CHECKING:
    from openledger.platform.quickstart import QuickstartSettings

_EXAMPLES = """examples:
  openledger quickstart                       run everything, then keep serving until Ctrl-C
  openledger quickstart --exit                end after the report
  openledger quickstart --dry-run             say what would be done
  openledger quickstart --base-model ./llama  on another base model (a folder or a hub id)
"""


def main() -> int:
    arguments = parse_arguments()
    _quiet()
    console = Console(stderr=arguments.json)
    signal.signal(signal.SIGTERM, _on_terminate)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where a shell started us in the background
    try:
        return run(arguments, console)
    except KeyboardInterrupt:
        return _fail(
            Interrupted("stopped before the end", fix="run the same command again: it goes on where it stopped"),
            arguments.json,
        )
    except OpenLedgerError as error:
        return _fail(error, arguments.json)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="openledger", epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    quickstart = commands.add_parser(
        "quickstart", help="the whole loop on this machine", epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    quickstart.add_argument("--workdir", type=Path, default=Path(".openledger"), help="default: ./.openledger")
    quickstart.add_argument("--base-model", default="", help="a folder or hub id; default: the embedded model")
    quickstart.add_argument("--port", type=int, help="of API and console; default 8420, 0 for any free one")
    quickstart.add_argument("--exit", action="store_true", help="end after the report")
    quickstart.add_argument("--json", action="store_true", help="print the report as JSON on standard output")
    quickstart.add_argument("--dry-run", action="store_true", help="say what would be done, and change nothing")
    quickstart.add_argument("--config", type=Path, help="settings as YAML, as a run leaves them in config.yaml")
    return parser.parse_args()


def run(arguments: argparse.Namespace, console: Console) -> int:
    from openledger.platform.job import LOADING, begin
    from openledger.platform.stages import tell
    from openledger.platform.workdir import named_workdir

    root = named_workdir(arguments.workdir)
    if arguments.dry_run:
        workdir = None
        tell(LOADING)
    else:
        workdir = begin(root, makes_workdir=True)  # before anything imports ray
    from openledger.platform.printing import print_report
    from openledger.platform.quickstart import demonstration, describe_plan
    from openledger.platform.stages import StageLog

    settings = _settings(arguments)
    if workdir is None:
        describe_plan(settings, root, console)
        return 0
    with demonstration(settings, workdir, StageLog(console)) as finished:
        print_report(finished.report, console, serves=not arguments.exit)
        if arguments.json:
            print(json.dumps(finished.report, ensure_ascii=False), flush=True)
        if not arguments.exit:
            key = workdir.customer_key.read_text()
            console.print(f"api key    {key}  (a customer's, with OPEN to spend)", highlight=False, soft_wrap=True)
            console.print(f"ray token  in {workdir.keys / 'ray_token'}, which the dashboard asks for", soft_wrap=True)
            console.print("\nserving; press Ctrl-C to stop")
            _wait_for_interrupt()
            console.print("stopping")
    return 0


def _settings(arguments: argparse.Namespace) -> "QuickstartSettings":
    from dataclasses import replace

    from openledger.core.config import load_settings
    from openledger.platform.quickstart import QuickstartSettings

    settings = load_settings(QuickstartSettings, arguments.config) if arguments.config else QuickstartSettings()
    port = settings.port if arguments.port is None else arguments.port
    return replace(settings, base_model=arguments.base_model or settings.base_model, port=port)


def _on_terminate(_number: int, _frame: object) -> None:
    """A polite kill ends a run as Ctrl-C does: cleanly, and with a word."""
    raise KeyboardInterrupt


def _wait_for_interrupt() -> None:
    """Until Ctrl-C, which is how a serving quickstart is meant to end."""
    try:
        signal.pause()
    except KeyboardInterrupt:
        return


def _fail(error: OpenLedgerError, as_json: bool) -> int:
    """One clear error on standard error; its class decides the exit code."""
    if as_json:
        print(json.dumps({"error": error.to_dict()}), file=sys.stderr)
    else:
        lines = [f"error: {error.message}", f"  code   {error.code}"]
        lines += [f"  param  {error.param}"] if error.param else []
        lines += [f"  fix    {error.fix}"] if error.fix else []
        print("\n".join(lines), file=sys.stderr)
    return error.exit_code


def _quiet() -> None:
    """Libraries' progress bars and notices would hide what a stage says."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("RAY_SERVE_LOG_TO_STDERR", "0")
    warnings.filterwarnings("ignore")
    for name in ("ray", "ray.serve", "ray.train", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)


if __name__ == "__main__":
    sys.exit(main())
