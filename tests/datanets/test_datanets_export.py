"""A version as files for others: Parquet, Croissant metadata, a dataset card."""

import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from datanet_samples import key_of, open_datanets, sample_drafts, signed

from openledger.core.hashing import digest_file
from openledger.datanets.datanets import Datanets
from openledger.datanets.export import CONFORMS_TO
from openledger.datanets.reading import read_drafts
from openledger.datanets.removal import sign_withdrawal
from openledger.datanets.row_schema import PLAIN
from openledger.datanets.rows import rows_of
from openledger.datanets.terms import Terms

HOSTILE = '"]\nlicense: mit\n---\n<script>alert(1)</script> | x'


@pytest.fixture
def datanets(tmp_path: Path) -> Iterator[Datanets]:
    opened = open_datanets(tmp_path / "datanets")
    opened.set_terms("docs", Terms(licence="CC-BY-4.0", tags=(HOSTILE.replace("\n", " "),)), by="acct_owner")
    opened.contribute(signed("ada", sample_drafts(6)))
    opened.publish("docs")
    yield opened
    opened.close()


def test_the_rows_are_those_of_the_version_without_removed_ones(datanets: Datanets, tmp_path: Path) -> None:
    rows = datanets.rows("docs", 1)
    datanets.withdraw(sign_withdrawal(key_of("ada"), "docs", [rows[0].row_id], "1"))
    datanets.export("docs", 1, tmp_path / "out")
    table = pq.read_table(tmp_path / "out" / "rows.parquet")
    assert list(rows_of(table)) == rows[1:]


def test_the_same_version_gives_the_same_bytes(datanets: Datanets, tmp_path: Path) -> None:
    for name in ("a", "b"):
        datanets.export("docs", 1, tmp_path / name)
    for name in ("rows.parquet", "croissant.json", "README.md"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_croissant_names_the_file_every_column_and_the_licence(datanets: Datanets, tmp_path: Path) -> None:
    datanets.export("docs", 1, tmp_path / "out")
    told = json.loads((tmp_path / "out" / "croissant.json").read_text())
    assert (told["conformsTo"], told["license"]) == (CONFORMS_TO, "https://spdx.org/licenses/CC-BY-4.0")
    assert told["distribution"][0]["sha256"] == digest_file(tmp_path / "out" / "rows.parquet")
    assert [field["name"] for field in told["recordSet"][0]["field"]] == PLAIN.arrow().names
    assert datanets.version("docs", 1).row_root in told["citeAs"]


def test_hostile_text_does_not_leave_its_place_in_the_card(datanets: Datanets, tmp_path: Path) -> None:
    datanets.export("docs", 1, tmp_path / "out")
    _, front, body = (tmp_path / "out" / "README.md").read_text().split("---\n", 2)
    told = yaml.safe_load(front)
    assert (told["license"], told["license_name"]) == ("other", "CC-BY-4.0")
    assert HOSTILE.replace("\n", " ") in told["tags"]
    assert "| ada | 6 | 0 | 0 |" in body


def test_an_export_can_be_contributed_again(datanets: Datanets, tmp_path: Path) -> None:
    datanets.export("docs", 1, tmp_path / "out")
    found = list(read_drafts(tmp_path / "out" / "rows.parquet"))
    assert [draft.prompt for draft in found] == [row.prompt for row in datanets.rows("docs", 1)]
