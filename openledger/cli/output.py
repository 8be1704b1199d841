"""What the user sees: tables and pairs for people, JSON for programs, errors as one block on stderr.

Text from elsewhere is stripped of control characters: a row must not be able to repaint the terminal.
"""

import json
import sys
import unicodedata
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from openledger.core.errors import OpenLedgerError
from openledger.core.money import format_money

_KEPT = "\n\t"


def print_json(value: Any) -> None:
    """ASCII, so that no terminal and no locale can stumble over it."""
    print(json.dumps(value, indent=2))


def print_pairs(values: Mapping[str, Any], *, as_json: bool) -> None:
    if as_json:
        return print_json(dict(values))
    width = max((len(_label(name)) for name in values), default=0)
    for name, value in values.items():
        print(f"{_label(name):<{width}}  {_cell(name, value)}")
    return None


def print_rows(title: str, rows: Sequence[Mapping[str, Any]], *, as_json: bool = False, whole: Any = None) -> None:
    """A table of `rows`; with `as_json` what they were chosen from, `whole`."""
    if as_json:
        return print_json(whole)
    if not rows:
        print(f"{plain(title)}: none yet")
        return None
    return _print_table(title, rows)


def print_found(title: str, found: Sequence[Mapping[str, Any]], names: Sequence[str], *, as_json: bool) -> None:
    """A table of the named fields of what was found; with `as_json` all of it."""
    print_rows(title, [{name: one.get(name) for name in names} for one in found], as_json=as_json, whole=found)


def print_text(text: str) -> None:
    print(plain(text), end="", flush=True)


def print_note(text: str) -> None:
    """Beside the answer, not in it: stderr, so that a pipe gets the answer alone."""
    print(plain(text), file=sys.stderr)


def print_progress(text: str) -> None:
    """One line on stderr that the next one replaces; nothing where nobody watches. An empty text clears it."""
    if sys.stderr.isatty():
        print(f"\r{plain(text):<60}\r", end="", file=sys.stderr, flush=True)


def print_error(error: OpenLedgerError, *, as_json: bool) -> None:
    told = error.to_dict()
    if as_json:
        print(json.dumps({"error": told}, indent=2), file=sys.stderr)
        return
    lines = [f"error: {told['message']}"]
    lines += [f"  {name:<5} {told[name]}" for name in ("code", "param", "fix") if told[name]]
    print(plain("\n".join(lines)), file=sys.stderr)


def format_time(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def with_times(values: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """`values` with these moments (`..._ms`) as people read them; null stays null."""
    return {
        name.removesuffix("_ms") if name in names else name: format_time(value)
        if name in names and isinstance(value, int)
        else value
        for name, value in values.items()
    }


def plain(text: str) -> str:
    """`text` without control, surrogate and direction-changing characters, but for line ends and tabs."""
    return "".join(char for char in text if char in _KEPT or unicodedata.category(char) not in ("Cc", "Cs", "Cf"))


def _print_table(title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="dim")
    for name in rows[0]:
        numeric = all(isinstance(row[name], int | float | None) for row in rows) or name.endswith("/token")
        table.add_column(_label(name), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(_cell(name, value)) for name, value in row.items()))
    # a pipe has no width: rows stay whole for whatever reads them
    console = Console(width=None if sys.stdout.isatty() else 200)
    console.print(Text(plain(title), style="italic"))
    console.print(table)


def _label(name: str) -> str:
    return name.removesuffix("_nano").removesuffix("_ppb").replace("_", " ")


def _cell(name: str, value: Any) -> str:
    if value is None:
        return "-"
    if name.endswith("_nano") and isinstance(value, int):
        return f"{format_money(value)}"
    if name.endswith("_ppb") and isinstance(value, int):
        return f"{value / 1e7:.2f} %"
    if isinstance(value, float):
        return f"{value:.4g}"
    return plain(str(value)).replace("\n", " ")
