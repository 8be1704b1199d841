"""What stands beside the rows of a data set's folder: a Hugging Face dataset card, and the licence that it names."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from openledger.datanets.licences import BOTH
from openledger.datanets.row_schema import MAX_LICENCE_CHARS

CARD, CROISSANT, MANIFEST = "README.md", "croissant.json", "manifest.json"
_MAX_CARD_BYTES = 1024 * 1024
_FRONT = re.compile(r"\A\ufeff?---[ \t]*\r?\n(.*?)\n---[ \t]*\r?\n", re.DOTALL)
_OF_A_DATASET = {"license", "configs", "dataset_info", "task_categories", "size_categories", "pretty_name"}
_SAYS_NOTHING = ("other", "unknown", "")


@dataclass(frozen=True, slots=True)
class Card:
    """`licence` is empty where it names none."""

    licence: str


def read_card(folder: Path) -> Card | None:
    """The folder's card; None where its README is none, as notes with front matter of their own aren't."""
    try:
        with (folder / CARD).open("rb") as stream:
            front = _FRONT.match(stream.read(_MAX_CARD_BYTES).decode("utf-8", "ignore"))
        told = yaml.safe_load(front[1]) if front else None
    except (OSError, yaml.YAMLError, RecursionError):
        return None
    if not isinstance(told, dict) or not _OF_A_DATASET & told.keys():
        return None
    return Card(_licence(told))


def _licence(told: dict[str, Any]) -> str:
    value = told.get("license") or ""
    name = BOTH.join(map(str, value)) if isinstance(value, list) else str(value)
    if name in _SAYS_NOTHING:
        name = str(told.get("license_name") or "")
    return "" if name in _SAYS_NOTHING or not name.isprintable() else name[:MAX_LICENCE_CHARS]
