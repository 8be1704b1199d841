"""The tiers below the engine's slots: object storage -> node disk -> host memory, each a folder of adapters by digest.

Owns the bytes on this node: two folders, one on disk and one in memory (tmpfs), each under a limit and shared by all
replicas of the node, so that an adapter is fetched and kept once. What is in a folder is whole (it is written beside
and renamed), and is checked against its digest whenever an engine loads it. Everything here blocks; it runs on loader
threads, never on the step thread and never on an event loop.

What leaves first is what has lain longest for its size: the value of a place in memory is uses per byte and second, and
the time since the last use is what processes that share a folder can see of that (GreedyDual-Size without a counter,
Cao and Irani, 1997). What comes to memory is what is asked for a second time (2Q, Johnson and Shasha, 1994): of a long
tail most are asked once, the copy costs half of a load, and takes the place of what is asked again.
"""

import fcntl
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from openledger.adapters.checks import CARD_FILE, CONFIG_FILE, WEIGHTS_FILE
from openledger.adapters.sources import SourceRules, fetch
from openledger.core.errors import InvalidInput, OpenLedgerError, Unavailable
from openledger.core.ids import check_name

HOST_FOLDER = f"/dev/shm/openlora-{os.getuid()}"  # of this user, on a node with Linux
_LOCKS = 64  # of a folder; two adapters that share one are fetched one after the other
_NEW = ".new-"
_HELD = ".held"
_SPARE = 16  # a full tier lets go of a sixteenth at once
_STALE_S = 3600.0
_REMEMBERED = 65536  # digests that were asked for once


@dataclass(frozen=True, slots=True, kw_only=True)
class TierOptions:
    """`host_folder` lies in memory, on Linux below /dev/shm; empty, or a limit of 0, leaves the tier out."""

    disk_folder: str
    disk_bytes: int = 16 << 30
    host_folder: str = ""
    host_bytes: int = 1 << 30


class FolderTier:
    """Adapters by digest below `folder`, together at most `max_bytes`. Safe between threads and processes."""

    def __init__(self, folder: Path, max_bytes: int, now_s: Callable[[], float] = time.time):
        self._folder, self._max_bytes, self._now_s = folder, max_bytes, now_s
        self._sizes: dict[str, int] = {}  # what lies under a digest never changes
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._sweep()

    def find(self, digest: str) -> Path | None:
        """The folder of an adapter that is here, which is thereby used."""
        path = self._folder / check_name(digest, "digest")
        try:
            os.utime(path, (self._now_s(), self._now_s()))
        except FileNotFoundError:
            return None
        return path

    def has(self, digest: str) -> bool:
        """Whether an adapter is here, which is no use of it."""
        return (self._folder / check_name(digest, "digest")).exists()

    def add(self, digest: str, fill: Callable[[Path], object]) -> Path:
        """The adapter's folder; where it isn't here, `fill` writes it into a folder it is given. One of those who ask
        at once fills, the others wait. What `fill` raises is raised, and nothing stays. An adapter larger than the
        tier raises Unavailable (`adapter_tier_full`)."""
        with self._locked(digest):
            if (found := self.find(digest)) is not None:
                return found
            new = self._folder / f"{_NEW}{digest[:16]}-{os.getpid()}-{time.monotonic_ns()}"
            new.mkdir()
            try:
                fill(new)
                self._move_in(new, digest)
            except OSError as error:
                raise Unavailable(f"{self._folder} can't be written: {error}", code="adapter_tier_full") from error
            finally:
                shutil.rmtree(new, ignore_errors=True)
            return self._folder / digest

    def num_bytes(self) -> int:
        return sum(size for _, size, _ in self._entries())

    def digests(self) -> tuple[str, ...]:
        return tuple(digest for digest, _, _ in self._entries())

    def remove(self, digest: str) -> None:
        """Readers that have opened its files read on. It leaves under its own name at once, and its bytes after."""
        gone = self._folder / f"{_NEW}gone-{os.getpid()}-{time.monotonic_ns()}"
        try:
            (self._folder / digest).rename(gone)
        except FileNotFoundError:
            return
        shutil.rmtree(gone, ignore_errors=True)

    def _move_in(self, new: Path, digest: str) -> None:
        """The bytes that are held are counted in a file, so that the folder is read only where it is full, and an
        adapter costs the same however many there are. After `remove` or a crash the count is too high, never too low;
        reading puts it right."""
        size = _bytes_of(new)
        if size > self._max_bytes:
            raise Unavailable(
                f"an adapter of {size} bytes does not fit {self._folder}, which holds {self._max_bytes}",
                code="adapter_tier_full",
            )
        with (self._folder / _HELD).open("a+") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            stream.seek(0)
            counted = stream.read()
            held = int(counted) if counted.isdigit() else self.num_bytes()
            if held + size > self._max_bytes:
                held = self._evict(size)
            stream.truncate(0)
            stream.write(str(held + size))
            stream.flush()
            new.rename(self._folder / digest)

    def _evict(self, size: int) -> int:
        """Make room for `size` bytes, and for some more where that takes small adapters only; what is held then."""
        now_s = self._now_s()
        entries = sorted(self._entries(), key=lambda entry: -(now_s - entry[2] + 1) * entry[1])
        held = sum(bytes_held for _, bytes_held, _ in entries)
        target = self._max_bytes - size
        spare = target - self._max_bytes // _SPARE
        for digest, bytes_held, _ in entries:
            if held <= target and held - bytes_held < spare:
                break
            self.remove(digest)
            held -= bytes_held
        return held

    def _entries(self) -> list[tuple[str, int, float]]:
        """Digest, bytes and time of last use of what is here."""
        found = []
        for entry in os.scandir(self._folder):
            if entry.name.startswith("."):
                continue
            try:
                used_s = entry.stat().st_mtime
                size = self._sizes.get(entry.name) or _bytes_of(Path(entry.path))
            except FileNotFoundError:
                continue
            self._sizes[entry.name] = size
            found.append((entry.name, size, used_s))
        return found

    @contextmanager
    def _locked(self, digest: str) -> Iterator[None]:
        number = int(digest[:8], 16) % _LOCKS if _is_hex(digest[:8]) else 0
        with (self._folder / f".lock-{number}").open("w") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            yield

    def _sweep(self) -> None:
        """What a process left half-written when it died."""
        for path in self._folder.glob(f"{_NEW}*"):
            try:
                stale = time.time() - path.stat().st_mtime > _STALE_S
            except FileNotFoundError:
                continue
            if stale:
                shutil.rmtree(path, ignore_errors=True)


