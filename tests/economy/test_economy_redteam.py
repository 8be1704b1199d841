"""No attack on the economy brings more than honest work in its place; the defence is what makes the difference."""

import pytest

from benchmarks.redteam_economy import ATTACKS, flood_of_proposals, good_rows_of_many_keys, row, sybils_who_vouch

QUICK = (good_rows_of_many_keys, flood_of_proposals, sybils_who_vouch)


@pytest.mark.parametrize("attack", QUICK, ids=lambda attack: attack.__name__)
def test_a_quick_attack_returns_at_most_what_honest_work_does(attack):
    outcome = attack()
    assert outcome.defended <= 1
    assert outcome.defended < outcome.undefended
    assert row(outcome).count("|") == 6


@pytest.mark.slow
@pytest.mark.parametrize("attack", [one for one in ATTACKS if one not in QUICK], ids=lambda attack: attack.__name__)
def test_an_attack_over_a_real_ledger_returns_at_most_what_honest_work_does(attack):
    outcome = attack()
    assert outcome.defended <= 1
    assert outcome.defended < outcome.undefended
