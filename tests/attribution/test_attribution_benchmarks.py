"""The ways that the benchmarks compare: the settled one is the settlements' own, and each other one changes what its
name says."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks.attribution import block_members, predicted_shapley, together
from benchmarks.attribution_blocks import SETTLED, WAYS, Banked, Way, row_scores
from benchmarks.attribution_truth import COALITIONS, EXACT_ROWS, exact_rows, kernel_bank
from openledger.attribution.coalitions import design
from openledger.attribution.estimate import group_sums
from openledger.attribution.index import IndexEntry
from openledger.attribution.period import fit_bank, fit_outcomes
from openledger.core.money import NANO_PER_OPEN

ROWS = [(f"{name}-{number}", name) for name, count in (("ann", 20), ("bob", 13), ("cyd", 7)) for number in range(count)]
ANSWERS = 4


@pytest.fixture
def truth():
    """Each row's influence on each answer, [R, Q]."""
    return np.random.default_rng(1).normal(size=(len(ROWS), ANSWERS))


@pytest.fixture
def index(truth):
    scores = 3 * truth + np.random.default_rng(2).normal(size=truth.shape)
    return scores.astype(np.float32).astype(np.float64)


def banked(truth, constant="constant", coalitions=16):
    drawn = design(ROWS, coalitions, constant)
    group = drawn.numbers(ROWS)
    members = tuple(block_members(drawn, group, "initial", constant))
    present = drawn.members_MG[:, group]
    noise = 0.1 * np.random.default_rng(3).normal(size=(len(present), ANSWERS))
    return Banked(drawn=drawn, group_R=group, present_MR=present, outcomes_MQ=present @ truth + noise, members=members)


def test_the_settled_way_is_what_settlements_do(truth, index):
    bank = banked(truth)
    entries = [IndexEntry(row_id=row, contributor_id=name, trained=True) for row, name in ROWS]
    scores = index.astype(np.float32)
    outcomes = fit_outcomes(bank.drawn, bank.outcomes_MQ, entries, scores)
    settled = fit_bank(entries, scores, [NANO_PER_OPEN] * ANSWERS, [1.0] * ANSWERS, outcomes)
    _, total = row_scores(bank, index, SETTLED)
    assert total[:, 0] == pytest.approx(settled.rows.influence_R, rel=1e-4, abs=1e-6)


def test_no_way_is_named_twice():
    assert len(set(WAYS.values())) == len(WAYS)


def test_blocks_keep_what_the_bank_found_whatever_bounds_rows(truth, index):
    bank = banked(truth)
    sums = [
        group_sums(row_scores(bank, index, Way(bound=bound))[0], bank.group_R, len(bank.drawn.groups))
        for bound in (1.0, np.inf)
    ]
    assert sums[0] == pytest.approx(sums[1])


def test_rows_of_one_block_are_told_apart_by_two_partitions_without_an_index(truth):
    none, rows = np.zeros_like(truth), Way(index="", players="rows")
    one, other = banked(truth), banked(truth, "another")
    apart = [np.ptp(row_scores(bank, none, rows)[0][:, 0][one.group_R == 0]) for bank in (one, one.beside(other))]
    assert apart[0] == pytest.approx(0, abs=1e-9)
    assert apart[1] > 0.01


def test_two_partitions_know_both_banks_members(truth):
    one, other = banked(truth), banked(truth, "another")
    both = one.beside(other)
    assert len(both.present_MR) == len(both.outcomes_MQ) == len(both.members) == 2 * len(one.members)
    assert both.members[-1] == other.members[-1] != one.members[-1]


def test_each_answers_own_ratios_are_a_fit_of_that_answer_alone(truth, index):
    bank, own = banked(truth), Way(ratios="each answer's")
    alone = replace(bank, outcomes_MQ=bank.outcomes_MQ[:, :1])
    assert row_scores(bank, index, own)[0][:, :1] == pytest.approx(row_scores(alone, index[:, :1], SETTLED)[0])


def test_members_of_some_rows_are_trained_on_their_numbers_among_all():
    drawn = design(ROWS, 8, "constant")
    numbers = [3 * place for place in range(len(ROWS))]
    plain, some = (block_members(drawn, drawn.numbers(ROWS), "a", "constant", own) for own in (None, numbers))
    assert some[0].rows == tuple(3 * row for row in plain[0].rows)
    assert some[0].order == plain[0].order


def test_instruments_count_alike_whatever_their_units(truth):
    views = np.stack([truth, truth + 1])
    scores, variance = together((views, 1000 * views))
    again, _ = together((views, views))
    assert scores == pytest.approx(again)
    assert (variance > 0).all()
    assert together((views,))[0] == pytest.approx(truth + 0.5)


class Game:
    """Two players are worth 1 and 2 on the only answer, and 3 more together."""

    def predict(self, members):
        return (members @ np.array([1.0, 2.0]) + 3 * members.all(axis=1))[:, None]


def test_shapley_values_of_a_predicted_game_share_what_players_bring_together():
    assert predicted_shapley(Game(), ["ann", "bob"])[:, 0].tolist() == [2.5, 3.5]


def test_a_bank_of_the_kernels_sizes_has_each_coalition_beside_its_complement():
    names = [f"c{number}" for number in range(9)]
    examples = [SimpleNamespace(contributor_id=name, row_id=name) for name in names]
    coalitions, members = kernel_bank(SimpleNamespace(initial="a", order="b"), examples)
    assert coalitions.shape == (COALITIONS, 8)
    assert (coalitions[0::2] == ~coalitions[1::2]).all()
    assert [len(member.rows) for member in members] == coalitions.sum(axis=1).tolist()
    assert {1, 7} <= set(coalitions.sum(axis=1).tolist())


def test_exact_values_are_of_as_many_rows_of_each_of_the_eight_and_of_nobody_else():
    examples = [SimpleNamespace(contributor_id=f"c{number % 9}", row_id=str(number)) for number in range(300)]
    whose = [examples[row].contributor_id for row in exact_rows(examples)]
    assert sorted(set(whose)) == [f"c{number}" for number in range(8)]
    assert {whose.count(name) for name in whose} == {EXACT_ROWS}
