"""Vouches: trust flows from whom the owner trusts, gives quota alone, and made-up names share what flows to them."""

import pytest

from openledger.core.errors import InvalidInput, TooLarge
from openledger.economy import Parameters
from openledger.economy.vouching import MOST_VOUCHES

P = Parameters()
OWN = P.quota_low_rows + (P.quota_high_rows - P.quota_low_rows) // 10  # of a new key


def standing(town, name):
    return town.economy.reputation(name, "docs")


def vouch(town, voucher, *names, vouches=True):
    for name in names:
        town.economy.vouch("docs", voucher, name, vouches)


@pytest.fixture
def seeded(town):
    """ctr_s is trusted by the owner, and vouches for ctr_a."""
    town.economy.seed_trust("docs", "ctr_s", True)
    vouch(town, "ctr_s", "ctr_a")
    return town


def test_whom_a_trusted_one_vouches_for_may_send_more_at_once(seeded):
    """Trust of ctr_a is a third: half of what ctr_s has, who has the rest."""
    assert (standing(seeded, "ctr_a")["vouched_rows"], standing(seeded, "ctr_b")["vouched_rows"]) == (6666, 0)
    seeded.economy.admit("ctr_a", "docs", "ctb_1", OWN + 6666)
    with pytest.raises(TooLarge):
        seeded.economy.admit("ctr_b", "docs", "ctb_2", OWN + 1)
    seeded.restart()
    assert standing(seeded, "ctr_a")["vouched_rows"] == 6666
    assert seeded.economy.reputation("ctr_a", "other")["vouched_rows"] == 0


def test_it_brings_the_quota_to_its_highest_and_not_beyond(seeded):
    assert standing(seeded, "ctr_s")["quota_rows"] == OWN + 13_333
    seeded.economy.record_outcomes("ctr_a", "docs", {"accepted": 400}, "ctb_1")
    told = standing(seeded, "ctr_a")
    assert (told["quota_rows"], told["vouched_rows"]) == (P.quota_high_rows, 1)


def test_a_thousand_made_up_names_share_what_flows_to_one(seeded):
    """ctr_a was fooled by one of them; those vouch for each other."""
    vouch(seeded, "ctr_a", "ctr_0")
    names = [f"ctr_{number}" for number in range(200)]
    for number, name in enumerate(names):
        vouch(seeded, name, *(names[(number + step) % 200] for step in (1, 2, 3)))
    together = sum(standing(seeded, name)["vouched_rows"] for name in names)
    assert 0 < together <= standing(seeded, "ctr_s")["vouched_rows"] // 2
    vouch(seeded, "ctr_a", "ctr_0", vouches=False)
    assert {standing(seeded, name)["vouched_rows"] for name in names} == {0}


def test_it_is_taken_back_and_may_be_repeated(seeded):
    vouch(seeded, "ctr_s", "ctr_a")
    for _ in range(2):
        vouch(seeded, "ctr_s", "ctr_a", vouches=False)
    assert standing(seeded, "ctr_a")["vouched_rows"] == 0
    vouch(seeded, "ctr_s", "ctr_a")
    seeded.economy.seed_trust("docs", "ctr_s", False)
    assert standing(seeded, "ctr_a")["vouched_rows"] == 0


def test_a_spoiled_reputation_loses_it(seeded):
    seeded.economy.record_outcomes("ctr_a", "docs", {"spam": 14}, "ctb_1")
    ppm = standing(seeded, "ctr_a")["ppm"]
    assert ppm < P.reputation_start_ppm // 2
    assert standing(seeded, "ctr_a")["vouched_rows"] == 6666 * ppm // P.reputation_start_ppm


def test_stake_buys_none_of_it(seeded):
    seeded.economy.grant("contributor:ctr_b", 10**15, "rich")
    seeded.economy.stake("contributor:ctr_b", "datanet:docs", 10**15, "s1")
    assert standing(seeded, "ctr_b")["vouched_rows"] == 0


def test_a_vouch_that_can_not_be_changes_nothing(seeded):
    vouch(seeded, "ctr_b", *(f"ctr_x{number}" for number in range(MOST_VOUCHES)))
    vouch(seeded, "ctr_b", "ctr_x0")
    for voucher, name in (("ctr_s", "ctr_s"), ("ctr_b", "ctr_y"), ("ctr_s", "no name")):
        with pytest.raises(InvalidInput):
            vouch(seeded, voucher, name)
    assert standing(seeded, "ctr_a")["vouched_rows"] == 6666
