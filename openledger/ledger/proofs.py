"""Proof files: one transfer, provable offline to a stranger who has the ledger's verification key.

A proof is canonical JSON and one newline, so that each of its bytes is either checked or refused:

    format      openledger.proof/1
    transfer    the transfer
    batch       {ordinal, path}: its place among, and its way to, the batch's transfers_root (RFC 9162, hex)
    leaf        {seq, time_ms, num_transfers, transfers_root, statement_digest}: the batch in the log
    statement   what the batch states (its digest is in the leaf), or null
    path        the leaf's way to the log's root
    checkpoint  the signed note with that root
    evidence    for a payout: [salted answer commitment, nano-OPEN] of each answer in the pool; else null

`openledger.proof/2` is the same for a transfer that came as a packed record: its leaf has `packed_root`, and its batch
is {chunk, ordinal, path}, the 32 or fewer records among which it stands (hex) and the chunk's way to that root.
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openledger.core import merkle
from openledger.core.errors import Corrupt, InvalidInput, NotFound, OpenLedgerError, TooLarge
from openledger.core.hashing import canonical_json, digest_json
from openledger.core.money import format_money, format_open, shown_unit
from openledger.ledger import appeals, contributor_keys, deposits, disputes, offers, packed, seals, signers
from openledger.ledger.checkpoints import Checkpoint, open_checkpoint
from openledger.ledger.log import leaf_hash, leaf_of, transfer_hashes
from openledger.ledger.statements import (
    PARTS,
    SETTLEMENT,
    SETTLEMENT_1,
    SETTLEMENTS,
    USAGE,
    check_paid,
    check_settlement,
    check_usage,
    format_of,
)
from openledger.ledger.transfers import Batch, Transfer, transfer_from_dict, transfer_to_dict
from openledger.ledger.verdicts import VERDICT, verdict_transfers

FORMAT = "openledger.proof/1"
FORMAT_PACKED = "openledger.proof/2"
_FIELDS = {"format", "transfer", "batch", "leaf", "statement", "path", "checkpoint", "evidence"}
_LEAF_FIELDS = {"seq", "time_ms", "num_transfers", "statement_digest"}
_HASH = re.compile(r"[0-9a-f]{64}")
Derivation = Callable[[Transfer, dict[str, Any], Any], list[str]]
_CHUNK = re.compile(rf"([0-9a-f]{{{2 * packed.RECORD_BYTES}}}){{1,{packed.CHUNK_RECORDS}}}")
_MAX_BYTES = 256 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedProof:
    """What a proof proves. `lines` say what was checked, in order."""

    transfer: Transfer
    statement: dict[str, Any] | None
    checkpoint: Checkpoint
    time_ms: int
    lines: tuple[str, ...]


def proof_of(
    batch: Batch, ordinal: int, path: Sequence[bytes], checkpoint: str, evidence: list[list[Any]] | None
) -> dict[str, Any]:
    """The proof of transfer `ordinal` of `batch`, whose leaf has `path` to the root of `checkpoint`."""
    return {
        "format": FORMAT_PACKED if batch.packed else FORMAT,
        "transfer": transfer_to_dict(batch.transfers[ordinal]),
        "batch": _way_in_batch(batch, ordinal),
        "leaf": leaf_of(batch),
        "statement": batch.statement,
        "path": [item.hex() for item in path],
        "checkpoint": checkpoint,
        "evidence": evidence,
    }


def encode_proof(proof: dict[str, Any]) -> bytes:
    """The bytes of a proof file."""
    return canonical_json(proof) + b"\n"


def verify_proof_file(path: Path, key: str, witnesses: Sequence[str] = (), quorum: int = 0) -> VerifiedProof:
    """Like `verify_proof`. Raises NotFound or TooLarge where the file can't be one."""
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise TooLarge(f"{path} is larger than any proof", code="proof_too_large", param=str(path))
        data = path.read_bytes()
    except OSError as error:
        raise NotFound(f"no proof at {path}: {error.strerror}", code="no_proof", param=str(path)) from error
    return verify_proof(data, key, witnesses, quorum)


