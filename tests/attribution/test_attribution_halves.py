"""An audit's halves: none that the bank has, none twice, and a plain word where too few remain."""

from math import comb

import numpy as np
import pytest

from openledger.attribution.coalitions import Design, contributor_design, deal_blocks, rows_of_counts
from openledger.attribution.halves import audit_cost, unseen_halves
from openledger.core.errors import InvalidInput


def names(number):
    return [f"c{place}" for place in range(number)]


def bank(number, coalitions=32, **more):
    return contributor_design(dict.fromkeys(names(number), 10), coalitions, "run", **more)


def rows(number):
    return rows_of_counts(dict.fromkeys(names(number), 10))


def own(rows):
    return [tuple(row) for row in np.asarray(rows).tolist()]


@pytest.mark.parametrize("number", [7, 8, 9, 12])
def test_halves_are_different_and_none_is_a_coalition_of_the_bank(number):
    kept = bank(number)
    halves = unseen_halves(rows(number), kept, 8, "run")
    assert halves.shape == (8, number)
    assert halves.sum(axis=1).tolist() == [number // 2] * 8
    assert len(set(own(halves))) == 8
    assert not set(own(halves)) & set(own(kept.members_MG))


def test_with_few_contributors_all_halves_that_remain_are_drawn():
    kept = bank(6, 8)
    seen = sum(row.sum() == 3 for row in kept.members_MG)
    halves = unseen_halves(rows(6), kept, 100, "run")
    assert len(halves) == comb(6, 3) - seen
    assert not set(own(halves)) & set(own(kept.members_MG))


def test_coalitions_of_groups_are_compared_by_their_contributors():
    pair = Design(
        groups=(("c0", "c1"), ("c2", "c3")), members_MG=np.array([[True, False], [False, True]]), players="contributors"
    )
    halves = unseen_halves(rows(4), pair, 4, "run")
    assert len(halves) == 4
    assert not {(True, True, False, False), (False, False, True, True)} & set(own(halves))


def test_coalitions_of_blocks_are_halves_only_where_they_cut_nobody_in_two():
    four = rows(4)
    blocks = deal_blocks(four, 8, "run")  # two of each contributor
    whole = np.array([[row_id.partition("/")[0] in ("c0", "c1") for row_id in block[:1]] for block in blocks])[:, 0]
    cut = np.array([place % 2 == 0 for place in range(8)])
    halves = unseen_halves(four, Design(groups=blocks, members_MG=np.array([whole, cut])), 8, "run")
    assert len(halves) == 5
    assert (True, True, False, False) not in own(halves)


@pytest.mark.parametrize(("number", "coalitions"), [(4, 32), (6, 32), (4, 8)])
def test_a_bank_that_leaves_too_few_halves_is_refused(number, coalitions):
    with pytest.raises(InvalidInput) as caught:
        unseen_halves(rows(number), bank(number, coalitions), 8, "run")
    assert (caught.value.code, caught.value.param) == ("too_few_halves", "coalitions")
    assert caught.value.fix == "fewer --coalitions, or more contributors"


def test_a_rank_correlation_of_three_halves_is_not_asked_for():
    with pytest.raises(InvalidInput) as caught:
        unseen_halves(rows(12), bank(12), 3, "run")
    assert caught.value.code == "invalid_audit"


def test_an_audit_costs_its_halves_twice_and_a_run_without_each_contributor():
    assert audit_cost(dict.fromkeys(names(12), 40), 8, 8) == pytest.approx(8 + 8 + 11)
    assert audit_cost({"large": 30, "small": 10}, 4, 8) == pytest.approx(2 * 4 * 0.75 + 8 + 1)
