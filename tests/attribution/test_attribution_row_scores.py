"""Row scores brought to what is paid: cell by cell, additively, by how unsure each row is."""

import json
import tracemalloc
from io import BufferedReader, FileIO
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from openledger.attribution.period import BankRows
from openledger.attribution.row_pages import order_key
from openledger.attribution.row_scores import RowScores, brought_to_bank, document, open_document
from openledger.core.errors import Corrupt
from openledger.core.hashing import digest_bytes

GROUPS = np.array([0, 0, 0, 0, 1, 1])
NAMES = ["a", "a", "b", "b", "b", "b"]


def bank(influence_R):
    return BankRows(influence_R=np.array(influence_R, dtype=float), group_R=GROUPS, error_G=np.array([0.4, 0.2]))


def test_rows_of_a_cell_sum_to_what_the_bank_gives_them_and_differ_as_the_replay_says():
    this_run_R, held = np.array([5.0, 1.0, -2.0, 2.0, 0.5, 0.25]), bank([1, 1, -1, 1, 2, 2])
    found = brought_to_bank(this_run_R, held, NAMES)
    for cell in ([0, 1], [2, 3], [4, 5]):
        assert found.expected_R[cell].sum() == pytest.approx(held.influence_R[cell].sum())
    assert found.expected_R[0] > found.expected_R[1]  # though it gave way by more
    assert found.this_run_R is this_run_R


def test_a_row_on_which_both_agree_gives_way_least():
    this_run_R = np.array([1.0, 4.0, 0.0, 0.0, 0.0, 0.0])
    moved = np.abs(brought_to_bank(this_run_R, bank([1, 1, 0, 0, 0, 0]), NAMES).expected_R - this_run_R)
    assert 0 < moved[0] < moved[1]


def test_where_the_replay_says_what_the_bank_does_nothing_moves():
    same = [3.0, -1.0, 0.5, 0.25, 2.0, 0.0]
    found = brought_to_bank(np.array(same), bank(same), NAMES)
    assert np.allclose(found.expected_R, same)


def test_a_signed_sum_near_zero_is_no_danger():
    found = brought_to_bank(np.array([1.0, -1.0 + 1e-12, 1, 1, 1, 1]), bank([5, 5, 1, 1, 1, 1]), NAMES)
    assert found.expected_R[:2].sum() == pytest.approx(10)
    assert np.abs(found.expected_R).max() < 20


def test_a_row_alone_in_its_cell_has_the_cells_error_and_others_their_own_too():
    names = ["a", "b", "c", "c", "d", "e"]
    found = brought_to_bank(np.arange(6.0), bank([0, 0, 0, 0, 4, 5]), names)
    assert found.error_R[0] == pytest.approx(0.4 * np.sqrt(1 / 4))
    assert found.error_R[4] == found.error_R[5] == pytest.approx(0.2 * np.sqrt(1 / 2))
    assert (found.error_R[2:4] > 0.4 / 2 * np.sqrt(2 / 4)).all()


def made(number, contributors=3, **stated):
    """Row scores of `number` rows, which came in another order than they moved anything."""
    random = np.random.default_rng(number)
    moved_R = random.permutation(number) / 2 - number / 4
    parts = {"use": RowScores(this_run_R=moved_R), "improvement": RowScores(this_run_R=-moved_R)}
    rows = [(f"row_{place:06}", f"ctr_{place % contributors}") for place in range(number)]
    return document("py", "p0001", "ab", rows, parts, {"deviation": 0.0, **stated})


def kept(folder, number, **stated):
    data, digest = made(number, **stated)
    path = folder / f"{number}.json"
    path.write_bytes(data)
    return path, digest


def test_the_document_has_whole_billionths_and_leaves_out_what_is_not_known(tmp_path):
    parts = {
        "use": RowScores(this_run_R=np.array([0.5]), expected_R=np.array([0.25]), error_R=np.array([0.125])),
        "improvement": RowScores(this_run_R=np.array([-1.0])),
    }
    data, digest = document("py", "p0001", "ab", [("row_a", "ctr_a")], parts, {"deviation": 0.0})
    (tmp_path / "rows").write_bytes(data)
    found = open_document(tmp_path / "rows", digest)
    told = {name: value for name, value in found.stated.items() if name not in ("most", "contributors")}
    assert told == {
        "format": "openledger.row-scores/2", "adapter": "py", "period": "p0001", "adapter_digest": "ab",
        "deviation": 0.0, "num_rows": 1,
    }  # fmt: skip
    assert list(found.rows()) == [{
        "row_id": "row_a", "contributor_id": "ctr_a",
        "use": {"this_run_nano": 500_000_000, "expected_nano": 250_000_000, "error_nano": 125_000_000},
        "improvement": {"this_run_nano": -1_000_000_000},
    }]  # fmt: skip


