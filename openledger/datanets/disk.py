"""A shard's Lance dataset on a local disk: durable before the answer, and checked when it is opened.

Owns the files under one folder; one process writes there at a time.

    rows.lance/      the Lance dataset, in exactly one version
    files.json       that version's files and their digests
    recent.journal   small appends that aren't in the dataset yet (`journal`)

Lance syncs nothing on a local disk, and takes the same commit twice. So each change here is four steps: write files,
sync them and their folders, replace the list of files durably, remove every file that isn't on the new list. What is
not listed was not acknowledged, and opening removes it; what is listed and has another digest is damage. As no file
outlasts the list that leaves it out, no old version keeps a row that was removed.

Text is not compressed: encoding it costs Lance more than half of an append, and reading it back half of a scan.
"""

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from openledger.core.errors import Corrupt
from openledger.core.files import sync_folder
from openledger.core.hashing import digest_file
from openledger.datanets.filelist import read_list, write_list
from openledger.datanets.folders import make_folder
from openledger.datanets.journal import Journal

DATASET = "rows.lance"
_JOURNAL = "recent.journal"


class DiskFiles:
    """Raises Corrupt (`corrupt_shard_file`) that names shard and file where a listed file isn't what was written."""

    compression: str | None = "none"
    keeps_one_version = True

    def __init__(self, folder: Path):
        self._folder = folder
        self.name = str(folder)
        self.uri = str(folder / DATASET)
        self.journal: Journal | None = Journal(folder / _JOURNAL)
        self._files = read_list(folder)
        self._check_files()

    def settle(self, dataset: Any) -> None:
        """Make `dataset` (None: no row is left) what the shard is, durably. Raises OSError."""
        names = [] if dataset is None else _files_of(dataset)
        new = [name for name in names if name not in self._files]
        folders = {(self._folder / name).parent for name in new}
        if names and not self._files:
            folders |= {Path(self.uri), self._folder}
        with ThreadPoolExecutor(max(1, len(new) + len(folders))) as pool:  # a disk takes several syncs as one
            synced = [pool.submit(_sync_file, self._folder / name) for name in new]
            synced += [pool.submit(sync_folder, folder) for folder in folders]
            digests = {name: digest_file(self._folder / name) for name in new}
            for one in synced:
                one.result()
        files = {name: digests.get(name) or self._files[name] for name in names}
        write_list(self._folder, files)
        self._files = files
        self._remove_unlisted()

    def roll_back(self) -> Any:
        """The Lance dataset as the list on disk says; None where the shard has no row. Raises OSError.

        A change may have been cut off between the list's name and its sync. Nothing is removed, answered or taken from
        the journal by a list, or in a folder, that a power cut could still take back."""
        make_folder(self._folder)
        self._files = read_list(self._folder)
        sync_folder(self._folder)
        self._remove_unlisted()
        return _lance().dataset(self.uri) if self._files else None

    def corrupt(self, path: str, problem: str) -> Corrupt:
        return Corrupt(
            f"shard {self.name}, file {path}: {problem}",
            code="corrupt_shard_file",
            param=str(self._folder / path),
            fix="restore this Datanet's folder alone from a backup, then start again: beside it others write on",
        )

    def _remove_unlisted(self) -> None:
        for path in self._present():
            if str(path.relative_to(self._folder)) not in self._files:
                path.unlink(missing_ok=True)

    def _present(self) -> Iterable[Path]:
        return [path for path in Path(self.uri).rglob("*") if path.is_file()]

    def _check_files(self) -> None:
        for name, digest in self._files.items():
            try:
                found = digest_file(self._folder / name)
            except OSError as error:
                raise self.corrupt(name, f"can't be read ({error.strerror})") from error
            if found != digest:
                raise self.corrupt(name, "its bytes are not the ones that were written")


def _sync_file(path: Path) -> None:
    with path.open("rb") as stream:
        os.fsync(stream.fileno())


def _files_of(dataset: Any) -> list[str]:
    """What the dataset's one version is made of, as paths below the shard's folder."""
    names = [f"_versions/{2**64 - 1 - dataset.version}.manifest"]  # Lance names the newest so that it sorts first
    for fragment in dataset.get_fragments():
        names += [f"data/{file.path}" for file in fragment.metadata.files]
        names += [deleted] if (deleted := fragment.deletion_file()) else []
    return [f"{DATASET}/{name}" for name in names]


def _lance() -> Any:
    import lance

    return lance
