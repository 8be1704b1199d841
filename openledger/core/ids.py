"""Prefixed ids that sort by time, and ids derived from content.

`ans_01kcq3v0m5...`: the prefix says what it names, the rest is 48 bits of milliseconds and 80 bits of randomness
(or of a digest), in Crockford's base 32, lower case. The layout is that of ULID.
"""

import base64
import hashlib
import re
import secrets

from openledger.core.errors import InvalidInput

_CROCKFORD = bytes.maketrans(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567", b"0123456789abcdefghjkmnpqrstvwxyz")
_LENGTH = 26
NAME_PATTERN = re.compile(r"[a-z0-9][a-z0-9._-]{0,127}")


def new_id(prefix: str, time_ms: int) -> str:
    """A fresh id; ids made later sort after earlier ones, to the millisecond."""
    return f"{prefix}_{_encode((time_ms << 80) | secrets.randbits(80))}"


def first_id(prefix: str, time_ms: int) -> str:
    """Sorts before every id with `prefix` that is made at `time_ms` or later, and after all that were made before."""
    return f"{prefix}_{_encode(max(0, time_ms) << 80)}"


def derived_id(prefix: str, *parts: str, time_ms: int = 0) -> str:
    """The id that `parts` determine: the same parts always give the same id, other parts another one."""
    joined = b"".join(len(part.encode()).to_bytes(4, "big") + part.encode() for part in parts)
    tail = int.from_bytes(hashlib.sha256(joined).digest()[:16], "big")
    if time_ms:
        return f"{prefix}_{_encode((time_ms << 80) | (tail & ((1 << 80) - 1)))}"
    return f"{prefix}_{_encode(tail)}"


def check_name(name: str, param: str) -> str:
    """`name` if it may stand in paths, URLs and account ids. Raises InvalidInput otherwise."""
    if not NAME_PATTERN.fullmatch(name) or ".." in name:
        raise InvalidInput(
            f"{param} {name!r} is not a valid name",
            code="invalid_name",
            param=param,
            fix="use 1 to 128 of a-z, 0-9, '.', '_' and '-', starting with a letter or digit, without '..'",
        )
    return name


def _encode(number: int) -> str:
    """The last 26 digits of 32: base 32 of RFC 4648, spelled in Crockford's alphabet."""
    return base64.b32encode(number.to_bytes(20, "big"))[-_LENGTH:].translate(_CROCKFORD).decode()
