"""A version handed out as files: for whom, of which version, and never over somebody's files."""

import errno
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from openledger.core.clock import ManualClock
from openledger.core.errors import Forbidden, InvalidInput, NotFound
from openledger.core.signing import SigningKey
from openledger.core.values import Row, RowDraft
from openledger.datanets.bulk import read_part
from openledger.datanets.contribution import sign_contribution
from openledger.datanets.datanets import Datanets
from openledger.datanets.export import FILES
from openledger.datanets.removal import sign_withdrawal
from openledger.datanets.rows import rows_of
from openledger.datanets.shard import ShardHost
from openledger.datanets.terms import Terms
from openledger.datanets.versions import credit_root, row_root
from openledger.platform import exporting
from openledger.platform.exporting import export_version

ADA, OWNER = SigningKey(b"a" * 32), "user:greek-owner"
ANSWERS = (
    "Open the archive and return its members.",
    "Parse a date in any format.",
    "Send the remaining bytes at last.",
)


class Remote:
    def __init__(self, target: Any):
        self._target = target

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._target, name)
        return type("Call", (), {"remote": staticmethod(method)})


def read_here(datanets: Any, *named: Any) -> list[Row]:
    """As `export_rows`, by no task of Ray's."""
    parts = datanets.export_parts.remote(*named)
    return [row for part in parts for table in read_part(part) for row in rows_of(table)]


@pytest.fixture
def datanets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Datanets]:
    monkeypatch.setattr(exporting.ray, "get", lambda value: value)
    monkeypatch.setattr(exporting, "export_rows", read_here)
    made = Datanets(tmp_path / "datanets", [ShardHost(tmp_path / "datanets" / "shard-0")], ManualClock())
    made.create("greek", "What letters do", OWNER)
    made.set_terms("greek", Terms(licence="CC-BY-NC-4.0", train="private"), OWNER)
    drafts = [RowDraft(prompt=f"What does letter {number} do?", completion=text) for number, text in enumerate(ANSWERS)]
    made.contribute(sign_contribution(ADA, "greek", drafts, "0"))
    made.publish("greek")
    yield made
    made.close()


def test_the_owner_gets_the_version_whose_roots_its_files_lead_to(datanets: Datanets, tmp_path: Path) -> None:
    datanets.withdraw(sign_withdrawal(ADA, "greek", [datanets.credit("greek", 1)[0]], "1"))
    told = export_version(Remote(datanets), "greek", 0, "", tmp_path / "out")
    assert (told["version"], told["rows"], told["removed"], told["account"]) == (1, 2, 1, OWNER)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(FILES)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    leaves = manifest["rows"]
    assert row_root([leaf["row_id"] for leaf in leaves]) == manifest["row_root"]
    by_place = sorted(leaves, key=lambda leaf: leaf["place"])
    assert credit_root([leaf["row_id"] for leaf in by_place]) == manifest["credit_root"]
    standing = [leaf["row_id"] for leaf in leaves if leaf["tombstone"] is None]
    assert pq.read_table(tmp_path / "out" / "rows.parquet")["row_id"].to_pylist() == standing


def test_it_is_what_the_datanets_export_themselves(datanets: Datanets, tmp_path: Path) -> None:
    export_version(Remote(datanets), "greek", 1, OWNER, tmp_path / "one")
    datanets.export("greek", 1, tmp_path / "other")
    for name in FILES:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()


def test_a_dry_run_checks_and_writes_nothing(datanets: Datanets, tmp_path: Path) -> None:
    told = export_version(Remote(datanets), "greek", 1, "", tmp_path / "out", is_dry_run=True)
    assert (told["rows"], told["licence"], told["written"]) == (3, "CC-BY-NC-4.0", False)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("is_dry_run", [True, False])
def test_another_account_gets_none_without_permission(datanets: Datanets, tmp_path: Path, is_dry_run: bool) -> None:
    wanted = Remote(datanets), "greek", 1, "user:lab", tmp_path / "out"
    with pytest.raises(Forbidden) as caught:
        export_version(*wanted, is_dry_run=is_dry_run)
    assert (caught.value.code, (tmp_path / "out").exists()) == ("not_permitted", False)
    datanets.approve("greek", "user:lab", "train", OWNER)
    assert export_version(*wanted, is_dry_run=is_dry_run)["account"] == "user:lab"


