"""Rows read in bulk from storage: those of the version, all of them, whatever the shard does meanwhile."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from datanet_samples import open_datanets, sample_drafts, signed
from test_datanets_shard import sample_rows

from openledger.core.errors import Forbidden, NotFound, Unavailable
from openledger.core.values import Row, RowDraft
from openledger.datanets import bulk
from openledger.datanets.bulk import Part, read_part
from openledger.datanets.datanets import Datanets
from openledger.datanets.rows import SCHEMA, rows_of
from openledger.datanets.shard import Shard


@pytest.fixture(autouse=True)
def without_a_journal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Appends come into the dataset at once; `test_datanets_journal` has small ones."""
    monkeypatch.setattr("openledger.datanets.shard.MAX_SMALL_BYTES", 0)


@pytest.fixture
def datanets(tmp_path: Path) -> Iterator[Datanets]:
    """Version 1 of `docs` has 30 rows of ada's; a row in review and one of a later version stand beside them."""
    opened = open_datanets(tmp_path)
    opened.contribute(signed("ada", sample_drafts(30)))
    mail = RowDraft(prompt="Whom do I ask?", completion="Write to ada.lovelace@engines.org about the archive of cards.")
    opened.contribute(signed("bob", [mail]))
    opened.publish("docs")
    opened.contribute(signed("bob", sample_drafts(10, "later"), "2"))
    opened.publish("docs")
    yield opened
    opened.close()


def rows_in(parts: Sequence[Part]) -> list[Row]:
    return sorted((row for part in parts for table in read_part(part) for row in rows_of(table)), key=_by_id)


def _by_id(row: Row) -> str:
    return row.row_id


class TestVersions:
    def test_a_version_is_read_whole_and_nothing_else(self, datanets: Datanets) -> None:
        for number, size in ((1, 30), (2, 40)):
            found = rows_in(datanets.bulk_parts("docs", number, "acct_owner"))
            assert found == datanets.rows("docs", number)
            assert len(found) == size

    def test_rows_that_were_taken_back_are_left_out(self, datanets: Datanets) -> None:
        gone = datanets.rows("docs", 1)[:7]
        datanets.remove("docs", [row.row_id for row in gone], "acct_owner", "court_order")
        found = rows_in(datanets.bulk_parts("docs", 1, "acct_owner"))
        assert found == datanets.rows("docs", 1)
        assert len(found) == 23

    def test_nobody_reads_without_permission(self, datanets: Datanets) -> None:
        datanets.change_terms("docs", {"train": "request"}, "acct_owner")
        with pytest.raises(Forbidden) as caught:
            datanets.bulk_parts("docs", 1, "acct_stranger")
        assert caught.value.code == "not_permitted"

    def test_another_version_is_not_found(self, datanets: Datanets) -> None:
        with pytest.raises(NotFound):
            datanets.bulk_parts("docs", 3, "acct_owner")


