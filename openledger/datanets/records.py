"""Files of records (JSON lines, CSV, Parquet, Arrow) as rows.

A record says its row in one of three ways, whatever else it has:

    instruction and response     `prompt`, `instruction` or `question`; `completion`, `response`, `answer` or `output`;
                                 what stands in `input` or `context` goes after the prompt
    chat                         `messages`: the last one is the completion, the ones before it the prompt
    plain text                   `text`: asked by `title`, or by the file's name

`source` is kept; where there is none it is the file's name and the record's place. Of what else a record has, the
columns of the Datanet's row schema are kept, in a Datanet of chats who said what, and `licence` or `license`.
"""

import csv
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from openledger.core.errors import Corrupt, InvalidInput
from openledger.core.values import RowDraft
from openledger.datanets.contribution import MAX_ROW_BYTES
from openledger.datanets.row_schema import PLAIN, RowSchema, said

MAX_LINE_BYTES = 8 * MAX_ROW_BYTES  # JSON may escape each character in six
_PROMPTS = ("prompt", "instruction", "question")
_COMPLETIONS = ("completion", "response", "answer", "output")
_CONTEXTS = ("input", "context")
_BATCH_ROWS = 1_000
_MAX_GROUP_BYTES = 512 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Refused:
    """A row or a file that can't be contributed. `place` is empty for a whole file."""

    file: str
    place: str
    code: str
    reason: str


def read_jsonl(path: Path, name: str, schema: RowSchema = PLAIN) -> Iterator[RowDraft | Refused]:
    with path.open("rb") as stream:
        for number, line in bounded_lines(stream):
            if line is None:
                yield _too_long(name, number)
            elif line.strip():
                yield _json_row(line, name, number, schema)


def read_csv(path: Path, name: str, schema: RowSchema = PLAIN) -> Iterator[RowDraft | Refused]:
    """The first record names the columns. A record with more or fewer fields is refused by the line it ends on."""
    refused: list[Refused] = []
    with path.open("rb") as stream:
        reader = csv.reader(_text_lines(stream, name, refused), delimiter="\t" if path.suffix == ".tsv" else ",")
        csv.field_size_limit(MAX_LINE_BYTES)
        header: list[str] | None = None
        while True:
            try:
                fields = next(reader, None)
            except csv.Error as error:
                yield Refused(name, f"line {reader.line_num}", "malformed_row", str(error))
                continue
            yield from refused
            refused.clear()
            if fields is None:
                return
            if header is None:
                header = fields
            elif fields:
                yield _csv_row(header, fields, name, reader.line_num, schema)


def read_parquet(path: Path, name: str, schema: RowSchema = PLAIN) -> Iterator[RowDraft | Refused]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
        for number in range(file.metadata.num_row_groups):
            if (size := file.metadata.row_group(number).total_byte_size) > _MAX_GROUP_BYTES:
                yield Refused(name, f"row group {number}", "file_too_large", f"{size} bytes in one row group")
                return
        yield from _arrow_rows(file.iter_batches(_BATCH_ROWS), name, schema)
    except pa.ArrowException as error:
        raise _unreadable(name, error) from error


def read_arrow(path: Path, name: str, schema: RowSchema = PLAIN) -> Iterator[RowDraft | Refused]:
    """An Arrow stream or file, as `datasets.save_to_disk` leaves them."""
    import pyarrow as pa

    try:
        with pa.memory_map(str(path)) as source:
            yield from _arrow_rows(_arrow_batches(source), name, schema)
    except pa.ArrowException as error:
        raise _unreadable(name, error) from error


def row_of(
    record: Mapping[str, Any], name: str, place: str, schema: RowSchema = PLAIN, *, as_text: bool = False
) -> RowDraft | Refused:
    """The row that a record says, from the file `name`; `as_text` where its values are text, as in CSV."""
    prompt = _first(record, _PROMPTS)
    completion = _first(record, _COMPLETIONS)
    messages, text = record.get("messages"), record.get("text")
    if prompt is None and completion is None and messages is not None:
        prompt, completion = _said(messages)
        if schema.kind == "chat" and completion is not None and messages[-1]["role"] != "assistant":
            return Refused(name, place, "wrong_schema", "the last turn of a chat is the assistant's")
    elif prompt is None and completion is None and text is not None:
        prompt, completion = record.get("title") or asked_by(name), text
    if prompt is None or completion is None:
        return Refused(name, place, "malformed_row", _lacks(record, prompt, completion))
    parts = [prompt, *(value for value in (record.get(key) for key in _CONTEXTS) if value)]
    source = record.get("source") or f"{name}#{place.replace(' ', '=')}"
    if not all(isinstance(value, str) for value in (*parts, completion, source)):
        return Refused(name, place, "malformed_row", "prompt, completion and source are text")
    turns = messages if _is_chat(messages) and _said(messages) == (prompt, completion) else None
    try:
        extra = schema.extra_of(record, turns, as_text=as_text)
    except InvalidInput as error:
        return Refused(name, place, "wrong_schema", error.message)
    draft = RowDraft(prompt="\n".join(parts), completion=completion, source=source, extra=extra)
    problems = schema.problems(draft)
    return Refused(name, place, problems[0].code, problems[0].message) if problems else draft


