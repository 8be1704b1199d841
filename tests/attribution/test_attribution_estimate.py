"""Rows' expected influence: it sums to the bank's estimate, and keeps the index's order where that is sure."""

import numpy as np
import pytest

from openledger.attribution.estimate import (
    contributor_sums,
    corrected_rows,
    group_numbers,
    group_sums,
    row_variance,
)
from openledger.core.errors import InvalidInput

CONTRIBUTORS = ["ann", "bob", "ann", "cyd"]
GROUPS = [("ann",), ("bob", "cyd")]


def test_corrected_rows_sum_to_the_banks_estimate_even_where_signed_sums_vanish():
    scores = np.array([[1.0], [2.0], [-1.0], [3.0]])
    target = np.array([[0.5], [-4.0]])
    group = group_numbers(CONTRIBUTORS, GROUPS)
    rows = corrected_rows(scores, np.ones_like(scores), group, target, scale=0.1)
    assert group_sums(rows, group, 2) == pytest.approx(target)
    assert rows[:, 0] == pytest.approx([0.1 + 0.25, 0.2 - 2.25, -0.1 + 0.25, 0.3 - 2.25])


def test_the_uncertain_row_takes_the_correction():
    scores, variance = np.array([[1.0], [0.0], [1.0], [0.0]]), np.array([[1e-9], [1.0], [1.0], [1.0]])
    rows = corrected_rows(scores, variance, group_numbers(CONTRIBUTORS, GROUPS), np.array([[5.0], [0.0]]), scale=1.0)
    assert rows[0, 0] == pytest.approx(1.0)
    assert rows[2, 0] == pytest.approx(4.0)


def test_variance_comes_from_the_views_and_from_one_view_from_the_size():
    views = np.array([[[1.0], [2.0]], [[1.0], [4.0]]])
    variance = row_variance(views)
    assert 0 < variance[0, 0] < 0.02
    assert variance[1, 0] == pytest.approx(1.0, rel=0.02)
    assert row_variance(views[:1])[1, 0] > row_variance(views[:1])[0, 0] > 0


def test_contributors_get_the_sum_of_their_rows():
    scores = np.array([[1.0], [2.0], [3.0], [4.0]])
    assert contributor_sums(scores, CONTRIBUTORS, ["ann", "bob", "cyd"])[:, 0].tolist() == [4.0, 2.0, 4.0]


def test_a_contributor_that_the_bank_doesnt_know_is_refused():
    with pytest.raises(InvalidInput) as caught:
        group_numbers(["eve"], GROUPS)
    assert caught.value.code == "wrong_bank"