class TestParts:
    @pytest.fixture
    def shard(self, tmp_path: Path) -> Shard:
        """Three files of ten rows."""
        shard = Shard(tmp_path / "s")
        for number in range(3):
            shard.append(sample_rows(10, f"part{number}"), str(number))
        return shard

    def test_tables_have_the_one_schema(self, shard: Shard) -> None:
        (part,) = shard.parts(shard.row_ids())
        assert all(table.schema.equals(SCHEMA, check_metadata=True) for table in read_part(part))

    @pytest.mark.parametrize("num_wanted", [30, 4])
    def test_of_some_columns_no_other_is_handed_on(self, shard: Shard, num_wanted: int) -> None:
        wanted = shard.row_ids()[:num_wanted]
        (part,) = shard.parts(wanted)
        table = pa.concat_tables(read_part(part, ("completion", "ordinal")))
        assert table.column_names == ["completion", "ordinal"]
        assert table.column(0).to_pylist() == [row.completion for row in shard.rows(wanted)]

    def test_files_without_a_wanted_row_are_not_read(self, shard: Shard, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("openledger.datanets.shard.PART_ROWS", 10)
        ids = shard.row_ids()
        assert [part.row_ids for part in shard.parts([ids[25], ids[3], ids[4]])] == [(ids[3], ids[4]), (ids[25],)]

    def test_an_unknown_row_is_not_found(self, shard: Shard) -> None:
        with pytest.raises(NotFound, match="row_none"):
            shard.parts(["row_none"])

    def test_files_that_were_written_anew_meanwhile_are_read_instead(self, shard: Shard) -> None:
        ids = shard.row_ids()
        (part,) = shard.parts(ids[5:])
        shard.remove(ids[:5])
        assert [row.row_id for table in read_part(part) for row in rows_of(table)] == ids[5:]

    def test_rows_that_came_meanwhile_are_not_read(self, shard: Shard) -> None:
        ids = shard.row_ids()
        (part,) = shard.parts(ids)
        shard.append(sample_rows(5, "new"), "new")
        assert [row.row_id for table in read_part(part) for row in rows_of(table)] == ids

    def test_a_row_that_was_taken_back_meanwhile_is_told(self, shard: Shard) -> None:
        (part,) = shard.parts(shard.row_ids())
        shard.remove(shard.row_ids()[:1])
        with pytest.raises(Unavailable) as caught:
            list(read_part(part))
        assert caught.value.code == "rows_changed"

    @pytest.mark.parametrize("place", ["disk", "store"])
    @pytest.mark.parametrize("num_wanted", [6, 4])
    def test_a_row_whose_file_is_not_written_anew_yet_is_told(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, num_wanted: int
    ) -> None:
        shard = Shard(tmp_path / "d" if place == "disk" else f"file-object-store://{tmp_path}/docs.lance")
        shard.append(sample_rows(6), "a")
        compact, told = Shard._compact, []
        (part,) = shard.parts(shard.row_ids()[:num_wanted])

        def reading(own: Shard) -> None:
            with pytest.raises(Unavailable) as caught:
                list(read_part(part))
            told.append(caught.value.code)
            compact(own)

        monkeypatch.setattr(Shard, "_compact", reading)
        shard.remove([shard.row_ids()[2]])
        assert told == ["rows_changed"]

    def test_a_row_that_goes_while_its_file_is_read_is_told_and_none_is_read_twice(
        self, shard: Shard, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        whole, ids = bulk._read_files, shard.row_ids()

        def without_the_third(part: Part, columns: Sequence[str]) -> Iterator[Any]:
            table = pa.concat_tables(whole(part, columns))
            yield pa.concat_tables([table.slice(0, 2), table.slice(3, 9)])
            shard.remove([ids[2]])
            raise OSError("no such file")

        monkeypatch.setattr(bulk, "_read_files", without_the_third)
        (part,), found = shard.parts(ids), list[str]()
        with pytest.raises(Unavailable) as caught:
            found.extend(row.row_id for table in read_part(part) for row in rows_of(table))
        assert caught.value.code == "rows_changed"
        assert sorted(set(found)) == sorted(found)

    def test_what_was_read_before_its_file_went_is_not_read_again(
        self, shard: Shard, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ids, whole = shard.row_ids(), bulk._read_files

        def cut_off(part: Part, columns: Sequence[str]) -> Iterator[Any]:
            yield pa.concat_tables(whole(part, columns)).slice(0, 12)
            raise OSError("no such file")

        monkeypatch.setattr(bulk, "_read_files", cut_off)
        (part,) = shard.parts(ids)
        assert [row.row_id for table in read_part(part) for row in rows_of(table)] == ids

    def test_storage_that_is_away_is_told(self, shard: Shard, tmp_path: Path) -> None:
        (part,) = shard.parts(shard.row_ids())
        (tmp_path / "s").rename(tmp_path / "away")
        with pytest.raises(Unavailable) as caught:
            list(read_part(part))
        assert caught.value.code == "storage_unavailable"