def test_nobody_gets_what_has_no_licence_any_more(datanets: Datanets, tmp_path: Path) -> None:
    datanets.change_terms("greek", {"licence": "withdrawn"}, OWNER)
    with pytest.raises(Forbidden) as caught:
        export_version(Remote(datanets), "greek", 1, "", tmp_path / "out")
    assert caught.value.code == "licence_withdrawn"


@pytest.mark.parametrize("number", [2, -1])
def test_a_version_that_there_is_not_is_told_with_those_there_are(
    datanets: Datanets, tmp_path: Path, number: int
) -> None:
    with pytest.raises(NotFound) as caught:
        export_version(Remote(datanets), "greek", number, "", tmp_path / "out")
    assert (caught.value.code, "it has 1;" in caught.value.fix) == ("unknown_version", True)
    assert "where the licence lets adapters be trained and sold" in caught.value.fix


def test_an_earlier_export_is_written_over_and_nothing_else(datanets: Datanets, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for _ in range(2):
        export_version(Remote(datanets), "greek", 1, "", out)
    (out / "thesis.tex").write_text("years of work")
    (out / "README.md").write_text("mine")
    with pytest.raises(InvalidInput) as caught:
        export_version(Remote(datanets), "greek", 1, "", out)
    assert (caught.value.code, (out / "README.md").read_text()) == ("folder_in_use", "mine")
    (tmp_path / "file").write_text("x")
    with pytest.raises(InvalidInput):
        export_version(Remote(datanets), "greek", 1, "", tmp_path / "file")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("README.md", "mine"),
        ("rows.parquet", "mine"),
        ("manifest.json", "{}"),
        ("manifest.json", '{"datanet": "other", "row_root": "00"}'),
    ],
)
def test_files_of_the_same_names_that_are_no_earlier_export_are_left_alone(
    datanets: Datanets, tmp_path: Path, name: str, text: str
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text(text)
    for is_dry_run in (True, False):
        with pytest.raises(InvalidInput) as caught:
            export_version(Remote(datanets), "greek", 1, "", tmp_path / "out", is_dry_run=is_dry_run)
        assert (caught.value.code, caught.value.param) == ("folder_in_use", "out")
    assert [(path.name, path.read_text()) for path in (tmp_path / "out").iterdir()] == [(name, text)]


def test_one_that_fails_half_way_leaves_the_earlier_export_whole(
    datanets: Datanets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    export_version(Remote(datanets), "greek", 1, "", out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    datanets.withdraw(sign_withdrawal(ADA, "greek", [datanets.credit("greek", 1)[0]], "1"))
    with monkeypatch.context() as patched:
        patched.setattr(exporting, "write_leaves", lambda *_: (tmp_path / "nowhere" / "a").write_text(""))
        with pytest.raises(FileNotFoundError):
            export_version(Remote(datanets), "greek", 1, "", out)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["datanets", "out"]
    export_version(Remote(datanets), "greek", 1, "", out)
    assert {path.name for path in out.iterdir()} == set(FILES)
    assert pq.read_table(out / "rows.parquet").num_rows == 2


def test_a_row_that_is_taken_back_while_rows_are_read_is_in_neither_file(
    datanets: Datanets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (late, *_) = datanets.credit("greek", 1)

    def read_and_withdraw(*named: Any) -> list[Row]:
        rows = read_here(*named)
        datanets.withdraw(sign_withdrawal(ADA, "greek", [late], "1"))
        return rows

    monkeypatch.setattr(exporting, "export_rows", read_and_withdraw)
    told = export_version(Remote(datanets), "greek", 1, "", tmp_path / "out")
    leaves = json.loads((tmp_path / "out" / "manifest.json").read_text())["rows"]
    assert (told["rows"], told["removed"]) == (2, 1)
    assert [leaf["row_id"] for leaf in leaves if leaf["tombstone"] is not None] == [late]
    assert late not in pq.read_table(tmp_path / "out" / "rows.parquet")["row_id"].to_pylist()


def test_a_folder_that_can_not_be_replaced_is_told(
    datanets: Datanets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "disk").mkdir()

    def rename(*_: Any) -> None:
        raise OSError(errno.EBUSY, "Device or resource busy")

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(InvalidInput, match="can't be replaced: Device or resource busy") as caught:
        export_version(Remote(datanets), "greek", 1, "", tmp_path / "disk")
    assert (caught.value.code, list((tmp_path / "disk").iterdir())) == ("folder_in_use", [])
