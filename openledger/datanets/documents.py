"""Documents (Markdown, plain text, PDF, DOCX) as rows: one for each paragraph, asked by the heading above it.

The same file always gives the same rows. A paragraph longer than 1,000 characters is divided where sentences end; its
`source` is the file's name with the place in it: a line of Markdown or text, a page and the paragraph on it, or a
paragraph's number.
"""

import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openledger.core.errors import Corrupt, InvalidInput, TooLarge
from openledger.core.values import RowDraft
from openledger.datanets.records import MAX_LINE_BYTES, Refused, asked_by, bounded_lines

MAX_ROW_CHARS = 1_000
MAX_DOCUMENT_BYTES = 64 * 1024 * 1024
MIN_WORDS = 3
_MAX_BLOCK_CHARS = 100_000
_HEADING = re.compile(r"(#{1,6})\s+(.*?)\s*#*\s*$")
_FENCE = re.compile(r"\s*(```|~~~)")
_SENTENCE_END = re.compile(r"(?<=[.!?。！？])\s+")


@dataclass(frozen=True, slots=True)
class Paragraph:
    """`headings` are those it stands under, the outermost first; `place` is where it begins."""

    headings: tuple[str, ...]
    text: str
    place: str


def read_markdown(path: Path, name: str) -> Iterator[RowDraft | Refused]:
    return _rows(_markdown(_decoded(path)), name)


def read_text(path: Path, name: str) -> Iterator[RowDraft | Refused]:
    """A stream of any length; a line that isn't UTF-8 is refused and parts the paragraphs beside it."""
    with path.open("rb") as stream:
        block: list[str] = []
        size, start = 0, 1
        for number, line in bounded_lines(stream):
            text, refused = _text_line(line, name, number)
            if refused is not None:
                yield refused
            if not text or size > _MAX_BLOCK_CHARS:
                yield from _rows(_paragraph(block, (), start), name)
                block, size, start = [], 0, number if text else number + 1
            if text:
                block.append(text)
                size += len(text)
        yield from _rows(_paragraph(block, (), start), name)


def read_pdf(path: Path, name: str) -> Iterator[RowDraft | Refused]:
    """Raises InvalidInput (`encrypted_file`, `no_text` where the pages are images), Corrupt (`unreadable_file`)."""
    _check_size(path)
    found = list(_rows(_pdf(path), name))
    if not found:
        raise InvalidInput(
            f"{name} has no text: its pages are images", code="no_text", param=name, fix="run it through OCR first"
        )
    yield from found


def read_docx(path: Path, name: str) -> Iterator[RowDraft | Refused]:
    """Raises TooLarge (`file_too_large`) for one that unpacks to more than 64 MiB, Corrupt (`unreadable_file`)."""
    _check_size(path)
    yield from _rows(_docx(path), name)


def _text_line(line: bytes | None, name: str, number: int) -> tuple[str, Refused | None]:
    """(the line's text, empty for a blank one; why it can't be read)"""
    if line is None:
        return "", Refused(name, f"line {number}", "row_too_large", f"longer than {MAX_LINE_BYTES} bytes")
    try:
        return line.decode("utf-8-sig" if number == 1 else "utf-8").strip(), None
    except UnicodeDecodeError as error:
        return "", Refused(name, f"line {number}", "invalid_text", f"not UTF-8 at byte {error.start}")


def _rows(paragraphs: Iterator[Paragraph], name: str) -> Iterator[RowDraft | Refused]:
    for paragraph in paragraphs:
        prompt = " / ".join(paragraph.headings) or asked_by(name)
        pieces = _pieces(paragraph.text)
        for number, piece in enumerate(pieces, start=1):
            place = paragraph.place if len(pieces) == 1 else f"{paragraph.place}&part={number}"
            if len(piece.split()) >= MIN_WORDS:
                yield RowDraft(prompt=prompt, completion=piece, source=f"{name}#{place}")


def _pieces(text: str) -> list[str]:
    if len(text) <= MAX_ROW_CHARS:
        return [text]
    pieces: list[str] = []
    for sentence in _SENTENCE_END.split(text):
        if pieces and len(pieces[-1]) + 1 + len(sentence) <= MAX_ROW_CHARS:
            pieces[-1] = f"{pieces[-1]} {sentence}"
        else:
            pieces += [sentence[start : start + MAX_ROW_CHARS] for start in range(0, len(sentence), MAX_ROW_CHARS)]
    return pieces


