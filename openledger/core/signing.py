"""Ed25519 signatures (RFC 8032), through `cryptography`. Keys and signatures travel as lower-case hex."""

import os
import re
from collections.abc import Callable
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from openledger.core.errors import Corrupt, InvalidInput
from openledger.core.files import write_secret
from openledger.core.ids import derived_id

Holder = Callable[[str], str]  # the contributor for whom a public key signs; refuses a key that was replaced
_CONTRIBUTOR = re.compile(r"ctr_[0-9a-z]{26}")


class SigningKey:
    """A private key. `public_key` is 32 bytes in hex; `sign` gives 64 bytes in hex. `contributor_id` is for whom it
    signs: the contributor named after it, or the one whose earlier key it replaced (see `rekeying`)."""

    __slots__ = ("_key", "contributor_id", "public_key")

    def __init__(self, seed: bytes, contributor: str = ""):
        if len(seed) != 32:
            raise InvalidInput("an Ed25519 seed has 32 bytes", code="invalid_key", param="seed")
        self._key = Ed25519PrivateKey.from_private_bytes(seed)
        raw = self._key.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
        self.public_key: str = raw.hex()
        self.contributor_id: str = contributor or contributor_id(self.public_key)

    @classmethod
    def generate(cls, contributor: str = "") -> "SigningKey":
        return cls(os.urandom(32), contributor)

    @classmethod
    def load_or_create(cls, path: Path, contributor: str = "") -> "SigningKey":
        """The key stored at `path` (hex of its seed, mode 0600); made and written durably when there is none, for
        `contributor` where it is to replace his key: his id then follows the seed."""
        if not path.exists():
            write_secret(path, f"{os.urandom(32).hex()} {contributor}".strip().encode())
        try:
            seed, _, owner = path.read_text().strip().partition(" ")
            if owner and not _CONTRIBUTOR.fullmatch(owner):
                raise ValueError(owner)
            return cls(bytes.fromhex(seed), owner)
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


def check_public_key(public_key: str) -> None:
    """Raises InvalidInput unless the key has its one spelling: two spellings would be two contributors."""
    try:
        canonical = bytes.fromhex(public_key).hex()
    except (ValueError, TypeError):
        canonical = ""
    if len(canonical) != 64 or canonical != public_key:
        raise InvalidInput(
            "a public key is 32 bytes in lower-case hex", code="invalid_key", param="public_key", fix="send 64 digits"
        )


def signing_contributor(
    public_key: str,
    signature: str,
    message_of: Callable[[str], bytes],
    *,
    what: str,
    fix: str,
    holder: Holder = contributor_id,
) -> str:
    """The contributor whose key signed `message_of(contributor_id)`; `what` was to be signed. Raises InvalidInput
    (`invalid_signature`), and what `holder` does."""
    contributor = holder(public_key)
    if not verify(public_key, signature, message_of(contributor)):
        raise InvalidInput(
            f"the {what} was not signed with this key", code="invalid_signature", param="signature", fix=fix
        )
    return contributor


def signed_by(
    contributor: str, public_key: str, signature: str, message: bytes, holder: Holder = contributor_id
) -> bool:
    """Whether `contributor`'s own key signed `message`. Raises what `holder` does."""
    return holder(public_key) == contributor and verify(public_key, signature, message)
