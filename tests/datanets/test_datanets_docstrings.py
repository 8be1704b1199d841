"""Rows from documentation strings, read without importing the code."""

from pathlib import Path

import pytest

from openledger.core.errors import NotFound
from openledger.datanets.docstrings import clean_summary, file_rows, package_rows, source_files

SOURCE = '''
raise SystemExit("this module must never run")

def pack(self, path, mode="r", *, level=3, owner=None, group=None):
    """Write the files below `path` into a new archive.

    More text that is not the summary.
    """

def _hidden():
    """A private function with a documentation string."""

def test_pack():
    """A test function with a documentation string."""

def short():
    """Too short."""

class Archive:
    """A file that holds other files in one stream."""

    def members(self):
        """Return the names of all :class:`Member` objects."""

    def _private(self):
        """Return something that nobody should read."""

async def fetch(url):
    """Fetch the archive from a server without blocking."""
'''


def _write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


class TestFileRows:
    def test_public_objects_become_questions_and_nothing_runs(self, tmp_path: Path) -> None:
        rows = list(file_rows(_write(tmp_path, "a.py", SOURCE), "archive"))
        assert [(row.source, row.prompt) for row in rows] == [
            ("archive.pack", "What does the function archive.pack(path, mode, level, owner) do?"),
            ("archive.Archive", "What is the class archive.Archive?"),
            ("archive.Archive.members", "What does the method archive.Archive.members() do?"),
            ("archive.fetch", "What does the function archive.fetch(url) do?"),
        ]

    def test_answers_are_the_summaries_as_plain_text(self, tmp_path: Path) -> None:
        rows = list(file_rows(_write(tmp_path, "a.py", SOURCE), "archive"))
        assert rows[0].completion == "Write the files below path into a new archive."
        assert rows[2].completion == "Return the names of all Member objects."

    def test_a_file_that_does_not_parse_has_no_rows(self, tmp_path: Path) -> None:
        assert list(file_rows(_write(tmp_path, "a.py", "def broken(:\n"), "broken")) == []


class TestCleanSummary:
    @pytest.mark.parametrize(
        ("docstring", "summary"),
        [
            ("One line.\n\nAnother paragraph.", "One line."),
            ("Two lines\n    of one sentence.", "Two lines of one sentence."),
            ("Sum.\n:param x: the number", "Sum."),
            ("Title\n=====\nText", "Title"),
            ("Use ``x`` and :func:`~a.b` here.", "Use x and a.b here."),
            ("", ""),
            ("word " * 60, ""),
        ],
    )
    def test_the_first_paragraph_without_markup_is_kept(self, docstring: str, summary: str) -> None:
        assert clean_summary(docstring) == summary

    def test_a_long_paragraph_is_cut_between_sentences(self) -> None:
        summary = clean_summary(f"{'A first sentence of some words. '}{'Another sentence that goes on. ' * 10}")
        assert summary.endswith("goes on.")
        assert len(summary) <= 200


class TestPackages:
    def test_rows_are_sorted_and_named_once(self) -> None:
        names = [row.source for row in package_rows("tarfile")]
        assert names == sorted(set(names))
        assert len(names) > 20

    @pytest.mark.parametrize("module", ["no_such_package_here", "email.no_such_module"])
    def test_what_is_not_installed_is_not_found(self, module: str) -> None:
        with pytest.raises(NotFound) as caught:
            package_rows(module)
        assert caught.value.code == "unknown_package"

    def test_tests_and_vendored_copies_are_left_out(self, tmp_path: Path) -> None:
        for name in ("a.py", "tests/b.py", "_vendor/c.py", "test_d.py", "sub/e.py"):
            _write(tmp_path, name, "")
        assert [path.name for path in source_files(tmp_path)] == ["a.py", "e.py"]
