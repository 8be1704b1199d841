"""Writing files so that they survive a power cut: the content, then the name, both synced. And reading the documents
among them, each of which names its format."""

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

Parsed = TypeVar("Parsed")


def write_durably(path: Path, data: bytes | bytearray) -> None:
    """Put `data` at `path` whole or not at all; when this returns, it is on disk."""
    _write(path, data, mode=0o666)


def write_secret(path: Path, data: bytes) -> None:
    """As `write_durably`, for the owner's eyes only (mode 0600 from the first byte on)."""
    _write(path, data, mode=0o600)


def write_json_durably(path: Path, value: Any) -> None:
    write_durably(path, (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode())


def read_document(
    path: Path,
    form: str | tuple[str, ...],
    parse: Callable[[dict[str, Any]], Parsed],
    refused: Callable[[str], Exception],
) -> Parsed:
    """What `parse` makes of the JSON object at `path`, which must be of a format in `form` and is handed on without it.

    Raises `refused(reason)` where the file can't be read, is of another format, or `parse` finds it lacking."""
    try:
        values = json.loads(path.read_text())
        found = values.pop("format")
        if found not in ((form,) if isinstance(form, str) else form):
            raise ValueError(f"unknown format {found!r}")
        return parse(values)
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, ArithmeticError) as error:
        raise refused(str(error)) from error


def sync_folder(folder: Path) -> None:
    """Make names created or replaced in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write(path: Path, data: bytes | bytearray, *, mode: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_native_id()}.new")
    temporary.unlink(missing_ok=True)  # a crash may have left one, of another mode
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)
    sync_folder(path.parent)
