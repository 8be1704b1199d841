"""Folders that survive a power cut."""

from contextlib import suppress
from pathlib import Path

from openledger.core.files import sync_folder


def make_folder(folder: Path) -> None:
    """Make `folder` and what is missing above it. Each name is synced, also one that is there already, as who made it
    may have been killed before: a file in a folder that a power cut forgets would be lost with it."""
    if folder.exists():
        with suppress(PermissionError):  # above what is ours
            sync_folder(folder.parent)
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    sync_folder(folder.parent)
