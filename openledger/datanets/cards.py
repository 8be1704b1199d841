"""What stands beside the rows of a data set's folder: a Hugging Face dataset card, Croissant metadata, and the licence
that they name.

They come from strangers. Front matter is read as plain strings, without YAML's types and merges: an alias then stands
for what it names, and is never written out.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from openledger.datanets.licences import BOTH
from openledger.datanets.row_schema import MAX_LICENCE_CHARS

CARD, CROISSANT, MANIFEST = "README.md", "croissant.json", "manifest.json"
_INFO, _INFOS = "dataset_info.json", "dataset_infos.json"
_MARKS = (_INFO, _INFOS, "dataset_dict.json", CROISSANT)
DATASET_FILES = frozenset({
    *_MARKS, "state.json", MANIFEST, CARD, "LICENSE", "LICENSE.md", "LICENSE.txt", "CITATION.cff",
})  # fmt: skip
_MAX_CARD_BYTES = 1024 * 1024
_MAX_METADATA_BYTES = 16 * 1024 * 1024
_FRONT = re.compile(r"\A\ufeff?---[ \t]*\r?\n(.*?)\n---[ \t]*(?:\r?\n|\Z)", re.DOTALL)
_LICENCE = "license"
_OF_A_DATASET = {"configs", "dataset_info", "task_categories", "size_categories", "pretty_name"}
_SAYS_NOTHING = ("other", "unknown", "")
_NULLS = ("null", "~", "")
_UNNAMED = "unnamed licence"  # a row that names this is for reviewers to look at
_ADDRESSES = ("https://spdx.org/licenses/", "https://choosealicense.com/licenses/", "urn:openledger:licence:")


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """`licence` is empty where it says that none is known, None where it says nothing. `is_dataset`: whether something
    beside the licence says that a data set is here; notes may stand under a licence, too."""

    licence: str | None
    is_dataset: bool


def read_card(folder: Path) -> Card | None:
    """What the folder itself says; None where it says nothing. Of several files the first that names a licence counts:
    card, Croissant, the `datasets` library's."""
    front = _front(folder / CARD)
    marked = any((folder / mark).is_file() for mark in _MARKS)
    if not marked and not {_LICENCE, *_OF_A_DATASET} & front.keys():
        return None
    told = [_of_front(front), *map(_of_metadata, _metadata(folder))] if marked else [_of_front(front)]
    named = [licence for licence in told if licence is not None]
    licence = next(filter(None, named), named[0] if named else None)
    return Card(licence=licence, is_dataset=marked or bool(_OF_A_DATASET & front.keys()))


def _front(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as stream:
            front = _FRONT.match(stream.read(_MAX_CARD_BYTES).decode("utf-8", "ignore"))
        told = yaml.load(front[1], yaml.BaseLoader) if front else None
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return {}
    return told if isinstance(told, dict) else {}


def _metadata(folder: Path) -> list[Mapping[str, Any]]:
    """What Croissant says, and each configuration that the `datasets` library wrote."""
    croissant, info, infos = (_read_json(folder / name) for name in (CROISSANT, _INFO, _INFOS))
    return [croissant, info, *(one for one in infos.values() if isinstance(one, dict))]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as stream:
            told = json.loads(stream.read(_MAX_METADATA_BYTES))
    except (OSError, ValueError, RecursionError):
        return {}
    return told if isinstance(told, dict) else {}


def _of_front(front: Mapping[str, Any]) -> str | None:
    if front.get(_LICENCE, "") in _NULLS:
        return None
    name = _joined(front[_LICENCE])
    return _known(_joined(front.get("license_name", ""))) if name in _SAYS_NOTHING else _known(name)


def _of_metadata(told: Mapping[str, Any]) -> str | None:
    return _known(_joined(told[_LICENCE])) if told.get(_LICENCE) else None


def _joined(value: Any) -> str:
    """Of a name, or of several that all hold; `_UNNAMED` for what can't be told in a row."""
    names = value if isinstance(value, list) else [value]
    if not all(isinstance(name, str) for name in names) or sum(map(len, names)) > MAX_LICENCE_CHARS:
        return _UNNAMED
    joined = BOTH.join(dict.fromkeys(map(_short, names)))
    return joined if joined.isprintable() and len(joined) <= MAX_LICENCE_CHARS else _UNNAMED


def _short(name: str) -> str:
    for address in _ADDRESSES:
        name = name.removeprefix(address)
    return name.strip().strip("/")


def _known(name: str) -> str:
    return "" if name in _SAYS_NOTHING else name
