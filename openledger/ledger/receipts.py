"""Receipts: the ledger's signed promise that a transfer, and what its batch states, stands in its log.

A customer gets one with an answer, a contributor with a payout. It is canonical JSON and one newline:

    {"format": "openledger.receipt/1", "leaf": hash, "origin": ..., "seq": N, "signature": hex, "statement_digest": ...,
     "time_ms": ..., "transfer": {...}}

Who holds it can ask later for the log: if batch `seq` isn't the leaf that was promised, a sale was left out or changed,
and the signature shows whose doing that is.
"""

import json
from pathlib import Path
from typing import Any

from openledger.core.errors import Corrupt, NotFound, OpenLedgerError
from openledger.core.hashing import canonical_json
from openledger.core.signing import SigningKey, verify
from openledger.ledger.checkpoints import parse_verification_key
from openledger.ledger.export import Claim, read_export
from openledger.ledger.keyring import trusted_keys
from openledger.ledger.log import leaf_hash, leaf_of
from openledger.ledger.transfers import Batch, transfer_to_dict

FORMAT = "openledger.receipt/1"
_MOST_BYTES = 64 * 1024
_FIELDS = {"format", "leaf", "origin", "seq", "signature", "statement_digest", "time_ms", "transfer"}


def receipt_of(batch: Batch, ordinal: int, origin: str, key: SigningKey) -> dict[str, Any]:
    leaf = leaf_of(batch)
    promise = {
        "format": FORMAT,
        "leaf": leaf_hash(leaf).hex(),
        "origin": origin,
        "seq": batch.seq,
        "statement_digest": leaf["statement_digest"],
        "time_ms": batch.time_ms,
        "transfer": transfer_to_dict(batch.transfers[ordinal]),
    }
    return {**promise, "signature": key.sign(canonical_json(promise))}


def encode_receipt(receipt: dict[str, Any]) -> bytes:
    return canonical_json(receipt) + b"\n"


def is_receipt(path: Path) -> bool:
    """Whether the file says that it is a receipt; what it is worth, `check_receipt` says."""
    try:
        return path.stat().st_size <= _MOST_BYTES and json.loads(path.read_bytes())["format"] == FORMAT
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return False


def check_receipt(data: bytes, key: str) -> dict[str, Any]:
    """The receipt in `data`, signed by `key` (or another of its ring). Raises Corrupt."""
    try:
        receipt = json.loads(data)
        whole = encode_receipt(receipt) == data and set(receipt) == _FIELDS and receipt["format"] == FORMAT
    except (ValueError, TypeError, RecursionError, OpenLedgerError) as error:
        raise _malformed() from error
    if not whole:
        raise _malformed()
    message = canonical_json({name: value for name, value in receipt.items() if name != "signature"})
    keys = [parse_verification_key(trusted) for trusted in trusted_keys(key)]
    if not any(name == receipt["origin"] and verify(public, receipt["signature"], message) for name, public in keys):
        raise Corrupt("the receipt isn't signed by the key given", code="wrong_signature", param="receipt")
    return dict(receipt)


def check_receipt_in_export(data: bytes, key: str, export: Path) -> dict[str, Any]:
    """As `check_receipt`, and that the log in `export` keeps the promise. Raises Corrupt (`left_out`), NotFound."""
    receipt = check_receipt(data, key)
    try:
        for entry in read_export(export):
            if isinstance(entry, Claim):
                break
            batch, _ = entry
            if batch.seq == receipt["seq"]:
                if leaf_hash(leaf_of(batch)).hex() == receipt["leaf"]:
                    return receipt
                break
    except OSError as error:
        raise NotFound(f"no export at {export}: {error.strerror}", code="no_ledger", param=str(export)) from error
    raise Corrupt(
        f"batch {receipt['seq']} isn't in the log as the receipt promised",
        code="left_out",
        param="receipt",
        fix="keep the receipt and this export: together they show that the ledger broke its promise",
    )


def _malformed() -> Corrupt:
    return Corrupt("not a receipt", code="malformed_receipt", param="receipt")
