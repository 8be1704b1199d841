"""Every command line that a document or a job shows is one that the program takes."""

import ast
import importlib
import sys
from pathlib import Path

import pytest
from documented_commands import ROOT, documented

from openledger.cli.parser import build_parser
from openledger.core.errors import InvalidInput

SHOWN = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "jobs").glob("*.md")])
JOBS = sorted((ROOT / "jobs").glob("*.py"))


def shown_by(path: Path) -> list[list[str]]:
    text = path.read_text()
    return list(documented(text if path.suffix == ".md" else ast.get_docstring(ast.parse(text)) or ""))


def take(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Raises or exits as the program does with words that it doesn't know."""
    if words[0] == "openledger":
        build_parser().parse_args(words[1:])
        return
    monkeypatch.setattr(sys, "argv", words[1:])
    importlib.import_module(f"jobs.{Path(words[1]).stem}").parse_arguments()


@pytest.mark.parametrize("path", [*SHOWN, *JOBS], ids=lambda path: str(path.relative_to(ROOT)))
def test_the_program_takes_every_command_that_is_shown(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for words in shown_by(path):
        try:
            take(words, monkeypatch)
        except (InvalidInput, SystemExit) as error:
            pytest.fail(f"{' '.join(words)}: {error}")


def test_commands_are_found_wherever_documents_show_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control."""
    text = (
        "say `openledger tea`\n\n```sh\nopenledger models > all.txt   # all\n```\n\n"
        "```\nopenledger seals\n```\n\n"
        "    X=1 ray job submit -- \\\n        python jobs/train.py --datanet a   told\n\nend\n"
    )
    found = list(documented(text))
    assert found == [["openledger", "models"], ["openledger", "seals"], ["python", "jobs/train.py", "--datanet", "a"]]
    take(found[0], monkeypatch)
    with pytest.raises(InvalidInput):
        take(found[1], monkeypatch)
    with pytest.raises(SystemExit):
        take(found[2], monkeypatch)  # without --workdir
    assert len(shown_by(ROOT / "docs" / "guides" / "contribute.md")) >= 20
