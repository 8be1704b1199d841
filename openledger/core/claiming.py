"""A contributor's claim on a settled pool, signed with his key where he has no API key."""

from openledger.core.hashing import canonical_json
from openledger.core.signing import Holder, SigningKey, contributor_id, signing_contributor

FORMAT = "openledger.claim/1"


def sign_claim(key: SigningKey, adapter: str, period: str, claimed_nano: int, reason: str) -> str:
    return key.sign(_bytes(key.contributor_id, adapter, period, claimed_nano, reason))


def claimant(
    public_key: str,
    signature: str,
    adapter: str,
    period: str,
    claimed_nano: int,
    reason: str,
    holder: Holder = contributor_id,
) -> str:
    """The contributor who signed the claim. Raises InvalidInput (`invalid_signature`)."""
    return signing_contributor(
        public_key,
        signature,
        lambda contributor: _bytes(contributor, adapter, period, claimed_nano, reason),
        what="claim",
        fix="sign the unchanged claim with the contributor's own key, or send an API key instead",
        holder=holder,
    )


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