class AdapterTiers:
    """From an adapter's digest and source to a folder that an engine can load: what this node has is found, what it
    lacks is fetched, which may take long."""

    def __init__(self, options: TierOptions, rules: SourceRules):
        self._rules = rules
        self._disk = FolderTier(Path(options.disk_folder), options.disk_bytes)
        hosted = bool(options.host_folder) and options.host_bytes > 0
        self._host = FolderTier(Path(options.host_folder), options.host_bytes) if hosted else None
        self._asked: dict[str, None] = {}  # in the order of the first time
        self._asking = threading.Lock()

    def find(self, digest: str, source: str) -> Path | None:
        """The nearest tier's folder; None where nothing on this node has the adapter. A local directory is on a disk
        already, and is copied to memory only, as all are the second time."""
        if self._host is not None and (found := self._host.find(digest)) is not None:
            return found
        below = Path(source) if source.startswith("/") else self._disk.find(digest)
        return below if below is None or not self._was_asked(digest) else self._in_memory(digest, below)

    def has(self, digest: str, source: str) -> bool:
        """Whether `find` would find the adapter. That is no question for it."""
        return source.startswith("/") or self._disk.has(digest) or (self._host is not None and self._host.has(digest))

    def fetch(self, digest: str, source: str) -> Path:
        """Bring the adapter to this node's disk. Raises what `sources.fetch` raises, Unavailable
        (`adapter_tier_full`)."""
        return self._disk.add(digest, lambda folder: fetch(source, folder, self._rules, digest))

    def forget(self, digest: str) -> None:
        """Drop an adapter from this node's tiers: its place was wrong, or nobody may have it any more."""
        self._disk.remove(digest)
        if self._host is not None:
            self._host.remove(digest)

    def describe(self) -> dict[str, int]:
        host_bytes = 0 if self._host is None else self._host.num_bytes()
        return {"disk_bytes": self._disk.num_bytes(), "host_bytes": host_bytes}

    def _was_asked(self, digest: str) -> bool:
        """Before; from now on it was."""
        with self._asking:
            if digest in self._asked:
                return True
            self._asked[digest] = None
            if len(self._asked) > _REMEMBERED:
                del self._asked[next(iter(self._asked))]
            return False

    def _in_memory(self, digest: str, below: Path) -> Path:
        """An adapter that can't be copied, for its size or for what is wrong with it, is read where it is."""
        if self._host is None:
            return below
        try:
            return self._host.add(digest, lambda folder: _copy_files(below, folder))
        except (OpenLedgerError, OSError):
            return below


def _copy_files(source: Path, target: Path) -> None:
    for name in (CONFIG_FILE, WEIGHTS_FILE, CARD_FILE):
        path = source / name
        if path.is_symlink():
            raise InvalidInput(f"{path} is a link", code="linked_adapter", param=name, fix="copy the file itself")
        if path.exists() or name != CARD_FILE:
            shutil.copyfile(path, target / name)


def _bytes_of(folder: Path) -> int:
    return sum(entry.stat().st_size for entry in os.scandir(folder))


def _is_hex(text: str) -> bool:
    return bool(text) and all(letter in "0123456789abcdef" for letter in text)
