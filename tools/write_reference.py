"""Write what the reference can take from the code: every command of the command line, every error code.

    python tools/write_reference.py            rewrite docs/reference/cli.md and docs/reference/errors.md
    python tools/write_reference.py --check    say which of them is out of date, and fail

Both keep what a person wrote; only what stands between the markers `<!-- generated -->` and `<!-- end -->` is replaced.
Commands come from the argument parser, error codes from the places that raise them.
"""

import argparse
import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from openledger.cli.parser import build_parser
from openledger.core import errors

ROOT = Path(__file__).parent.parent
REFERENCE = ROOT / "docs" / "reference"
BEGIN, END = "<!-- generated -->", "<!-- end -->"
_CLASSES = {
    name
    for name, value in vars(errors).items()
    if isinstance(value, type) and issubclass(value, errors.OpenLedgerError)
}


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class RaisedError:
    """One place that raises an error with a code of its own. Braces stand for what is filled in."""

    error: str
    code: str
    message: str
    fix: str


def main() -> int:
    arguments = parse_arguments()
    sections = {"cli.md": command_sections(), "errors.md": code_table(raised_errors(ROOT / "openledger"))}
    stale = [name for name, text in sections.items() if with_section((REFERENCE / name).read_text(), text) is not None]
    if arguments.check:
        print("\n".join(f"docs/reference/{name} is out of date: make docs" for name in stale))
        return 1 if stale else 0
    for name in stale:
        path = REFERENCE / name
        path.write_text(with_section(path.read_text(), sections[name]) or "")
        print(f"wrote docs/reference/{name}")
    return 0


def with_section(document: str, section: str) -> str | None:
    """`document` with its generated part replaced by `section`, or None where that changes nothing."""
    head, _, rest = document.partition(BEGIN)
    _, _, tail = rest.partition(END)
    updated = f"{head}{BEGIN}\n\n{section}\n\n{END}{tail}"
    return None if updated == document else updated


def command_sections() -> str:
    return "\n\n".join(command_section(parser) for parser in leaves(build_parser()))


def leaves(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """The parsers of commands that do something: `openledger ledger verify`, not `openledger ledger`."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                yield from leaves(child)
            return
    yield parser


def command_section(parser: argparse.ArgumentParser) -> str:
    arguments = [action for action in parser._actions if action.dest != "help"]
    words = [value_of(action) for action in arguments if not action.option_strings]
    lines = [f"## `{' '.join([parser.prog, *words])}`", "", sentence(parser.description or "")]
    options = [option_line(action) for action in arguments if action.option_strings]
    return "\n".join([*lines, "", *options])


def option_line(action: argparse.Action) -> str:
    value = "" if action.nargs == 0 else f" {value_of(action)}"
    names = ", ".join(f"`{name}{value}`" for name in action.option_strings)
    notes = [text for text in (action.help, "required" if action.required else None) if text]
    return f"- {names}" + (f": {'; '.join(notes)}" if notes else "")


def value_of(action: argparse.Action) -> str:
    """What is written in an argument's place: `ACCOUNT OPEN`, `for|against|abstain`, `FILE`."""
    if isinstance(action.metavar, tuple):
        return " ".join(action.metavar)
    if action.metavar is None and action.choices:
        return "|".join(map(str, action.choices))
    return str(action.metavar or action.dest.upper())


def sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def raised_errors(package: Path) -> list[RaisedError]:
    """Every error of the tree that `package` raises with a literal code, once for each code and class."""
    found = (
        error
        for path in sorted(package.rglob("*.py"))
        for call in ast.walk(ast.parse(path.read_text()))
        if isinstance(call, ast.Call) and (error := raised_error(call)) is not None
    )
    first: dict[tuple[str, str], RaisedError] = {}
    for error in sorted(found):
        first.setdefault((error.error, error.code), error)
    return list(first.values())


def raised_error(call: ast.Call) -> RaisedError | None:
    name = getattr(call.func, "id", getattr(call.func, "attr", ""))
    keywords = {keyword.arg: literal(keyword.value) for keyword in call.keywords}
    if name not in _CLASSES or not keywords.get("code"):
        return None
    message = literal(call.args[0]) if call.args else ""
    return RaisedError(error=name, code=keywords["code"], message=message, fix=keywords.get("fix", ""))


def literal(node: ast.expr) -> str:
    """The text of a string or f-string; what is filled in stands in braces by its last name. Empty for the rest."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(filled_in(part) for part in node.values)
    return ""


def filled_in(part: ast.expr) -> str:
    if isinstance(part, ast.Constant):
        return str(part.value)
    names = re.findall(r"[A-Za-z_]\w*", ast.unparse(part.value)) if isinstance(part, ast.FormattedValue) else []
    return "{" + (names[-1] if names else "...") + "}"


def code_table(raised: list[RaisedError]) -> str:
    lines = ["| code | class | what it says | what to do |", "| --- | --- | --- | --- |"]
    for error in sorted(raised, key=lambda error: (error.code, error.error)):
        lines.append(f"| `{error.code}` | {error.error} | {cell(error.message)} | {cell(error.fix)} |")
    return "\n".join(lines)


def cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Write the generated part of docs/reference")
    parser.add_argument("--check", action="store_true", help="write nothing; fail where something is out of date")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
