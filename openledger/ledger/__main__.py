"""`python -m openledger.ledger COMMAND`: what `openledger ledger` does, from files alone, without a server."""

import argparse
import json
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from openledger.core.errors import InvalidInput, NotFound, OpenLedgerError
from openledger.core.files import write_durably
from openledger.core.money import OPEN, Unit, showing
from openledger.ledger.opening import is_postgres
from openledger.ledger.options import ABOUT, add_commands

_KEY_HELP = "give the log's verification key, a line name+id+base64 on the console's page Ledger, or a file with it"
_LONGEST_FILE_NAME = 4096
Options = argparse.Namespace


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 0 when everything checked out, else the error's."""
    parser = argparse.ArgumentParser(prog="python -m openledger.ledger", description=ABOUT)
    add_commands(parser.add_subparsers(required=True, metavar="COMMAND"))
    options = parser.parse_args(arguments)
    try:
        result = _COMMANDS[options.action](options)
    except OpenLedgerError as error:
        _print_error(error, as_json=options.json)
        return error.exit_code
    _print_result(result, as_json=options.json)
    return 0


def verify(options: Options) -> dict[str, Any]:
    from openledger.ledger.proofs import verify_proof_file
    from openledger.ledger.receipts import is_receipt
    from openledger.ledger.transfers import transfer_to_dict

    if is_receipt(Path(options.file)):
        return receipt(Options(**{**vars(options), "export": None}))
    witnesses = [_read_key(item) for item in options.witness or []]
    with showing(Unit(name=options.unit or OPEN.name)):
        proof = verify_proof_file(Path(options.file), _read_key(options.key), witnesses, options.quorum or 0)
    return {
        "verified": True,
        "transfer": transfer_to_dict(proof.transfer),
        "time_ms": proof.time_ms,
        "checkpoint": asdict(proof.checkpoint),
        "checked": list(proof.lines),
    }


def audit(options: Options) -> dict[str, Any]:
    from openledger.ledger.audit import audit_file

    report = audit_file(_storage(options.file), _read_key(options.key))
    return {"verified": True, "report": asdict(report), "checked": list(report.lines)}


def receipt(options: Options) -> dict[str, Any]:
    from openledger.ledger.receipts import check_receipt, check_receipt_in_export

    data, key = _read_file(options.file, "receipt").encode(), _read_key(options.key)
    if options.export is None:
        checked = check_receipt(data, key)
        lines = [f"receipt of {checked['origin']} for {checked['transfer']['transfer_id']}, signature good"]
    else:
        checked = check_receipt_in_export(data, key, Path(options.export))
        lines = [f"batch {checked['seq']} of {checked['origin']} is what the receipt promised"]
    return {"verified": True, "receipt": checked, "checked": lines}


def prove(options: Options) -> dict[str, Any]:
    from openledger.ledger.proofs import encode_proof
    from openledger.ledger.reader import LedgerReader

    with LedgerReader(_storage(options.file)) as ledger:
        note = _read_file(options.checkpoint, "checkpoint") if options.checkpoint else ""
        write_durably(options.out, encode_proof(ledger.proof(options.transfer, note)))
    return _written(options, "proof")


def export(options: Options) -> dict[str, Any]:
    from openledger.ledger.reader import LedgerReader

    with LedgerReader(_storage(options.file)) as ledger:
        ledger.export(options.out)
    return _written(options, "export")


def backup(options: Options) -> dict[str, Any]:
    from openledger.ledger.reader import LedgerReader

    with LedgerReader(_storage(options.file)) as ledger:
        ledger.backup(options.out)
    return _written(options, "backup")


def restore(options: Options) -> dict[str, Any]:
    from openledger.ledger.audit import audit_file
    from openledger.ledger.restore import restore as write

    key, source = _read_key(options.key), Path(options.file)
    if options.dry_run:
        report = audit_file(source, key)
        return {
            "dry_run": True,
            "report": asdict(report),
            "checked": [*report.lines, f"nothing written to {options.to}"],
        }
    report = write(source, _storage(options.to), key, _tell_progress)
    return {"restored": True, "report": asdict(report), "checked": [*report.lines, f"restored to {options.to}"]}


