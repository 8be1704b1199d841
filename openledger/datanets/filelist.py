"""Which files are a shard's data, and what their bytes are: the list that makes a change of a shard durable at once.

A file on the list was acknowledged; one beside it was not, or is no longer wanted. Knows nothing of what is in them.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from openledger.core.errors import Corrupt
from openledger.core.files import write_json_durably

FORMAT = "openledger/shard-files/1"
_NAME = "files.json"


def read_list(folder: Path) -> dict[str, str]:
    """Digests by path below `folder`; empty before the first change. Raises Corrupt (`corrupt_shard_list`)."""
    path = folder / _NAME
    if not path.exists():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if value["format"] != FORMAT:
            raise ValueError(f"unknown format {value['format']!r}")
        return {str(name): str(digest) for name, digest in value["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Corrupt(
            f"the list of the shard's files {path} can't be read: {error}",
            code="corrupt_shard_list",
            param=str(path),
            fix="restore the shard's folder from a backup",
        ) from error


def write_list(folder: Path, files: Mapping[str, str]) -> None:
    """Replace the list; durable when it returns."""
    write_json_durably(folder / _NAME, {"format": FORMAT, "files": dict(files)})
