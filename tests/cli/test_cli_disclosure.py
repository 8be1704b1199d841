"""On the command line a copy of a private row is told as one, and not of which."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from house import ROWS, House

from openledger.cli.main import main
from openledger.core.values import PRIVATE_ROW

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    rows, key = tmp_path / "rows.jsonl", tmp_path / "ada.key"
    rows.write_text("".join(json.dumps(asdict(row)) + "\n" for row in ROWS))
    key.write_text((b"a" * 32).hex())
    return ["contribute", "docs", str(rows), "--key", str(key), "--receipts", str(tmp_path / "receipts.jsonl")]


@pytest.mark.parametrize("more", [[], ["--preview"], ["--json"], ["--preview", "--json"]])
def test_a_copy_of_a_private_row_is_not_named(
    house: House, files: list[str], tmp_path: Path, capsys: Captured, more: list[str]
):
    original, url = house.kept_private(), house.url  # type: ignore[attr-defined]
    for _ in range(2):  # the same again is read where it is stored
        capsys.readouterr()
        assert main([*files, *more, "--url", url]) == 0
        printed = capsys.readouterr()
        receipts = (tmp_path / "receipts.jsonl").read_text()
        assert original not in printed.out + printed.err + receipts
        assert json.loads(receipts.splitlines()[0])["duplicate_of"] == PRIVATE_ROW
        if "--json" in more:
            told: dict[str, Any] = json.loads(printed.out)
            assert [one["duplicate_of"] for one in told["not_accepted"]] == [PRIVATE_ROW]
        else:
            assert ("exact_duplicate" in printed.out, "isn't public" in printed.out) == (True, True)


def test_a_dry_run_of_ones_own_names_the_rows_of_the_files_alone(
    house: House, files: list[str], tmp_path: Path, capsys: Captured
):
    original = house.kept_private()
    assert main([*files, "--dry-run", "--url", house.url]) == 0  # type: ignore[attr-defined]
    printed = capsys.readouterr()
    assert original not in printed.out + (tmp_path / "receipts.jsonl").read_text()
