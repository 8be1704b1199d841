"""First payouts: held while spot checks of their rows are due, for so long at most, and once."""

import pytest
from economy_values import Town, kill_at, put_back, scores

from openledger.core.clock import ManualClock
from openledger.core.errors import InsufficientFunds
from openledger.economy import Parameters
from openledger.economy.first_payouts import FirstPayoutBook, hold_id
from openledger.economy.spot_checks import SpotCheckBook

ADA, HOLD_MS = "contributor:ctr_a", Parameters().first_payout_hold_ms
WITH = {"scores_nano": {"ctr_a": 100}, "errors_nano": {"ctr_a": 0}, "gain_nano": 100}


@pytest.fixture
def paid(town):
    """Two rows of ctr_a's were drawn, and a settlement paid him for the first time; `.nano` is how much."""
    draw(town, "ctb_1", "row_0", "row_1")
    return settled(town)


def draw(town, contribution, *rows, contributor="ctr_a"):
    dice = town.economy._spot_checks
    town.economy._spot_checks = SpotCheckBook(town.economy._db, lambda _: 0)
    town.economy.draw_spot_checks(contributor, "py-docs", contribution, rows)
    town.economy._spot_checks = dice


def settled(town, key="k", accounts=None):
    period = town.economy.current_period()
    town.sell(key, completion=1330)
    town.economy.settle(scores(period, **WITH), accounts or {})
    return town


def balance(town, account=ADA):
    return town.economy.balance(account)


def look(town, row, finding="good"):
    town.economy.spot_check("user:owner", "py-docs", row, finding)


def test_a_first_payout_is_held_while_checks_are_due_and_is_all_there_once_they_are_closed(paid):
    assert balance(paid).available_nano == 0 < balance(paid).posted_nano
    look(paid, "row_0")
    assert balance(paid).available_nano == 0
    look(paid, "row_1", "spam")
    assert balance(paid).available_nano == balance(paid).posted_nano > 0
    paid.ledger.audit()


def test_an_owner_who_never_looks_holds_it_for_three_days_and_no_longer(paid):
    paid.clock.advance(HOLD_MS - 1)
    paid.economy.run_due()
    assert balance(paid).available_nano == 0
    paid.clock.advance(1)
    assert paid.economy.run_due() == 1
    assert paid.economy.run_due() == 0
    assert balance(paid).available_nano == balance(paid).posted_nano > 0
    paid.ledger.audit()


def test_checks_that_are_drawn_later_hold_nothing_longer(paid):
    paid.clock.advance(1)
    draw(paid, "ctb_2", "row_2")
    for row in ("row_0", "row_1"):
        look(paid, row)
    assert balance(paid).available_nano == balance(paid).posted_nano


def test_a_second_payout_is_not_held(paid):
    first_nano = balance(paid).posted_nano
    settled(paid, "k2")
    assert balance(paid).available_nano == balance(paid).posted_nano - first_nano > 0


def test_nothing_is_held_of_whose_checks_are_closed_or_others(town):
    draw(town, "ctb_1", "row_0")
    draw(town, "ctb_2", "row_9", contributor="ctr_b")
    look(town, "row_0")
    settled(town)
    assert balance(town).available_nano == balance(town).posted_nano > 0


def test_the_account_that_a_contributor_names_is_the_one_that_is_held(town):
    draw(town, "ctb_1", "row_0")
    settled(town, accounts={"ctr_a": "user:bob"})
    assert balance(town, "user:bob").available_nano == 0 < balance(town, "user:bob").posted_nano


def test_what_was_paid_before_is_no_part_of_it(town):
    town.economy.grant(ADA, 5_000, "gift")
    draw(town, "ctb_1", "row_0")
    settled(town)
    assert balance(town).available_nano == 5_000 < balance(town).posted_nano


def test_a_held_payout_can_not_be_taken_out_and_can_be_when_its_time_is_up(tmp_path):
    town = Town(tmp_path, ManualClock(), Parameters(payout_minimum_nano=1))
    town.economy.grant("user:alice", 1_000_000, "start")
    draw(town, "ctb_1", "row_0")
    amount_nano = balance(settled(town)).posted_nano
    with pytest.raises(InsufficientFunds, match="less than that") as caught:
        town.economy.withdraw(ADA, amount_nano, "0x" + "ab" * 20, "w1")
    assert "first_payout_hold_ms" in caught.value.fix
    town.clock.advance(HOLD_MS)
    town.economy.withdraw(ADA, amount_nano, "0x" + "ab" * 20, "w1")
    assert balance(town).posted_nano == 0
    town.ledger.audit()
    town.close()


def test_a_settlement_that_is_repeated_holds_nothing_anew(paid):
    for row in ("row_0", "row_1"):
        look(paid, row)
    assert paid.economy.settle(scores("p0001", **WITH), {}).replayed
    paid.restart()
    assert balance(paid).available_nano == balance(paid).posted_nano > 0


@pytest.mark.parametrize("method", ["hold", "_place", "_release"])
def test_a_crash_on_the_way_is_made_up_by_the_next_start(town, method):
    draw(town, "ctb_1", "row_0")
    with kill_at(FirstPayoutBook, method):
        settled(town)
        look(town, "row_0")
    town.restart()
    if method != "_release":
        assert balance(town).available_nano == 0 < balance(town).posted_nano
        look(town, "row_0")
    assert balance(town).available_nano == balance(town).posted_nano > 0
    town.ledger.audit()


@pytest.mark.parametrize("name", ["ledger.db", "economy.db"])
def test_a_file_that_was_put_back_from_before_the_release_is_released_once_more(paid, name):
    with put_back(paid, name):
        for row in ("row_0", "row_1"):
            look(paid, row)
        assert balance(paid).available_nano > 0
    paid.clock.advance(HOLD_MS)
    paid.economy.run_due()
    assert balance(paid).available_nano == balance(paid).posted_nano > 0
    paid.ledger.audit()


def test_an_economy_that_was_put_back_from_before_the_payout_finds_the_hold_in_the_log(town):
    draw(town, "ctb_1", "row_0")
    with put_back(town, "economy.db"):
        settled(town)
        assert town.ledger.find(hold_id(ADA)) is not None
    assert balance(town).available_nano == 0 < balance(town).posted_nano
    town.clock.advance(HOLD_MS)
    town.economy.run_due()
    assert balance(town).available_nano == balance(town).posted_nano


def test_with_0_nothing_is_held(tmp_path):
    town = Town(tmp_path, ManualClock(), Parameters(first_payout_hold_ms=0))
    town.economy.grant("user:alice", 1_000_000, "start")
    draw(town, "ctb_1", "row_0")
    settled(town)
    assert balance(town).available_nano == balance(town).posted_nano > 0
    assert town.ledger.find(hold_id(ADA)) is None
    town.close()
