"""Row scores brought to what is paid: cell by cell, additively, by how unsure each row is."""

import json

import numpy as np
import pytest

from openledger.attribution.period import BankRows
from openledger.attribution.row_scores import RowScores, brought_to_bank, document

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


def test_the_document_has_whole_billionths_and_leaves_out_what_is_not_known():
    parts = {
        "use": RowScores(this_run_R=np.array([0.5]), expected_R=np.array([0.25]), error_R=np.array([0.125])),
        "improvement": RowScores(this_run_R=np.array([-1.0])),
    }
    told = json.loads(document("py", "p0001", "ab", [("row_a", "ctr_a")], parts, {"deviation": 0.0}))
    (row,) = told.pop("rows")
    assert told == {
        "format": "openledger.row-scores/1", "adapter": "py", "period": "p0001", "adapter_digest": "ab",
        "deviation": 0.0,
    }  # fmt: skip
    assert row == {
        "row_id": "row_a", "contributor_id": "ctr_a",
        "use": {"this_run_nano": 500_000_000, "expected_nano": 250_000_000, "error_nano": 125_000_000},
        "improvement": {"this_run_nano": -1_000_000_000},
    }  # fmt: skip
