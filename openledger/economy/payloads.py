"""Encryption of what waits for settlement: AES-256-GCM under a key file of mode 0600. Knows nothing of answers."""

import os
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from openledger.core.errors import Corrupt
from openledger.core.files import sync_folder

_KEY_BYTES, _NONCE_BYTES = 32, 12


class PayloadCipher:
    """The key is made, durably, where there is none. Raises Corrupt for a file that holds no key."""

    def __init__(self, path: Path):
        self._path = path
        if not path.exists():
            _make_key(path)
        key = path.read_bytes()
        if len(key) != _KEY_BYTES:
            raise Corrupt(f"{path} doesn't hold a payload key", code="corrupt_key", param=str(path))
        self._cipher = AESGCM(key)

    def seal(self, name: str, data: bytes) -> bytes:
        """Encrypt `data` so that it opens only under the same `name`."""
        nonce = os.urandom(_NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, data, name.encode())

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


def _make_key(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.new")
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as stream:
        stream.write(AESGCM.generate_key(bit_length=8 * _KEY_BYTES))
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)
    sync_folder(path.parent)
