"""Small appends of a shard stand in its journal: durable and found at once, once in the dataset in the end, and gone
from it when they are taken back."""

import os
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from test_datanets_shard import grep, refuse, sample_rows

from openledger.core.errors import Conflict, Corrupt, NotFound, Unavailable
from openledger.core.values import Row
from openledger.datanets.bulk import read_part
from openledger.datanets.journal import Journal
from openledger.datanets.rows import rows_of, table_of
from openledger.datanets.shard import Shard

DATASET, JOURNAL = "rows.lance", "recent.journal"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "s"


@pytest.fixture
def rows() -> list[Row]:
    return sample_rows(9)


@pytest.fixture
def shard(folder: Path, rows: list[Row], monkeypatch: pytest.MonkeyPatch) -> Shard:
    return three_in_the_dataset_six_in_the_journal(folder, rows, monkeypatch)


def three_in_the_dataset_six_in_the_journal(folder: Path, rows: list[Row], monkeypatch: pytest.MonkeyPatch) -> Shard:
    opened = Shard(folder)
    with monkeypatch.context() as large:
        large.setattr("openledger.datanets.shard.MAX_SMALL_BYTES", 0)
        opened.append(rows[:3], "a")
    opened.append(rows[3:6], "b")
    opened.append(rows[6:], "c")
    return opened


