"""A version handed out as files: its rows are read straight from storage, once the Datanets have said for whom."""

from pathlib import Path
from typing import Any

import ray

from openledger.core.errors import InvalidInput, NotFound
from openledger.core.values import DatanetVersion
from openledger.datanets.export import FILES, write_export, write_leaves
from openledger.platform.bulk import version_rows


def export_version(
    datanets: Any, name: str, number: int, account: str, folder: Path, *, is_dry_run: bool = False
) -> dict[str, object]:
    """Write version `number` (0: the newest) of a Datanet into `folder` for `account` (empty: its owner); what to tell.

    Raises NotFound (`unknown_datanet`, `unknown_version`), InvalidInput (`folder_in_use`), and as
    `Datanets.check_export` and `version_rows`."""
    datanet = ray.get(datanets.datanet.remote(name))
    party = account or datanet.owner
    version = _version(ray.get(datanets.versions.remote(name)), name, number)
    ray.get(datanets.check_export.remote(name, party))
    _check_folder(folder)
    stated = ray.get(datanets.stated.remote(name, version.number))
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
        rows = version_rows(datanets, name, version.number, party, is_export=True)
        write_export(folder, datanet, stated.terms, version, rows, stated.statistics)
        write_leaves(folder, ray.get(datanets.manifest.remote(name, version.number)), leaves)
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


def _check_folder(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise InvalidInput(f"{folder} is no folder", code="folder_in_use", param="out", fix="name a new folder")
    others = sorted(path.name for path in folder.iterdir() if path.name not in FILES) if folder.exists() else []
    if others:
        raise InvalidInput(
            f"{folder} holds other files, such as {others[0]}",
            code="folder_in_use",
            param="out",
            fix="name a new folder, or one with an earlier export alone",
        )
