"""The Bayesian linear model: simulated banks whose true influence is known."""

import numpy as np
import pytest

from openledger.attribution.coalitions import contributor_design as design
from openledger.attribution.evaluation import coverage, spearman
from openledger.attribution.expected import fit_expected, left_out
from openledger.core.errors import InvalidInput

GROUPS, QUERIES = 10, 60


def world(seed=0, pairs=0.1):
    """True influence [G, Q], a function that trains coalitions, and a prior that is right up to scale and noise."""
    random = np.random.default_rng(seed)
    main = random.normal(size=(GROUPS, QUERIES)) * 0.3
    pair = random.normal(size=(GROUPS, GROUPS, QUERIES)) * pairs
    pair[np.tril_indices(GROUPS)] = 0

    def outcomes(members, noise=0.3):
        signs = np.where(members, 1.0, -1.0)
        exact = signs @ main + np.einsum("ng,ghq,nh->nq", signs, pair, signs)
        return exact + random.normal(size=exact.shape) * noise

    return 2 * main, outcomes, 7.0 * (2 * main + random.normal(size=main.shape) * 0.4)


def bank(outcomes, number=32):
    members = design({f"c{group}": 1 for group in range(GROUPS)}, number, "constant").members_MG
    return members, outcomes(members)


def test_intervals_hold_the_truth_as_often_as_they_say():
    found = []
    for seed in range(4):
        truth, outcomes, prior = world(seed)
        members, values = bank(outcomes)
        expected, _ = fit_expected(members, values, prior)
        found.append(coverage(*expected.interval(0.9), truth))
    assert 0.85 <= np.mean(found) <= 0.95


def test_predictive_intervals_hold_new_trainings_as_often_as_they_say():
    found = []
    for seed in range(3):
        _, outcomes, prior = world(seed)
        _, predictor = fit_expected(*bank(outcomes), prior)
        unseen = np.random.default_rng(9).random((100, GROUPS)) < 0.5
        found.append(coverage(*predictor.interval(unseen, 0.9), outcomes(unseen)))
    assert 0.85 <= np.mean(found) <= 0.95


def test_a_good_prior_lowers_the_error_and_its_scale_is_found():
    truth, outcomes, prior = world()
    members, values = bank(outcomes, 12)
    alone, _ = fit_expected(members, values)
    joined, _ = fit_expected(members, values, prior)
    assert np.mean((joined.mean_GQ - truth) ** 2) < 0.7 * np.mean((alone.mean_GQ - truth) ** 2)
    assert 0.05 < joined.prior_scale < 0.25


def test_a_useless_prior_does_little_harm():
    truth, outcomes, prior = world()
    members, values = bank(outcomes)
    rubbish = np.random.default_rng(5).permuted(prior, axis=0)
    alone, _ = fit_expected(members, values)
    misled, _ = fit_expected(members, values, rubbish)
    assert np.mean((misled.mean_GQ - truth) ** 2) < 1.2 * np.mean((alone.mean_GQ - truth) ** 2)


def test_interactions_predict_coalitions_better_than_sums_do():
    _, outcomes, _ = world(pairs=0.15)
    members, values = bank(outcomes, 64)
    unseen = np.random.default_rng(9).random((200, GROUPS)) < 0.5
    true = outcomes(unseen, noise=0.0)
    agreement = {
        on: spearman(fit_expected(members, values, interactions=on)[1].predict(unseen), true).mean()
        for on in (True, False)
    }
    assert agreement[True] > agreement[False] + 0.05


def test_the_errors_shrink_with_the_bank():
    _, outcomes, _ = world()
    sizes = [fit_expected(*bank(outcomes, number))[0].error_GQ.mean() for number in (10, 64)]
    assert sizes[1] < 0.6 * sizes[0]


def test_an_answer_that_no_row_moves_gets_nothing_certain():
    random = np.random.default_rng(3)
    members = design({f"c{group}": 1 for group in range(GROUPS)}, 32, "constant").members_MG
    expected, _ = fit_expected(members, random.normal(size=(32, QUERIES)))
    low, high = expected.interval(0.9)
    assert np.mean((low > 0) | (high < 0)) < 0.12


def test_two_contributors_and_their_two_coalitions_can_be_fitted():
    members = design({"a": 1, "b": 1}, 2, "constant").members_MG
    expected, _ = fit_expected(members, np.array([[1.0], [0.0]]))
    better = int(members[0].argmax())
    assert expected.mean_GQ[better, 0] > expected.mean_GQ[1 - better, 0]
    assert np.isfinite(expected.error_GQ).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_outcomes_that_are_no_numbers_are_refused(bad):
    members = design({"a": 1, "b": 1}, 2, "constant").members_MG
    with pytest.raises(InvalidInput, match="not finite"):
        fit_expected(members, np.array([[1.0], [bad]]))


