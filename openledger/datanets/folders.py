"""Folders that survive a power cut."""

from pathlib import Path

from openledger.core.files import sync_folder


def make_folder(folder: Path) -> None:
    """Make `folder` and what is missing above it. Each new name is synced: a file in a folder that a power cut forgets
    would be lost with it."""
    if not folder.exists():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)
