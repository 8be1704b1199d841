"""Rows and queries as JSON lines: what `openledger attribution` reads.

    {"row_id", "contributor", "prompt", "completion"}    or    {"row_id", "contributor", "text"}

Queries need no contributor. Text is encoded with the tokenizer's defaults: no template, no added end token. The loss is
the mean over predicted tokens: the completion's, or with `text` all but the first.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from openledger.adapters.base_model import BaseModel, load_tokenizer
from openledger.core.errors import InvalidInput, NotFound
from openledger.training.examples import Example


def read_examples(path: Path, base: BaseModel, *, queries: bool = False) -> list[Example]:
    """The file's records, encoded. Raises NotFound, and InvalidInput naming the line of a record that can't be used."""
    tokenizer = load_tokenizer(base)
    examples = []
    for number, record in enumerate(read_records(path), start=1):
        examples.append(encode_record(tokenizer, record, f"{path.name}:{number}", base.max_positions, queries=queries))
    _check_ids(examples, path)
    return examples


def encode_record(tokenizer: Any, record: Any, place: str, max_positions: int, *, queries: bool = False) -> Example:
    """One record as token ids. `place` is what an error calls it."""
    if not isinstance(record, dict):
        raise _bad(place, "it is no JSON object")
    row_id, contributor = _text(record, "row_id", place), "" if queries else _text(record, "contributor", place)
    if "text" in record:
        ids = list(tokenizer(_text(record, "text", place))["input_ids"])
        num_prompt = 1
    else:
        prompt = list(tokenizer(_text(record, "prompt", place))["input_ids"])
        completion = tokenizer(_text(record, "completion", place), add_special_tokens=False)["input_ids"]
        ids, num_prompt = prompt + list(completion), len(prompt)
    if not 0 < num_prompt < len(ids):
        raise _bad(place, "it has no token to predict: the completion, or all of the text but one token, is empty")
    if len(ids) > max_positions:
        raise _bad(place, f"it has {len(ids)} tokens, the base model {max_positions} positions")
    return Example(row_id=row_id, contributor_id=contributor, ids=tuple(ids), num_prompt=num_prompt)


def record_of(tokenizer: Any, example: Example) -> dict[str, str]:
    """The record that `encode_record` makes `example` of, chat template and end token as text. Raises InvalidInput
    (`unwritable_row`) where the tokenizer doesn't lead back from that text."""
    prompt, completion = (
        tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        for ids in (example.ids[: example.num_prompt], example.ids[example.num_prompt :])
    )
    record = {
        "row_id": example.row_id,
        "contributor": example.contributor_id,
        "prompt": prompt,
        "completion": completion,
    }
    if encode_record(tokenizer, record, example.row_id, len(example.ids)) != example:
        raise InvalidInput(
            f"the tokens of {example.row_id} are not those of any text", code="unwritable_row", param=example.row_id
        )
    return record


def contributors_of(examples: Sequence[Example]) -> list[str]:
    """The contributors in sorted order: the rows of a bank's scores."""
    return sorted({example.contributor_id for example in examples})


def read_records(path: Path) -> list[Any]:
    """The file's lines as JSON. Raises NotFound for an unreadable file, InvalidInput for a line that is no JSON."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise NotFound(f"{path} can't be read: {error}", code="unreadable_file", param=str(path)) from error
    records = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            records.append(json.loads(line))
        except ValueError as error:
            raise _bad(f"{path.name}:{number}", f"it is no JSON ({error})") from error
    if not records:
        raise InvalidInput(f"{path} holds no records", code="empty_file", param=str(path))
    return records


def _check_ids(examples: Sequence[Example], path: Path) -> None:
    seen: set[str] = set()
    for example in examples:
        if example.row_id in seen:
            raise InvalidInput(
                f"{path.name}: the row_id {example.row_id!r} is there twice", code="row_twice", param="row_id"
            )
        seen.add(example.row_id)


def _text(record: dict[str, Any], name: str, place: str) -> str:
    value = record.get(name)
    if not isinstance(value, str) or not value:
        raise _bad(place, f"{name!r} is missing, empty or no text")
    return value


def _bad(place: str, reason: str) -> InvalidInput:
    return InvalidInput(
        f"{place} can't be used: {reason}",
        code="invalid_record",
        param=place,
        fix='write {"row_id", "contributor", "prompt", "completion"} or {"row_id", "contributor", "text"} on each line',
    )
