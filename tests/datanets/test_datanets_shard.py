"""A shard's files: durable, repeatable, and checked when opened."""

import io
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import lance
import pyarrow.parquet as pq
import pytest
from datanet_samples import sample_drafts

from openledger.core.errors import Conflict, Corrupt, InvalidInput, NotFound, Unavailable
from openledger.core.hashing import digest_bytes
from openledger.core.values import Row
from openledger.datanets.filelist import read_list
from openledger.datanets.placement import shard_of
from openledger.datanets.rows import SCHEMA, packed, rows_of, table_of
from openledger.datanets.shard import Shard, ShardHost


def sample_rows(num_rows: int, subject: str = "archive") -> list[Row]:
    return [
        Row(
            row_id=f"row_{subject}_{number}",
            datanet="docs",
            contributor_id="ctr_a",
            contribution_id="ctb_a",
            ordinal=number,
            source=draft.source,
            prompt=draft.prompt,
            completion=draft.completion,
        )
        for number, draft in enumerate(sample_drafts(num_rows, subject))
    ]


def write_segment(folder: Path, rows: list[Row], key: str) -> Path:
    """A file as shards wrote it before they were Lance datasets."""
    folder.mkdir(parents=True, exist_ok=True)
    table, stream = table_of(rows), io.BytesIO()
    pq.write_table(table.replace_schema_metadata({**table.schema.metadata, b"openledger.key": key.encode()}), stream)
    data = stream.getvalue()
    path = folder / f"{digest_bytes(key.encode())[:32]}.{digest_bytes(data)[:32]}.parquet"
    path.write_bytes(data)
    return path


def grep(folder: Path, needle: bytes) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and needle in path.read_bytes()]


def refuse(descriptor: int) -> None:
    raise OSError(28, "No space left on device")


