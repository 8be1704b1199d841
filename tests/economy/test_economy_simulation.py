"""What other parameters would have paid: the settled shares stay where a change doesn't touch them."""

import pytest
from economy_values import Town, improvement, scores
from test_economy_parts import in_the_old_format

from openledger.economy import Parameters
from openledger.economy.settlement import payout_transfers, settlement_statement

NOTHING = {"payout_minimum_nano": 7}


def test_a_change_that_touches_no_payout_changes_none(town):
    town.sell("k1")
    settled = town.economy.settle(scores(ceilings=((2 * 10**9, 310),)), {}, improvement())
    assert settled.payouts_nano["ctr_a"] == 18  # of 109: D is the ceilings' 620, not the sum of influences
    (told,) = town.economy.simulate(NOTHING)["pools"]
    assert told["payouts_nano"] == {name: [paid, paid] for name, paid in sorted(settled.payouts_nano.items())}


def test_where_a_minimum_changes_the_fees_the_shares_stay(town):
    town.sell("k1")
    town.economy.settle(scores(ceilings=((2 * 10**9, 310),)), {}, improvement())
    (told,) = town.economy.simulate({"minimum_fee_nano": 3100})["pools"]
    assert (told["fees_nano"], told["pool_nano"]) == ([310, 3100], [155, 1550])
    assert told["payouts_nano"]["ctr_a"] == [18, 182]


def test_a_settlement_of_one_part_is_divided_as_one(town):
    town.sell("k1")
    alone = Parameters(use_ppm=10**6, improvement_ppm=0, shares_rule="shares/1")
    old = in_the_old_format(settlement_statement(scores(), town.ledger.usages("pool:py:p0001"), {}, alone))
    transfers = payout_transfers(old)
    town.economy._accounts.open(*(transfer.credit for transfer in transfers))
    assert set(town.ledger.commit(transfers, old)) == {"created"}
    town.restart()
    town.economy.open_period()
    town.economy.pools()
    (told,) = town.economy.simulate(NOTHING, "p0001")["pools"]
    assert [was for was, _ in told["payouts_nano"].values()] == [
        old["payouts_nano"][name] for name in sorted(old["payouts_nano"])
    ]
    assert told["payouts_nano"]["ctr_a"] == [74, 81]  # shares/1 then, shares/5 now


REPEATS = (("row_2", "row_1", "ctr_a", 930), ("row_3", "row_1", "ctr_a", 910))


@pytest.mark.parametrize(
    ("settled_by", "asked", "as_settled"),
    [
        ("shares/3", "shares/5", True),
        ("shares/5", "shares/4", True),
        ("shares/2", "shares/5", True),
        ("shares/5", "shares/5", False),
        ("shares/5", "shares/2", False),
    ],
)
def test_what_a_rule_would_find_repeated_is_not_known_and_the_simulation_says_so(
    tmp_path, clock, settled_by, asked, as_settled
):
    town = Town(tmp_path, clock, Parameters(shares_rule=settled_by))
    town.economy.grant("user:alice", 10**9, "start")
    town.sell("k1")
    unpaid = {} if settled_by == "shares/2" else {"unpaid_nano": {"ctr_b": 12}, "repeats": REPEATS}
    town.economy.settle(scores(**unpaid), {}, improvement())
    (told,) = town.economy.simulate({"shares_rule": asked})["pools"]
    assert (told["shares_rule"], told["unpaid_as_settled"]) == ([settled_by, asked], as_settled)
    was, would = told["payouts_nano"]["ctr_b"]
    assert (would > was) == (asked == "shares/2")  # every row is paid by that one, which is known
    assert (would == was) == (asked != "shares/2")
    town.close()


def test_what_stakers_would_get_is_the_treasurys_where_nobody_staked(town):
    town.sell("k1")
    town.economy.settle(scores(), {})
    (told,) = town.economy.simulate({"contributors_ppm": 600_000, "stakers_ppm": 100_000})["pools"]
    assert set(told["parts_nano"]) == {"contributors", "owner", "treasury"}
    assert [sum(side) for side in zip(*told["parts_nano"].values(), strict=True)] == told["fees_nano"]
