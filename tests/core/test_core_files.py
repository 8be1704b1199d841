"""Documents are read whole, of the format they name, or refused with the reason."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from openledger.core import files
from openledger.core.errors import Corrupt
from openledger.core.files import read_document, write_json_durably


def read(path):
    return read_document(path, "a/1", lambda values: values["rows"][0] // 1, lambda reason: Corrupt(reason, code="c"))


def test_a_document_is_parsed_without_its_format(tmp_path):
    write_json_durably(tmp_path / "d.json", {"format": "a/1", "rows": [7]})
    assert read(tmp_path / "d.json") == 7


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "No such file"),
        ("{", "Expecting property name"),
        ('"text"', "pop"),
        ('{"rows": [7]}', "format"),
        ('{"format": "a/2", "rows": [7]}', "unknown format 'a/2'"),
        ('{"format": "a/1"}', "rows"),
        ('{"format": "a/1", "rows": []}', "list index"),
        ('{"format": "a/1", "rows": ["x"]}', "unsupported operand"),
    ],
)
def test_what_is_no_such_document_is_refused_as_the_caller_says(tmp_path, text, reason):
    if text is not None:
        (tmp_path / "d.json").write_text(text)
    with pytest.raises(Corrupt, match=reason) as caught:
        read(tmp_path / "d.json")
    assert caught.value.code == "c"


def test_two_threads_that_write_one_file_at_once_both_write_it_whole(tmp_path, monkeypatch):
    together = threading.Barrier(2)
    monkeypatch.setattr(files.os, "fsync", lambda _: together.wait(60))
    with ThreadPoolExecutor(2) as pool:
        written = [pool.submit(write_json_durably, tmp_path / "report.json", {"by": name}) for name in "ab"]
        assert [one.result() for one in written] == [None, None]
    assert json.loads((tmp_path / "report.json").read_text())["by"] in "ab"
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]
