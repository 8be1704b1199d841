"""What is said of an answer that was sold: a rating that is signed, and what the source of a row says that corrects it.

A correction and an edge case are rows; they are signed as every contribution is, and bound to the answer by their
`source`. Rows are public, and so is the ledger, which says who paid for an answer. So the source is a commitment,

    source = "feedback:" SHA-256(canonical JSON of format, answer_id, kind, salt) "#" kind

that nobody can try answers against who doesn't know the salt: the signer's key makes it, and whoever bought the answer
sends it beside the rows. A rating is a number, and holds no word of what was asked.
"""

import re
from typing import Literal, get_args

from openledger.core.errors import InvalidInput
from openledger.core.hashing import canonical_json, digest_bytes, digest_json
from openledger.core.ids import check_name
from openledger.core.signing import Holder, SigningKey, contributor_id, signing_contributor

FORMAT = "openledger.rating/1"
FEEDBACK_FORMAT = "openledger.feedback/1"
RATINGS = (1, 2, 3, 4, 5)
FeedbackKind = Literal["correction", "edge_case"]
_SALT = re.compile(r"[0-9a-f]{64}")


def feedback_salt(key: SigningKey, answer_id: str) -> str:
    """Known to the holder of `key` alone until it is sent, and the same each time: 64 hex digits."""
    return digest_bytes(key.sign(canonical_json({"format": FEEDBACK_FORMAT, "answer_id": answer_id})).encode())


def feedback_source(answer_id: str, kind: str, salt: str) -> str:
    """The `source` of rows that are feedback on an answer. Raises InvalidInput (`invalid_feedback`)."""
    if kind not in get_args(FeedbackKind):
        raise InvalidInput(
            f"{kind!r} is no kind of feedback", code="invalid_feedback", param="kind", fix="correction or edge_case"
        )
    if not isinstance(salt, str) or not _SALT.fullmatch(salt):
        raise InvalidInput(
            "the salt is 64 hex digits", code="invalid_feedback", param="salt", fix="send what `feedback_salt` gives"
        )
    said = {"format": FEEDBACK_FORMAT, "answer_id": check_name(answer_id, "answer_id"), "kind": kind, "salt": salt}
    return f"feedback:{digest_json(said)}#{kind}"


def sign_rating(key: SigningKey, answer_id: str, rating: int) -> str:
    return key.sign(_bytes(key.contributor_id, answer_id, rating))


def rater(public_key: str, signature: str, answer_id: str, rating: int, holder: Holder = contributor_id) -> str:
    """The contributor who signed the rating. Raises InvalidInput (`invalid_signature`, `invalid_feedback`)."""
    if type(rating) is not int or rating not in RATINGS:
        raise InvalidInput(
            f"{rating!r} is no rating", code="invalid_feedback", param="rating", fix="1 (bad) to 5 (good)"
        )
    return signing_contributor(
        public_key,
        signature,
        lambda contributor: _bytes(contributor, answer_id, rating),
        what="rating",
        fix="sign this answer's rating with the contributor's own key",
        holder=holder,
    )


def _bytes(contributor: str, answer_id: str, rating: int) -> bytes:
    return canonical_json({"format": FORMAT, "contributor_id": contributor, "answer_id": answer_id, "rating": rating})
