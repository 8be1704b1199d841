"""Where an adapter's files come from: a directory, object storage behind any fsspec URI, or a Hugging Face id.

Owns which places may be read and how much of each: three named files, each up to a limit, into a folder of ours.
Nothing of a source is run, followed or believed: its digest is checked here, its tensors by `checks` when they are
loaded. Knows nothing of caches and serving.

    /srv/adapters/a, file:///srv/adapters/a     below one of the folders that the operator allows
    s3://bucket/a, gs://, abfs://, az://         with the driver that fsspec names for it (s3fs, gcsfs, adlfs)
    hf://org/name@revision, org/name             the hub
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from openledger.adapters.card import adapter_digest
from openledger.adapters.checks import CARD_FILE, CONFIG_FILE, WEIGHTS_FILE, AdapterLimits
from openledger.core.errors import Corrupt, Forbidden, InvalidInput, NotFound, OpenLedgerError, TooLarge, Unavailable

_SCHEMES = ("file", "s3", "gs", "gcs", "abfs", "abfss", "az", "hf")
_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}(@[A-Za-z0-9._/-]{1,96})?")
_URI = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?P<path>[^\s?#]+)")
_MAX_JSON_BYTES = 1 << 20
_MAX_CARD_BYTES = 1 << 26
_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceRules:
    """What may be read. `folders` are those local directories below which a source may lie; `schemes` the kinds of
    storage. An operator who lets strangers register narrows both."""

    folders: tuple[str, ...] = ()
    schemes: tuple[str, ...] = _SCHEMES
    limits: AdapterLimits = field(default_factory=AdapterLimits)


def check_source(source: str, rules: SourceRules) -> str:
    """`source` as a URI, if it may be read. Raises InvalidInput (`invalid_adapter_source`), Forbidden
    (`adapter_source_forbidden`)."""
    uri = _as_uri(source)
    match = _URI.fullmatch(uri)
    if match is None or "::" in uri or ".." in match["path"].split("/"):
        raise InvalidInput(
            f"{source!r} is no place of an adapter",
            code="invalid_adapter_source",
            param="source",
            fix="name a directory, a URI such as s3://bucket/path, or a hub id such as org/name",
        )
    if match["scheme"] not in rules.schemes:
        raise _forbidden(source, f"{match['scheme']}:// is not among {', '.join(rules.schemes)}")
    if match["scheme"] == "file" and not _is_allowed(Path(match["path"]), rules):
        raise _forbidden(source, "it lies outside the folders that this installation serves from")
    return uri


def fetch(source: str, folder: Path, rules: SourceRules, digest: str = "") -> str:
    """Copy the adapter's files from `source` into the empty `folder`; its digest, which must be `digest` where one is
    given. Blocks. Raises what `check_source` raises, NotFound (`missing_adapter`), InvalidInput (`pickled_adapter`,
    `linked_adapter`), TooLarge, Corrupt (`adapter_digest_mismatch`), Unavailable (`adapter_storage_unavailable`)."""
    uri = check_source(source, rules)
    system, path = _open_storage(uri)
    try:
        system.invalidate_cache()  # drivers remember for good what wasn't there, and what a folder held
        found = {Path(str(entry["name"])).name: entry for entry in system.ls(path, detail=True)}
        _check_listing(source, found)
        for name, limit in _limits(rules.limits).items():
            if name in found:
                _copy(system, found[name], folder / name, limit)
    except OpenLedgerError:
        raise
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotFound(f"there is no adapter at {source}", code="missing_adapter", param="source") from error
    except Exception as error:  # each driver has errors of its own: that the storage failed is what they share
        raise Unavailable(
            f"{source} can't be read now: {error!r:.200}", code="adapter_storage_unavailable", fix="try again later"
        ) from error
    return _check_digest(source, folder, digest)


def _as_uri(source: str) -> str:
    if source.startswith("/"):
        return f"file://{source}"
    return f"hf://{source}" if _HUB_ID.fullmatch(source) else source


def _is_allowed(path: Path, rules: SourceRules) -> bool:
    """Links are followed before the folders are compared, so that none leads out of them."""
    resolved = path.resolve()
    return any(Path(folder).resolve() in resolved.parents for folder in rules.folders)


def _open_storage(uri: str) -> tuple[Any, str]:
    import fsspec

    try:
        system, path = fsspec.core.url_to_fs(uri)
    except ImportError as error:
        raise Unavailable(
            f"there is no driver for {uri} here: {error}",
            code="adapter_storage_unavailable",
            fix="install the driver that the message names where the engine runs",
        ) from error
    except Exception as error:  # a driver that finds no credentials, a hub that doesn't answer
        raise Unavailable(f"{uri} can't be reached: {error!r:.200}", code="adapter_storage_unavailable") from error
    return system, path


def _limits(limits: AdapterLimits) -> dict[str, int]:
    return {CONFIG_FILE: _MAX_JSON_BYTES, WEIGHTS_FILE: limits.max_bytes, CARD_FILE: _MAX_CARD_BYTES}


def _check_listing(source: str, found: dict[str, Any]) -> None:
    if linked := [name for name in (CONFIG_FILE, WEIGHTS_FILE, CARD_FILE) if found.get(name, {}).get("islink")]:
        raise InvalidInput(
            f"{linked[0]} at {source} is a link",
            code="linked_adapter",
            param=linked[0],
            fix="put the file itself there",
        )
    if WEIGHTS_FILE not in found and any(name.startswith(("adapter_model.b", "adapter_model.p")) for name in found):
        raise InvalidInput(
            f"{source} holds pickled weights only",
            code="pickled_adapter",
            param=WEIGHTS_FILE,
            fix="save it again with safe_serialization=True",
        )
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if name not in found:
            raise NotFound(f"{source} lacks {name}", code="missing_adapter", param=name)


def _copy(system: Any, entry: Any, target: Path, limit: int) -> None:
    """The size that the storage tells is not believed: bytes are counted as they come."""
    if int(entry.get("size") or 0) > limit:
        raise _too_large(entry["name"], limit)
    size = 0
    with system.open(entry["name"], "rb") as stream, target.open("xb") as written:
        while block := stream.read(_BLOCK_BYTES):
            size += len(block)
            if size > limit:
                raise _too_large(entry["name"], limit)
            written.write(block)


def _check_digest(source: str, folder: Path, digest: str) -> str:
    try:
        found = adapter_digest(folder)
    except (ValueError, TypeError, AttributeError, RecursionError, OpenLedgerError) as error:
        raise Corrupt(
            f"{CONFIG_FILE} at {source} can't be read: {error}", code="corrupt_adapter", param=CONFIG_FILE
        ) from error
    if digest and found != digest:
        raise Corrupt(
            f"{source} holds the adapter {found}, not {digest}",
            code="adapter_digest_mismatch",
            param="source",
            fix="the files were changed after it was registered: register them as a new adapter",
        )
    return found


def _forbidden(source: str, reason: str) -> Forbidden:
    return Forbidden(
        f"{source!r} may not be read: {reason}",
        code="adapter_source_forbidden",
        param="source",
        fix="put the adapter where this installation reads, or have the operator allow the place",
    )


def _too_large(name: str, limit: int) -> TooLarge:
    return TooLarge(f"{name} is over {limit} bytes", code="adapter_too_large", param=Path(name).name)
