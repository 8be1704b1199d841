"""Ed25519 signatures (RFC 8032), through `cryptography`. Keys and signatures travel as lower-case hex."""

import os
from collections.abc import Callable
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from openledger.core.errors import Corrupt, InvalidInput
from openledger.core.files import write_secret
from openledger.core.ids import derived_id


class SigningKey:
    """A private key. `public_key` is 32 bytes in hex; `sign` gives 64 bytes in hex."""

    __slots__ = ("_key", "public_key")

    def __init__(self, seed: bytes):
        if len(seed) != 32:
            raise InvalidInput("an Ed25519 seed has 32 bytes", code="invalid_key", param="seed")
        self._key = Ed25519PrivateKey.from_private_bytes(seed)
        raw = self._key.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
        self.public_key: str = raw.hex()

    @classmethod
    def generate(cls) -> "SigningKey":
        return cls(os.urandom(32))

    @classmethod
    def load_or_create(cls, path: Path) -> "SigningKey":
        """The key stored at `path` (hex of its seed, mode 0600); made and written durably when there is none."""
        if not path.exists():
            write_secret(path, os.urandom(32).hex().encode())
        try:
            return cls(bytes.fromhex(path.read_text().strip()))
        except ValueError as error:
            raise Corrupt(f"{path} doesn't hold an Ed25519 key", code="corrupt_key", param=str(path)) from error

    def sign(self, message: bytes) -> str:
        return self._key.sign(message).hex()


def verify(public_key: str, signature: str, message: bytes) -> bool:
    """Whether `signature` over `message` was made with the private half of `public_key`. Malformed hex is False."""
    try:
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(public_key))
        key.verify(bytes.fromhex(signature), message)
    except (InvalidSignature, ValueError):
        return False
    return True


def contributor_id(public_key: str) -> str:
    """The contributor a public key stands for: `ctr_` and a digest of the key."""
    return derived_id("ctr", public_key)


def signing_contributor(
    public_key: str, signature: str, message_of: Callable[[str], bytes], *, what: str, fix: str
) -> str:
    """The contributor whose key signed `message_of(contributor_id)`; `what` was to be signed. Raises InvalidInput
    (`invalid_signature`)."""
    contributor = contributor_id(public_key)
    if not verify(public_key, signature, message_of(contributor)):
        raise InvalidInput(
            f"the {what} was not signed with this key", code="invalid_signature", param="signature", fix=fix
        )
    return contributor
