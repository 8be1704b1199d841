"""Transfers as fixed records of 112 bytes: what a caller sends is what is stored and what the log commits to.

    0   id           16      a transfer id of 32 hex digits, as its bytes; start it with the time (`new_ids`)
    16  debit        16      first half of SHA-256 over the account's id
    32  credit       16
    48  pending_id   16      post and void: the hold's id; else zeros
    64  reference    16      32 hex digits as bytes; zeros for none
    80  code         16      ASCII, padded with zeros
    96  amount_nano  int64   little-endian, as are the rest
    104 timeout_ms   uint32
    108 kind         uint8   0 single, 1 pending, 2 post, 3 void
    109 zeros        3

A batch of records has one leaf. Its `packed_root` is the root of an RFC 9162 tree over chunks of 32 records, so a
transfer is proven with its chunk and a path, at a thirtieth of what a hash for each transfer costs. The price: the
proof shows up to 31 other transfers of the batch (amounts, and digests of accounts). Knows no storage.
"""

import hashlib
import re
import struct
from collections.abc import Mapping, Sequence

from openledger.core import merkle
from openledger.core.errors import Corrupt, InvalidInput
from openledger.ledger.transfers import EXISTS, Transfer, TransferKind

RECORD_BYTES = 112
CHUNK_RECORDS = 32
KINDS: tuple[TransferKind, ...] = ("single", "pending", "post", "void")
MAX_TIMEOUT_MS = 2**32 - 1
_RECORD = struct.Struct("<16s16s16s16s16s16sqIB3x")
_HEX_ID = re.compile(r"[0-9a-f]{32}")
_NOTHING = bytes(16)


def account_key(account_id: str) -> bytes:
    """The 16 bytes by which records name an account."""
    return hashlib.sha256(account_id.encode()).digest()[:16]


def id_key(transfer_id: str) -> bytes:
    """The bytes under which an id is indexed. Only those of 32 hex digits have 16 bytes, so no two ids share theirs."""
    if len(transfer_id) == 32 and _HEX_ID.fullmatch(transfer_id):
        return bytes.fromhex(transfer_id)
    key = transfer_id.encode()
    return key + b"~" if len(key) == 16 else key


def id_text(key: bytes) -> str:
    """The id that `id_key` gave `key` for."""
    return key.hex() if len(key) == 16 else key.removesuffix(b"~").decode()


def pack(transfers: Sequence[Transfer]) -> bytes:
    """Raises InvalidInput for a transfer that doesn't fit a record."""
    return b"".join(_pack_one(transfer, place) for place, transfer in enumerate(transfers))


def unpack(data: bytes, names: Mapping[bytes, str]) -> tuple[Transfer, ...]:
    """The transfers of `data`, accounts named by their keys in `names`. Raises Corrupt for what `pack` can't have
    made."""
    if len(data) % RECORD_BYTES:
        raise Corrupt("records have 112 bytes each", code="malformed_transfer", param="packed")
    try:
        transfers = tuple(_unpack_one(fields, names) for fields in _RECORD.iter_unpack(data))
    except (KeyError, IndexError, UnicodeDecodeError, InvalidInput) as error:
        raise Corrupt(f"a record is no transfer: {error}", code="malformed_transfer", param="packed") from error
    if pack(transfers) != data:
        raise Corrupt("a record holds more than its transfer", code="malformed_transfer", param="packed")
    return transfers


def accounts_in(data: bytes) -> set[bytes]:
    """The keys of the accounts that the records of `data` name."""
    starts = range(0, len(data), RECORD_BYTES)
    return {data[at + 16 : at + 32] for at in starts} | {data[at + 32 : at + 48] for at in starts}


def ids_in(data: bytes) -> list[bytes]:
    return [data[at : at + 16] for at in range(0, len(data), RECORD_BYTES)]


def chunk_hashes(data: bytes) -> list[bytes]:
    step = CHUNK_RECORDS * RECORD_BYTES
    return [merkle.leaf_hash(data[at : at + step]) for at in range(0, len(data), step)]


def packed_root(data: bytes) -> bytes:
    return merkle.root(chunk_hashes(data))


def chunk_of(data: bytes, ordinal: int) -> bytes:
    """The chunk in which record `ordinal` stands."""
    step = CHUNK_RECORDS * RECORD_BYTES
    start = ordinal // CHUNK_RECORDS * step
    return data[start : start + step]


def chunk_size(ordinal: int, num_records: int) -> int:
    """How many records the chunk of record `ordinal` has."""
    return min(CHUNK_RECORDS, num_records - ordinal // CHUNK_RECORDS * CHUNK_RECORDS)


def num_chunks(num_records: int) -> int:
    return -(-num_records // CHUNK_RECORDS)


def record_at(data: bytes, ordinal: int) -> bytes:
    return data[ordinal * RECORD_BYTES : (ordinal + 1) * RECORD_BYTES]


def compare_record(record: bytes, known: Transfer) -> str:
    """As `transfers.compare`, for a record: `exists`, or `exists_with_different_` and the first field that differs."""
    _, debit, credit, pending, reference, code, amount, timeout, kind = _RECORD.unpack(record)
    fields = {
        "debit": debit == account_key(known.debit),
        "credit": credit == account_key(known.credit),
        "amount_nano": amount == known.amount_nano,
        "code": code.rstrip(b"\0") == known.code.encode(),
        "reference": _text(reference) == known.reference,
        "kind": KINDS[kind] == known.kind,
        "pending_id": _text(pending) == known.pending_id,
        "timeout_ms": timeout == known.timeout_ms,
    }
    return next((f"exists_with_different_{name}" for name, same in fields.items() if not same), EXISTS)


def _pack_one(transfer: Transfer, place: int) -> bytes:
    code = transfer.code.encode()
    if len(code) > 16 or transfer.timeout_ms > MAX_TIMEOUT_MS:
        raise _unfit(place, "code" if len(code) > 16 else "timeout_ms")
    return _RECORD.pack(
        _bytes(transfer.transfer_id, place, "transfer_id"),
        account_key(transfer.debit),
        account_key(transfer.credit),
        _bytes(transfer.pending_id, place, "pending_id") if transfer.pending_id else _NOTHING,
        _bytes(transfer.reference, place, "reference") if transfer.reference else _NOTHING,
        code,
        transfer.amount_nano,
        transfer.timeout_ms,
        KINDS.index(transfer.kind),
    )


def _unpack_one(
    fields: tuple[bytes, bytes, bytes, bytes, bytes, bytes, int, int, int], names: Mapping[bytes, str]
) -> Transfer:
    key, debit, credit, pending, reference, code, amount, timeout, kind = fields
    return Transfer(
        transfer_id=key.hex(),
        debit=names[debit],
        credit=names[credit],
        amount_nano=amount,
        code=code.rstrip(b"\0").decode("ascii"),
        reference=_text(reference),
        kind=KINDS[kind],
        pending_id=_text(pending),
        timeout_ms=timeout,
    )


def _text(field: bytes) -> str:
    return "" if field == _NOTHING else field.hex()


def _bytes(text: str, place: int, field: str) -> bytes:
    if not _HEX_ID.fullmatch(text) or text == _NOTHING.hex():
        raise _unfit(place, field)
    return bytes.fromhex(text)


def _unfit(place: int, field: str) -> InvalidInput:
    return InvalidInput(
        f"transfer {place} doesn't fit a record of 112 bytes",
        code="not_packable",
        param=f"transfers[{place}].{field}",
        fix="ids and references of 32 hex digits, a code of at most 16 letters, a timeout below 50 days; or send it as "
        "a transfer of its own",
    )
