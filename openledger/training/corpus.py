"""The pretraining corpus: documentation strings of packages that no Datanet and no test question comes from."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from openledger.datanets.docstrings import DocstringRow, file_rows, source_files
from openledger.datanets.shingles import shingles

_MAX_ROWS_PER_PACKAGE = 6000


def folder_rows(folder: Path) -> Iterator[DocstringRow]:
    """Rows of every package lying in `folder` (as `pip install --target` leaves them), named by their import names."""
    for package in sorted(path for path in folder.iterdir() if (path / "__init__.py").is_file()):
        seen: set[str] = set()
        for path in source_files(package):
            inner = path.relative_to(package).with_suffix("").parts
            module = package.name if inner[0] == "__init__" else f"{package.name}.{inner[0].lstrip('_')}"
            for row in file_rows(path, module):
                if row.source not in seen and len(seen) < _MAX_ROWS_PER_PACKAGE:
                    seen.add(row.source)
                    yield row


def disjoint_rows(
    candidates: Iterable[DocstringRow], protected: Iterable[DocstringRow], excluded_packages: set[str]
) -> list[DocstringRow]:
    """The candidates that share no package, no near-duplicate and no repeated answer with `protected`.

    Dropped are: rows of an excluded package; rows half of whose shingles stand in protected answers; rows that hold
    half of one protected answer's shingles; answers already taken three times.
    """
    owners: dict[int, list[int]] = {}
    sizes: list[int] = []
    for index, row in enumerate(protected):
        own = shingles(row.completion)
        sizes.append(len(own))
        for value in own:
            owners.setdefault(value, []).append(index)
    times_taken: Counter[str] = Counter()
    kept = []
    for row in candidates:
        if row.source.split(".")[0] in excluded_packages or times_taken[row.completion] >= 3:
            continue
        own = shingles(row.completion)
        shared = [value for value in own if value in owners]
        overlap = Counter(index for value in shared for index in owners[value])
        if 2 * len(shared) >= len(own) or any(2 * count >= sizes[index] for index, count in overlap.items()):
            continue
        times_taken[row.completion] += 1
        kept.append(row)
    return kept


def write_rows(path: Path, rows: Iterable[DocstringRow]) -> None:
    with path.open("w", encoding="utf-8") as stream:
        for row in rows:
            line = {"source": row.source, "prompt": row.prompt, "completion": row.completion}
            stream.write(json.dumps(line, ensure_ascii=False) + "\n")
