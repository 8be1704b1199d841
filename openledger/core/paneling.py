"""What a reviewer commits to before he sees what others say, and what he reveals after: a digest, and what it is of.

    digest = SHA-256 of canonical JSON [format, Datanet, item, reviewer, accept, nonce]

The nonce is 32 bytes that only the reviewer can make, again and again, from a key of his: without it a digest of two
possible answers would tell which one. So nothing has to be kept between the two steps but the key.
"""

import re

from openledger.core.errors import InvalidInput
from openledger.core.hashing import canonical_json, digest_bytes, digest_json
from openledger.core.signing import SigningKey

FORMAT = "openledger.review-commitment/1"
_HEX = re.compile(r"[0-9a-f]{64}")


def panel_nonce(key: SigningKey, datanet: str, item: str) -> str:
    """64 hex digits; the same for the same item."""
    return digest_bytes(key.sign(canonical_json({"format": FORMAT, "datanet": datanet, "item": item})).encode())


def panel_digest(datanet: str, item: str, reviewer: str, nonce: str, *, accept: bool) -> str:
    """Raises InvalidInput (`invalid_commitment`)."""
    check_commitment(nonce, "nonce")
    return digest_json([FORMAT, datanet, item, reviewer, accept, nonce])


def check_commitment(value: str, param: str) -> None:
    if not _HEX.fullmatch(value):
        raise InvalidInput(
            f"a {param} is 32 bytes in lower-case hex", code="invalid_commitment", param=param,
            fix="send what `core.paneling` gives",
        )  # fmt: skip
