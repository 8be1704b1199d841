"""The planner: never over budget, more for more money, and plain words below the floor."""

import pytest

from openledger.attribution import instruments
from openledger.attribution.audit import plan_audit
from openledger.attribution.bank import plan_bank
from openledger.attribution.planner import budget_from_fees, plan_instruments, plan_replay, replay_trainings
from openledger.attribution.subject import Subject
from openledger.core.errors import InvalidInput
from openledger.training.examples import Example
from openledger.training.recipe import Recipe
from openledger.training.record import RunRecord

TWELVE = {f"c{number:02}": 40 for number in range(12)}


@pytest.mark.parametrize("budget", [0, 1, 5, 8, 12, 20, 40, 100])
def test_no_plan_costs_more_than_its_budget_but_the_one_view_that_any_attribution_needs(budget):
    plan = plan_instruments(TWELVE, 6, budget)
    assert plan.cost_trainings <= max(budget, 0.25)


def test_more_money_buys_a_larger_bank_whose_smaller_blocks_are_told_apart_as_well():
    plans = [plan_instruments(TWELVE, 6, budget) for budget in (8, 16, 30, 72)]
    coalitions, blocks = [plan.num_coalitions for plan in plans], [plan.num_groups for plan in plans]
    assert coalitions == sorted(coalitions)
    assert coalitions[0] < coalitions[-1] == 64
    assert blocks == sorted(blocks)
    assert plans[0].accuracy < 0.75
    assert all(0.83 < plan.accuracy < 0.86 for plan in plans[1:])
    assert plans[-1].instruments == ("index", "bank", "replay", "audit")


@pytest.mark.parametrize(("epochs", "first_half"), [(1, 1), (2, 1), (5, 2), (6, 3), (10, 5)])
def test_a_plan_counts_the_views_that_an_index_has(epochs, first_half):
    assert len(instruments.first_half(dict.fromkeys(range(1, epochs + 1)))) == first_half
    rich = plan_instruments(TWELVE, epochs, 200)
    assert (rich.num_twins, rich.num_views) == (4, first_half * 5)
    alone = plan_instruments({"a": 10}, epochs, 100)
    assert alone.num_views == first_half
    assert alone.cost_trainings == pytest.approx(first_half * 1.5 / epochs, abs=0.01)


def audit_of(counts, num_coalitions, folder, order):
    """What `openledger attribution evaluate` would train of such a run, in trainings on all rows."""
    rows = [
        Example(row_id=f"{c}-{n}", contributor_id=c, ids=(1, 2), num_prompt=1) for c in counts for n in range(counts[c])
    ]
    record = RunRecord(
        adapter_digest="a", base_digest="b", recipe=Recipe(), initial="i", order=order, row_ids=(), examples_digest="e",
        environment={},
    )  # fmt: skip
    subject = Subject(base=None, folder=folder, examples=tuple(rows), record=record)
    plan = plan_audit(subject, plan_bank(record, rows, num_coalitions=num_coalitions))
    return sum(len(member.rows) for member in plan.members) / len(rows)


@pytest.mark.parametrize("counts", [TWELVE, {**TWELVE, "c00": 200}])
def test_an_audit_is_charged_what_it_trains(counts, tmp_path):
    bought = plan_instruments(counts, 6, 200)
    assert "audit" in bought.instruments
    views = bought.num_views * 1.5 / 6
    charged = bought.cost_trainings - bought.num_coalitions / 2 - bought.num_twins - views - 4
    trained = [audit_of(counts, bought.num_coalitions, tmp_path, f"order-{n}") for n in range(5)]
    assert max(trained) <= charged + 0.01
    if counts == TWELVE:
        assert trained == [pytest.approx(charged)] * 5 == [27] * 5
    assert "audit" not in plan_instruments(counts, 6, bought.cost_trainings - 0.5).instruments


def test_an_audit_of_a_bank_that_leaves_no_halves_over_is_not_bought():
    plan = plan_instruments({"a": 10, "b": 10, "c": 10}, 6, 200)
    assert plan.instruments == ("index", "bank", "replay")
    assert plan.audit_coalitions == 0


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


def test_fees_buy_a_settlements_replay_or_are_said_to_fall_short():
    cost_nano = 10**9
    enough = plan_replay(41 * cost_nano, 100_000, cost_nano, replay_trainings(96, 2880))
    assert (enough.buys, enough.says) == (True, "bought: fees buy 4.1 of 4.03 trainings")
    both = plan_replay(41 * cost_nano, 100_000, cost_nano, replay_trainings(96, 2880, num_targets=2))
    assert not both.buys
    assert both.cost_trainings > enough.cost_trainings
    assert both.says.startswith("not bought: fees buy 4.1 of ")


def test_a_replay_costs_a_pass_for_each_answer_and_a_training_is_so_many():
    epochs, rows = 6, sum(TWELVE.values())
    assert replay_trainings(0, rows * epochs) == 4
    assert replay_trainings(10 * rows * epochs, rows * epochs) == 14
    assert not plan_replay(10**9, 10**6, 10**8, replay_trainings(10 * rows * epochs, rows * epochs)).buys


def test_answers_that_no_budget_replays_are_counted_before_anything_runs():
    none = plan_instruments(TWELVE, 6, 60)
    assert (none.replay_trainings, none.says.endswith("and none are counted")) == (4, True)
    some = plan_instruments(TWELVE, 6, 60, num_answers=2880)  # as many passes as a training's
    assert (some.replay_trainings, "none are counted" in some.says) == (5, False)
    assert some.cost_trainings == pytest.approx(none.cost_trainings + 1, abs=0.01)
    many = plan_instruments(TWELVE, 6, 60, num_answers=100 * 2880)
    assert (many.replay_trainings, "replay" in many.instruments) == (0, False)
    assert many.cost_trainings <= 60
    with pytest.raises(InvalidInput):
        plan_instruments(TWELVE, 6, 40, num_answers=-1)


@pytest.mark.parametrize(("share_ppm", "cost_nano"), [(10**6 + 1, 1), (-1, 1), (1, 0)])
def test_more_than_all_fees_and_trainings_for_nothing_are_refused(share_ppm, cost_nano):
    with pytest.raises(InvalidInput) as caught:
        plan_replay(10**9, share_ppm, cost_nano, 4.0)
    assert caught.value.code == "invalid_budget"
