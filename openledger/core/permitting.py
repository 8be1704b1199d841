"""A contributor's request for permission, signed with his key: he needs no account to ask."""

from openledger.core.hashing import canonical_json
from openledger.core.signing import Holder, SigningKey, contributor_id, signing_contributor

FORMAT = "openledger.permission-request/1"


def sign_request(key: SigningKey, datanet: str) -> str:
    """That the key's holder may contribute to `datanet`."""
    return key.sign(_bytes(key.contributor_id, datanet))


def requester(public_key: str, signature: str, datanet: str, holder: Holder = contributor_id) -> str:
    """The contributor who signed the request. Raises InvalidInput (`invalid_signature`)."""
    return signing_contributor(
        public_key,
        signature,
        lambda contributor: _bytes(contributor, datanet),
        what="request",
        fix="sign the request for this Datanet with the contributor's own key",
        holder=holder,
    )


def _bytes(contributor: str, datanet: str) -> bytes:
    return canonical_json({"format": FORMAT, "datanet": datanet, "contributor_id": contributor, "action": "contribute"})
