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
from dataclasses import dataclass

from openledger.core.errors import Corrupt, InvalidInput
from openledger.core.signing import SigningKey, verify

_ED25519 = b"\x01"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9./_-]{0,99}")
_SIZE = re.compile(r"0|[1-9][0-9]{0,17}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """`root` is 32 bytes in hex."""

    origin: str
    size: int
    root: str


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
    key = bytes.fromhex(public_key)
    return f"{name}+{_key_id(name, key).hex()}+{_encode(_ED25519 + key)}"


def parse_verification_key(text: str) -> tuple[str, str]:
    """Name and public key (hex). Raises InvalidInput where `text` is no Ed25519 verification key."""
    name, _, rest = text.strip().partition("+")
    key_id, _, encoded = rest.partition("+")
    key = _decode(encoded)
    if key is None or len(key) != 33 or key[:1] != _ED25519 or _key_id(name, key[1:]).hex() != key_id:
        raise InvalidInput(
            "not a ledger's verification key",
            code="invalid_key",
            param="key",
            fix="give the line name+id+base64 that the ledger publishes, or a file that holds it",
        )
    return name, key[1:].hex()


def sign_checkpoint(checkpoint: Checkpoint, key: SigningKey) -> str:
    """The note, ending in a newline."""
    text = f"{checkpoint.origin}\n{checkpoint.size}\n{_encode(bytes.fromhex(checkpoint.root))}\n"
    key_id = _key_id(checkpoint.origin, bytes.fromhex(key.public_key))
    signature = key_id + bytes.fromhex(key.sign(text.encode()))
    return f"{text}\n— {checkpoint.origin} {_encode(signature)}\n"


def open_checkpoint(note: str, key: str) -> Checkpoint:
    """The checkpoint in `note`, whose one signature is by the verification key `key`.

    Raises Corrupt for a note that is malformed or not signed by it, InvalidInput for a malformed key.
    """
    name, public_key = parse_verification_key(key)
    text, checkpoint, signer, signature = _parse(note)
    key_id = _key_id(name, bytes.fromhex(public_key))
    if signer != name or signature[:4] != key_id or checkpoint.origin != name:
        raise Corrupt(
            f"the checkpoint is signed by {signer!r}, not by the key given ({name!r})",
            code="wrong_key",
            param="checkpoint",
        )
    if not verify(public_key, signature[4:].hex(), text.encode()):
        raise Corrupt("the checkpoint's signature doesn't verify", code="wrong_signature", param="checkpoint")
    return checkpoint


def _parse(note: str) -> tuple[str, Checkpoint, str, bytes]:
    text, separator, tail = note.partition("\n\n")
    lines, signed = text.split("\n"), tail.removesuffix("\n").split(" ")
    shape = separator and tail.endswith("\n") and len(lines) == 3 and len(signed) == 3 and signed[0] == "—"
    if not shape or not _SIZE.fullmatch(lines[1]):
        raise _malformed()
    root, signature = _decode(lines[2]), _decode(signed[2])
    if root is None or len(root) != 32 or signature is None or len(signature) != 68:
        raise _malformed()
    checkpoint = Checkpoint(origin=lines[0], size=int(lines[1]), root=root.hex())
    return text + "\n", checkpoint, signed[1], signature


def _malformed() -> Corrupt:
    return Corrupt("not a checkpoint with one signature", code="malformed_checkpoint", param="checkpoint")


def _key_id(name: str, key: bytes) -> bytes:
    return hashlib.sha256(name.encode() + b"\n" + _ED25519 + key).digest()[:4]


def _encode(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _decode(text: str) -> bytes | None:
    """None for anything but the one encoding of its bytes: a text with stray bits in its end must not pass."""
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
    return data if _encode(data) == text else None