def _markdown(text: str) -> Iterator[Paragraph]:
    """Paragraphs under ATX headings; a fenced block is one paragraph, whatever it holds."""
    headings: list[tuple[int, str]] = []
    block: list[str] = []
    start, fenced = 1, False
    for number, line in enumerate([*text.splitlines(), ""], start=1):
        heading = None if fenced else _HEADING.match(line)
        if heading or (not fenced and not line.strip()):
            yield from _paragraph(block, tuple(title for _, title in headings), start)
            block, start = [], number + 1
        else:
            block.append(line)
        if heading:
            level = len(heading[1])
            headings = [*((at, title) for at, title in headings if at < level), (level, heading[2])]
        if _FENCE.match(line):
            fenced = not fenced
    yield from _paragraph(block, tuple(title for _, title in headings), start)


def _paragraph(lines: list[str], headings: tuple[str, ...], first: int) -> Iterator[Paragraph]:
    """The lines as one paragraph, if they say anything."""
    text = "\n".join(line.rstrip() for line in lines).strip()
    if text:
        yield Paragraph(headings, text, f"line={first}")


def _pdf(path: Path) -> Iterator[Paragraph]:
    for number, text in enumerate(_pdf_pages(path), start=1):
        blocks = filter(None, (" ".join(block.split()) for block in re.split(r"\n\s*\n", text)))
        for place, block in enumerate(blocks, start=1):
            yield Paragraph((), block, f"page={number}&paragraph={place}")


def _pdf_pages(path: Path) -> list[str]:
    import pypdf

    try:
        reader = pypdf.PdfReader(path)
        if reader.is_encrypted:
            raise InvalidInput(
                f"{path.name} is encrypted", code="encrypted_file", param=path.name, fix="save it without a password"
            )
        return [page.extract_text() for page in reader.pages]
    except InvalidInput:
        raise
    except Exception as error:  # a damaged file raises whatever its parts are taken for
        raise _unreadable(path, error) from error


def _docx(path: Path) -> Iterator[Paragraph]:
    headings: list[tuple[int, str]] = []
    for number, (level, text) in enumerate(_docx_paragraphs(path), start=1):
        if level:
            headings = [*((at, title) for at, title in headings if at < level), (level, text)]
        elif text:
            yield Paragraph(tuple(title for _, title in headings), text, f"paragraph={number}")


def _docx_paragraphs(path: Path) -> list[tuple[int, str]]:
    """(level of the heading or 0, text) of every paragraph, those of tables after the others'."""
    try:
        _check_unpacked_size(path)
        return _opened_docx(path)
    except TooLarge:
        raise
    except Exception as error:  # a damaged file raises whatever its parts are taken for
        raise _unreadable(path, error) from error


def _opened_docx(path: Path) -> list[tuple[int, str]]:
    import docx

    document: Any = docx.Document(str(path))
    found = [(_level(one.style.name if one.style else ""), one.text.strip()) for one in document.paragraphs]
    cells = [[cell.text.strip() for cell in row.cells] for table in document.tables for row in table.rows]
    return [*found, *((0, ": ".join(dict.fromkeys(filter(None, row)))) for row in cells)]


def _level(style: str) -> int:
    match = re.fullmatch(r"(?:Title|Heading (\d))", style)
    return 0 if match is None else int(match[1] or 1)


def _check_unpacked_size(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        size = sum(entry.file_size for entry in archive.infolist())
    if size > MAX_DOCUMENT_BYTES:
        raise TooLarge(
            f"{path.name} unpacks to {size} bytes; at most {MAX_DOCUMENT_BYTES} are read",
            code="file_too_large",
            param=path.name,
        )


def _check_size(path: Path) -> None:
    if (size := path.stat().st_size) > MAX_DOCUMENT_BYTES:
        raise TooLarge(
            f"{path.name} has {size} bytes; a document of at most {MAX_DOCUMENT_BYTES} is read",
            code="file_too_large",
            param=path.name,
            fix="split it",
        )


def _decoded(path: Path) -> str:
    _check_size(path)
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidInput(
            f"{path.name} is not UTF-8 text: byte {error.start}",
            code="invalid_text",
            param=path.name,
            fix="save it as UTF-8",
        ) from error


def _unreadable(path: Path, error: Exception) -> Corrupt:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return Corrupt(f"{path.name} can't be read: {reason}", code="unreadable_file", param=path.name)
