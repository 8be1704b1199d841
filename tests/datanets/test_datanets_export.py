"""A version as files for others: Parquet, Croissant metadata, a dataset card."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import mlcroissant
import pyarrow.parquet as pq
import pytest
import yaml
from datanet_samples import key_of, open_datanets, sample_drafts, signed
from huggingface_hub import DatasetCard

from openledger.core.hashing import digest_file
from openledger.core.values import RowDraft
from openledger.datanets.datanets import Datanets
from openledger.datanets.export import CONFORMS_TO
from openledger.datanets.licences import WITHDRAWN
from openledger.datanets.reading import only_rows, read_drafts
from openledger.datanets.removal import sign_withdrawal
from openledger.datanets.row_schema import PLAIN, Column, RowSchema, own_licence, said
from openledger.datanets.rows import rows_of
from openledger.datanets.terms import Terms

TYPED = RowSchema(
    columns=(
        Column(name="year", type="int64"),
        Column(name="score", type="float64", required=False),
        Column(name="is_old", type="bool", required=False),
        Column(name="note", type="string", required=False),
    )
)
CHAT = RowSchema(kind="chat")
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
    assert table["licence"].null_count == 5
    assert list(rows_of(table.drop_columns("licence"))) == rows[1:]


def test_the_same_version_gives_the_same_bytes(datanets: Datanets, tmp_path: Path) -> None:
    for name in ("a", "b"):
        datanets.export("docs", 1, tmp_path / name)
    for name in ("rows.parquet", "croissant.json", "README.md"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_version_keeps_the_terms_and_statistics_that_it_was_published_with(
    datanets: Datanets, tmp_path: Path
) -> None:
    datanets.export("docs", 1, tmp_path / "before")
    datanets.set_terms("docs", Terms(licence="MIT", description="Another.", tags=("other",)), by="acct_owner")
    datanets.contribute(signed("bob", sample_drafts(3, "other")))
    datanets.publish("docs")
    for number in (1, 2):
        datanets.export("docs", number, tmp_path / str(number))
    for name in ("rows.parquet", "croissant.json", "README.md"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "before" / name).read_bytes()
    told = json.loads((tmp_path / "2" / "croissant.json").read_text())
    assert (told["license"], told["description"]) == ("https://spdx.org/licenses/MIT", "Another.")
    assert [one["name"] for one in told["creator"]] == ["ada", "bob"]


def test_the_card_tells_how_many_rows_were_removed_since(datanets: Datanets, tmp_path: Path) -> None:
    row_ids = [row.row_id for row in datanets.rows("docs", 1)]
    datanets.withdraw(sign_withdrawal(key_of("ada"), "docs", row_ids[:2], "1"))
    datanets.export("docs", 1, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Version 1, 4 rows (2 of 6 were removed since it was published)" in card


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
    assert told["license"] == "cc-by-4.0"
    assert HOSTILE.replace("\n", " ") in told["tags"]
    assert "| ada | 6 | 0 | 0 |" in body


def test_an_export_can_be_contributed_again(datanets: Datanets, tmp_path: Path) -> None:
    datanets.export("docs", 1, tmp_path / "out")
    found = list(read_drafts(tmp_path / "out"))
    assert [draft.prompt for draft in only_rows(found)] == [row.prompt for row in datanets.rows("docs", 1)]
    assert {own_licence(draft) for draft in only_rows(found)} == {"cc-by-4.0"}
    receipt = datanets.contribute(signed("bob", list(only_rows(found))))
    assert {verdict.reasons for verdict in receipt.verdicts} == {("exact_duplicate",)}


class TestCroissantsOwnValidator:
    """`mlcroissant`, by MLCommons, which knows Croissant 1.1; a warning of its would be a failure too."""

    @pytest.mark.parametrize("schema", [PLAIN, TYPED, CHAT, RowSchema(kind="text")])
    @pytest.mark.parametrize("licence", ["CC-BY-4.0", "LicenseRef-openledger-training", WITHDRAWN])
    def test_finds_no_error_and_no_warning(self, tmp_path: Path, schema: RowSchema, licence: str) -> None:
        path = export_of(tmp_path, schema, licence)
        issues = mlcroissant.Dataset(jsonld=path / "croissant.json").metadata.ctx.issues
        assert (issues.errors, issues.warnings) == (set(), set())

    def test_finds_a_column_that_has_no_type(self, tmp_path: Path) -> None:
        path = export_of(tmp_path, PLAIN, "CC-BY-4.0") / "croissant.json"
        told = json.loads(path.read_text())
        del told["recordSet"][0]["field"][0]["dataType"]
        path.write_text(json.dumps(told))
        with pytest.raises(mlcroissant.ValidationError, match="row_id"):
            mlcroissant.Dataset(jsonld=path)

    def test_reads_the_rows_by_it(self, tmp_path: Path) -> None:
        path = export_of(tmp_path, TYPED, "CC-BY-4.0")
        read = list(mlcroissant.Dataset(jsonld=path / "croissant.json").records("rows"))
        rows = pq.read_table(path / "rows.parquet").to_pylist()
        assert [one["rows/completion"].decode() for one in read] == [row["completion"] for row in rows]
        assert [one["rows/year"] for one in read] == [row["year"] for row in rows]
        assert sorted(row["year"] for row in rows) == [0, 1, 2, 3]

    def test_reads_a_conversations_turns_by_it(self, tmp_path: Path) -> None:
        path = export_of(tmp_path, CHAT, "CC-BY-4.0")
        read = next(iter(mlcroissant.Dataset(jsonld=path / "croissant.json").records("rows")))
        turns = pq.read_table(path / "rows.parquet").to_pylist()[0]["messages"]
        said_by = [one["rows/messages/content"].decode() for one in read["rows/messages"]]
        assert said_by == [turn["content"] for turn in turns]


class TestTheCard:
    """As `huggingface_hub` reads it."""

    def test_is_a_cards_metadata_and_text(self, datanets: Datanets, tmp_path: Path) -> None:
        datanets.export("docs", 1, tmp_path / "out")
        card = DatasetCard.load(tmp_path / "out" / "README.md")
        told = card.data.to_dict()
        assert (told["license"], told["language"], told["pretty_name"]) == ("cc-by-4.0", ["en"], "docs")
        assert told["size_categories"] == ["n<1K"]
        assert told["configs"] == [{"config_name": "default", "data_files": "rows.parquet"}]
        assert card.text.lstrip().startswith("# docs")

    @pytest.mark.parametrize(
        ("licence", "known"),
        [("MIT", "mit"), ("ODbL-1.0", "odbl"), ("CC-BY-NC-SA-4.0", "cc-by-nc-sa-4.0")],
    )
    def test_names_a_licence_as_the_hub_does(self, tmp_path: Path, licence: str, known: str) -> None:
        card = DatasetCard.load(export_of(tmp_path, PLAIN, licence) / "README.md")
        assert card.data.license == known

    @pytest.mark.parametrize("licence", ["PSF-2.0", "LicenseRef-openledger-training", WITHDRAWN])
    def test_names_what_the_hub_does_not_know(self, tmp_path: Path, licence: str) -> None:
        told = DatasetCard.load(export_of(tmp_path, PLAIN, licence) / "README.md").data
        assert (told.license, told.license_name) == ("other", licence.lower())


def export_of(folder: Path, schema: RowSchema, licence: str) -> Path:
    """A version of four rows, written to a folder."""
    datanets = open_datanets(folder / "datanets")
    datanets.create("made", "A made Datanet", "acct_owner", schema)
    if licence != WITHDRAWN:
        datanets.set_terms("made", Terms(licence=licence), by="acct_owner")
    datanets.contribute(signed("ada", [row_of(schema, number) for number in range(4)], datanet="made"))
    if licence == WITHDRAWN:
        datanets.set_terms("made", Terms(licence=WITHDRAWN), by="acct_owner")
    datanets.publish("made")
    datanets.export("made", 1, folder / "out")
    datanets.close()
    return folder / "out"


def row_of(schema: RowSchema, number: int) -> RowDraft:
    draft = sample_drafts(4)[number]
    if schema == TYPED:
        return replace(draft, extra=f'{{"is_old":true,"note":"a note","score":"0.5","year":{number}}}')
    if schema == CHAT:
        turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": draft.prompt}]
        extra = schema.extra_of({}, [*turns, {"role": "assistant", "content": draft.completion}])
        return replace(draft, prompt=said(turns), extra=extra)
    return draft
