"""A power cut before any sync of a shard: what was answered is there once, what was taken back isn't.

The disk is the strictest there can be: of a file it has what it held at its last sync, under the name that its folder
had at the folder's last sync, and nothing else.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path
from threading import Lock

import pytest
from test_datanets_shard import sample_rows

from openledger.datanets.rows import rows_of
from openledger.datanets.shard import Shard

ROWS = {key: sample_rows(3, key) for key in "abcde"}
DOOMED = ROWS["a"][1].row_id


class PowerCut(BaseException):
    """Nothing that runs behind it reaches the disk."""


class Disk:
    """What is durable of `folder`. The power is cut before the sync `cut_at`; a new disk holds all that is there."""

    def __init__(self, folder: Path, cut_at: int | None = None):
        self._folder, self.cut_at = folder, cut_at
        self._syncs, self._lock = count(), Lock()
        self._files = dict[int, bytes]()
        self._names = dict[Path, dict[str, int | None]]()  # None: a folder
        self._open = list[int]()  # so that no other file gets a synced one's number
        self.is_cut = False
        folder.mkdir(exist_ok=True)
        for path in (folder, *folder.rglob("*")):
            self._keep(path)

    def sync(self, descriptor: int) -> None:
        with self._lock:
            self.is_cut = self.is_cut or next(self._syncs) == self.cut_at
            if self.is_cut:
                raise PowerCut
            path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
            if path.is_relative_to(self._folder):
                self._keep(path)

    def restore(self, folder: Path) -> Path:
        """Everything that was durable."""
        folder.mkdir()
        for path, names in sorted(self._names.items()):
            there = folder / path.relative_to(self._folder)
            for name, number in names.items() if there.is_dir() else ():
                if number is None:
                    (there / name).mkdir()
                else:
                    (there / name).write_bytes(self._files.get(number, b""))
        return folder

    def close(self) -> None:
        while self._open:
            os.close(self._open.pop())

    def _keep(self, path: Path) -> None:
        if path.is_dir():
            self._names[path] = {one.name: None if one.is_dir() else one.stat().st_ino for one in path.iterdir()}
            return
        self._open.append(os.open(path, os.O_RDONLY))
        self._files[os.fstat(self._open[-1]).st_ino] = path.read_bytes()


@pytest.fixture
def disks(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Disk]]:
    made = list[Disk]()

    def make(folder: Path, cut_at: int | None = None) -> Disk:
        made.append(Disk(folder, cut_at))
        monkeypatch.setattr("os.fsync", made[-1].sync)
        return made[-1]

    yield make
    for disk in made:
        disk.close()


def live(folder: Path, answered: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Small appends and a large one, a bulk read, a removal; what was answered of it."""
    shard = Shard(folder)
    for key, rows in ROWS.items():
        with monkeypatch.context() as large:
            if key == "d":
                large.setattr("openledger.datanets.shard.MAX_SMALL_BYTES", 0)
            shard.append(rows, key)
        answered.add(key)
        if key == "b":
            shard.parts([DOOMED])
    shard.remove([DOOMED])
    answered.add("removal")


def check(shard: Shard, answered: set[str]) -> None:
    held = [row.row_id for batch in shard.scan() for row in rows_of(batch)]
    assert shard.row_ids() == held
    assert len(set(held)) == len(held)
    for key, rows in ROWS.items():
        found = [row.row_id in held for row in rows if row.row_id != DOOMED]
        assert all(found) if key in answered else all(found) or not any(found)
    if "a" in answered and DOOMED not in held:
        assert {*ROWS} <= answered  # the removal had begun
    assert not ("removal" in answered and DOOMED in held)


@pytest.mark.parametrize("killed_first", [False, True])
def test_loses_nothing_doubles_nothing_and_brings_nothing_back(
    tmp_path: Path, disks: Callable[..., Disk], monkeypatch: pytest.MonkeyPatch, killed_first: bool
) -> None:
    """`killed_first`: only the process goes at that sync; the next one sends all again, and then the power is cut."""
    for cut_at in count():
        answered, place = set[str](), tmp_path / str(cut_at)
        place.mkdir()
        disk = disks(place / "disk", cut_at)
        with suppress(PowerCut):
            live(place / "disk" / "s", answered, monkeypatch)
        was_cut = disk.is_cut
        if killed_first:
            disk.is_cut, disk.cut_at = False, None
            again = Shard(place / "disk" / "s")
            for key, rows in ROWS.items():
                again.append(rows, key)
                answered.add(key)
        after = disk.restore(place / "after")
        restored = disks(after)
        check(Shard(after / "s"), answered)
        disk.close()
        restored.close()
        if not was_cut:
            break
    assert cut_at > 20
