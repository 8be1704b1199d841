"""Idempotency-Key: the caller's own where it sent one, a fresh one otherwise."""

import re

from openledger.core.errors import InvalidInput

_FIT_KEY = re.compile(r"[\x21-\x7e]{1,255}")


def checked_key(key: str | None) -> str | None:
    """Raises InvalidInput for a key that can't be one."""
    if key is not None and not _FIT_KEY.fullmatch(key):
        raise InvalidInput(
            "the idempotency key is not usable",
            code="invalid_idempotency_key",
            param="Idempotency-Key",
            fix="send 1 to 255 visible ASCII characters, for example a UUID",
        )
    return key
