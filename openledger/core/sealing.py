"""Seals: a digest that binds a contributor to signed rows before anybody else sees them.

    digest = SHA-256 of canonical JSON ["openledger.seal/1", what the contribution's signature covers, the signature]

What is signed holds the root of the rows, so a digest fits these rows, in this order, and no others; the signature
alone would not do, because some keys sign everything at once. Nobody but the key's holder can make the signature
(Ed25519, RFC 8032), and he makes the same one again: it is the salt. So the digest tells nothing of rows that could be
guessed, and between sealing and sending nothing has to be kept but the rows, the nonce and the key.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from openledger.core.errors import InvalidInput
from openledger.core.hashing import canonical_json, digest_json
from openledger.core.signing import Holder, SigningKey, contributor_id, signed_by

FORMAT = "openledger.seal/1"
SealState = Literal["waiting", "opened", "expired"]
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Seal:
    """A digest for one Datanet, signed by the contributor whose rows it stands for."""

    datanet: str
    contributor_id: str
    public_key: str
    digest: str
    signature: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SealReceipt:
    """`waiting` for its rows until `expires_ms`, `opened` by `contribution_id`, or `expired`."""

    datanet: str
    contributor_id: str
    digest: str
    sealed_ms: int
    expires_ms: int
    state: SealState
    contribution_id: str | None = None


def seal_digest(signed: Mapping[str, Any], signature: str) -> str:
    """`signed` is what the contribution's signature covers, as JSON values."""
    return digest_json([FORMAT, dict(signed), signature])


def sign_seal(key: SigningKey, datanet: str, digest: str) -> Seal:
    contributor = key.contributor_id
    return Seal(
        datanet=datanet,
        contributor_id=contributor,
        public_key=key.public_key,
        digest=digest,
        signature=key.sign(_sealed_bytes(datanet, contributor, digest)),
    )


def check_seal(seal: Seal, holder: Holder = contributor_id) -> None:
    """Raises InvalidInput (`invalid_seal`, `invalid_signature`) unless the holder of its key made it."""
    if not _DIGEST.fullmatch(seal.digest):
        raise InvalidInput("a seal is 32 bytes in lower-case hex", code="invalid_seal", param="digest")
    message = _sealed_bytes(seal.datanet, seal.contributor_id, seal.digest)
    if not signed_by(seal.contributor_id, seal.public_key, seal.signature, message, holder):
        raise InvalidInput(
            "the seal was not signed with this contributor's key",
            code="invalid_signature",
            param="signature",
            fix="sign the seal with the key that signed the rows",
        )


def _sealed_bytes(datanet: str, contributor: str, digest: str) -> bytes:
    return canonical_json({"format": FORMAT, "datanet": datanet, "contributor_id": contributor, "digest": digest})