def verify_proof(
    proof: bytes | dict[str, Any], key: str, witnesses: Sequence[str] = (), quorum: int = 0
) -> VerifiedProof:
    """Check every byte of `proof` against the verification key `key` (or key ring), offline; with `witnesses`, that
    `quorum` of them (0 is all) cosigned its checkpoint.

    Raises Corrupt, its code naming the first thing that is wrong: malformed_proof, wrong_key, wrong_signature,
    not_in_log, not_in_batch, wrong_statement, and those of `statements`.
    """
    values = _decode(proof if isinstance(proof, bytes) else encode_proof(proof))
    checkpoint = open_checkpoint(values["checkpoint"], key, witnesses, quorum)
    transfer, leaf = _transfer(values["transfer"]), values["leaf"]
    _check_in_log(leaf, values["path"], checkpoint)
    _check_in_batch(values, transfer)
    _check_statement(leaf, values["statement"])
    lines = [
        f"checkpoint of {checkpoint.origin}: {checkpoint.size} batches, root {checkpoint.root}, signature good",
        *([f"{quorum or len(set(witnesses))} of {len(set(witnesses))} witnesses cosigned it"] if witnesses else []),
        f"batch {leaf['seq']} is in that log",
        f"transfer {transfer.transfer_id} is in that batch: {_describe(transfer)}",
        *_check_derivation(transfer, values["statement"], values["evidence"]),
    ]
    return VerifiedProof(
        transfer=transfer,
        statement=values["statement"],
        checkpoint=checkpoint,
        time_ms=leaf["time_ms"],
        lines=tuple(lines),
    )


