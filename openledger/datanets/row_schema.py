"""A Datanet's row schema: of what kind its rows are, and which typed columns they have beside prompt and completion.

Owns the declaration, its check of a row, and the one Arrow schema in which a version's rows are handed on. Knows no
file and no shard: a row carries what is beyond prompt and completion as canonical JSON in `extra`, which is signed with
it, so that shards store rows of every Datanet in one shape (`rows.SCHEMA`).

    instruction    a prompt and a completion
    chat           a conversation whose last turn is the assistant's: that is the completion, and the prompt is what was
                   said before. More than one question stands turn by turn in `extra` as `messages`
    text           a text and the line it is asked by, its title

A row of any schema may name its own licence, in `extra` as `licence`: the gate holds it against the Datanet's. A schema
may declare that column itself, also as `license`.

A column is a string, an int64, a bool or a float64. A float is written as a decimal string in `extra`: canonical JSON
has no floats, as two machines may print one in two ways.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

import pyarrow as pa

from openledger.core.errors import InvalidInput
from openledger.core.hashing import canonical_json
from openledger.core.values import Row, RowDraft
from openledger.datanets.licences import BOTH
from openledger.datanets.rows import SCHEMA

Kind = Literal["instruction", "chat", "text"]
ColumnType = Literal["string", "int64", "float64", "bool"]
Message = dict[str, str]
MESSAGES = "messages"
LICENCE = "licence"
_LICENCES = (LICENCE, "license")
MAX_LICENCE_CHARS = 128
ROLES = ("system", "user", "assistant")
MAX_COLUMNS = 32
MAX_TITLE_CHARS = 500
_EXTRA = "extra"
_OWN = (*(name for name in SCHEMA.names if name != _EXTRA), MESSAGES, _EXTRA)
_COLUMN_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
_ARROW: Mapping[str, pa.DataType] = {
    "string": pa.string(),
    "int64": pa.int64(),
    "float64": pa.float64(),
    "bool": pa.bool_(),
}
_TURNS = pa.list_(pa.struct([pa.field("role", pa.string()), pa.field("content", pa.string())]))
_INT64 = 2**63


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a row isn't one of the schema's: a reason of the gate, and what to tell its contributor."""

    code: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    name: str
    type: ColumnType
    required: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _COLUMN_NAME.fullmatch(self.name) or self.name in _OWN:
            raise _invalid(f"{self.name!r} can't name a column", f"a-z, 0-9 and _; none of {', '.join(_OWN)}")
        if self.type not in get_args(ColumnType):
            raise _invalid(f"{self.type!r} is no type of a column", f"one of: {', '.join(get_args(ColumnType))}")
        if type(self.required) is not bool:
            raise _invalid(f"whether {self.name!r} is required is true or false", "true or false")


