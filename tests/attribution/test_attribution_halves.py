"""An audit's halves: none that the bank has, none twice, and a plain word where too few remain."""

from math import comb

import numpy as np
import pytest

from openledger.attribution.coalitions import Design, design
from openledger.attribution.halves import audit_cost, unseen_halves
from openledger.core.errors import InvalidInput


def names(number):
    return [f"c{place}" for place in range(number)]


def bank(number, coalitions=32, **more):
    return design(dict.fromkeys(names(number), 10), coalitions, "run", **more)


def own(rows):
    return [tuple(row) for row in np.asarray(rows).tolist()]


@pytest.mark.parametrize("number", [7, 8, 9, 12])
def test_halves_are_different_and_none_is_a_coalition_of_the_bank(number):
    kept = bank(number)
    halves = unseen_halves(names(number), kept, 8, "run")
    assert halves.shape == (8, number)
    assert halves.sum(axis=1).tolist() == [number // 2] * 8
    assert len(set(own(halves))) == 8
    assert not set(own(halves)) & set(own(kept.members_MG))


def test_with_few_contributors_all_halves_that_remain_are_drawn():
    kept = bank(6, 8)
    seen = sum(row.sum() == 3 for row in kept.members_MG)
    halves = unseen_halves(names(6), kept, 100, "run")
    assert len(halves) == comb(6, 3) - seen
    assert not set(own(halves)) & set(own(kept.members_MG))


def test_coalitions_of_groups_are_compared_by_their_contributors():
    pair = Design(groups=(("c0", "c1"), ("c2", "c3")), members_MG=np.array([[True, False], [False, True]]))
    halves = unseen_halves(names(4), pair, 4, "run")
    assert len(halves) == 4
    assert not {(True, True, False, False), (False, False, True, True)} & set(own(halves))


@pytest.mark.parametrize(("number", "coalitions"), [(4, 32), (6, 32), (4, 8)])
def test_a_bank_that_leaves_too_few_halves_is_refused(number, coalitions):
    with pytest.raises(InvalidInput) as caught:
        unseen_halves(names(number), bank(number, coalitions), 8, "run")
    assert (caught.value.code, caught.value.param) == ("too_few_halves", "coalitions")
    assert caught.value.fix == "fewer --coalitions, or more contributors"


def test_a_rank_correlation_of_three_halves_is_not_asked_for():
    with pytest.raises(InvalidInput) as caught:
        unseen_halves(names(12), bank(12), 3, "run")
    assert caught.value.code == "invalid_audit"


def test_an_audit_costs_its_halves_twice_and_a_run_without_each_contributor():
    assert audit_cost(dict.fromkeys(names(12), 40), 8, 8) == pytest.approx(8 + 8 + 11)
    assert audit_cost({"large": 30, "small": 10}, 4, 8) == pytest.approx(2 * 4 * 0.75 + 8 + 1)