def _way_in_batch(batch: Batch, ordinal: int) -> dict[str, Any]:
    if not batch.packed:
        path = merkle.inclusion_proof(ordinal, transfer_hashes(batch.transfers))
        return {"ordinal": ordinal, "path": [item.hex() for item in path]}
    path = merkle.inclusion_proof(ordinal // packed.CHUNK_RECORDS, packed.chunk_hashes(batch.packed))
    chunk = packed.chunk_of(batch.packed, ordinal).hex()
    return {"ordinal": ordinal, "chunk": chunk, "path": [item.hex() for item in path]}


def _decode(data: bytes) -> dict[str, Any]:
    try:
        values = json.loads(data)
        canonical = encode_proof(values) == data
    except (ValueError, RecursionError, OpenLedgerError) as error:
        raise _malformed(f"not canonical JSON: {error}") from error
    if not canonical:
        raise _malformed("not canonical JSON: the same content has other bytes")
    if not isinstance(values, dict) or set(values) != _FIELDS or values["format"] not in (FORMAT, FORMAT_PACKED):
        raise _malformed(f"not the fields of {FORMAT}")
    _check_shape(values)
    return values


def _check_shape(values: dict[str, Any]) -> None:
    leaf, batch, is_packed = values["leaf"], values["batch"], values["format"] == FORMAT_PACKED
    root = "packed_root" if is_packed else "transfers_root"
    if not isinstance(leaf, dict) or set(leaf) != {*_LEAF_FIELDS, root} or not _are_counts(leaf, "seq", "time_ms"):
        raise _malformed("the leaf is misshapen")
    if not _are_counts(leaf, "num_transfers") or not _is_hash(leaf[root]):
        raise _malformed("the leaf is misshapen")
    fields = {"ordinal", "path", "chunk"} if is_packed else {"ordinal", "path"}
    if not isinstance(batch, dict) or set(batch) != fields or not _are_counts(batch, "ordinal"):
        raise _malformed("the place in the batch is misshapen")
    if is_packed and not (isinstance(batch["chunk"], str) and _CHUNK.fullmatch(batch["chunk"])):
        raise _malformed("the chunk of the batch is misshapen")
    if not _is_path(values["path"]) or not _is_path(batch["path"]) or not isinstance(values["checkpoint"], str):
        raise _malformed("a path is no list of hashes, or the checkpoint no text")
    if values["statement"] is not None and not isinstance(values["statement"], dict):
        raise _malformed("the statement is misshapen")


def _transfer(values: Any) -> Transfer:
    try:
        return transfer_from_dict(values)
    except (InvalidInput, TypeError) as error:
        raise _malformed(f"the transfer is misshapen: {error}") from error


def _check_in_log(leaf: dict[str, Any], path: list[str], checkpoint: Checkpoint) -> None:
    proven = merkle.verify_inclusion(
        leaf["seq"], checkpoint.size, leaf_hash(leaf), _bytes(path), bytes.fromhex(checkpoint.root)
    )
    if not proven:
        raise Corrupt("the batch isn't in the log of that checkpoint", code="not_in_log", param="leaf")


def _check_in_batch(values: dict[str, Any], transfer: Transfer) -> None:
    proven = _is_in_chunk(values, transfer) if values["format"] == FORMAT_PACKED else _is_in_tree(values)
    if not proven:
        raise Corrupt("the transfer isn't in that batch", code="not_in_batch", param="transfer")


def _is_in_tree(values: dict[str, Any]) -> bool:
    leaf, batch = values["leaf"], values["batch"]
    return merkle.verify_inclusion(
        batch["ordinal"],
        leaf["num_transfers"],
        merkle.leaf_hash(canonical_json(values["transfer"])),
        _bytes(batch["path"]),
        bytes.fromhex(leaf["transfers_root"]),
    )


def _is_in_chunk(values: dict[str, Any], transfer: Transfer) -> bool:
    leaf, ordinal = values["leaf"], values["batch"]["ordinal"]
    chunk, count = bytes.fromhex(values["batch"]["chunk"]), leaf["num_transfers"]
    whole = len(chunk) == packed.chunk_size(ordinal, count) * packed.RECORD_BYTES
    try:
        stands = packed.record_at(chunk, ordinal % packed.CHUNK_RECORDS) == packed.pack([transfer])
    except InvalidInput as error:
        raise _malformed(str(error)) from error
    return (
        whole
        and stands
        and merkle.verify_inclusion(
            ordinal // packed.CHUNK_RECORDS,
            packed.num_chunks(count),
            merkle.leaf_hash(chunk),
            _bytes(values["batch"]["path"]),
            bytes.fromhex(leaf["packed_root"]),
        )
    )


def _check_statement(leaf: dict[str, Any], statement: dict[str, Any] | None) -> None:
    expected = "" if statement is None else digest_json(statement)
    if leaf["statement_digest"] != expected:
        raise Corrupt("the batch commits to another statement", code="wrong_statement", param="statement")


def _check_derivation(transfer: Transfer, statement: dict[str, Any] | None, evidence: Any) -> list[str]:
    if format_of(statement) not in SETTLEMENTS and evidence is not None:
        raise _malformed("only a payout has evidence")
    if statement is None:
        return []
    check = _DERIVATIONS.get(format_of(statement))
    if check is None:
        return [f"the batch states: {format_of(statement) or 'something of its own'}"]
    try:
        return check(transfer, statement, evidence)
    except (KeyError, TypeError, ValueError) as error:
        raise _malformed(f"the statement lacks or misstates something: {error}") from error


def _check_fee(transfer: Transfer, usage: dict[str, Any], _: Any) -> list[str]:
    check_usage(usage)
    check_paid(usage, transfer)
    tokens = f"{usage['num_prompt_tokens']} prompt and {usage['num_completion_tokens']} completion tokens"
    parts = ", ".join(f"{role} {format_open(part)}" for role, part in usage["parts_nano"].items())
    return [
        f"answer {usage['answer_id']} under {usage['adapter']}: {tokens} cost {format_money(usage['fee_nano'])}",
        f"its parts sum to the fee: {parts}",
    ]


def _in_words(checked_lines: Callable[[dict[str, Any], Transfer], list[str]]) -> Derivation:
    """For statements that hold in themselves, and need no evidence."""
    return lambda transfer, statement, _: checked_lines(statement, transfer)


def _check_payout(transfer: Transfer, settlement: dict[str, Any], evidence: Any) -> list[str]:
    if not isinstance(evidence, list) or not all(isinstance(item, list) and len(item) == 2 for item in evidence):
        raise _malformed("a payout's evidence is a list of [commitment, nano-OPEN]")
    check_settlement(settlement, evidence)
    check_paid(settlement, transfer)
    pool = format_money(settlement["pool_nano"])
    return [
        f"{len(evidence)} answers make the pool of {settlement['adapter']} in {settlement['period']}: {pool}",
        *(f"adapter {line['adapter_digest']} from {_source(line)}" for line in settlement["lineage"]),
        *(_one_part(settlement) if format_of(settlement) == SETTLEMENT_1 else _two_parts(settlement, transfer.credit)),
        f"shares divide the pool to the {shown_unit().smallest};"
        f" {transfer.credit} gets {format_money(transfer.amount_nano)}",
    ]


def _one_part(settlement: dict[str, Any]) -> list[str]:
    return [
        f"scores of {len(settlement['scores_nano'])} contributors ({settlement['method']}) give the shares "
        f"by {settlement['rule']}"
    ]


def _two_parts(settlement: dict[str, Any], account: str) -> list[str]:
    marked = len(settlement["not_counted"])
    return [
        *([f"{marked} of these answers were marked wrong and count nothing in use"] if marked else []),
        *(_part_line(name, settlement, account) for name in PARTS),
    ]


def _part_line(name: str, settlement: dict[str, Any], account: str) -> str:
    part = settlement["parts"][name]
    paid = sum(amount for who, amount in part["payouts_nano"].items() if settlement["accounts"][who] == account)
    head = f"{name}: {format_money(part['pool_nano'])}, {part['ppm']} parts per million of the pool; "
    if not part["measured"]:
        return f"{head}it wasn't measured, so all of it is unattributed"
    if part["unreadable_nano"]:
        head = f"{head}{format_open(part['unreadable_nano'])} of them by answers that can't be read, unattributed; "
    return (
        f"{head}scores of {len(part['scores_nano'])} contributors ({part['method']}) give its shares by"
        f" {settlement['rule']}, and {account} {format_money(paid)} of it"
    )


def _check_verdict(transfer: Transfer, verdict: dict[str, Any], _: Any) -> list[str]:
    if transfer not in verdict_transfers(verdict):
        raise Corrupt("the transfer isn't the verdict's", code="verdict_differs", param="transfer")
    return [
        f"answer {verdict['answer_id']} of {verdict['adapter']} in {verdict['period']} was marked {verdict['verdict']}"
        f" by {verdict['account']}; no money moves",
    ]


_DERIVATIONS: dict[str, Derivation] = {
    **dict.fromkeys(appeals.FORMATS, _in_words(appeals.checked_lines)),
    **dict.fromkeys(contributor_keys.FORMATS, _in_words(contributor_keys.checked_lines)),
    **dict.fromkeys(deposits.FORMATS, _in_words(deposits.checked_lines)),
    **dict.fromkeys(disputes.FORMATS, _in_words(disputes.checked_lines)),
    **dict.fromkeys(offers.FORMATS, _in_words(offers.checked_lines)),
    **dict.fromkeys(seals.FORMATS, _in_words(seals.checked_lines)),
    **dict.fromkeys(signers.FORMATS, _in_words(signers.checked_lines)),
    USAGE: _check_fee,
    SETTLEMENT: _check_payout,
    SETTLEMENT_1: _check_payout,
    VERDICT: _check_verdict,
}


def _source(line: dict[str, Any]) -> str:
    if not line["datanet"]:
        return "a merge of adapters, trained on no rows of its own"
    return f"{line['datanet']} version {line['datanet_version']}, row root {line['row_root']}"


def _describe(transfer: Transfer) -> str:
    return f"{format_money(transfer.amount_nano)} from {transfer.debit} to {transfer.credit} ({transfer.code})"


def _are_counts(values: dict[str, Any], *names: str) -> bool:
    return all(type(values[name]) is int and values[name] >= 0 for name in names)


def _is_hash(value: Any) -> bool:
    return isinstance(value, str) and _HASH.fullmatch(value) is not None


def _is_path(value: Any) -> bool:
    return isinstance(value, list) and all(_is_hash(item) for item in value)


def _bytes(path: Sequence[str]) -> list[bytes]:
    return [bytes.fromhex(item) for item in path]


def _malformed(reason: str) -> Corrupt:
    return Corrupt(f"not a proof: {reason}", code="malformed_proof", param="proof")
