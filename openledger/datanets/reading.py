"""Files read as rows to contribute: which reader a file has, and what can't be read, each with its place and why.

    .jsonl .ndjson        a row a line                         (records)
    .csv .tsv             a row a record, named by a header    (records)
    .parquet              a row a record                       (records)
    .arrow                as the `datasets` library saves it   (records)
    .md .markdown         a row a paragraph, asked by heading  (documents)
    .txt .pdf .docx       likewise                             (documents)

A folder is read file by file in the order of their names, so a Hugging Face dataset directory, a repository of the Hub
and an export of ours are folders like any other, less the files that say what they are: those that stand in the folder
of which they say it. Rows have the licence that they name, or else the nearest one that a card of their folder or of
one above it names. A licence over documents alone makes no data set of them: their README is one of them. What one row
or file lacks stops no other: it is told as `Refused`, and reading goes on. A reader holds one row, one line or one
document in memory, never a whole stream.
"""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from openledger.core.errors import InvalidInput, NotFound, OpenLedgerError, TooLarge
from openledger.core.values import RowDraft
from openledger.datanets import documents, records
from openledger.datanets.cards import DATASET_FILES, Card, read_card
from openledger.datanets.contribution import draft_bytes
from openledger.datanets.records import Refused
from openledger.datanets.row_schema import PLAIN, RowSchema

_RECORDS = {
    ".jsonl": records.read_jsonl,
    ".ndjson": records.read_jsonl,
    ".csv": records.read_csv,
    ".tsv": records.read_csv,
    ".parquet": records.read_parquet,
    ".arrow": records.read_arrow,
}
_DOCUMENTS = {
    ".md": documents.read_markdown,
    ".markdown": documents.read_markdown,
    ".txt": documents.read_text,
    ".pdf": documents.read_pdf,
    ".docx": documents.read_docx,
}
FORMATS = tuple(sorted(_RECORDS | _DOCUMENTS))


def read_drafts(path: Path, schema: RowSchema = PLAIN) -> Iterator[RowDraft | Refused]:
    """Rows of a file, or of every file below a folder, for a Datanet of `schema`; others are refused.

    Raises NotFound where there is nothing at `path`."""
    if path.is_dir():
        yield from _read_folder(path, schema)
    elif path.is_file():
        yield from _read_file(path, path.name, schema)
    else:
        raise NotFound(f"there is no file or folder {path}", code="unknown_file", param="path")


def only_rows(items: Iterable[RowDraft | Refused]) -> Iterator[RowDraft]:
    """For callers that take all of a file or none. Raises InvalidInput with the code and place of what is refused."""
    for item in items:
        if isinstance(item, Refused):
            place = f"{item.file}, {item.place}" if item.place else item.file
            raise InvalidInput(f"{place}: {item.reason}", code=item.code, param=place, fix="mend it, and send it again")
        yield item


def _read_folder(folder: Path, schema: RowSchema) -> Iterator[RowDraft | Refused]:
    root, licences = folder.resolve(), dict[Path, str]()
    for parent, paths in _folders(folder):
        card, above = read_card(parent), licences.get(parent.parent, "")
        licences[parent] = above if card is None or card.licence is None else card.licence
        skipped = DATASET_FILES if card is not None and _is_dataset(parent, card) else ()
        for path in paths:
            name = path.relative_to(folder).as_posix()
            if not path.resolve().is_relative_to(root):
                yield Refused(name, "", "leaves_folder", "a link that leads out of the folder")
            elif path.name not in skipped:
                yield from _read_file(path, name, schema, licences[parent])


def _is_dataset(folder: Path, card: Card) -> bool:
    return card.is_dataset or any(path.suffix.lower() in _RECORDS for _, paths in _folders(folder) for path in paths)


def _folders(folder: Path) -> Iterator[tuple[Path, list[Path]]]:
    """Each with its files, in the order of their names, and before those below it; hidden files and folders are left
    out, and links to folders are not followed."""
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield Path(parent), [Path(parent) / name for name in sorted(names) if not name.startswith(".")]


def _read_file(path: Path, name: str, schema: RowSchema, licence: str = "") -> Iterator[RowDraft | Refused]:
    suffix = path.suffix.lower()
    if suffix not in FORMATS:
        yield Refused(name, "", "unknown_format", f"not one of {' '.join(FORMATS)}")
        return
    try:
        records_of = _RECORDS.get(suffix)
        if records_of is not None:
            found = (_licensed(item, licence, schema) for item in records_of(path, name, schema))
            yield from (_checked(item, name) for item in found)
        else:
            found = (_licensed(item, licence, schema) for item in _DOCUMENTS[suffix](path, name))
            yield from (_fitting(_checked(item, name), name, schema) for item in found)
    except OpenLedgerError as error:
        yield Refused(name, "", error.code, error.message)
    except OSError as error:
        yield Refused(name, "", "unreadable_file", f"can't be read ({error.strerror})")


def _licensed(item: RowDraft | Refused, licence: str, schema: RowSchema) -> RowDraft | Refused:
    return item if isinstance(item, Refused) else schema.licensed(item, licence)


def _checked(item: RowDraft | Refused, name: str) -> RowDraft | Refused:
    """A row that can't be signed (too large, half a character) is refused here: it would stop its contribution."""
    if isinstance(item, Refused):
        return item
    try:
        draft_bytes(item, 0)
    except (InvalidInput, TooLarge) as error:
        return Refused(name, _place(item, name), error.code, error.message.removeprefix("row 0 "))
    return item


def _fitting(item: RowDraft | Refused, name: str, schema: RowSchema) -> RowDraft | Refused:
    """Records are held against the schema where they are read."""
    if isinstance(item, RowDraft) and (problems := schema.problems(item)):
        return Refused(name, _place(item, name), problems[0].code, problems[0].message)
    return item


def _place(item: RowDraft, name: str) -> str:
    place = (
        item.source.rpartition("#")[2].replace("=", " ").replace("&", ", ")
        if item.source.startswith(name)
        else item.source
    )
    return place.encode("utf-8", "replace").decode()
