"""Rotated keys: which verification keys of a log to trust, once one is trusted.

A key ring is text: a verification key, then one line for each rotation, canonical JSON:

    {"by_new": hex, "by_old": hex, "format": "openledger.rotation/1", "new": key, "old": key, "size": N}

Both keys sign the other four fields. So whoever trusts either key can go to the other: with the old one forward, with
the new one back to what was signed before. The old key is good for checkpoints of at most `size` batches. The same
value is the statement of a batch in the log.
"""

import base64
import binascii
import json
from typing import Any

from openledger.core.errors import Corrupt, InvalidInput
from openledger.core.hashing import canonical_json
from openledger.core.signing import SigningKey, verify

ROTATION = "openledger.rotation/1"
_FIELDS = {"format", "old", "new", "size", "by_old", "by_new"}


def rotation_statement(old_key: str, new_key: str, size: int, old: SigningKey, new: SigningKey) -> dict[str, Any]:
    """That `new` signs in `old`'s place from a log of `size` batches on."""
    signed = {"format": ROTATION, "old": old_key, "new": new_key, "size": size}
    message = canonical_json(signed)
    return {**signed, "by_old": old.sign(message), "by_new": new.sign(message)}


def check_rotation(statement: dict[str, Any]) -> None:
    """Raises Corrupt unless both keys, of one name, signed it."""
    try:
        whole = set(statement) == _FIELDS and statement["format"] == ROTATION and type(statement["size"]) is int
        message = canonical_json({name: statement[name] for name in ("format", "old", "new", "size")})
        names = {statement[name].partition("+")[0] for name in ("old", "new")}
        signed = whole and all(
            verify(_public_key(statement[name]), statement[f"by_{name}"], message) for name in ("old", "new")
        )
    except (KeyError, TypeError, ValueError, AttributeError, InvalidInput, binascii.Error):
        signed, names = False, set()
    if not signed or len(names) != 1:
        raise Corrupt("a rotation that both keys didn't sign", code="wrong_rotation", param="key")


def trusted_keys(ring: str) -> dict[str, int | None]:
    """Each key that `ring` leads to from its first line, and the largest checkpoint it is good for (None is any).

    Raises InvalidInput for a line that is no rotation, Corrupt for one that isn't signed.
    """
    first, *lines = ring.strip().split("\n")
    trusted: dict[str, int | None] = {first.strip(): None}
    left = [_rotation(line) for line in lines if line.strip()]
    while joined := [item for item in left if item["old"] in trusted or item["new"] in trusted]:
        for item in joined:
            trusted[item["old"]] = item["size"]
            trusted.setdefault(item["new"], None)
            left.remove(item)
    return trusted


def _rotation(line: str) -> dict[str, Any]:
    try:
        statement = json.loads(line)
    except ValueError:
        statement = None
    if not isinstance(statement, dict):
        raise InvalidInput(
            "a key ring has a key on its first line and a rotation on each other", code="invalid_key", param="key"
        )
    check_rotation(statement)
    return statement


def _public_key(key: str) -> str:
    return base64.b64decode(key.split("+", 2)[2])[1:].hex()
