"""The measures of an attribution, against worked examples and simulated truths."""

import numpy as np
import pytest

from openledger.attribution.evaluation import (
    coverage,
    datamodeling_scores,
    noise_ceiling,
    pooled_ceiling,
    recall_of_planted,
    spearman,
)
from openledger.core.errors import InvalidInput


def test_spearman_is_about_ranks_and_shares_ties():
    assert spearman([1, 2, 3, 4], [1, 10, 100, 1000])[0] == pytest.approx(1)
    assert spearman([1, 2, 3, 4], [4, 3, 2, 1])[0] == pytest.approx(-1)
    assert spearman([1, 2, 2, 3], [1, 2, 2, 3])[0] == pytest.approx(1)
    assert spearman([1, 1, 2, 2], [1, 2, 1, 2])[0] == pytest.approx(0)
    assert spearman([5, 5, 5], [1, 2, 3])[0] == 0


def test_each_query_has_its_own_correlation():
    first = np.array([[1, 3], [2, 2], [3, 1]])
    assert spearman(first, first[:, ::-1]).tolist() == pytest.approx([-1, -1])
    with pytest.raises(InvalidInput):
        spearman(first, first[:2])


def test_an_additive_truth_gives_its_scores_an_lds_of_one():
    random = np.random.default_rng(0)
    scores, members = random.normal(size=(10, 3)), random.random((40, 10)) < 0.5
    assert datamodeling_scores(scores, members, members @ scores) == pytest.approx(np.ones(3))
    assert datamodeling_scores(-scores, members, members @ scores) == pytest.approx(-np.ones(3))


def test_the_ceiling_is_what_the_truth_itself_reaches():
    random = np.random.default_rng(1)
    truth = random.normal(size=(4000, 1))
    first, second = truth + random.normal(size=truth.shape), truth + random.normal(size=truth.shape)
    reached = spearman(truth, (first + second) / 2)[0]
    assert noise_ceiling(first, second)[0] == pytest.approx(reached, abs=0.03)
    assert pooled_ceiling(first, second) == pytest.approx(reached, abs=0.03)


def test_coverage_counts_both_ends():
    assert coverage([0, 0, 0, 0], [1, 1, 1, 1], [0, 1, 0.5, 2]) == 0.75


def test_planted_rows_are_looked_for_among_the_highest():
    scores = np.array([[3.0, 0.0], [2.0, 1.0], [1.0, 2.0], [0.0, 3.0]])
    assert recall_of_planted(scores, [0, 1]).tolist() == [1.0, 0.0]
    assert recall_of_planted(scores, [1], k=3).tolist() == [1.0, 1.0]
