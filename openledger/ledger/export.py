"""The ledger as a text file: everything an auditor needs, one canonical JSON value a line.

{"format": "openledger.export/1", "origin": ..., "size": number of batches}
{"leaf": hash, "seq": ..., "statement": ..., "time_ms": ..., "transfers": [...]}     for each batch, in order;
                                    a batch of packed records has "packed" (base64) in place of its transfers
{"balances": [...], "checkpoint": signed note}
"""

import base64
import binascii
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openledger.core.errors import Corrupt, InvalidInput
from openledger.core.files import sync_folder
from openledger.core.hashing import canonical_json
from openledger.ledger import statements
from openledger.ledger.accounts import Balance
from openledger.ledger.journal import Journal
from openledger.ledger.packed import account_key, unpack
from openledger.ledger.transfers import Batch, Transfer, transfer_from_dict, transfer_to_dict

FORMAT = "openledger.export/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What a log claims beside its batches: its name, every balance, and the checkpoint note."""

    origin: str
    balances: tuple[Balance, ...]
    checkpoint: str


def write_export(journal: Journal, origin: str, path: Path) -> None:
    """Put the whole ledger at `path`, durably, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.new")
    with journal.reading(), temporary.open("wb") as stream:
        for value in _lines(journal, origin):
            stream.write(canonical_json(value) + b"\n")
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)
    sync_folder(path.parent)


def read_export(path: Path) -> Iterator[tuple[Batch, bytes] | Claim]:
    """Each batch with the hash claimed for its leaf, then the claim. Raises Corrupt naming the first bad line."""
    with path.open("rb") as stream:
        lines = iter(enumerate(stream, start=1))
        header = _header(next(lines, (1, b"")))
        names: dict[bytes, str] = {}
        for _ in range(header["size"]):
            batch, leaf = _batch(next(lines, (0, b"")), names)
            if statements.format_of(batch.statement) == statements.ACCOUNTS:
                opened = statements.accounts_in(batch.statement or {})
                names.update({account_key(account.account_id): account.account_id for account in opened})
            yield batch, leaf
        yield _claim(header["origin"], next(lines, (0, b"")))
        if next(lines, None) is not None:
            raise _malformed(0, "something follows its end")


def _lines(journal: Journal, origin: str) -> Iterator[dict[str, Any]]:
    size, _, note = journal.head()
    yield {"format": FORMAT, "origin": origin, "size": size}
    for seq in range(size):
        batch = journal.batch(seq)
        yield {
            "leaf": journal.node(0, seq).hex(),
            "seq": batch.seq,
            "statement": batch.statement,
            "time_ms": batch.time_ms,
            **_transfers_of(batch),
        }
    yield {"balances": [balance._asdict() for balance in journal.all_balances()], "checkpoint": note}


def _transfers_of(batch: Batch) -> dict[str, Any]:
    if batch.packed:
        return {"packed": base64.b64encode(batch.packed).decode()}
    return {"transfers": [transfer_to_dict(transfer) for transfer in batch.transfers]}


def _header(line: tuple[int, bytes]) -> dict[str, Any]:
    header = _value(line, {"format", "origin", "size"})
    if header["format"] != FORMAT or type(header["size"]) is not int or header["size"] < 0:
        raise _malformed(1, f"not the start of an {FORMAT}")
    return header


def _batch(line: tuple[int, bytes], names: dict[bytes, str]) -> tuple[Batch, bytes]:
    values = _value(line, {"leaf", "seq", "statement", "time_ms", "transfers"}, "packed")
    try:
        packed = base64.b64decode(values.get("packed", ""), validate=True)
        transfers = unpack(packed, names) if "packed" in values else _transfers(values["transfers"])
        leaf = bytes.fromhex(values["leaf"])
    except (InvalidInput, TypeError, ValueError, binascii.Error, Corrupt) as error:
        raise _malformed(line[0], str(error)) from error
    batch = Batch(
        seq=values["seq"],
        time_ms=values["time_ms"],
        transfers=transfers,
        statement=values["statement"],
        packed=packed,
    )
    if leaf.hex() != values["leaf"] or type(batch.seq) is not int or type(batch.time_ms) is not int:
        raise _malformed(line[0], "a field has the wrong type")
    if batch.statement is not None and (packed or not isinstance(batch.statement, dict)):
        raise _malformed(line[0], "the statement is misshapen")
    if "packed" in values and values["packed"] != base64.b64encode(packed).decode():
        raise _malformed(line[0], "the records have another encoding")
    return batch, leaf


def _transfers(values: list[Any]) -> tuple[Transfer, ...]:
    return tuple(transfer_from_dict(item) for item in values)


def _claim(origin: str, line: tuple[int, bytes]) -> Claim:
    values = _value(line, {"balances", "checkpoint"})
    try:
        balances = tuple(Balance(**item) for item in values["balances"])
    except TypeError as error:
        raise _malformed(line[0], str(error)) from error
    if not isinstance(values["checkpoint"], str):
        raise _malformed(line[0], "the checkpoint is no text")
    return Claim(origin=origin, balances=balances, checkpoint=values["checkpoint"])


def _value(line: tuple[int, bytes], fields: set[str], instead_of_transfers: str = "") -> dict[str, Any]:
    number, data = line
    if not data:
        raise _malformed(number, "it ends too early")
    try:
        value = json.loads(data)
        canonical = canonical_json(value) + b"\n" == data
    except (ValueError, RecursionError) as error:
        raise _malformed(number, f"not canonical JSON: {error}") from error
    if isinstance(value, dict) and instead_of_transfers in value:
        fields = fields - {"transfers"} | {instead_of_transfers}
    if not canonical or not isinstance(value, dict) or set(value) != fields:
        raise _malformed(number, f"not canonical JSON with the fields {', '.join(sorted(fields))}")
    return value


def _malformed(number: int, reason: str) -> Corrupt:
    place = f"line {number}" if number else "the export"
    return Corrupt(f"{place}: {reason}", code="malformed_export", param=place)
