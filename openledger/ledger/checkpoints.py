"""Signed checkpoints: the log's size and root as a C2SP tlog-checkpoint in a C2SP signed note.

    openledger/local            origin, which is also the name of the key
    17                          number of leaves
    pBW5YRFj...=                root, base64

    — openledger/local XhbS...= the first four bytes of the key's id and the Ed25519 signature, base64

A verification key is written `name+id+base64(0x01 || key)`, the id being SHA-256(name || "\\n" || 0x01 || key)[:4].
Sources: c2sp.org/tlog-checkpoint, c2sp.org/signed-note.
"""

import base64
import binascii
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from openledger.core.errors import Corrupt, InvalidInput
from openledger.core.signing import SigningKey, verify
from openledger.ledger.keyring import trusted_keys

_ED25519 = b"\x01"
_COSIGNER = b"\x04"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9./_-]{0,99}")
_SIZE = re.compile(r"0|[1-9][0-9]{0,17}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """`root` is 32 bytes in hex."""

    origin: str
    size: int
    root: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """A checkpoint's text as it is signed, what it says, and its signatures: name, and key id before signature."""

    text: str
    checkpoint: Checkpoint
    signatures: tuple[tuple[str, bytes], ...]


def check_log_name(name: str) -> str:
    """`name` if a log and its key may be called that. Raises InvalidInput otherwise."""
    if not _NAME.fullmatch(name):
        raise InvalidInput(
            f"{name!r} can't name a log",
            code="invalid_name",
            param="name",
            fix="use letters, digits and . / _ - up to 100 characters",
        )
    return name


def verification_key(name: str, public_key: str) -> str:
    """The text by which others check the notes that `name` signs; `public_key` in hex."""
    return _written(name, public_key, _ED25519)


def witness_key(name: str, public_key: str) -> str:
    """The text by which others check the cosignatures of the witness `name`; `public_key` in hex."""
    return _written(name, public_key, _COSIGNER)


def parse_verification_key(text: str, key_type: bytes = _ED25519) -> tuple[str, str]:
    """Name and public key (hex). Raises InvalidInput where `text` is no Ed25519 verification key."""
    name, _, rest = text.strip().partition("+")
    key_id, _, encoded = rest.partition("+")
    key = _decode(encoded)
    if key is None or len(key) != 33 or key[:1] != key_type or _key_id(name, key[1:], key_type).hex() != key_id:
        raise InvalidInput(
            "not a ledger's verification key",
            code="invalid_key",
            param="key",
            fix="give the log's verification key, one line name+id+base64, or a file that holds it: the console's page"
            " Ledger shows it, the quickstart's report prints it. ledger.key is the operator's secret, and none",
        )
    return name, key[1:].hex()


def sign_checkpoint(checkpoint: Checkpoint, key: SigningKey) -> str:
    """The note, ending in a newline."""
    text = f"{checkpoint.origin}\n{checkpoint.size}\n{_encode(bytes.fromhex(checkpoint.root))}\n"
    key_id = _key_id(checkpoint.origin, bytes.fromhex(key.public_key))
    signature = key_id + bytes.fromhex(key.sign(text.encode()))
    return f"{text}\n— {checkpoint.origin} {_encode(signature)}\n"


def open_checkpoint(note: str, key: str, witnesses: Sequence[str] = (), quorum: int = 0) -> Checkpoint:
    """The checkpoint in `note`, signed by the verification key `key` and by `quorum` (0 is all) of the `witnesses`.

    `key` may be a key ring (see `keyring`). Without witnesses there may be one signature only; with them, those of
    others are passed over. Raises Corrupt for a note that is malformed or lacks a signature, InvalidInput for a
    malformed key.
    """
    opened = parse_note(note)
    if len(opened.signatures) != 1 and not witnesses:
        raise Corrupt(
            "the checkpoint has signatures of others, and nobody says whose",
            code="unknown_signatures",
            param="checkpoint",
            fix="name the witnesses that cosigned it (--witness KEY)",
        )
    _check_signed(opened, key)
    signed = {witness for witness in witnesses if cosigned_at(opened, witness)}
    if len(signed) < (quorum or len(set(witnesses))):
        raise Corrupt(
            f"{len(signed)} of {len(set(witnesses))} witnesses cosigned the checkpoint",
            code="not_witnessed",
            param="checkpoint",
        )
    return opened.checkpoint


def parse_note(note: str) -> Note:
    """Raises Corrupt for what is no checkpoint with signatures; checks none of them."""
    text, separator, tail = note.partition("\n\n")
    lines = text.split("\n")
    if not separator or not tail.endswith("\n") or len(lines) != 3 or not _SIZE.fullmatch(lines[1]):
        raise _malformed()
    root = _decode(lines[2])
    if root is None or len(root) != 32:
        raise _malformed()
    checkpoint = Checkpoint(origin=lines[0], size=int(lines[1]), root=root.hex())
    signatures = tuple(_signature(line) for line in tail.removesuffix("\n").split("\n"))
    return Note(text=text + "\n", checkpoint=checkpoint, signatures=signatures)


def cosign(note: Note, name: str, key: SigningKey, time_s: int) -> str:
    """The line, ending in a newline, by which the witness `name` says that it saw this checkpoint at `time_s`."""
    signature = key.sign(_cosigned_text(note, time_s))
    key_id = _key_id(name, bytes.fromhex(key.public_key), _COSIGNER)
    return f"— {name} {_encode(key_id + time_s.to_bytes(8, 'big') + bytes.fromhex(signature))}\n"


def cosigned_at(note: Note, witness: str) -> int:
    """When (seconds) the witness with the key `witness` cosigned, 0 if it did not. Raises InvalidInput for no key."""
    name, public_key = parse_verification_key(witness, _COSIGNER)
    key_id = _key_id(name, bytes.fromhex(public_key), _COSIGNER)
    for signer, signature in note.signatures:
        if (signer, signature[:4], len(signature)) == (name, key_id, 4 + 8 + 64):
            time_s = int.from_bytes(signature[4:12], "big")
            if verify(public_key, signature[12:].hex(), _cosigned_text(note, time_s)):
                return time_s
    return 0


def _check_signed(note: Note, key: str) -> None:
    name = parse_verification_key(key.strip().partition("\n")[0])[0]
    for trusted, until_size in trusted_keys(key).items():
        _, public_key = parse_verification_key(trusted)
        key_id = _key_id(name, bytes.fromhex(public_key))
        for signer, signature in note.signatures:
            if signer != name or signature[:4] != key_id or note.checkpoint.origin != name or len(signature) != 68:
                continue
            if not verify(public_key, signature[4:].hex(), note.text.encode()):
                raise Corrupt("the checkpoint's signature doesn't verify", code="wrong_signature", param="checkpoint")
            if until_size is not None and note.checkpoint.size > until_size:
                raise Corrupt("signed with a key that was replaced before", code="retired_key", param="checkpoint")
            return
    raise Corrupt(
        f"the checkpoint is signed by {note.signatures[0][0]!r}, not by the key given ({name!r})",
        code="wrong_key",
        param="checkpoint",
        fix="give the ledger's key; where it was rotated, the key ring that it publishes",
    )


def _signature(line: str) -> tuple[str, bytes]:
    dash, _, rest = line.partition(" ")
    name, _, encoded = rest.partition(" ")
    signature = _decode(encoded)
    if dash != "—" or not name or "+" in name or signature is None or len(signature) <= 4:
        raise _malformed()
    return name, signature


def _cosigned_text(note: Note, time_s: int) -> bytes:
    return f"cosignature/v1\ntime {time_s}\n{note.text}".encode()


def _written(name: str, public_key: str, key_type: bytes) -> str:
    key = bytes.fromhex(public_key)
    return f"{name}+{_key_id(name, key, key_type).hex()}+{_encode(key_type + key)}"


def _malformed() -> Corrupt:
    return Corrupt("not a checkpoint with its signature", code="malformed_checkpoint", param="checkpoint")


def _key_id(name: str, key: bytes, key_type: bytes = _ED25519) -> bytes:
    return hashlib.sha256(name.encode() + b"\n" + key_type + key).digest()[:4]


def _encode(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _decode(text: str) -> bytes | None:
    """None for anything but the one encoding of its bytes: a text with stray bits in its end must not pass."""
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
    return data if _encode(data) == text else None
