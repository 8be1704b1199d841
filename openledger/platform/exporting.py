"""A version handed out as files: its rows are read straight from storage, once the Datanets have said for whom."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import ray

from openledger.core.errors import InvalidInput, NotFound
from openledger.core.files import sync_folder
from openledger.core.values import DatanetVersion
from openledger.datanets.cards import MANIFEST
from openledger.datanets.export import FILES, write_export, write_leaves
from openledger.datanets.folders import make_folder
from openledger.platform.bulk import export_rows


def export_version(
    datanets: Any, name: str, number: int, account: str, folder: Path, *, is_dry_run: bool = False
) -> dict[str, object]:
    """Write version `number` (0: the newest) of a Datanet into `folder` for `account` (empty: its owner); what to tell.

    Raises NotFound (`unknown_datanet`, `unknown_version`), InvalidInput (`folder_in_use`), and as
    `Datanets.check_export` and `export_rows`."""
    datanet = ray.get(datanets.datanet.remote(name))
    party = account or datanet.owner
    version = _version(ray.get(datanets.versions.remote(name)), name, number)
    ray.get(datanets.check_export.remote(name, party))
    _check_folder(folder, name)
    stated = ray.get(datanets.stated.remote(name, version.number))
    rows = [] if is_dry_run else export_rows(datanets, name, version.number, party)
    leaves = ray.get(datanets.manifest_rows.remote(name, version.number, "", version.num_rows))
    num_removed = sum(leaf.tombstone is not None for leaf in leaves)
    told = {
        "datanet": name,
        "version": version.number,
        "rows": version.num_rows - num_removed,
        "removed": num_removed,
        "licence": stated.terms.licence,
        "row_root": version.row_root,
        "account": party,
        "folder": str(folder),
        "files": list(FILES),
        "written": not is_dry_run,
    }
    if not is_dry_run:
        gone = {leaf.row_id for leaf in leaves if leaf.tombstone is not None}  # some, perhaps, while rows were read
        left = [row for row in rows if row.row_id not in gone]
        manifest = ray.get(datanets.manifest.remote(name, version.number))
        with _replacing(folder) as written:
            write_export(written, datanet, stated.terms, version, left, stated.statistics)
            write_leaves(written, manifest, leaves)
    return told


def _version(published: list[DatanetVersion], name: str, number: int) -> DatanetVersion:
    for version in published[-1:] if number == 0 else published:
        if number in (0, version.number):
            return version
    raise NotFound(
        f"the Datanet {name!r} has no version {number or 'yet'}",
        code="unknown_version",
        param="version",
        fix=f"it has {', '.join(str(one.number) for one in published) or 'none'}; jobs/train.py publishes one, where"
        " the licence lets adapters be trained and sold",
    )


@contextmanager
def _replacing(folder: Path) -> Iterator[Path]:
    """A new folder beside `folder` to write into, which takes its place in the end: what is cut off, or fails, leaves
    an earlier export as it was."""
    folder = folder.resolve()
    make_folder(folder.parent)
    with TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as beside:
        written, former = Path(beside) / "written", Path(beside) / "former"
        yield written
        if folder.exists():
            try:
                folder.rename(former)
            except OSError as error:  # such as a mounted disk
                raise InvalidInput(
                    f"{folder} can't be replaced: {error.strerror}",
                    code="folder_in_use",
                    param="out",
                    fix="name a new folder, such as one in it",
                ) from error
        written.rename(folder)
        sync_folder(folder.parent)


def _check_folder(folder: Path, name: str) -> None:
    if folder.exists() and not folder.is_dir():
        raise InvalidInput(f"{folder} is no folder", code="folder_in_use", param="out", fix="name a new folder")
    found = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
    others = [path for path in found if path not in FILES]
    if others or (found and not _is_export(folder, name)):
        raise InvalidInput(
            f"{folder} holds other files, such as {(others or found)[0]}",
            code="folder_in_use",
            param="out",
            fix=f"name a new folder, or one with an earlier export of {name} alone",
        )


def _is_export(folder: Path, name: str) -> bool:
    try:
        told = json.loads((folder / MANIFEST).read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(told, dict) and told.get("datanet") == name and "row_root" in told