def test_shapes_that_dont_fit_are_refused():
    members = design({"a": 1, "b": 1}, 2, "constant").members_MG
    with pytest.raises(InvalidInput, match="one row for each"):
        fit_expected(members, np.ones((3, 1)))
    with pytest.raises(InvalidInput, match="prior"):
        fit_expected(members, np.ones((2, 1)), np.ones((3, 1)))


def test_a_bank_tells_how_well_it_predicts_members_it_was_not_fitted_to():
    _, outcomes, _ = world(pairs=0.0)
    members, values = bank(outcomes)
    fitted, predictor = fit_expected(members, values)
    checked = left_out(members, values, ratios=fitted.ratios)
    unseen = np.random.default_rng(9).random((200, GROUPS)) < 0.5
    found = spearman(predictor.predict(unseen), outcomes(unseen)).mean()
    assert checked.agreement == pytest.approx(found, abs=0.08)
    assert checked.error_scale == pytest.approx(1.0, abs=0.1)
    shuffled = values[np.random.default_rng(1).permutation(len(values))]
    assert left_out(members, shuffled, ratios=fitted.ratios).agreement < 0.2


def test_a_bank_too_small_for_its_groups_finds_its_errors_too_small():
    scales = []
    for seed in range(6):
        _, outcomes, prior = world(seed)
        members, values = bank(outcomes, 10)
        fitted, _ = fit_expected(members[:8], values[:8], prior)
        scales.append(left_out(members[:8], values[:8], prior, ratios=fitted.ratios).error_scale)
    assert 1.1 < np.mean(scales) < 1.6


def test_a_bank_of_few_members_says_nothing_about_itself():
    _, outcomes, _ = world()
    members, values = bank(outcomes, 10)
    assert left_out(members[:6], values[:6], ratios=fit_expected(members, values)[0].ratios) is None


def test_a_fit_whose_search_strays_to_huge_ratios_comes_back():
    """What pairs add leaves next to no noise: the line search once tried ratios that no kernel can be factored with."""
    members = design({f"c{group}": 1 for group in range(8)}, 16, "constant").members_MG
    signs = np.where(members, 1.0, -1.0)
    for seed in range(3):
        random = np.random.default_rng(seed)
        own, pairs = random.normal(size=(8, 10)), random.normal(size=(8, 8, 10))
        outcomes = 0.3 * signs @ own + np.einsum("mg,ghq,mh->mq", signs, pairs, signs)
        expected, _ = fit_expected(members, outcomes)
        assert np.isfinite(expected.mean_GQ).all()
        assert (expected.error_GQ > 0).all()


@pytest.mark.parametrize(("number", "spread"), [(10, 9 / 7), (32, 31 / 29)])
def test_intervals_are_as_wide_as_few_members_make_the_noise_uncertain(number, spread):
    _, outcomes, _ = world()
    expected, predictor = fit_expected(*bank(outcomes, number))
    low, high = expected.interval(0.9)
    assert np.allclose((high - low) / 2, 1.6448536 * np.sqrt(spread) * expected.error_GQ)
    unseen = np.eye(GROUPS, dtype=bool)
    low, high = predictor.interval(unseen, 0.9)
    assert np.allclose((high - low) / 2, 1.6448536 * np.sqrt(spread) * predictor.errors(unseen))


def test_three_members_tell_no_interval():
    _, outcomes, _ = world()
    members, values = bank(outcomes, 10)
    expected, _ = fit_expected(members[:3], values[:3])
    with pytest.raises(InvalidInput) as caught:
        expected.interval()
    assert caught.value.code == "small_bank"


def test_intervals_of_eight_coalitions_hold_the_truth_nearly_as_often_as_they_say():
    found = []
    for seed in range(6):
        random = np.random.default_rng(seed)
        members = design({f"c{group}": 1 for group in range(6)}, 8, "constant").members_MG
        own = random.normal(size=(6, 40))
        outcomes = np.where(members, 1.0, -1.0) @ own + 0.5 * random.normal(size=(len(members), 40))
        expected, _ = fit_expected(members, outcomes, interactions=False)
        found.append(coverage(*expected.interval(0.9), 2 * own))
    assert 0.88 <= np.mean(found) <= 0.95