@pytest.mark.parametrize("number", [0, 1, 64, 65, 64 * 64, 64 * 64 + 1, 9000])
def test_rows_come_in_the_order_of_what_they_moved_from_any_of_them_on(tmp_path, number):
    found = open_document(*kept(tmp_path, number))
    rows = list(found.rows())
    keys = [order_key(row) for row in rows]
    assert (len({row["row_id"] for row in rows}), keys) == (number, sorted(keys))
    for place in range(0, number, 1 + number // 5):
        assert list(found.rows(begin=keys[place])) == rows[place:]
    own = [row for row in rows if row["contributor_id"] == "ctr_1"]
    assert list(found.rows("ctr_1")) == own
    assert list(found.rows("ctr_1", order_key(own[-1]) if own else None)) == own[-1:]
    assert list(found.rows("ctr_11")) == list(found.rows("ctr")) == []


class Counted(FileIO):
    num_bytes = 0

    def read(self, size=-1):
        data = super().read(size)
        Counted.num_bytes += len(data)
        return data


@pytest.mark.parametrize("contributor", ["", "ctr_1"])
def test_a_page_of_a_large_document_reads_no_more_than_one_of_a_small_one(tmp_path, monkeypatch, contributor):
    """Rows by a hundred times as many are read by one level of a tree more."""
    read, peak, documents = {}, {}, {number: kept(tmp_path, number) for number in (500, 50_000)}
    monkeypatch.setattr(Path, "open", lambda path, *_, **__: Counted(path))
    for number, (path, digest) in documents.items():
        keys = [order_key(row) for row in open_document(path, digest).rows(contributor)]
        Counted.num_bytes = 0
        tracemalloc.start()
        page = list(islice(open_document(path, digest).rows(contributor, keys[len(keys) // 2]), 100))
        peak[number] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert [order_key(row) for row in page] == keys[len(keys) // 2 :][:100]
        read[number] = Counted.num_bytes
    assert path.stat().st_size > 50 * read[50_000]
    assert read[50_000] < read[500] + 20_000
    assert peak[50_000] < peak[500] + 200_000


def told_by(path, digest):
    """The rows that are told of a document, and what ended that."""
    seen = []
    try:
        found = open_document(path, digest)
        for contributor in ("", "ctr_0", "ctr_1", "ctr_2"):
            for row in found.rows(contributor):
                seen.append(row)
    except Corrupt as error:
        return seen, error
    return seen, None


def test_a_change_anywhere_is_found_before_a_row_of_it_is_told(tmp_path):
    path, digest = kept(tmp_path, 300)
    whole, told = path.read_bytes(), told_by(path, digest)[0]
    assert len(told) == 600
    for place in range(0, len(whole), len(whole) // 40):
        path.write_bytes(whole[:place] + b"~" + whole[place + 1 :])
        seen, error = told_by(path, digest)
        assert seen == told[: len(seen)]
        assert error is not None or whole[place : place + 1] == b"\n"  # which no node has
        if error is not None:
            assert (error.code, error.param) == ("corrupt_row_scores", str(path))


def test_a_document_cut_short_or_another_ones_is_refused(tmp_path):
    path, digest = kept(tmp_path, 300)
    with pytest.raises(Corrupt):
        open_document(path, "ab" * 32)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(Corrupt):
        list(open_document(path, digest).rows("ctr_2"))
    with pytest.raises(Corrupt):
        open_document(tmp_path / "gone", digest)


class Slow(FileIO):
    """A disk, or a network's file system, that reads no more than a few bytes at a time, or fails."""

    error: OSError | None = None

    def readinto(self, buffer):
        if Slow.error is not None:
            raise Slow.error
        return super().readinto(memoryview(buffer)[:100])

    def read(self, size=-1):
        if Slow.error is not None:
            raise Slow.error
        return super().read(min(size, 100) if size >= 0 else -1)


def open_slowly(path, mode="r", buffering=-1, **_):
    return Slow(path) if buffering == 0 else BufferedReader(Slow(path))


def test_a_short_read_is_no_tampering_and_a_failed_one_says_which_file(tmp_path, monkeypatch):
    path, digest = kept(tmp_path, 300)
    whole = told_by(path, digest)
    assert len(whole[0]) == 600
    monkeypatch.setattr(Path, "open", open_slowly)
    assert told_by(path, digest) == whole
    found = open_document(path, digest)
    monkeypatch.setattr(Slow, "error", OSError(5, "Input/output error"))
    with pytest.raises(Corrupt, match="Input/output error") as caught:
        list(found.rows())
    assert (caught.value.code, caught.value.param) == ("corrupt_row_scores", str(path))
    monkeypatch.undo()
    path.unlink()
    with pytest.raises(Corrupt, match="No such file") as caught:
        list(found.rows("ctr_1"))
    assert caught.value.code == "corrupt_row_scores"


@pytest.mark.parametrize("indent", [None, 1])
def test_documents_of_the_first_format_stay_readable(tmp_path, indent):
    rows = [
        {"row_id": f"row_{place}", "contributor_id": f"ctr_{place % 2}", "use": {"expected_nano": moved}}
        for place, moved in enumerate((5, -9, 7, 0))
    ]
    told = {"format": "openledger.row-scores/1", "adapter_digest": "ab", "rows": rows}
    path = tmp_path / "rows.json"
    path.write_bytes(json.dumps(told, indent=indent, sort_keys=True).encode())
    found = open_document(path, digest_bytes(path.read_bytes()))
    assert found.stated["adapter_digest"] == "ab"
    assert [row["row_id"] for row in found.rows()] == ["row_1", "row_2", "row_0", "row_3"]
    assert [row["row_id"] for row in found.rows("ctr_0", [-6, ""])] == ["row_0"]
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(Corrupt):
        open_document(path, digest_bytes(b"another"))
