"""Published versions: an immutable manifest for each, from which anyone can recompute the row root."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from openledger.core import merkle
from openledger.core.errors import Corrupt
from openledger.core.files import write_json_durably
from openledger.core.values import DatanetVersion
from openledger.datanets.folders import make_folder
from openledger.datanets.row_schema import PLAIN, RowSchema

FORMAT = "openledger/datanet-version/1"


def row_root(row_ids: Sequence[str]) -> str:
    """The RFC 9162 root (hex) whose leaves are the row ids in sorted order, as UTF-8."""
    return merkle.root([merkle.leaf_hash(row_id.encode()) for row_id in sorted(row_ids)]).hex()


def write_manifest(
    folder: Path, version: DatanetVersion, row_ids: Sequence[str], row_schema: RowSchema = PLAIN
) -> None:
    """Durable. A manifest that no registered version names is a publication that was cut off; it is written over."""
    value = {"format": FORMAT, **asdict(version), "row_schema": row_schema.to_json(), "row_ids": sorted(row_ids)}
    make_folder(folder / version.datanet)
    write_json_durably(_path(folder, version), value)


def read_row_ids(folder: Path, version: DatanetVersion) -> list[str]:
    """The version's row ids, sorted. Raises Corrupt (`corrupt_manifest`) unless they lead to its row root."""
    path = _path(folder, version)
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        row_ids = [str(row_id) for row_id in manifest["row_ids"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _corrupt(path, f"can't be read: {error}") from error
    if manifest.get("format") != FORMAT or row_ids != sorted(row_ids) or row_root(row_ids) != version.row_root:
        raise _corrupt(path, "does not lead to the version's row root")
    return row_ids


def _path(folder: Path, version: DatanetVersion) -> Path:
    return folder / version.datanet / f"{version.number}.json"


def _corrupt(path: Path, problem: str) -> Corrupt:
    return Corrupt(
        f"the manifest {path} {problem}",
        code="corrupt_manifest",
        param=str(path),
        fix="restore this file from a backup",
    )
