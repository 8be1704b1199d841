"""The planner: never over budget, more for more money, and plain words below the floor."""

import pytest

from openledger.attribution.planner import budget_from_fees, plan_instruments
from openledger.core.errors import InvalidInput

TWELVE = {f"c{number:02}": 40 for number in range(12)}


@pytest.mark.parametrize("budget", [0, 1, 5, 8, 12, 20, 40, 100])
def test_no_plan_costs_more_than_its_budget_but_the_one_view_that_any_attribution_needs(budget):
    plan = plan_instruments(TWELVE, 6, budget)
    assert plan.cost_trainings <= max(budget, 0.25)


def test_more_money_buys_a_larger_bank_and_a_better_estimate():
    plans = [plan_instruments(TWELVE, 6, budget) for budget in (8, 16, 30, 60)]
    coalitions, accuracies = [plan.num_coalitions for plan in plans], [plan.accuracy for plan in plans]
    assert coalitions == sorted(coalitions)
    assert coalitions[0] < coalitions[-1] == 64
    assert accuracies == sorted(accuracies)
    assert plans[-1].instruments == ("index", "bank", "replay", "audit")


def test_below_the_floor_the_index_stands_alone_and_the_plan_says_so():
    plan = plan_instruments(TWELVE, 6, 3)
    assert plan.instruments == ("index",)
    assert plan.accuracy is None
    assert "index alone" in plan.says


def test_one_contributor_needs_no_bank():
    assert "one contributor" in plan_instruments({"a": 10}, 6, 100).says


def test_uneven_contributors_cost_what_their_rows_do():
    even, uneven = plan_instruments({"a": 10, "b": 10}, 6, 100), plan_instruments({"a": 1, "b": 19}, 6, 100)
    assert even.cost_trainings == pytest.approx(uneven.cost_trainings)


def test_a_share_of_the_fees_is_a_budget_and_never_more_than_they_are():
    assert budget_from_fees(10**9, 100_000, 10**7) == pytest.approx(10)
    with pytest.raises(InvalidInput):
        budget_from_fees(10**9, 1_000_001, 10**7)
    with pytest.raises(InvalidInput):
        plan_instruments(TWELVE, 6, -1)
