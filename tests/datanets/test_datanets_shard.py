"""A shard's segments: durable, repeatable, and checked when opened."""

from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from datanet_samples import sample_drafts

from openledger.core.errors import Conflict, Corrupt, InvalidInput, NotFound, Unavailable
from openledger.core.values import Row
from openledger.datanets.placement import shard_of
from openledger.datanets.rows import SCHEMA, rows_of, table_of
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
        assert (again.count, len(list((tmp_path / "s").iterdir()))) == (3, 1)

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

    def test_segments_carry_format_and_key(self, tmp_path: Path) -> None:
        Shard(tmp_path / "s").append(sample_rows(3), "a")
        (path,) = (tmp_path / "s").iterdir()
        metadata = pq.read_schema(path).metadata
        assert (metadata[b"openledger.format"], metadata[b"openledger.key"]) == (b"rows/1", b"a")

    def test_what_a_crash_left_half_written_is_removed(self, tmp_path: Path) -> None:
        Shard(tmp_path / "s").append(sample_rows(3), "a")
        leftover = tmp_path / "s" / ".abc.parquet.17.new"
        leftover.write_bytes(b"half a segm")
        assert Shard(tmp_path / "s").count == 3
        assert not leftover.exists()

    def test_any_changed_byte_is_found_and_its_file_named(self, tmp_path: Path) -> None:
        Shard(tmp_path / "s").append(sample_rows(20), "a")
        (path,) = (tmp_path / "s").iterdir()
        whole = path.read_bytes()
        for place in range(0, len(whole), 97):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
            with pytest.raises(Corrupt) as caught:
                Shard(tmp_path / "s")
            assert caught.value.code == "corrupt_segment"
            assert path.name in caught.value.message
            assert str(tmp_path / "s") in caught.value.message
        path.write_bytes(whole)
        assert Shard(tmp_path / "s").count == 20

    def test_a_truncated_segment_is_corrupt(self, tmp_path: Path) -> None:
        Shard(tmp_path / "s").append(sample_rows(20), "a")
        (path,) = (tmp_path / "s").iterdir()
        path.write_bytes(path.read_bytes()[:-10])
        with pytest.raises(Corrupt):
            Shard(tmp_path / "s")

    def test_a_disk_that_refuses_is_named_and_nothing_is_stored(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shard = Shard(tmp_path / "s")

        def full(descriptor: int) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr("os.fsync", full)
            with pytest.raises(Unavailable, match="No space left") as caught:
                shard.append(sample_rows(3), "a")
        assert str(tmp_path / "s") in caught.value.message
        assert Shard(tmp_path / "s").count == shard.count == 0
        shard.append(sample_rows(3), "a")
        assert Shard(tmp_path / "s").count == 3


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