@pytest.fixture(autouse=True)
def without_a_journal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Appends come into the dataset at once; `test_datanets_journal` has small ones."""
    monkeypatch.setattr("openledger.datanets.shard.MAX_SMALL_BYTES", 0)


class TestRows:
    def test_rows_survive_the_way_through_arrow(self) -> None:
        rows = sample_rows(5)
        table = table_of(rows)
        assert table.schema.equals(SCHEMA)
        assert list(rows_of(table)) == rows


class TestShard:
    def test_rows_are_found_by_id_in_the_order_asked(self, tmp_path: Path) -> None:
        shard, rows = Shard(tmp_path / "s"), sample_rows(6)
        shard.append(rows[:3], "a")
        shard.append(rows[3:], "b")
        assert shard.rows([rows[4].row_id, rows[0].row_id]) == [rows[4], rows[0]]

    def test_a_new_process_finds_everything(self, tmp_path: Path) -> None:
        rows = sample_rows(6)
        Shard(tmp_path / "s").append(rows, "a")
        reopened = Shard(tmp_path / "s")
        assert reopened.count == 6
        assert [row for batch in reopened.scan() for row in rows_of(batch)] == rows

    def test_the_same_append_again_changes_nothing(self, tmp_path: Path) -> None:
        rows = sample_rows(3)
        Shard(tmp_path / "s").append(rows, "a")
        again = Shard(tmp_path / "s")
        again.append(rows, "a")
        assert again.count == Shard(tmp_path / "s").count == 3

    def test_other_rows_under_the_same_key_conflict(self, tmp_path: Path) -> None:
        shard = Shard(tmp_path / "s")
        shard.append(sample_rows(3), "a")
        with pytest.raises(Conflict, match="already holds other rows"):
            shard.append(sample_rows(3, "other"), "a")

    def test_a_row_id_stands_once(self, tmp_path: Path) -> None:
        shard = Shard(tmp_path / "s")
        shard.append(sample_rows(3), "a")
        with pytest.raises(Conflict, match="stands twice"):
            shard.append(sample_rows(1), "b")
        assert shard.count == 3

    def test_an_unknown_row_is_not_found(self, tmp_path: Path) -> None:
        with pytest.raises(NotFound, match="row_none"):
            Shard(tmp_path / "s").rows(["row_none"])

    def test_rows_of_old_parquet_segments_are_taken_over_once(self, tmp_path: Path) -> None:
        rows, folder = sample_rows(5), tmp_path / "s"
        old = [write_segment(folder, rows[:3], "a"), write_segment(folder, rows[3:], "b")]
        shard = Shard(folder)
        assert shard.rows([row.row_id for row in rows]) == rows
        assert not any(path.exists() for path in old)
        shard.append(rows[:3], "a")
        assert Shard(folder).count == 5

    def test_a_crash_while_segments_are_taken_over_doubles_nothing(self, tmp_path: Path) -> None:
        rows, folder = sample_rows(5), tmp_path / "s"
        path = write_segment(folder, rows, "a")
        kept = path.read_bytes()
        Shard(folder)
        path.write_bytes(kept)
        assert Shard(folder).count == 5
        assert not path.exists()

    def test_a_damaged_old_segment_is_named_and_kept(self, tmp_path: Path) -> None:
        path = write_segment(tmp_path / "s", sample_rows(5), "a")
        path.write_bytes(path.read_bytes()[:-10])
        with pytest.raises(Corrupt, match=path.name):
            Shard(tmp_path / "s")
        assert path.exists()

    def test_what_a_crash_left_unlisted_is_removed(self, tmp_path: Path) -> None:
        """As after a power cut between Lance's commit, which syncs nothing, and ours."""
        shard = Shard(tmp_path / "s")
        shard.append(sample_rows(3), "a")
        lance.write_dataset(lance.dataset(shard._files.uri).to_table(), shard._files.uri, mode="append")
        assert lance.dataset(shard._files.uri).count_rows() == 6
        leftover = tmp_path / "s" / "rows.lance" / "data" / "half.lance"
        leftover.write_bytes(b"half a fragm")
        reopened = Shard(tmp_path / "s")
        assert (reopened.count, lance.dataset(shard._files.uri).count_rows(), leftover.exists()) == (3, 3, False)
        reopened.append(sample_rows(3, "other"), "b")
        assert Shard(tmp_path / "s").count == 6

    def test_any_changed_byte_is_found_and_its_file_named(self, tmp_path: Path) -> None:
        Shard(tmp_path / "s").append(sample_rows(20), "a")
        for path in sorted((tmp_path / "s" / "rows.lance").rglob("*")):
            if path.is_file():
                self.check_changed_bytes(tmp_path / "s", path)
        assert Shard(tmp_path / "s").count == 20

    def check_changed_bytes(self, folder: Path, path: Path) -> None:
        whole = path.read_bytes()
        for place in range(0, len(whole), 97):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
            with pytest.raises(Corrupt) as caught:
                Shard(folder)
            assert caught.value.code == "corrupt_shard_file"
            assert "this Datanet's folder alone" in str(caught.value.fix)
            assert path.name in caught.value.message
            assert str(folder) in caught.value.message
        path.write_bytes(whole)

    @pytest.mark.parametrize("part", ["data", "_versions"])
    def test_a_missing_file_is_corrupt(self, tmp_path: Path, part: str) -> None:
        Shard(tmp_path / "s").append(sample_rows(20), "a")
        (path,) = (tmp_path / "s" / "rows.lance" / part).iterdir()
        path.unlink()
        with pytest.raises(Corrupt, match="can't be read"):
            Shard(tmp_path / "s")

    def test_a_damaged_list_is_corrupt(self, tmp_path: Path) -> None:
        Shard(tmp_path / "s").append(sample_rows(2), "a")
        (tmp_path / "s" / "files.json").write_text("{")
        with pytest.raises(Corrupt, match=r"files\.json"):
            Shard(tmp_path / "s")

    def test_every_file_of_an_append_is_synced_before_the_list_names_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shard, synced = Shard(tmp_path / "s"), list[str]()
        fsync = os.fsync

        def counted(descriptor: int) -> None:
            synced.append(os.path.relpath(os.readlink(f"/proc/self/fd/{descriptor}"), tmp_path / "s"))
            fsync(descriptor)

        monkeypatch.setattr("os.fsync", counted)
        for number in range(2):
            synced.clear()
            shard.append(sample_rows(3, f"part{number}"), f"{number}")
            before = synced[: next(n for n, name in enumerate(synced) if "files.json" in name)]
            named = [name for name in read_list(tmp_path / "s") if name not in before]
            assert {"rows.lance/data", "rows.lance/_versions"} <= set(before)
            assert len(named) == number  # only the first append's data is known to be on disk already

    def test_many_small_appends_become_few_files(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("openledger.datanets.shard.MAX_SMALL_FRAGMENTS", 8)
        shard, rows = Shard(tmp_path / "s"), sample_rows(40)
        for number in range(20):
            shard.append(rows[2 * number : 2 * number + 2], str(number))
        assert len(list((tmp_path / "s" / "rows.lance" / "data").iterdir())) < 8
        assert shard.rows([row.row_id for row in rows]) == rows
        again = Shard(tmp_path / "s")
        again.append(rows[:2], "0")
        assert (again.count, again.rows([row.row_id for row in rows])) == (40, rows)

    def test_a_disk_that_refuses_is_named_and_nothing_is_stored(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shard = Shard(tmp_path / "s")
        with monkeypatch.context() as patch:
            patch.setattr("os.fsync", refuse)
            with pytest.raises(Unavailable, match="No space left") as caught:
                shard.append(sample_rows(3), "a")
        assert str(tmp_path / "s") in caught.value.message
        assert Shard(tmp_path / "s").count == shard.count == 0
        shard.append(sample_rows(3), "a")
        assert Shard(tmp_path / "s").count == 3

    @pytest.mark.parametrize("is_new", [True, False])
    def test_a_disk_that_refuses_the_opening_is_told(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_new: bool
    ) -> None:
        if not is_new:
            Shard(tmp_path / "s").append(sample_rows(3), "a")
        with monkeypatch.context() as patch:
            patch.setattr("os.fsync", refuse)
            with pytest.raises(Unavailable, match="No space left"):
                Shard(tmp_path / "s")
        assert Shard(tmp_path / "s").count == (0 if is_new else 3)


class TestRemove:
    def test_no_byte_of_a_removed_row_is_left(self, tmp_path: Path) -> None:
        shard, rows = Shard(tmp_path / "s"), sample_rows(6)
        secret = replace(rows[2], completion="xylophonesecret " * 8)
        shard.append([*rows[:2], secret, *rows[3:]], "a")
        shard.append(sample_rows(4, "other"), "b")
        assert grep(tmp_path, b"xylophonesecret")  # the control: it can be found
        assert shard.remove([secret.row_id]) == 1
        assert grep(tmp_path, b"xylophonesecret") == grep(tmp_path, secret.row_id.encode()) == []
        assert [row.row_id for row in shard.rows([rows[5].row_id])] == [rows[5].row_id]
        assert Shard(tmp_path / "s").count == shard.count == 9

    def test_no_id_is_left_of_an_append_that_is_removed_whole(self, tmp_path: Path) -> None:
        """Its file goes as it is, and nothing is compacted."""
        shard, rows = Shard(tmp_path / "s"), sample_rows(2)
        shard.append(rows, "a")
        shard.append(sample_rows(4, "other"), "b")
        assert shard.remove([row.row_id for row in rows]) == 2
        assert grep(tmp_path, rows[0].row_id.encode()) == []
        assert Shard(tmp_path / "s").count == 4

    def test_the_last_row_can_be_removed_and_others_come(self, tmp_path: Path) -> None:
        shard, rows = Shard(tmp_path / "s"), sample_rows(2)
        shard.append(rows, "a")
        shard.remove([row.row_id for row in rows])
        assert shard.count == Shard(tmp_path / "s").count == 0
        assert list((tmp_path / "s" / "rows.lance").rglob("*.lance")) == []
        shard.append(sample_rows(3, "other"), "b")
        assert Shard(tmp_path / "s").count == 3

    def test_removing_again_changes_nothing(self, tmp_path: Path) -> None:
        shard, rows = Shard(tmp_path / "s"), sample_rows(3)
        shard.append(rows, "a")
        shard.remove([rows[0].row_id])
        before = (tmp_path / "s" / "files.json").read_bytes()
        assert shard.remove([rows[0].row_id, "row_none"]) == 0
        assert (tmp_path / "s" / "files.json").read_bytes() == before

    def test_a_repeated_append_does_not_bring_a_removed_row_back(self, tmp_path: Path) -> None:
        shard, rows = Shard(tmp_path / "s"), sample_rows(3)
        shard.append(rows, "a")
        shard.remove([rows[0].row_id])
        shard.append(rows, "a")
        assert shard.count == 2

    def test_a_disk_that_refuses_leaves_the_row(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        shard, rows = Shard(tmp_path / "s"), sample_rows(3)
        shard.append(rows, "a")
        with monkeypatch.context() as patch:
            patch.setattr("os.fsync", refuse)
            with pytest.raises(Unavailable):
                shard.remove([rows[0].row_id])
        assert shard.rows([rows[0].row_id]) == rows[:1]
        assert Shard(tmp_path / "s").count == 3


class TestPackedRows:
    """As they come from another process."""

    def test_are_the_rows_that_were_sent(self) -> None:
        rows = [*sample_rows(3), replace(sample_rows(1)[0], row_id="row_x", extra='{"a":"ä"}', source="")]
        table = table_of(packed(rows))
        assert table.equals(table_of(rows))
        assert (table.schema.equals(SCHEMA, check_metadata=True), list(rows_of(table))) == (True, rows)
        assert table_of(packed([])).num_rows == 0

    def test_are_stored_once_whichever_way_they_come(self, tmp_path: Path) -> None:
        rows = sample_rows(5)
        shard = Shard(tmp_path / "docs")
        for sent in (packed(rows), rows, packed(rows)):
            shard.append(sent, "key")
        assert shard.rows([row.row_id for row in rows]) == rows
        assert Shard(tmp_path / "docs").count == shard.count == 5
        with pytest.raises(Conflict) as caught:
            shard.append(packed(sample_rows(5, "else")), "key")
        assert caught.value.code == "key_reused"


class TestShardHost:
    def test_datanets_have_their_own_rows(self, tmp_path: Path) -> None:
        host = ShardHost(tmp_path / "shard-0")
        host.append("docs", sample_rows(3), "a")
        host.append("poems", sample_rows(2, "poem"), "a")
        assert (host.count("docs"), host.count("poems")) == (3, 2)

    def test_a_name_that_leaves_the_folder_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidInput):
            ShardHost(tmp_path / "shard-0").count("../shard-1")


class TestPlacement:
    ROW_IDS = tuple(f"row_{number}" for number in range(6_000))

    def test_shards_get_equal_parts(self) -> None:
        parts = Counter(shard_of(row_id, 4) for row_id in self.ROW_IDS)
        assert sorted(parts) == [0, 1, 2, 3]
        assert all(1_350 < number < 1_650 for number in parts.values())

    def test_a_new_shard_takes_its_part_and_moves_no_other_row(self) -> None:
        before = [shard_of(row_id, 4) for row_id in self.ROW_IDS]
        after = [shard_of(row_id, 5) for row_id in self.ROW_IDS]
        moved = [new for old, new in zip(before, after, strict=True) if old != new]
        assert set(moved) == {4}
        assert 1_000 < len(moved) < 1_400
