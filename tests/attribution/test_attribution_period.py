"""From row scores to a period's contributor scores."""

import numpy as np
import pytest

from openledger.attribution import coalitions
from openledger.attribution.index import IndexEntry
from openledger.attribution.period import bank_scores, contributor_scores
from openledger.core.errors import InvalidInput
from openledger.core.shares import shares_ppb
from openledger.core.values import UNATTRIBUTED


def entries(*trained_by: str, decoys: int = 2) -> list[IndexEntry]:
    rows = [IndexEntry(row_id=f"r{n}", contributor_id=c, trained=True) for n, c in enumerate(trained_by)]
    return rows + [IndexEntry(row_id=f"d{n}", contributor_id="a", trained=False) for n in range(decoys)]


def period(rows, scores, fees=(10**9,), gains=(1.0,)):
    matrix = np.array(scores, dtype=np.float32).reshape(len(rows), -1)
    return contributor_scores("adapter", "p0001", rows, matrix, list(fees), list(gains))


def test_scores_sum_to_the_measured_gain():
    result = period(entries("a", "a", "b"), [0.3, 0.1, 0.2, 0.0, 0.0])
    assert sum(result.scores_nano.values()) == result.gain_nano == 10**9


def test_decoys_earn_nothing_and_widen_everyones_error():
    quiet = period(entries("a", "b"), [0.3, 0.1, 0.0, 0.0])
    noisy = period(entries("a", "b"), [0.3, 0.1, 0.1, -0.1])
    assert quiet.scores_nano == noisy.scores_nano
    assert quiet.errors_nano == {"a": 0, "b": 0}
    assert min(noisy.errors_nano.values()) > 0


def test_splitting_rows_over_two_names_changes_no_sum():
    alone = period(entries("a", "a", "b"), [0.3, 0.1, 0.2, 0.0, 0.0])
    split = period(entries("a1", "a2", "b"), [0.3, 0.1, 0.2, 0.0, 0.0])
    assert split.scores_nano["a1"] + split.scores_nano["a2"] == pytest.approx(alone.scores_nano["a"], abs=1)


def test_an_adapter_that_gained_nothing_pays_nobody():
    result = period(entries("a", "b"), [0.3, 0.1, 0.0, 0.0], gains=(-0.5,))
    shares = shares_ppb(result.scores_nano, result.errors_nano, result.gain_nano, 1000)
    assert shares[UNATTRIBUTED] == 10**9


def test_without_decoys_nobody_is_paid_on_a_score_of_unknown_error():
    result = period(entries("a", "b", decoys=0), [0.3, 0.1])
    shares = shares_ppb(result.scores_nano, result.errors_nano, result.gain_nano, 1000)
    assert shares == {"a": 0, "b": 0, UNATTRIBUTED: 10**9}
    assert result.quality["decoy_rms"] == "unknown"


def test_an_answer_counts_as_much_as_was_paid_for_it():
    rows = entries("a", "b", decoys=0)
    result = period(rows, [[1.0, 0.0], [0.0, 1.0]], fees=(3 * 10**9, 10**9), gains=(1.0, 1.0))
    assert result.scores_nano["a"] == 3 * result.scores_nano["b"]


@pytest.mark.parametrize("scores", [[0.3, 0.1, 0.0], [0.3, float("nan"), 0.0, 0.0]])
def test_scores_that_do_not_fit_or_are_not_finite_are_refused(scores):
    matrix = np.array(scores, dtype=np.float32).reshape(-1, 1)
    with pytest.raises(InvalidInput):
        contributor_scores("x", "p", entries("a", "b"), matrix, [1], [1.0])


def bank_period(people, true, groups=None, number=32, noise=0.05, answers=6, decoy=0.0, **more):
    """A simulated bank whose members' outcomes are sums of `true` influence (per contributor), and an index that is
    right up to scale."""
    random = np.random.default_rng(0)
    rows = [IndexEntry(row_id=f"r{n}", contributor_id=who, trained=True) for n, who in enumerate(people)]
    rows.append(IndexEntry(row_id="d0", contributor_id="a", trained=False))
    design = coalitions.design({who: people.count(who) for who in people}, number, "constant", groups)
    members = [
        {who for group, on in zip(design.groups, line, strict=True) if on for who in group}
        for line in design.members_MG
    ]
    outcomes = np.array([[sum(true[who] for who in there)] * answers for there in members])
    outcomes = outcomes + random.normal(size=outcomes.shape) * noise
    index = np.array(
        [
            [true[e.contributor_id] / people.count(e.contributor_id) * 9 if e.trained else 9 * decoy] * answers
            for e in rows
        ]
    )
    return bank_scores(
        "adapter",
        "p0001",
        design,
        outcomes,
        rows,
        index.astype(np.float32),
        [10**9] * answers,
        [2.0] * answers,
        **more,
    )


def test_a_banks_scores_are_the_true_influence_within_their_errors():
    true = {"a": 0.5, "b": 0.1, "c": -0.2, "d": 0.0}
    result = bank_period(["a", "a", "b", "c", "d"], true)
    for who, value in true.items():
        assert abs(result.scores_nano[who] - value * 6 * 10**9) < 3 * result.errors_nano[who]
        assert 0 < result.errors_nano[who] < 0.3 * 6 * 10**9
    assert result.gain_nano == 12 * 10**9
    assert (result.method, result.quality["quantity"]) == ("bank/1", "expected")


def test_contributors_of_one_group_are_told_apart_by_the_index():
    true = {"a": 0.6, "b": 0.0, "c": 0.2, "d": 0.2}
    result = bank_period(["a", "b", "c", "d"], true, groups=2, number=8)
    assert result.quality["groups"] == "2"
    assert result.scores_nano["a"] > result.scores_nano["b"]
    assert sum(result.scores_nano.values()) == pytest.approx(6 * 10**9, rel=0.2)


def test_two_in_one_group_are_each_known_less_well_than_the_group():
    true = {"a": 0.6, "b": -0.6, "c": 0.2, "d": 0.2}
    together = bank_period(["a", "b", "c", "d"], true, groups=2, number=8, decoy=0.5)
    alone = bank_period(["a", "b", "c", "d"], true, number=8, decoy=0.5)
    exact = bank_period(["a", "b", "c", "d"], true, groups=2, number=8)
    assert together.errors_nano["a"] > 2 * exact.errors_nano["a"]
    assert alone.errors_nano["a"] < together.errors_nano["a"]


def test_outcomes_of_another_number_of_answers_are_refused():
    design = coalitions.design({"a": 1, "b": 1}, 2, "constant")
    with pytest.raises(InvalidInput):
        bank_scores("adapter", "p", design, np.ones((2, 3)), entries("a", "b"), np.ones((4, 2)), [1, 1], [1.0, 1.0])


def test_an_audit_that_found_errors_too_small_makes_them_larger():
    true = {"a": 0.5, "b": 0.1, "c": -0.2, "d": 0.0}
    plain = bank_period(list("abcd"), true)
    audited = bank_period(list("abcd"), true, least_error_scale=3.0)
    assert audited.scores_nano == plain.scores_nano
    ratio = 3.0 / float(plain.quality["error_scale"])
    assert audited.errors_nano["a"] == pytest.approx(ratio * plain.errors_nano["a"], rel=1e-3)
