"""Encryption of what waits for settlement: AES-256-GCM under a key file of mode 0600. Knows nothing of answers."""

import hmac
import os
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from openledger.core.errors import Corrupt
from openledger.core.files import write_secret
from openledger.core.hashing import canonical_json

_KEY_BYTES, _NONCE_BYTES = 32, 12


class PayloadCipher:
    """The key is made, durably, where there is none. Raises Corrupt for a file that holds no key."""

    def __init__(self, path: Path):
        self._path = path
        if not path.exists():
            write_secret(path, AESGCM.generate_key(bit_length=8 * _KEY_BYTES))
        key = path.read_bytes()
        if len(key) != _KEY_BYTES:
            raise Corrupt(f"{path} doesn't hold a payload key", code="corrupt_key", param=str(path))
        self._cipher = AESGCM(key)
        self._tag_key = hmac.digest(key, b"openledger.tag/1", "sha256")

    def seal(self, name: str, data: bytes) -> bytes:
        """Encrypt `data` so that it opens only under the same `name`."""
        nonce = os.urandom(_NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, data, name.encode())

    def tag(self, *parts: str) -> str:
        """What stands for `parts` where everybody may read it: the same each time, and nothing to who lacks the key."""
        return hmac.digest(self._tag_key, canonical_json(list(parts)), "sha256").hex()

    def open(self, name: str, sealed: bytes) -> bytes:
        """Raises Corrupt where the bytes, the name or the key are not those of `seal`."""
        try:
            return self._cipher.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], name.encode())
        except (InvalidTag, ValueError) as error:
            raise Corrupt(
                f"the stored payload of {name} doesn't decrypt",
                code="corrupt_payload",
                param=name,
                fix=f"restore {self._path.name} that belongs to this data",
            ) from error
