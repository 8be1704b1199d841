"""`openledger datanet versions` and `version`: roots are recomputed here, and a server that lies is found out."""

import json
from pathlib import Path
from typing import Any

import pytest
from house import ADA, ROWS, House

from openledger.cli.main import main
from openledger.core.errors import Corrupt
from openledger.core.values import RowDraft
from openledger.datanets.contribution import sign_contribution
from openledger.datanets.removal import sign_withdrawal

MORE = RowDraft(prompt="What does delta.delta do?", completion="It answers letters that nobody else has answered yet.")


@pytest.fixture
def published(house: House) -> House:
    """Two versions: the second has a row more, and lacks one that was withdrawn in between."""
    house.rows.contribute(sign_contribution(ADA, "docs", ROWS, "0"))
    house.rows.publish("docs")
    house.rows.withdraw(sign_withdrawal(ADA, "docs", [house.rows.credit("docs", 1)[0]], "1"))
    house.rows.contribute(sign_contribution(ADA, "docs", [MORE], "0"))
    house.rows.publish("docs")
    return house


def told(published: Any, capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    capsys.readouterr()
    assert main(["datanet", *words, "--json", "--url", published.url]) == 0
    return json.loads(capsys.readouterr().out)


def test_versions_are_listed(published: House, capsys: pytest.CaptureFixture[str]) -> None:
    assert [one["number"] for one in told(published, capsys, "versions", "docs")] == [1, 2]


def test_a_version_is_told_with_its_roots_recomputed(published: House, capsys: pytest.CaptureFixture[str]) -> None:
    found = told(published, capsys, "version", "docs", "1")
    assert (found["num_rows"], found["removed since"]) == (3, 1)
    assert found["roots recomputed"] == "row_root, credit_root"
    assert found["row_root"] == published.rows.version("docs", 1).row_root


def test_a_version_without_an_order_of_credit_says_which_root_was_recomputed(
    published: House, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    honest = published.rows.manifest
    monkeypatch.setattr(published.rows, "manifest", lambda *given: {**honest(*given), "credit_root": ""})
    assert told(published, capsys, "version", "docs", "1")["roots recomputed"] == "row_root"


def test_a_difference_names_what_came_and_went(published: House, capsys: pytest.CaptureFixture[str]) -> None:
    found = told(published, capsys, "version", "docs", "2", "--since", "1")
    came, gone = published.rows.diff("docs", 1, 2)
    assert (found["added since 1"], found["gone since"]) == (came, gone)
    assert (len(came), len(gone)) == (1, 1)
    assert main(["datanet", "version", "docs", "2", "--since", "1", "--url", published.url]) == 0  # type: ignore
    assert "1 rows: row_" in capsys.readouterr().out


def test_it_is_written_with_the_ids_of_its_rows(
    published: House, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = told(published, capsys, "version", "docs", "1", "-o", str(tmp_path / "manifest.json"))
    assert shown["written"] == str(tmp_path / "manifest.json")
    assert "written" not in told(published, capsys, "version", "docs", "1")
    kept = json.loads((tmp_path / "manifest.json").read_text())
    assert [row["row_id"] for row in kept["rows"]] == sorted(published.rows.credit("docs", 1))
    assert kept["terms"]["licence"] == "LicenseRef-openledger-training"


@pytest.mark.parametrize("root", ["row_root", "credit_root"])
def test_roots_that_the_rows_do_not_lead_to_are_an_error(
    published: House, root: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    honest = published.rows.manifest
    monkeypatch.setattr(published.rows, "manifest", lambda *given: {**honest(*given), root: "ab" * 32})
    capsys.readouterr()
    assert main(["datanet", "version", "docs", "1", "--json", "--url", published.url]) == Corrupt.exit_code  # type: ignore
    assert json.loads(capsys.readouterr().err)["error"]["code"] == "wrong_root"
