"""A contributor's claim on a settled pool, signed with his key where he has no API key."""

from openledger.core.errors import InvalidInput
from openledger.core.hashing import canonical_json
from openledger.core.signing import SigningKey, contributor_id, verify

FORMAT = "openledger.claim/1"


def sign_claim(key: SigningKey, adapter: str, period: str, claimed_nano: int, reason: str) -> str:
    return key.sign(_bytes(contributor_id(key.public_key), adapter, period, claimed_nano, reason))


def claimant(public_key: str, signature: str, adapter: str, period: str, claimed_nano: int, reason: str) -> str:
    """The contributor who signed the claim. Raises InvalidInput (`invalid_signature`)."""
    contributor = contributor_id(public_key)
    if not verify(public_key, signature, _bytes(contributor, adapter, period, claimed_nano, reason)):
        raise InvalidInput(
            "the claim was not signed with this key",
            code="invalid_signature",
            param="signature",
            fix="sign the unchanged claim with the contributor's own key, or send an API key instead",
        )
    return contributor


def _bytes(contributor: str, adapter: str, period: str, claimed_nano: int, reason: str) -> bytes:
    return canonical_json(
        {
            "format": FORMAT,
            "contributor_id": contributor,
            "adapter": adapter,
            "period": period,
            "claimed_nano": claimed_nano,
            "reason": reason,
        }
    )
