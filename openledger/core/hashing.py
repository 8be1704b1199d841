"""Canonical bytes and their digests.

A digest here is lower-case hex of SHA-256. Canonical JSON is RFC 8785 in the part we use: keys sorted, no blanks,
UTF-8, and no floats (two machines may print one float in two ways), so money and scores enter as integers or strings.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from openledger.core.errors import InvalidInput

_PLAIN = frozenset((str, int, bool, type(None)))
_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def canonical_json(value: Any) -> bytes:
    """The one byte string that stands for `value`. Raises InvalidInput for floats and other non-JSON values."""
    _refuse_floats(value)
    try:
        return _ENCODER.encode(value).encode("utf-8")
    except (TypeError, UnicodeEncodeError) as error:
        raise InvalidInput(f"not a canonical JSON value: {error}", code="not_canonical") from error


def digest_bytes(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def digest_json(value: Any) -> str:
    return digest_bytes(canonical_json(value))


def digest_file(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def digest_tree(folder: Path, names: tuple[str, ...] | None = None) -> str:
    """Digest over the files of `folder` (all of them, or just `names`): their relative names and contents."""
    paths = (
        sorted(p for p in folder.rglob("*") if p.is_file()) if names is None else [folder / n for n in sorted(names)]
    )
    return digest_json([[path.relative_to(folder).as_posix(), digest_file(path)] for path in paths if path.is_file()])


def _refuse_floats(value: Any) -> None:
    if type(value) in _PLAIN:  # nearly all: each answer's statements hold some hundred
        return
    if isinstance(value, float):
        raise InvalidInput("canonical JSON holds no floats: send an integer or a string", code="not_canonical")
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise InvalidInput(f"canonical JSON keys are strings, not {type(key).__name__}", code="not_canonical")
            _refuse_floats(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            _refuse_floats(item)
