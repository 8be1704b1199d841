"""Question and answer rows from the documentation strings of installed Python packages.

Reads source files with `ast` and imports nothing, so that a package's code never runs. A row asks what a public
function, class or method does; its answer is the summary that the package's authors wrote.
"""

import ast
import importlib.util
import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from openledger.core.errors import NotFound

_MAX_ANSWER_CHARS = 200
_MAX_ARGUMENTS = 4
_SKIPPED_FOLDERS = frozenset(
    {"tests", "test", "testing", "_vendor", "vendor", "vendored", "_vendored", "thirdparty_files"}
)
_ROLE = re.compile(r":(?:[a-zA-Z_]+:)+`~?([^`<]*?)(?:\s*<[^`>]*>)?`")
_LITERAL = re.compile(r"`+([^`]*)`+_*")
_SECTION = re.compile(r"\s*(?:[-=~^*]{3,}|:(?:param|return|rtype|type|raises|arg|var|ivar)\b|\.\. |>>>|@param|@return)")
_SENTENCE_END = re.compile(r"(?<=[a-z0-9)\]'\"][.!?])\s+(?=[A-Z])")


@dataclass(frozen=True, slots=True, kw_only=True)
class DocstringRow:
    """`source` is the object's dotted name, `prompt` the question, `completion` the summary."""

    source: str
    prompt: str
    completion: str


def package_rows(module: str) -> list[DocstringRow]:
    """Rows of every public object in the package or module `module`, sorted by name, one for each name.

    Raises NotFound where `module` is not installed.
    """
    rows: dict[str, DocstringRow] = {}
    for path in source_files(_location(module)):
        for row in file_rows(path, module):
            rows.setdefault(row.source, row)
    return [rows[name] for name in sorted(rows)]


def file_rows(path: Path, module: str) -> Iterator[DocstringRow]:
    """Rows of one source file; objects are named as members of `module`. A file that doesn't parse has none."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, ValueError, RecursionError):
        return
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and _is_public(node.name):
            yield from _row(node, f"{module}.{node.name}", "function")
        elif isinstance(node, ast.ClassDef) and _is_public(node.name):
            yield from _row(node, f"{module}.{node.name}", "class")
            for member in node.body:
                if isinstance(member, ast.FunctionDef | ast.AsyncFunctionDef) and _is_public(member.name):
                    yield from _row(member, f"{module}.{node.name}.{member.name}", "method")


def clean_summary(docstring: str) -> str:
    """The first sentences of the docstring's first paragraph as plain text; empty if there is no usable one."""
    paragraph: list[str] = []
    for line in inspect.cleandoc(docstring).splitlines():
        if _SECTION.match(line) or (paragraph and not line.strip()):
            break
        if line.strip():
            paragraph.append(line.strip())
    text = _LITERAL.sub(r"\1", _ROLE.sub(r"\1", " ".join(paragraph)))
    text = re.sub(r"\s+", " ", text.replace("**", "").replace("\\", "")).strip()
    return _shorten(text)


def _row(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef, name: str, kind: str) -> Iterator[DocstringRow]:
    docstring = ast.get_docstring(node, clean=False)
    answer = clean_summary(docstring) if docstring else ""
    if len(answer) >= 20 and len(answer.split()) >= 4:
        signature = "" if isinstance(node, ast.ClassDef) else f"({_arguments(node)})"
        verb = "is" if kind == "class" else "does"
        ending = "" if kind == "class" else " do"
        yield DocstringRow(source=name, prompt=f"What {verb} the {kind} {name}{signature}{ending}?", completion=answer)


def _arguments(node: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    names = [argument.arg for argument in [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]]
    return ", ".join([name for name in names if name not in ("self", "cls")][:_MAX_ARGUMENTS])


def _shorten(text: str) -> str:
    kept = ""
    for sentence in _SENTENCE_END.split(text):
        if kept and len(kept) + 1 + len(sentence) > _MAX_ANSWER_CHARS:
            break
        kept = f"{kept} {sentence}".strip()
    return kept if len(kept) <= _MAX_ANSWER_CHARS else ""


def _is_public(name: str) -> bool:
    return not name.startswith("_") and not name.lower().startswith("test")


def _location(module: str) -> Path:
    top = module.split(".")[0]
    spec = importlib.util.find_spec(top)  # the top package only: find_spec imports the parents of a submodule
    if spec is None or spec.origin is None:
        raise NotFound(f"the package {top!r} is not installed", code="unknown_package", param="package")
    path = Path(spec.origin)
    if path.name == "__init__.py":
        path = path.parent
    for part in module.split(".")[1:]:
        path = path / part if (path / part).is_dir() else path / f"{part}.py"
    if not path.exists():
        raise NotFound(f"no source for the module {module!r}", code="unknown_package", param="package")
    return path


def source_files(root: Path) -> list[Path]:
    """The Python files under `root` (or `root` itself) in order, without tests and vendored copies."""
    if root.is_file():
        return [root]
    files = [
        path for path in root.rglob("*.py") if not _SKIPPED_FOLDERS.intersection(path.relative_to(root).parts[:-1])
    ]
    return sorted(path for path in files if not path.name.startswith("test_"))
