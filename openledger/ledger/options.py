"""The grammar of `openledger ledger`, for the command line and for `python -m openledger.ledger`.

Imports nothing heavy: the command line reads it for its help.
"""

import argparse
from pathlib import Path
from typing import Any

ABOUT = "Check, copy and witness ledgers, from files alone."
_LEDGER = "the database file, or the postgresql:// URL"
_KEY = "the ledger's verification key (name+id+base64), or a file with it or with its key ring"
_WITNESS = """examples:
  openledger ledger witness --name witness.example/w1 --log ledger.key.pub --folder /var/lib/witness
  openledger ledger witness --name witness.example/w1 --log ledger.key.pub --folder w --listen 0.0.0.0:8071
"""
_COSIGN = """examples:
  openledger ledger cosign ledger.db --witness http://w1.example:8071=witness.example/w1+...+... --out cosigned.txt
"""
_CLAIMS = """examples:
  openledger ledger claims ledger.db --key KEY --round 1 --out claims.json
"""
_RESTORE = """examples:
  openledger ledger export ledger.db --out ledger.jsonl
  openledger ledger restore ledger.jsonl --key KEY --to postgresql://ledger@db.example/ledger
"""


def add_commands(commands: Any) -> None:
    """Add each command's parser to `commands`; `action` in the parsed options is its name."""
    verify = _add(commands, "verify", "check a proof or a receipt offline", file="PROOF")
    verify.add_argument("--witness", action="append", metavar="KEY", help="a witness that must have cosigned; repeat")
    verify.add_argument("--quorum", type=int, metavar="N", help="how many of the witnesses (default: all)")
    verify.add_argument("--unit", metavar="CODE", help="the ledger's unit of account (default: OPEN)")
    _add(commands, "audit", "recompute every balance and hash of a ledger or an export of it", file="LEDGER")
    receipt = _add(commands, "receipt", "check a receipt, and that a log keeps its promise", file="RECEIPT")
    receipt.add_argument("--export", metavar="FILE", help="the log, as the ledger exports it")
    prove = _add(commands, "prove", "write the proof of a transfer", file="LEDGER", keyed=False)
    prove.add_argument("--transfer", required=True, metavar="ID")
    prove.add_argument("--checkpoint", metavar="FILE", help="a checkpoint to prove against, such as a cosigned one")
    _out(prove)
    export = _add(commands, "export", "write the whole log as text that anyone can audit", file="LEDGER", keyed=False)
    _out(export)
    backup = _add(commands, "backup", "copy a running ledger's file as it stands", file="LEDGER", keyed=False)
    _out(backup)
    restore = _add(commands, "restore", "make a ledger again from an export", _RESTORE, file="EXPORT")
    restore.add_argument("--to", required=True, metavar="LEDGER", help=f"where: {_LEDGER}")
    restore.add_argument("--dry-run", action="store_true", help="audit the export and write nothing")
    rotate = _add(commands, "rotate", "sign with a new key from now on", file="LEDGER", keyed=False)
    rotate.add_argument("--signing-key", required=True, metavar="FILE", help="the key file in use")
    rotate.add_argument("--new-key", required=True, metavar="FILE", help="the new one; made where there is none")
    rotate.add_argument("--name", default="openledger/local", help="of the log (default: openledger/local)")
    cosign = _add(commands, "cosign", "have witnesses cosign the newest checkpoint", _COSIGN, "LEDGER", keyed=False)
    cosign.add_argument("--witness", action="append", required=True, metavar="URL=KEY", help="repeat for each witness")
    _out(cosign)
    _add_witness(commands)
    claims = _add(commands, "claims", "write a round of withdrawals as claims for an EVM chain", _CLAIMS, "LEDGER")
    claims.add_argument("--round", type=int, required=True, metavar="N", help="as jobs/operate.py claims closed it")
    _out(claims)
    payouts = _add(commands, "payouts", "write payouts as CSV", file="LEDGER")
    payouts.add_argument("--period", default="", metavar="PERIOD", help="one period (default: all)")
    _out(payouts)


def arguments_of(options: argparse.Namespace) -> list[str]:
    """The command line that `options` came from, with only what was given."""
    given = []
    for name, value in vars(options).items():
        if name in ("run", "action", "file") or value is None or value is False:
            continue
        option = "--" + name.replace("_", "-")
        values = value if isinstance(value, list) else [value]
        given += [option if item is True else f"{option}={item}" for item in values]
    return [options.action, *given, *(["--", options.file] if hasattr(options, "file") else [])]


def _add_witness(commands: Any) -> None:
    witness = _add(commands, "witness", "cosign checkpoints of logs that only grow, for ever", _WITNESS, keyed=False)
    witness.add_argument("--name", required=True, metavar="NAME", help="of the witness, like witness.example/w1")
    witness.add_argument("--log", action="append", required=True, metavar="KEY", help="a log's key or file; repeat")
    witness.add_argument("--folder", type=Path, required=True, metavar="DIR", help="its key and what it has seen")
    witness.add_argument("--listen", default="127.0.0.1:8071", metavar="HOST:PORT", help="default 127.0.0.1:8071")


def _add(
    commands: Any, name: str, about: str, examples: str = "", file: str = "", *, keyed: bool = True
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=about,
        description=f"{about}.",
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    if file:
        parser.add_argument("file", metavar=file, help=_LEDGER if file == "LEDGER" else None)
    if keyed:
        parser.add_argument("--key", required=True, metavar="KEY", help=_KEY)
    parser.add_argument("--json", action="store_true", help="machine-readable output, errors too")
    parser.set_defaults(action=name)
    return parser


def _out(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", "-o", type=Path, required=True, metavar="FILE", help="what to write")