def rotate(options: Options) -> dict[str, Any]:
    from openledger.ledger.ledger import Ledger

    if not Path(options.signing_key).exists():
        raise NotFound(f"no key at {options.signing_key}", code="no_key", param="signing_key")
    ledger = Ledger(_storage(options.file), None, Path(options.signing_key), options.name)
    try:
        ledger.rotate_key(Path(options.new_key))
        ring = ledger.key_ring()
    finally:
        ledger.close()
    return {
        "rotated": True,
        "key_ring": ring,
        "checked": [f"{options.new_key} signs from now on; publish:", *ring.split()],
    }


def cosign(options: Options) -> dict[str, Any]:
    from openledger.ledger.reader import LedgerReader
    from openledger.ledger.witness import ask_witness

    with LedgerReader(_storage(options.file)) as ledger:
        note = ledger.checkpoint()
        lines = [ask_witness(*_url_and_key(item), note, ledger.consistency_to(note)) for item in options.witness]
    write_durably(options.out, (note + "".join(lines)).encode())
    return _written(options, f"checkpoint with {len(lines)} cosignatures")


def witness(options: Options) -> dict[str, Any]:
    from openledger.core.signing import SigningKey
    from openledger.ledger.witness import Witness, serve_witness

    host, _, port = options.listen.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise InvalidInput(f"{options.listen!r} is no HOST:PORT", code="invalid_address", param="listen")
    key = SigningKey.load_or_create(options.folder / "witness.key")
    made = Witness(options.folder / "witness.db", options.name, key, [_read_key(item) for item in options.log])
    server = serve_witness(made, host, int(port))
    print(f"witness {made.verification_key()} on http://{host}:{server.server_port}", flush=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with suppress(KeyboardInterrupt):
            server.serve_forever()
    finally:
        server.server_close()
        made.close()
    return {"checked": ["stopped"]}


def claims(options: Options) -> dict[str, Any]:
    from openledger.ledger.audit import audit_file
    from openledger.ledger.payouts import claims_in

    audit_file(_storage(options.file), _read_key(options.key))
    tree, others = claims_in(_storage(options.file), options.round)
    write_durably(options.out, json.dumps(tree.dump(), indent=1).encode())
    total = sum(tree.amounts_nano.values())
    told = [f"round {options.round}: {len(tree.amounts_nano)} claims of {total} {tree.unit.smallest}, root {tree.root}"]
    told += [
        f"not among them, for it is no address: {payee}, {amount} {tree.unit.smallest}" for payee, amount in others
    ]
    return {"root": tree.root, "num_claims": len(tree.amounts_nano), "num_others": len(others), "checked": told}


def payouts(options: Options) -> dict[str, Any]:
    from openledger.ledger.audit import audit_file
    from openledger.ledger.payouts import csv_of, payouts_in

    audit_file(_storage(options.file), _read_key(options.key))
    found = payouts_in(_storage(options.file), options.period)
    write_durably(options.out, csv_of(found).encode())
    return {"num_payouts": len(found), "checked": [f"{len(found)} payouts in {options.out}"]}


_COMMANDS: dict[str, Callable[[Options], dict[str, Any]]] = {
    command.__name__: command
    for command in (verify, audit, receipt, prove, export, backup, restore, rotate, cosign, witness, claims, payouts)
}


def _storage(text: str) -> Path | str:
    return text if is_postgres(text) else Path(text)


def _written(options: Options, what: str) -> dict[str, Any]:
    return {"written": str(options.out), "checked": [f"{what} in {options.out}"]}


def _url_and_key(text: str) -> tuple[str, str]:
    url, separator, key = text.partition("=")
    if not separator or not url.startswith(("http://", "https://")):
        raise InvalidInput(f"{text!r} is no URL=KEY", code="invalid_witness", param="witness")
    return url, _read_key(key)


def _read_key(text: str) -> str:
    if "+" in text and not Path(text[:_LONGEST_FILE_NAME]).exists():
        return text
    try:
        return Path(text).read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise NotFound(f"no key at {text}: {error}", code="no_key", param="key", fix=_KEY_HELP) from error


def _read_file(name: str, what: str) -> str:
    try:
        return Path(name).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise NotFound(f"no {what} at {name}: {error}", code="unknown_file", param=what) from error


def _tell_progress(num_batches: int) -> None:
    print(f"{num_batches} batches", file=sys.stderr, flush=True)


def _print_result(result: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(result, indent=2, sort_keys=True))
        return
    for line in result["checked"]:
        print(f"ok  {line}")
    if result.get("verified"):
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
