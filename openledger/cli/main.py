"""The entry point: parses, runs one command, and tells errors in one block with their own exit code."""

import os
import sys
from collections.abc import Sequence

from openledger.cli import output
from openledger.cli.parser import build_parser
from openledger.core.errors import Interrupted, OpenLedgerError

_BROKEN_PIPE_EXIT_CODE = 141  # 128 + SIGPIPE, as the shell reports it


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 0, or that of the error's class."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        options = build_parser().parse_args(words)
        options.run(options)
        sys.stdout.flush()
    except OpenLedgerError as error:
        return _told(error, words)
    except KeyboardInterrupt:
        return _told(Interrupted("stopped"), words)
    except BrokenPipeError:
        # the reader of our output has gone; without this Python complains once more at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _BROKEN_PIPE_EXIT_CODE
    return 0


def _told(error: OpenLedgerError, words: Sequence[str]) -> int:
    output.print_error(error, as_json="--json" in words)
    return error.exit_code
