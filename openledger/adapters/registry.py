"""The registry of adapters: which names exist, which content, base and place each stands for, its terms, and who may
ask it.

Owns `registry.db` (SQLite, write-ahead) in its folder, so that the adapter after ten thousand others costs what the
first did. Adapters that lie below the same folder are written down relative to it, so that the whole can be moved or
restored elsewhere; others have a `source`, from which whoever serves them fetches them. Several processes of one
machine may use one registry. Does not open adapters (see `checks`), fetches nothing, and knows nothing of serving.
"""

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import apsw

from openledger.adapters.card import load_card
from openledger.core.clock import Clock, SystemClock
from openledger.core.database import writing
from openledger.core.errors import Conflict, Corrupt, InvalidInput, NotFound, Unavailable
from openledger.core.files import sync_folder
from openledger.core.ids import check_name
from openledger.core.values import AdapterTerms

REGISTRY_FORMAT = "openledger.adapter-registry/3"
_SECOND_FORMAT = "openledger.adapter-registry/2"  # knew no bases
_FIRST_FORMAT = "openledger.adapter-registry/1"  # registry.json: rewritten whole for each adapter
_BUSY_MS = 10_000
_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta(name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS adapters(
  name TEXT PRIMARY KEY, folder TEXT NOT NULL, source TEXT NOT NULL, digest TEXT NOT NULL, terms TEXT,
  shared_with TEXT NOT NULL, created_ms INTEGER NOT NULL, base_digest TEXT NOT NULL DEFAULT ''
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS adapters_by_digest ON adapters(digest, name);
"""
_FIELDS = "name, folder, source, digest, terms, shared_with, created_ms, base_digest"


@dataclass(frozen=True, slots=True, kw_only=True)
class RegisteredAdapter:
    """`folder` is absolute, and empty where the adapter lies elsewhere only; `source` says where that is.

    `terms` is None for an adapter that is not sold, such as one of a counterfactual bank. Where `shared_with` names
    accounts, only they and the owner may ask it. `base_digest` is the base model that it is an adapter of, empty where
    nobody said; a base model that is sold by itself is its own.
    """

    name: str
    folder: str
    digest: str
    terms: AdapterTerms | None
    source: str = ""
    shared_with: tuple[str, ...] = ()
    created_ms: int = 0
    base_digest: str = ""

    @property
    def is_base(self) -> bool:
        return bool(self.digest) and self.digest == self.base_digest

    @property
    def place(self) -> str:
        """Where whoever serves it finds its files: the source, which any node can reach, or else the folder."""
        return self.source or self.folder

    def may_be_asked_by(self, account: str) -> bool:
        owner = None if self.terms is None else self.terms.owner_account
        return not self.shared_with or account in self.shared_with or account == owner


class AdapterRegistry:
    """Safe to share between threads and processes. What a call has written is on disk when it returns."""

    def __init__(self, folder: Path, clock: Clock | None = None):
        self._root = folder.resolve()
        self._path = self._root / "registry.db"
        self._clock = clock or SystemClock()
        self._lock, self._read_lock = threading.RLock(), threading.RLock()  # who reads does not wait for a disk's sync
        self._root.mkdir(parents=True, exist_ok=True)
        with _storage_errors(self._path):
            self._db = self._open()
            self._reader = apsw.Connection(str(self._path))
            self._reader.set_busy_timeout(_BUSY_MS)

    @property
    def root(self) -> Path:
        return self._root

    def register(
        self,
        name: str,
        folder: Path | None,
        digest: str,
        terms: AdapterTerms | None = None,
        *,
        source: str = "",
        shared_with: Sequence[str] | None = None,
        base_digest: str = "",
    ) -> RegisteredAdapter:
        """Same name and content again: nothing changes, also not who may ask it, unless `shared_with` says otherwise.
        Raises Conflict where the name stands for another digest (remove it first, or `switch`), InvalidInput for a bad
        name, a folder outside the registry or terms of another adapter."""
        place = self._checked(name, folder, digest, terms, source)
        with self._writing():
            known = self._one(self._db, "name = ?", name)
            if known is not None and known.digest != digest:
                raise Conflict(
                    f"{name!r} is registered with the digest {known.digest}",
                    code="adapter_exists",
                    param="name",
                    fix="remove it first, or take another name",
                )
            adapter = RegisteredAdapter(
                name=name,
                folder=place,
                digest=digest,
                terms=terms,
                source=source,
                shared_with=_still_shared(known, shared_with),
                created_ms=self._clock.now_ms() if known is None else known.created_ms,
                base_digest=base_digest or ("" if known is None else known.base_digest),
            )
            if known != adapter:
                self._put(adapter)
        return adapter

    def switch(
        self,
        name: str,
        folder: Path | None,
        digest: str,
        terms: AdapterTerms | None = None,
        *,
        source: str = "",
        shared_with: Sequence[str] | None = None,
        base_digest: str = "",
    ) -> RegisteredAdapter:
        """From now on `name` stands for another adapter: one write, seen whole or not at all. What is being answered
        ends with the adapter it began with, which stays findable by its digest: it is settled later. Who may ask stays,
        unless `shared_with` says otherwise. Raises NotFound, and what `register` raises."""
        place = self._checked(name, folder, digest, terms, source)
        with self._writing():
            known = self._find(self._db, name)
            adapter = RegisteredAdapter(
                name=name,
                folder=place,
                digest=digest,
                terms=terms,
                source=source,
                shared_with=_still_shared(known, shared_with),
                created_ms=known.created_ms,
                base_digest=base_digest,
            )
            self._put(adapter)
            self._keep_findable(known)
        return adapter

    def retire(self, name: str) -> None:
        """Sell nothing as `name` any more; the adapter stays findable by its digest. Raises NotFound."""
        with self._writing():
            known = self._find(self._db, name)
            self._db.execute("DELETE FROM adapters WHERE name = ?", (name,))
            self._keep_findable(known)

    def remove(self, name: str) -> None:
        """Forget `name`, as if it had never been; its files stay. Raises NotFound."""
        with self._writing():
            self._find(self._db, name)
            self._db.execute("DELETE FROM adapters WHERE name = ?", (name,))

    def get(self, name: str) -> RegisteredAdapter:
        """Raises NotFound (`unknown_model`)."""
        with self._reading():
            return self._find(self._reader, name)

    def find_digest(self, digest: str) -> RegisteredAdapter:
        """The first adapter (by name) with this digest. Raises NotFound (`unknown_adapter`)."""
        with self._reading():
            found = self._one(self._reader, "digest = ?", digest)
        if found is None:
            raise NotFound(
                f"no adapter with the digest {digest!r} is registered", code="unknown_adapter", param="adapter"
            )
        return found

    def list(self) -> tuple[RegisteredAdapter, ...]:
        """All adapters, by name."""
        with self._reading():
            rows = self._reader.execute(f"SELECT {_FIELDS} FROM adapters ORDER BY name").fetchall()
            return tuple(self._adapter(row, follow=False) for row in rows)

    def page(self, *, after: str = "", limit: int = 1000, account: str = "") -> tuple[RegisteredAdapter, ...]:
        """The next `limit` adapters by name that are sold and that `account` may ask."""
        query = (
            f"SELECT {_FIELDS} FROM adapters WHERE name > ?1 AND terms IS NOT NULL AND (shared_with = '[]'"
            " OR json_extract(terms, '$.owner_account') = ?2"
            " OR EXISTS (SELECT 1 FROM json_each(shared_with) WHERE value = ?2)) ORDER BY name LIMIT ?3"
        )
        with self._reading():
            rows = self._reader.execute(query, (after, account, limit)).fetchall()
            return tuple(self._adapter(row, follow=False) for row in rows)

    def close(self) -> None:
        with self._lock, self._read_lock:
            self._reader.close()
            self._db.close()

    def _checked(self, name: str, folder: Path | None, digest: str, terms: AdapterTerms | None, source: str) -> str:
        """The absolute folder; empty where there is only a source."""
        check_name(name, "name")
        if terms is not None and (terms.adapter, terms.adapter_digest) != (name, digest):
            raise InvalidInput(f"the terms are not those of {name!r}", code="wrong_terms", param="terms")
        if folder is None and source:
            return ""
        resolved = self._root if folder is None else folder.resolve()
        if self._root not in resolved.parents or not resolved.is_dir():
            raise InvalidInput(
                f"{folder} is no folder below {self._root}",
                code="adapter_outside_registry",
                param="folder",
                fix=f"put the adapter below {self._root}",
            )
        return str(resolved)

    def _find(self, connection: apsw.Connection, name: str) -> RegisteredAdapter:
        found = self._one(connection, "name = ?", name)
        if found is None:
            raise NotFound(
                f"there is no model {name!r}",
                code="unknown_model",
                param="model",
                fix="list the models to see the names",
            )
        return found

    def _one(self, connection: apsw.Connection, where: str, value: str) -> RegisteredAdapter | None:
        query = f"SELECT {_FIELDS} FROM adapters WHERE {where} ORDER BY name LIMIT 1"
        row = connection.execute(query, (value,)).fetchone()
        return None if row is None else self._adapter(row)

    def _keep_findable(self, adapter: RegisteredAdapter) -> None:
        """Answers of it may wait for settlement, and others may have come from it: where its digest has no other name
        it gets one, under which it is not sold. Raises Conflict where the names for that are taken."""
        if self._one(self._db, "digest = ?", adapter.digest) is not None:
            return
        for digits in (12, 64):  # a stranger may have taken the shorter one
            stem = adapter.name[: 127 - digits].rstrip(".")
            name = f"{stem}.{adapter.digest[:digits]}"
            if self._one(self._db, "name = ?", name) is None:
                self._put(replace(adapter, name=name, terms=None))
                return
        raise Conflict(
            f"{adapter.name!r} can't be kept findable for its settlement: {name!r} is taken",
            code="name_taken",
            param="name",
            fix="remove that one first",
        )

    def _put(self, adapter: RegisteredAdapter) -> None:
        values = (
            adapter.name,
            Path(adapter.folder).relative_to(self._root).as_posix() if adapter.folder else "",
            adapter.source,
            adapter.digest,
            None if adapter.terms is None else json.dumps(asdict(adapter.terms)),
            json.dumps(list(adapter.shared_with)),
            adapter.created_ms,
            adapter.base_digest,
        )
        self._db.execute("INSERT OR REPLACE INTO adapters VALUES (?, ?, ?, ?, ?, ?, ?, ?)", values)

    def _adapter(self, row: Any, *, follow: bool = True) -> RegisteredAdapter:
        """A folder that leads out of the registry, by `..` or by a link, is refused here too; lists don't follow links,
        which would cost more than all the rest."""
        name, folder, source, digest, terms, shared_with, created_ms, base_digest = row
        try:
            return RegisteredAdapter(
                name=check_name(name, "name"),
                folder=self._inside(name, folder, follow=follow) if folder else "",
                digest=digest,
                terms=None if terms is None else AdapterTerms(**json.loads(terms)),
                source=source,
                shared_with=tuple(json.loads(shared_with)),
                created_ms=created_ms,
                base_digest=base_digest,
            )
        except (ValueError, TypeError) as error:
            raise _corrupt(self._path, error) from error

    def _inside(self, name: str, folder: str, *, follow: bool = True) -> str:
        if not follow and ".." not in folder.split("/") and not folder.startswith("/"):
            return f"{self._root}/{folder}"
        resolved = (self._root / folder).resolve()
        if self._root not in resolved.parents:
            raise ValueError(f"{name} points outside the registry")
        return str(resolved)

    @contextmanager
    def _reading(self) -> Iterator[None]:
        with self._read_lock, _storage_errors(self._path):
            yield

    @contextmanager
    def _writing(self) -> Iterator[None]:
        with self._lock, _storage_errors(self._path), writing(self._db):
            yield

    def _open(self) -> apsw.Connection:
        connection = apsw.Connection(str(self._path))
        connection.set_busy_timeout(_BUSY_MS)
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "fullfsync=ON"):
            connection.execute(f"PRAGMA {pragma}").fetchall()
        self._db = connection
        with writing(connection):
            connection.execute(_SCHEMA)
            found = connection.execute("SELECT value FROM meta WHERE name = 'format'").fetchone()
            if found is None:
                connection.execute("INSERT INTO meta VALUES ('format', ?)", (REGISTRY_FORMAT,))
                self._take_over()
            elif found[0] == _SECOND_FORMAT:
                self._add_bases()
            elif found[0] != REGISTRY_FORMAT:
                raise _corrupt(self._path, f"unknown format {found[0]!r}")
        sync_folder(self._root)
        return connection

    def _add_bases(self) -> None:
        """Bring a registry of the second format up to this one: what an adapter's base is, its card says."""
        self._db.execute("ALTER TABLE adapters ADD COLUMN base_digest TEXT NOT NULL DEFAULT ''")
        for name, folder in self._db.execute("SELECT name, folder FROM adapters WHERE folder != ''").fetchall():
            base_digest = _base_of(self._root / str(folder))
            self._db.execute("UPDATE adapters SET base_digest = ? WHERE name = ?", (base_digest, name))
        self._db.execute("UPDATE meta SET value = ? WHERE name = 'format'", (REGISTRY_FORMAT,))

    def _take_over(self) -> None:
        """What a registry of the first format holds. Its file stays as it was."""
        path = self._root / "registry.json"
        if not path.exists():
            return
        try:
            content = json.loads(path.read_bytes())
            if content["format"] != _FIRST_FORMAT:
                raise ValueError(f"unknown format {content['format']!r}")
            for name, entry in content["adapters"].items():
                self._put(self._first_format(name, entry))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise _corrupt(path, error) from error

    def _first_format(self, name: str, entry: dict[str, Any]) -> RegisteredAdapter:
        folder = Path(self._inside(name, entry["folder"]))
        card = folder / "card.json"
        return RegisteredAdapter(
            name=check_name(name, "name"),
            folder=str(folder),
            digest=entry["digest"],
            terms=None if entry["terms"] is None else AdapterTerms(**entry["terms"]),
            created_ms=int(card.stat().st_mtime * 1000) if card.exists() else self._clock.now_ms(),
            base_digest=_base_of(folder),
        )


def _base_of(folder: Path) -> str:
    """The base that the card in `folder` names; empty without a card that can be read."""
    try:
        return load_card(folder).base_digest
    except Corrupt:
        return ""


def _still_shared(known: RegisteredAdapter | None, shared_with: Sequence[str] | None) -> tuple[str, ...]:
    """What is private stays so where nothing is said of it: a second posting must not publish it."""
    if shared_with is None:
        return () if known is None else known.shared_with
    return tuple(shared_with)


@contextmanager
def _storage_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (apsw.NotADBError, apsw.CorruptError) as error:
        raise _corrupt(path, error) from error
    except apsw.Error as error:
        raise Unavailable(
            f"{path} can't be read or written: {error}",
            code="registry_unavailable",
            fix="check the disk: space, permissions, and that it is no network file system",
        ) from error


def _corrupt(path: Path, reason: object) -> Corrupt:
    return Corrupt(
        f"{path} can't be read: {reason}",
        code="corrupt_registry",
        param=str(path),
        fix="restore it from a backup, or remove it and register the adapters again",
    )