@dataclass(frozen=True, slots=True, kw_only=True)
class RowSchema:
    """Declared when the Datanet is created, and the same in all its versions."""

    kind: Kind = "instruction"
    columns: tuple[Column, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise _invalid(f"{self.kind!r} is no kind of row", f"one of: {', '.join(get_args(Kind))}")
        names = [column.name for column in self.columns]
        if len(names) > MAX_COLUMNS or len(set(names)) < len(names):
            raise _invalid("the columns are too many, or one stands twice", f"at most {MAX_COLUMNS}, each once")

    @classmethod
    def from_json(cls, value: Any) -> "RowSchema":
        """Raises InvalidInput (`invalid_schema`)."""
        try:
            columns = tuple(Column(**column) for column in value.get("columns", ()))
            return cls(**{**value, "columns": columns})
        except (TypeError, AttributeError) as error:
            raise _invalid(
                "a row schema is an object with kind and columns, each with name, type and perhaps required",
                'such as {"kind": "chat", "columns": [{"name": "year", "type": "int64"}]}',
            ) from error

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, "columns": [asdict(column) for column in self.columns]}

    def arrow(self) -> pa.Schema:
        """The schema in which a version's rows are handed on: the same columns for all of them, in this order."""
        fields = [field for field in SCHEMA if field.name != _EXTRA]
        if self.kind == "chat":
            fields.append(pa.field(MESSAGES, _TURNS, nullable=False))
        fields += [pa.field(one.name, _ARROW[one.type], nullable=not one.required) for one in self.columns]
        if not self._declares_licence():
            fields.append(pa.field(LICENCE, pa.string()))
        return pa.schema(fields, metadata={"openledger.kind": self.kind})

    def table(self, rows: Sequence[Row]) -> pa.Table:
        """`rows` in `arrow`."""
        schema = self.arrow()
        return pa.Table.from_pylist([self._record(row) for row in rows], schema=schema)

    def problems(self, draft: RowDraft) -> list[Problem]:
        """Why the row isn't one of this schema; empty if it is."""
        try:
            extra = read_extra(draft.extra)
        except ValueError:
            return [Problem("wrong_schema", "extra is no canonical JSON object")]
        found = self._kind_problems(draft, extra.pop(MESSAGES, None))
        if not self._declares_licence():
            found += _licence_problems(extra.pop(LICENCE, None))
        known = {column.name: column for column in self.columns}
        found += [Problem("unknown_column", f"the schema has no column {name}") for name in extra if name not in known]
        for name, column in known.items():
            if extra.get(name) is None:
                found += [Problem("missing_column", f"column {name} is required")] if column.required else []
            elif not _is_of(column.type, extra[name]):
                found.append(Problem("wrong_type", f"column {name}: {_short(extra[name])} is no {column.type}"))
        return found

    def extra_of(self, record: Mapping[str, Any], messages: Sequence[Message] | None, *, as_text: bool = False) -> str:
        """What the row of `record` carries beside prompt and completion. `as_text` reads values as CSV has them.
        Values of another type than declared are kept as they are, for `problems` to tell."""
        kept: dict[str, Any] = {}
        if self.kind == "chat" and messages is not None and not _is_one_question(messages):
            kept[MESSAGES] = [{"role": one["role"], "content": one["content"]} for one in messages[:-1]]
        own = self._licence_column()
        for column in self.columns:
            value = record.get(column.name)
            if column.name == own and (value is None or isinstance(value, str | list | tuple)):
                value = _named_licence(record) or value
            if value is not None and not (as_text and value == "" and column.type != "string"):
                kept[column.name] = _written(column.type, value, as_text)
        if own == LICENCE and own not in kept and (licence := _named_licence(record)):
            kept[LICENCE] = licence
        return canonical_json(kept).decode() if kept else ""

    def licensed(self, draft: RowDraft, licence: str) -> RowDraft:
        """`draft` under `licence`, unless it names one itself."""
        column = self._licence_column()
        if not licence or not column or own_licence(draft):
            return draft
        return replace(draft, extra=canonical_json({**read_extra(draft.extra), column: licence}).decode())

    def _licence_column(self) -> str:
        """Where a row's own licence stands; empty where the schema's columns of that name can't have one, or where they
        are two, each with its own."""
        declared = [column for column in self.columns if column.name in _LICENCES]
        if not declared:
            return LICENCE
        return declared[0].name if len(declared) == 1 and declared[0].type == "string" else ""

    def _declares_licence(self) -> bool:
        return any(column.name in _LICENCES for column in self.columns)

    def _kind_problems(self, draft: RowDraft, messages: Any) -> list[Problem]:
        if self.kind == "text" and ("\n" in draft.prompt or len(draft.prompt) > MAX_TITLE_CHARS):
            return [Problem("wrong_schema", f"a text is asked by one line of at most {MAX_TITLE_CHARS} characters")]
        if messages is None:
            return []
        if self.kind != "chat":
            return [Problem("unknown_column", f"a Datanet of kind {self.kind} has no messages")]
        if not are_messages(messages) or messages[-1]["role"] == "assistant" or _is_one_question([*messages, {}]):
            return [Problem("wrong_schema", f"messages are turns with role ({', '.join(ROLES)}) and content")]
        if said(messages) != draft.prompt:
            return [Problem("wrong_schema", "the prompt is not what the messages say")]
        return []

    def _record(self, row: Row) -> dict[str, Any]:
        extra = read_extra(row.extra)
        record = {field.name: getattr(row, field.name) for field in SCHEMA if field.name != _EXTRA}
        if self.kind == "chat":
            record[MESSAGES] = [*turns_before(row), {"role": "assistant", "content": row.completion}]
        for column in self.columns:
            value = extra.get(column.name)
            record[column.name] = float(value) if column.type == "float64" and value is not None else value
        if not self._declares_licence():
            record[LICENCE] = extra.get(LICENCE)
        return record


