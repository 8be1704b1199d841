"""What the holder of a contributor's key asks of his own account without an API key: to read it, and to draw from it.

Reading names its moment, and is believed for `FRESH_MS`: an old request tells nobody anything. Drawing names its
idempotency key instead: who sends it again draws nothing more.
"""

from openledger.core.errors import Unauthenticated
from openledger.core.hashing import canonical_json
from openledger.core.signing import Holder, SigningKey, contributor_id, signing_contributor, verify

READING, DRAWING = "openledger.account-reading/1", "openledger.payout-withdrawal/1"
SCHEME = "Signed"
FRESH_MS = 5 * 60_000


def sign_reading(key: SigningKey, time_ms: int) -> str:
    """The value of `Authorization` with which the key's own account can be read: `Signed PUBLIC_KEY.TIME.SIGNATURE`."""
    signature = key.sign(_reading_bytes(key.contributor_id, time_ms))
    return f"{SCHEME} {key.public_key}.{time_ms}.{signature}"


def reading_key(credentials: str) -> str:
    """The public key that `PUBLIC_KEY.TIME.SIGNATURE` names."""
    return credentials.partition(".")[0]


def reader(credentials: str, now_ms: int, holder: Holder = contributor_id) -> str:
    """The contributor who signed `PUBLIC_KEY.TIME.SIGNATURE`. Raises Unauthenticated (`invalid_reading`,
    `stale_reading`)."""
    public_key, _, rest = credentials.partition(".")
    time, _, signature = rest.partition(".")
    if not (time.isascii() and time.isdigit() and len(time) < 16):
        raise _unread("it isn't PUBLIC_KEY.TIME.SIGNATURE", "invalid_reading")
    contributor = holder(public_key)
    if not verify(public_key, signature, _reading_bytes(contributor, int(time))):
        raise _unread("it was not signed with this key", "invalid_reading")
    if abs(now_ms - int(time)) > FRESH_MS:
        raise _unread(f"it was signed more than {FRESH_MS // 60_000} minutes from now", "stale_reading")
    return contributor


def sign_drawing(key: SigningKey, amount_nano: int, address: str, idempotency_key: str) -> str:
    contributor = key.contributor_id
    return key.sign(_drawing_bytes(contributor, amount_nano, address, idempotency_key))


def drawer(
    public_key: str,
    signature: str,
    amount_nano: int,
    address: str,
    idempotency_key: str,
    holder: Holder = contributor_id,
) -> str:
    """The contributor who signed the withdrawal. Raises InvalidInput (`invalid_signature`)."""
    return signing_contributor(
        public_key,
        signature,
        lambda contributor: _drawing_bytes(contributor, amount_nano, address, idempotency_key),
        what="withdrawal",
        fix="sign amount, address and idempotency key, unchanged, with the contributor's own key",
        holder=holder,
    )


def _reading_bytes(contributor: str, time_ms: int) -> bytes:
    return canonical_json({"format": READING, "contributor_id": contributor, "time_ms": time_ms})


def _drawing_bytes(contributor: str, amount_nano: int, address: str, idempotency_key: str) -> bytes:
    return canonical_json(
        {
            "format": DRAWING,
            "contributor_id": contributor,
            "amount_nano": amount_nano,
            "address": address,
            "key": idempotency_key,
        }
    )


def _unread(reason: str, code: str) -> Unauthenticated:
    return Unauthenticated(
        f"the signed request can't be used: {reason}",
        code=code,
        param="Authorization",
        fix="sign anew with the contributor's own key, and a clock that is right",
    )
