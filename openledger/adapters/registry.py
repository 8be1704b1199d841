"""The registry of adapters: which names exist, which folder and digest each stands for, and its terms.

Owns `registry.json` in its folder; the adapters lie below the same folder, and are written down relative to it, so
that the whole can be moved or restored elsewhere. Several processes may use one registry: writers hold a lock file,
readers look whether the file has changed. Does not open adapters (see `checks`) and knows nothing of serving.
"""

import fcntl
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from openledger.core.errors import Conflict, Corrupt, InvalidInput, NotFound
from openledger.core.files import write_json_durably
from openledger.core.ids import check_name
from openledger.core.values import AdapterTerms

REGISTRY_FORMAT = "openledger.adapter-registry/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class RegisteredAdapter:
    """`folder` is absolute. `terms` is None for an adapter that is not sold, such as one of a counterfactual bank."""

    name: str
    folder: str
    digest: str
    terms: AdapterTerms | None


class AdapterRegistry:
    """Safe to share between threads and processes. What a call has written is on disk when it returns."""

    def __init__(self, folder: Path):
        self._root = folder.resolve()
        self._path = self._root / "registry.json"
        self._lock = threading.RLock()
        self._seen: tuple[int, int, int] | None = None
        self._by_name: dict[str, RegisteredAdapter] = {}
        self._root.mkdir(parents=True, exist_ok=True)

    def register(self, name: str, folder: Path, digest: str, terms: AdapterTerms | None = None) -> RegisteredAdapter:
        """Same name and content again: nothing changes. Raises Conflict where the name stands for another digest
        (remove it first), InvalidInput for a bad name, a folder outside the registry or terms of another adapter."""
        adapter = self._checked(name, folder, digest, terms)
        with self._writing():
            known = self._by_name.get(name)
            if known is not None and known.digest != digest:
                raise Conflict(
                    f"{name!r} is registered with the digest {known.digest}",
                    code="adapter_exists",
                    param="name",
                    fix="remove it first, or take another name",
                )
            if known != adapter:
                self._write({**self._by_name, name: adapter})
        return adapter

    def remove(self, name: str) -> None:
        """Forget `name`; its files stay. Raises NotFound."""
        with self._writing():
            self._find(name)
            self._write({key: value for key, value in self._by_name.items() if key != name})

    def get(self, name: str) -> RegisteredAdapter:
        """Raises NotFound (`unknown_model`)."""
        with self._lock:
            self._refresh()
            return self._find(name)

    def find_digest(self, digest: str) -> RegisteredAdapter:
        """The first adapter (by name) with this digest. Raises NotFound (`unknown_adapter`)."""
        for adapter in self.list():
            if adapter.digest == digest:
                return adapter
        raise NotFound(f"no adapter with the digest {digest!r} is registered", code="unknown_adapter", param="adapter")

    def list(self) -> tuple[RegisteredAdapter, ...]:
        """All adapters, by name."""
        with self._lock:
            self._refresh()
            return tuple(self._by_name[name] for name in sorted(self._by_name))

    def _checked(self, name: str, folder: Path, digest: str, terms: AdapterTerms | None) -> RegisteredAdapter:
        check_name(name, "name")
        resolved = folder.resolve()
        if self._root not in resolved.parents or not resolved.is_dir():
            raise InvalidInput(
                f"{folder} is no folder below {self._root}",
                code="adapter_outside_registry",
                param="folder",
                fix=f"put the adapter below {self._root}",
            )
        if terms is not None and (terms.adapter, terms.adapter_digest) != (name, digest):
            raise InvalidInput(f"the terms are not those of {name!r}", code="wrong_terms", param="terms")
        return RegisteredAdapter(name=name, folder=str(resolved), digest=digest, terms=terms)

    def _find(self, name: str) -> RegisteredAdapter:
        if name not in self._by_name:
            raise NotFound(
                f"there is no model {name!r}",
                code="unknown_model",
                param="model",
                fix="list the models to see the names",
            )
        return self._by_name[name]

    @contextmanager
    def _writing(self) -> Iterator[None]:
        with self._lock, (self._root / ".registry.lock").open("w") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            self._seen = None  # a file replaced twice within one tick of the clock could look unchanged
            self._refresh()
            yield

    def _write(self, adapters: dict[str, RegisteredAdapter]) -> None:
        entries = {name: self._entry(adapter) for name, adapter in adapters.items()}
        write_json_durably(self._path, {"format": REGISTRY_FORMAT, "adapters": entries})
        self._by_name, self._seen = adapters, self._signature()

    def _entry(self, adapter: RegisteredAdapter) -> dict[str, Any]:
        return {
            "folder": Path(adapter.folder).relative_to(self._root).as_posix(),
            "digest": adapter.digest,
            "terms": None if adapter.terms is None else asdict(adapter.terms),
        }

    def _refresh(self) -> None:
        signature = self._signature()
        if signature is None:
            self._by_name, self._seen = {}, None
        elif signature != self._seen:
            self._by_name = self._read()
            self._seen = signature

    def _signature(self) -> tuple[int, int, int] | None:
        try:
            state = self._path.stat()
        except FileNotFoundError:
            return None
        return state.st_mtime_ns, state.st_ino, state.st_size

    def _read(self) -> dict[str, RegisteredAdapter]:
        try:
            content = json.loads(self._path.read_bytes())
            if content["format"] != REGISTRY_FORMAT:
                raise ValueError(f"unknown format {content['format']!r}")
            return {name: self._parse(name, entry) for name, entry in content["adapters"].items()}
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise Corrupt(
                f"{self._path} can't be read: {error}",
                code="corrupt_registry",
                param=str(self._path),
                fix="restore it from a backup, or remove it and register the adapters again",
            ) from error

    def _parse(self, name: str, entry: dict[str, Any]) -> RegisteredAdapter:
        """A folder that leads out of the registry, by `..` or by a link, is refused here too."""
        terms = None if entry["terms"] is None else AdapterTerms(**entry["terms"])
        folder = (self._root / entry["folder"]).resolve()
        if self._root not in folder.parents:
            raise ValueError(f"{name} points outside the registry")
        return RegisteredAdapter(name=check_name(name, "name"), folder=str(folder), digest=entry["digest"], terms=terms)