PLAIN = RowSchema()


def read_extra(extra: str) -> dict[str, Any]:
    """Raises ValueError where it isn't the canonical JSON of an object."""
    if not extra:
        return {}
    try:
        value = json.loads(extra)
        if isinstance(value, dict) and value and canonical_json(value).decode() == extra:
            return value
    except RecursionError as error:
        raise ValueError("too deep") from error
    raise ValueError("not canonical")


def own_licence(draft: RowDraft | Row) -> str:
    """The licence that the row itself names, or several that all hold; empty where it names none. `draft` is one of its
    schema."""
    extra = read_extra(draft.extra) if "licen" in draft.extra else {}
    return _joined(value for name in _LICENCES if isinstance(value := extra.get(name), str))


def turns_before(row: Row | RowDraft) -> list[Message]:
    """What was said before the row's completion, turn by turn; a row without turns is one question."""
    turns: list[Message] | None = read_extra(row.extra).get(MESSAGES)
    return turns or [{"role": "user", "content": row.prompt}]


def said(messages: Sequence[Message]) -> str:
    """Turns as one text: a single question stands for itself."""
    if len(messages) == 1:
        return messages[0]["content"]
    return "\n".join(f"{one['role']}: {one['content']}" for one in messages)


def are_messages(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_message, value))


def _is_message(value: Any) -> bool:
    """Of a role that chat templates know."""
    return (
        isinstance(value, dict)
        and set(value) == {"role", "content"}
        and value["role"] in ROLES
        and isinstance(value["content"], str)
    )


def _is_one_question(messages: Sequence[Message]) -> bool:
    return len(messages) == 2 and messages[0]["role"] == "user"


def _licence_problems(value: Any) -> list[Problem]:
    if value is None or (isinstance(value, str) and value.isprintable() and 1 <= len(value) <= MAX_LICENCE_CHARS):
        return []
    return [Problem("wrong_type", f"a licence is named in at most {MAX_LICENCE_CHARS} printable characters")]


def _named_licence(record: Mapping[str, Any]) -> str:
    """What a record names as its licence, or several that all hold; empty for nothing."""
    values = [record[name] for name in _LICENCES if record.get(name)]
    return _joined(str(one) for value in values for one in (value if isinstance(value, list | tuple) else [value]))


def _joined(names: Iterable[str]) -> str:
    return BOTH.join(filter(None, dict.fromkeys(name.strip() for name in names)))


def _is_of(type_: ColumnType, value: Any) -> bool:
    if type_ == "float64":
        return isinstance(value, str) and _is_float(value)
    if type_ == "int64":
        return type(value) is int and -_INT64 <= value < _INT64
    return type(value) is (bool if type_ == "bool" else str)


def _is_float(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _written(type_: ColumnType, value: Any, as_text: bool) -> Any:
    """As `extra` has it."""
    if type_ == "float64" and isinstance(value, int | float) and not isinstance(value, bool):
        return repr(float(value))
    if as_text and type_ == "int64" and re.fullmatch(r"-?\d{1,19}", value):
        return int(value)
    if as_text and type_ == "bool" and value.lower() in ("true", "false"):
        return value.lower() == "true"
    return repr(value) if isinstance(value, float) else value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _invalid(message: str, fix: str) -> InvalidInput:
    return InvalidInput(message, code="invalid_schema", param="row_schema", fix=fix)