def refuse_from(step: int, num_refused: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Of the syncs and removals of files that come, refuse as many from `step` on; those that were refused."""
    failed, steps = list[str](), count()

    def refusing(done: Callable[..., None]) -> Callable[..., None]:
        def one(*given: Any, **options: Any) -> None:
            if step <= next(steps) < step + num_refused:
                failed.append(done.__name__)
                raise OSError(5, "Input/output error")
            done(*given, **options)

        return one

    monkeypatch.setattr("os.fsync", refusing(os.fsync))
    monkeypatch.setattr(Path, "unlink", refusing(Path.unlink))
    return failed


def name_of(descriptor: int) -> str:
    return os.readlink(f"/proc/self/fd/{descriptor}")


def num_files(folder: Path) -> int:
    return len(list((folder / DATASET / "data").iterdir()))


def scanned(shard: Shard) -> list[Row]:
    return [row for batch in shard.scan() for row in rows_of(batch)]


class TestSmallAppends:
    def test_write_no_file_of_the_dataset(self, shard: Shard, folder: Path) -> None:
        assert num_files(folder) == 1
        assert (folder / JOURNAL).stat().st_size > 0

    def test_are_synced_once_each(self, shard: Shard, monkeypatch: pytest.MonkeyPatch) -> None:
        synced = list[int]()
        monkeypatch.setattr("os.fsync", synced.append)
        shard.append(sample_rows(2, "more"), "d")
        assert len(synced) == 1

    def test_are_read_as_the_others(self, shard: Shard, rows: list[Row]) -> None:
        mixed = [rows[7], rows[1], rows[4], rows[0]]
        assert shard.rows([row.row_id for row in mixed]) == mixed
        assert scanned(shard) == rows
        assert (shard.count, shard.row_ids()) == (9, [row.row_id for row in rows])

    def test_are_there_for_the_next_process(self, shard: Shard, folder: Path, rows: list[Row]) -> None:
        again = Shard(folder)
        assert scanned(again) == rows
        again.append(rows[3:6], "b")
        assert again.count == 9
        with pytest.raises(Conflict):
            again.append(sample_rows(1, "other"), "c")

    def test_that_a_killed_process_did_not_sync_are_synced_before_they_are_answered_for(
        self, shard: Shard, folder: Path, rows: list[Row], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        synced, fsync = list[str](), os.fsync
        with monkeypatch.context() as refusing:
            refusing.setattr("os.fsync", lambda one: (refuse if name_of(one).endswith(JOURNAL) else fsync)(one))
            with pytest.raises(Unavailable):
                Shard(folder)
        monkeypatch.setattr("os.fsync", lambda one: (synced.append(name_of(one)), fsync(one))[1])
        again = Shard(folder)
        again.append(rows[6:], "c")
        assert again.count == 9
        assert str(folder) in synced[synced.index(str(folder / JOURNAL)) :]

    def test_come_into_the_dataset_with_a_large_one(
        self, shard: Shard, folder: Path, rows: list[Row], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("openledger.datanets.shard.MAX_SMALL_BYTES", 0)
        more = sample_rows(2, "more")
        shard.append(more, "d")
        assert (num_files(folder), (folder / JOURNAL).stat().st_size) == (2, 0)
        for one in (shard, Shard(folder)):
            assert scanned(one) == [*rows, *more]
            assert one.rows([more[1].row_id, rows[5].row_id]) == [more[1], rows[5]]

    def test_come_into_the_dataset_when_they_are_many(
        self, shard: Shard, folder: Path, rows: list[Row], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("openledger.datanets.shard.MAX_JOURNAL_BYTES", 20_000)
        more = sample_rows(30, "more")
        for number, row in enumerate(more):
            shard.append([row], str(number))
            assert (folder / JOURNAL).stat().st_size <= 20_000 + 3_000  # what a row's record has beside the row
        assert num_files(folder) > 2
        for one in (shard, Shard(folder)):
            assert scanned(one) == [*rows, *more]

    def test_come_into_the_dataset_when_their_records_are_many(
        self, shard: Shard, folder: Path, rows: list[Row]
    ) -> None:
        more = sample_rows(300, "more")
        for number, row in enumerate(more):
            shard.append([row], str(number))
        assert num_files(folder) == 2
        assert len(Journal(folder / JOURNAL).read()) < 256
        for one in (shard, Shard(folder)):
            assert scanned(one) == [*rows, *more]

    def test_are_put_together_once_for_all_that_read_them(self, shard: Shard, rows: list[Row]) -> None:
        assert shard.rows([rows[7].row_id]) == [rows[7]]
        (together,) = shard._recent
        assert shard.rows([rows[4].row_id]) == [rows[4]]
        assert shard._recent[0] is together
        more = sample_rows(2, "more")
        shard.append(more, "d")
        assert shard.rows([more[1].row_id, rows[8].row_id]) == [more[1], rows[8]]

    def test_come_into_the_dataset_before_its_files_are_read_elsewhere(self, shard: Shard, rows: list[Row]) -> None:
        tables = [table for part in shard.parts([row.row_id for row in rows]) for table in read_part(part)]
        assert [row for table in tables for row in rows_of(table)] == rows

    def test_stay_where_files_without_them_are_read_elsewhere(
        self, shard: Shard, folder: Path, rows: list[Row], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A disk that is full, or read-only, can still be read."""
        before = (folder / JOURNAL).read_bytes()
        monkeypatch.setattr("os.fsync", refuse)
        (part,) = shard.parts([row.row_id for row in rows[:3]])
        assert [row for table in read_part(part) for row in rows_of(table)] == rows[:3]
        assert ((folder / JOURNAL).read_bytes(), num_files(folder)) == (before, 1)
        with pytest.raises(NotFound, match="row_none"):
            shard.parts([rows[8].row_id, "row_none"])

    def test_leave_it_to_the_next_append_to_make_few_files_of_many(
        self, shard: Shard, folder: Path, rows: list[Row], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("openledger.datanets.shard.MAX_SMALL_FRAGMENTS", 2)
        shard.parts([rows[8].row_id])
        assert num_files(folder) == 2
        more = sample_rows(2, "more")
        shard.append(more, "d")
        assert num_files(folder) == 1
        for one in (shard, Shard(folder)):
            assert scanned(one) == [*rows, *more]

    def test_leave_no_byte_when_they_are_taken_back(self, shard: Shard, folder: Path, rows: list[Row]) -> None:
        secret = rows[7]
        assert grep(folder, secret.completion.encode())  # the control: it can be found
        assert shard.remove([secret.row_id]) == 1
        assert grep(folder, secret.completion.encode()) == grep(folder, secret.row_id.encode()) == []
        assert scanned(Shard(folder)) == [row for row in rows if row != secret]


class TestABadDisk:
    def test_that_refuses_is_told_and_nothing_is_stored(
        self, shard: Shard, folder: Path, rows: list[Row], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        more = sample_rows(4, "more")
        with monkeypatch.context() as full:
            full.setattr("os.fsync", refuse)
            with pytest.raises(Unavailable) as caught:
                shard.append(more, "d")
        assert (caught.value.code, str(folder) in caught.value.message) == ("storage_unavailable", True)
        assert scanned(shard) == rows
        shard.append(more[:1], "e")  # shorter than what lies there
        shard.append(more[1:], "f")
        for one in (shard, Shard(folder)):
            assert scanned(one) == [*rows, *more]

    def test_that_refuses_keeps_no_byte_of_what_was_refused(
        self, folder: Path, rows: list[Row], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shard, fsync, refused = Shard(folder), os.fsync, count()
        with monkeypatch.context() as full:
            full.setattr("os.fsync", lambda one: (fsync if next(refused) else refuse)(one))
            with pytest.raises(Unavailable):
                shard.append(rows, "a")
        assert grep(folder, rows[0].row_id.encode()) == []
        assert Shard(folder).count == 0

    def test_that_does_not_sync_the_journals_name_is_asked_again_before_an_answer(
        self, folder: Path, rows: list[Row], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shard, synced, fsync = Shard(folder), list[str](), os.fsync
        with monkeypatch.context() as bad:
            bad.setattr("os.fsync", lambda one: (refuse if name_of(one) == str(folder) else fsync)(one))
            with pytest.raises(Unavailable):
                shard.append(rows, "a")
        monkeypatch.setattr("os.fsync", lambda one: (synced.append(name_of(one)), fsync(one))[1])
        shard.append(rows, "a")
        assert str(folder) in synced

    def test_that_may_have_kept_what_was_refused_is_asked_again_when_rows_are_taken_back(
        self, folder: Path, rows: list[Row], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shard, synced, fsync = Shard(folder), list[str](), os.fsync
        with monkeypatch.context() as full:
            full.setattr("os.fsync", refuse)
            with pytest.raises(Unavailable):
                shard.append(rows, "a")
        monkeypatch.setattr("os.fsync", lambda one: (synced.append(name_of(one)), fsync(one))[1])
        assert shard.remove([rows[0].row_id]) == 0
        assert str(folder / JOURNAL) in synced
        assert grep(folder, rows[0].row_id.encode()) == []

    def test_that_refuses_while_the_journal_comes_into_the_dataset_loses_nothing(
        self, shard: Shard, folder: Path, rows: list[Row], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with monkeypatch.context() as full:
            full.setattr("os.fsync", refuse)
            with pytest.raises(Unavailable):
                shard.remove([rows[0].row_id])
        assert scanned(shard) == rows
        assert shard.remove([rows[0].row_id]) == 1
        for one in (shard, Shard(folder)):
            assert scanned(one) == rows[1:]

    @pytest.mark.parametrize("num_refused", [1, 99])
    @pytest.mark.parametrize("large", [False, True])
    def test_that_refuses_any_step_of_it_loses_nothing_and_doubles_nothing(
        self, tmp_path: Path, rows: list[Row], monkeypatch: pytest.MonkeyPatch, num_refused: int, large: bool
    ) -> None:
        more = sample_rows(2, "more")
        for step in count():
            shard = three_in_the_dataset_six_in_the_journal(folder := tmp_path / str(step), rows, monkeypatch)
            with monkeypatch.context() as bad:
                failed = refuse_from(step, num_refused, bad)
                with suppress(Unavailable):
                    if large:
                        bad.setattr("openledger.datanets.shard.MAX_SMALL_BYTES", 0)
                        shard.append(more, "d")
                    else:
                        shard.parts([rows[8].row_id])
            ids = [row.row_id for row in rows]
            assert (shard.row_ids()[:9], shard.rows(ids), scanned(shard)[:9]) == (ids, rows, rows)
            shard.append(more, "d")
            assert scanned(Shard(folder)) == scanned(shard) == [*rows, *more]
            assert shard.remove([rows[4].row_id]) == 1
            assert grep(folder, rows[4].row_id.encode()) == []
            for one in (shard, Shard(folder)):
                assert scanned(one) == [*rows[:4], *rows[5:], *more]
            if not failed:
                break
        assert step > 8

    def test_that_does_not_sync_the_list_keeps_the_journal(
        self, shard: Shard, folder: Path, rows: list[Row], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The list's new name may be gone after a power cut: only the journal has the rows then."""
        kept, fsync = (folder / JOURNAL).read_bytes(), os.fsync
        more = sample_rows(2, "more")
        with monkeypatch.context() as bad:
            bad.setattr("os.fsync", lambda one: (refuse if name_of(one) == str(folder) else fsync)(one))
            for change in (lambda: shard.parts([rows[8].row_id]), lambda: shard.append(more, "d")):
                with pytest.raises(Unavailable):
                    change()
                assert (folder / JOURNAL).read_bytes() == kept
        shard.append(more, "d")
        for one in (shard, Shard(folder)):
            assert scanned(one) == [*rows, *more]

    @pytest.mark.parametrize("then", ["an append", "a removal", "an end"])
    def test_that_keeps_the_journal_back_doubles_nothing_and_brings_nothing_back(
        self, shard: Shard, folder: Path, rows: list[Row], monkeypatch: pytest.MonkeyPatch, then: str
    ) -> None:
        def stays(_: Journal) -> None:
            raise OSError(5, "Input/output error")

        with monkeypatch.context() as stuck:
            stuck.setattr(Journal, "clear", stays)
            with pytest.raises(Unavailable):
                shard.parts([rows[8].row_id])
        expected = list(rows)
        if then == "an append":
            expected += sample_rows(2, "more")
            shard.append(expected[9:], "d")
        elif then == "a removal":
            for row in expected[3:6]:
                shard.remove([row.row_id])
            del expected[3:6]
        for one in (shard, Shard(folder)):
            assert scanned(one) == expected

    def test_that_kept_what_the_dataset_has_keeps_what_came_behind_it(
        self, shard: Shard, folder: Path, rows: list[Row], tmp_path: Path
    ) -> None:
        other, more, before = Shard(tmp_path / "other"), sample_rows(2, "more"), (folder / JOURNAL).read_bytes()
        other.append(more, "d")
        shard.parts([rows[8].row_id])
        (folder / JOURNAL).write_bytes(before + (tmp_path / "other" / JOURNAL).read_bytes())
        again = Shard(folder)
        assert scanned(again) == [*rows, *more]
        again.remove([rows[3].row_id])
        for one in (again, Shard(folder)):
            assert scanned(one) == [*rows[:3], *rows[4:], *more]


class TestADamagedJournal:
    def test_ends_where_a_crash_has_cut_it_off(self, shard: Shard, folder: Path, rows: list[Row]) -> None:
        whole = (folder / JOURNAL).read_bytes()
        for cut in (1, 20, 300):
            (folder / JOURNAL).write_bytes(whole[:-cut])
            assert scanned(Shard(folder)) == rows[:6]
            assert len((folder / JOURNAL).read_bytes()) < len(whole) - cut

    def test_ends_where_a_crash_has_left_pages_unwritten(self, shard: Shard, folder: Path, rows: list[Row]) -> None:
        shard.append(sample_rows(60, "more"), "d")
        begin, data = (folder / JOURNAL).stat().st_size, bytearray()
        more = sample_rows(60, "even more")
        shard.append(more, "e")
        whole = (folder / JOURNAL).read_bytes()
        page = (begin // 4096 + 1) * 4096
        for start, end in ((begin, len(whole)), (begin, page), (page, page + 4096), (len(whole) - 9, len(whole))):
            data[:] = whole
            data[start:end] = bytes(end - start)
            (folder / JOURNAL).write_bytes(data)
            assert Shard(folder).count == 69
            assert (folder / JOURNAL).read_bytes() == whole[:begin]

    def test_is_told_where_its_last_record_is_damaged(self, shard: Shard, folder: Path, rows: list[Row]) -> None:
        path = folder / JOURNAL
        data = path.read_bytes()
        for place in (*range(len(data) // 2, len(data) // 2 + 48), *range(len(data) // 2, len(data), 97), -1):
            damaged = bytearray(data)
            damaged[place] ^= 1
            path.write_bytes(damaged)
            with pytest.raises(Corrupt) as caught:
                Shard(folder)
            assert (caught.value.code, path.read_bytes()) == ("corrupt_shard_journal", damaged)

    def test_takes_what_comes_behind_what_a_crash_has_cut_off(
        self, shard: Shard, folder: Path, rows: list[Row]
    ) -> None:
        path = folder / JOURNAL
        path.write_bytes(path.read_bytes()[:-300])
        Shard(folder).append(rows[6:], "c")
        assert scanned(Shard(folder)) == rows

    def test_is_told_where_a_whole_record_stands_behind_the_damage(self, shard: Shard, folder: Path) -> None:
        path = folder / JOURNAL
        data = bytearray(path.read_bytes())
        for place in (3, 10, 30, 200):
            damaged = bytearray(data)
            damaged[place] ^= 1
            path.write_bytes(damaged)
            with pytest.raises(Corrupt) as caught:
                Shard(folder)
            assert (caught.value.code, caught.value.param) == ("corrupt_shard_journal", str(path))
            assert path.read_bytes() == damaged


def test_a_journal_gives_back_what_was_added(tmp_path: Path) -> None:
    journal, tables = Journal(tmp_path / "j"), [table_of(sample_rows(3, subject)) for subject in ("a", "b")]
    assert journal.is_empty
    for table in tables:
        journal.add(table)
    again = Journal(tmp_path / "j")
    assert again.read() == tables
    again.clear()
    assert again.is_empty
    assert Journal(tmp_path / "j").read() == []


def test_appends_that_wait_together_are_one_record(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shard, added = Shard(folder), list[Any]()
    add = Journal.add
    monkeypatch.setattr(Journal, "add", lambda journal, table: (added.append(len(table)), add(journal, table))[1])
    with ThreadPoolExecutor(4) as pool:
        with shard._lock:
            sent = [pool.submit(shard.append, sample_rows(3, subject), subject) for subject in "abcd"]
            while len(shard._waiting) < 4:
                pass
        for one in sent:
            one.result()
    assert added == [12]
    assert set(Counter(row.row_id for row in scanned(Shard(folder))).values()) == {1}