def asked_by(name: str) -> str:
    """What a document without a heading is asked by: its name in words."""
    return Path(name).stem.replace("_", " ").replace("-", " ").strip() or name


def _json_row(line: bytes, name: str, number: int, schema: RowSchema) -> RowDraft | Refused:
    place = f"line {number}"
    try:
        value = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return Refused(name, place, "invalid_text", f"not UTF-8 at byte {error.start}")
    except (ValueError, RecursionError) as error:
        return Refused(name, place, "malformed_row", f"not a line of JSON ({error})")
    if not isinstance(value, dict):
        return Refused(name, place, "malformed_row", f"a row is an object, not {type(value).__name__}")
    return row_of(value, name, place, schema)


def _csv_row(header: list[str], fields: list[str], name: str, number: int, schema: RowSchema) -> RowDraft | Refused:
    place = f"line {number}"
    if len(fields) != len(header):
        return Refused(name, place, "malformed_row", f"{len(fields)} fields; the header has {len(header)}")
    if any("\udc80" <= sign <= "\udcff" for field in fields for sign in field):
        return Refused(name, place, "invalid_text", "not UTF-8")
    return row_of(dict(zip(header, fields, strict=True)), name, place, schema, as_text=True)


def _arrow_rows(batches: Iterable[Any], name: str, schema: RowSchema) -> Iterator[RowDraft | Refused]:
    number = 0
    for batch in batches:
        for record in batch.to_pylist():
            number += 1
            yield row_of(record, name, f"row {number}", schema)


def _arrow_batches(source: Any) -> Iterator[Any]:
    import pyarrow as pa

    try:
        yield from pa.ipc.open_stream(source)
    except pa.ArrowInvalid:
        source.seek(0)
        file = pa.ipc.open_file(source)
        yield from (file.get_batch(number) for number in range(file.num_record_batches))


def bounded_lines(stream: BinaryIO) -> Iterator[tuple[int, bytes | None]]:
    """Lines by number; None for one that is too long, of which no more than a piece is held at a time."""
    number = 0
    while line := stream.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(line) <= MAX_LINE_BYTES:
            yield number, line
            continue
        while line and not line.endswith(b"\n"):
            line = stream.readline(MAX_LINE_BYTES)
        yield number, None


def _text_lines(stream: BinaryIO, name: str, refused: list[Refused]) -> Iterator[str]:
    for number, line in bounded_lines(stream):
        if line is None:
            refused.append(_too_long(name, number))
        else:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8", "surrogateescape")


def _said(messages: Any) -> tuple[str | None, str | None]:
    """(what was said before, the last word) of a chat; a single question stands for itself."""
    return (said(messages[:-1]), messages[-1]["content"]) if _is_chat(messages) else (None, None)


def _is_chat(messages: Any) -> bool:
    return isinstance(messages, list) and len(messages) >= 2 and all(map(_is_message, messages))


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(value.get(key), str) for key in ("role", "content"))


def _first(record: Mapping[str, Any], names: Iterable[str]) -> Any:
    return next((record[name] for name in names if record.get(name) is not None), None)


def _lacks(record: Mapping[str, Any], prompt: Any, completion: Any) -> str:
    if "messages" in record:
        return "messages are a list of at least two objects with role and content"
    lacking = [name for name, value in (("prompt", prompt), ("completion", completion)) if value is None]
    return f"without {' and '.join(lacking)}; it has {', '.join(sorted(map(str, record))[:8]) or 'nothing'}"


def _too_long(name: str, number: int) -> Refused:
    return Refused(name, f"line {number}", "row_too_large", f"longer than {MAX_LINE_BYTES} bytes")


def _unreadable(name: str, error: Exception) -> Corrupt:
    return Corrupt(f"{name} can't be read: {str(error).splitlines()[0]}", code="unreadable_file", param=name)
