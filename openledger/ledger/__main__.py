"""`python -m openledger.ledger verify PROOF --key KEY` and `audit LEDGER --key KEY`: offline, without a server."""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from openledger.core.errors import NotFound, OpenLedgerError
from openledger.ledger.audit import audit_file
from openledger.ledger.proofs import verify_proof_file
from openledger.ledger.transfers import transfer_to_dict

_KEY_HELP = "the ledger's verification key (name+id+base64), or a file that holds it"
_LONGEST_FILE_NAME = 4096


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 0 when everything checked out, else the error's."""
    options = _parser().parse_args(arguments)
    command: Callable[[Path, str], dict[str, Any]] = options.command
    try:
        result = command(options.path, _read_key(options.key))
    except OpenLedgerError as error:
        _print_error(error, as_json=options.json)
        return error.exit_code
    _print_result(result, as_json=options.json)
    return 0


def verify(path: Path, key: str) -> dict[str, Any]:
    proof = verify_proof_file(path, key)
    return {
        "verified": True,
        "transfer": transfer_to_dict(proof.transfer),
        "time_ms": proof.time_ms,
        "checkpoint": asdict(proof.checkpoint),
        "checked": list(proof.lines),
    }


def audit(path: Path, key: str) -> dict[str, Any]:
    report = audit_file(path, key)
    return {"verified": True, "report": asdict(report), "checked": list(report.lines)}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m openledger.ledger", description="Check a ledger offline.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add(commands, "verify", verify, "check a proof file byte for byte", "PROOF")
    _add(commands, "audit", audit, "recompute a whole ledger from its file or an export", "LEDGER")
    return parser


def _add(commands: Any, name: str, command: Callable[[Path, str], dict[str, Any]], text: str, file: str) -> None:
    sub = commands.add_parser(name, help=text, description=text)
    sub.add_argument("path", type=Path, metavar=file)
    sub.add_argument("--key", required=True, help=_KEY_HELP)
    sub.add_argument("--json", action="store_true", help="print JSON")
    sub.set_defaults(command=command)


def _read_key(text: str) -> str:
    if "+" in text and not Path(text[:_LONGEST_FILE_NAME]).exists():
        return text
    try:
        return Path(text).read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise NotFound(f"no key at {text}: {error}", code="no_key", param="key", fix=_KEY_HELP) from error


def _print_result(result: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(result, indent=2, sort_keys=True))
        return
    for line in result["checked"]:
        print(f"ok  {line}")
    print("verified")


def _print_error(error: OpenLedgerError, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"verified": False, "error": error.to_dict()}, indent=2, sort_keys=True))
        return
    where = f" [{error.param}]" if error.param else ""
    print(f"FAILED  {error.code}{where}: {error.message}", file=sys.stderr)
    if error.fix:
        print(f"        {error.fix}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
