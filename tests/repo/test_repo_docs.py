"""The documents: links lead somewhere, commands exist, code compiles, every error and package is told."""

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

from openledger.core import errors

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted(
    path
    for path in (*ROOT.glob("*.md"), *(p for top in ("docs", "jobs", "serve_apps", "cluster", "k8s", "benchmarks")
                                       for p in (ROOT / top).rglob("*.md")))
)  # fmt: skip
MAKE_TARGETS = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
LINK = re.compile(r"\[[^\]]+\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def every_document(function: object) -> object:
    return pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))(function)


def broken_links(path: Path, text: str) -> list[str]:
    targets = [target for target in LINK.findall(text) if not re.match(r"[a-z]+:", target)]
    return [target for target in targets if not _exists(path, target)]


def _exists(path: Path, target: str) -> bool:
    name, _, anchor = target.partition("#")
    document = (path.parent / name).resolve() if name else path
    return document.exists() and (not anchor or anchor in _anchors(document.read_text()))


def _anchors(text: str) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


def unknown_targets(text: str) -> list[str]:
    """Make targets named in code, as `make check` or on a line of their own, that the Makefile does not have."""
    named = re.findall(r"(?:`|^ {4,})make ([a-z]+)\b", text, re.MULTILINE)
    return [target for target in named if target not in MAKE_TARGETS]


@every_document
def test_links_lead_somewhere(path: Path) -> None:
    assert broken_links(path, path.read_text()) == []


@every_document
def test_make_targets_exist(path: Path) -> None:
    assert unknown_targets(path.read_text()) == []


@every_document
def test_python_blocks_compile(path: Path) -> None:
    for language, code in FENCE.findall(path.read_text()):
        if language == "python":
            compile(code, str(path), "exec")


def test_a_broken_link_and_an_unknown_target_are_found() -> None:
    """Negative control."""
    assert broken_links(ROOT / "README.md", "[a](missing.md) [b](README.md) [c](README.md#no-such-title)") == [
        "missing.md",
        "README.md#no-such-title",
    ]
    assert unknown_targets("`make test` and `make tea`") == ["tea"]


def test_the_makefile_has_the_documented_targets() -> None:
    assert {"quickstart", "test", "slow", "check", "bench", "docs", "clean"} <= MAKE_TARGETS


def error_classes() -> list[type[BaseException]]:
    members = inspect.getmembers(errors, inspect.isclass)
    return [value for _, value in members if issubclass(value, BaseException)]


@pytest.mark.parametrize("error", error_classes(), ids=lambda error: error.__name__)
def test_every_error_class_has_its_paragraph_with_status_and_exit_code(error: type[BaseException]) -> None:
    text = (ROOT / "docs" / "reference" / "errors.md").read_text()
    sections = dict(re.findall(r"^### (\w+)\n\n(.+?)(?=^#)", text, re.MULTILINE | re.DOTALL))
    section = sections[error.__name__]
    if issubclass(error, errors.OpenLedgerError):
        assert f"HTTP {error.http_status}, exit {error.exit_code}, `{error.default_code}`" in section


def test_the_reference_says_what_the_code_does() -> None:
    command = [sys.executable, "tools/write_reference.py", "--check"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_structure_names_every_package() -> None:
    packages = {path.parent.name for path in (ROOT / "openledger").glob("*/__init__.py")}
    text = (ROOT / "docs" / "structure.md").read_text()
    assert {package for package in packages if f"`{package}/`" not in text} == set()


def connections(path: Path) -> list[ast.With]:
    return [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.With)
            and ast.unparse(node.items[0].context_expr).startswith("connected(")]  # fmt: skip


@pytest.mark.parametrize(
    "path", [path for path in sorted((ROOT / "jobs").glob("*.py")) if connections(path)], ids=lambda path: path.name
)
def test_a_job_says_what_is_loaded_once_it_is_connected(path: Path) -> None:
    """Actors import for seconds, in which nothing else is told."""
    for block in connections(path):
        assert ast.unparse(block.body[0]).startswith("tell('loading ")


@pytest.mark.parametrize("path", sorted((ROOT / "jobs").glob("*.py")), ids=lambda path: path.name)
def test_every_job_stands_in_the_list_and_explains_itself(path: Path) -> None:
    assert f"`{path.name}`" in (ROOT / "jobs" / "README.md").read_text()
    result = subprocess.run([sys.executable, path, "--help"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "usage:" in result.stdout
