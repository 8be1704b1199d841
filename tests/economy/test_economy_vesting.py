"""Genesis and vesting: every nano-OPEN of the supply, on the day that anybody can compute."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openledger.core.errors import Conflict, InvalidInput
from openledger.core.money import NANO_PER_OPEN, SUPPLY_NANO
from openledger.economy.nonces import NonceBook
from openledger.ledger.vesting import Bucket, month_start_ms, standard_plan

OPEN = NANO_PER_OPEN
DAY_MS = 24 * 60 * 60_000


def at(*moment: int) -> int:
    return int(datetime(*moment, tzinfo=UTC).timestamp()) * 1000


def test_the_standard_plan_is_the_supply_and_circulates_21_55_percent():
    plan = {bucket.name: bucket for bucket in standard_plan()}
    assert sum(bucket.total_nano for bucket in plan.values()) == SUPPLY_NANO
    assert sum(bucket.initial_nano for bucket in plan.values()) == 215_500_000 * OPEN
    assert {name: bucket.total_nano * 10_000 // SUPPLY_NANO for name, bucket in plan.items()} == {
        "community": 5171, "ecosystem": 1000, "investors": 1829, "team": 1500, "liquidity": 500,
    }  # fmt: skip


@pytest.mark.parametrize("name", ["team", "investors"])
def test_nothing_of_team_and_investors_is_free_for_a_year_and_a_36th_each_month_after(name):
    (bucket,) = [bucket for bucket in standard_plan() if bucket.name == name]
    assert bucket.released_nano(12) == 0
    assert bucket.amount_nano(13) == bucket.total_nano // 36
    assert bucket.released_nano(48) == bucket.total_nano
    assert bucket.amount_nano(49) == 0


@given(st.integers(1, 10**18), st.integers(1, 100), st.integers(1, 60))
def test_months_sum_to_the_bucket_and_differ_by_at_most_one(total, months, first):
    bucket = Bucket(
        name="b", total_nano=max(total, months), initial_nano=0, first_month=first, months=months, recipient="user:b"
    )
    amounts = [bucket.amount_nano(month) for month in range(bucket.last_month + 5)]
    assert sum(amounts) == bucket.total_nano
    assert max(amounts) - min(amounts[first : first + months]) <= 1


@pytest.mark.parametrize(
    ("start", "month", "moment"),
    [
        ((2026, 1, 31, 12, 30), 1, (2026, 2, 28, 12, 30)),
        ((2026, 1, 31, 12, 30), 2, (2026, 3, 31, 12, 30)),  # counted from the start: no drift
        ((2027, 11, 30), 3, (2028, 2, 29)),
        ((2026, 12, 15), 1, (2027, 1, 15)),
        ((2026, 12, 15), 48, (2030, 12, 15)),
        ((2026, 5, 1, 23, 59, 59), 0, (2026, 5, 1, 23, 59, 59)),
    ],
)
def test_a_month_has_come_on_the_starts_day_or_on_the_months_last(start, month, moment):
    assert month_start_ms(at(*start) + 7, month) == at(*moment) + 7


def test_four_years_release_the_whole_supply_and_the_audit_agrees(bare):
    town, clock = bare
    start_ms = at(2026, 1, 31)
    clock.time_ms = start_ms
    town.economy.found()
    circulating = [town.economy.vesting()["circulating_nano"]]
    for month in range(1, 49):
        clock.time_ms = month_start_ms(start_ms, month) - 1
        assert town.economy.run_due() == 0
        clock.time_ms += 1
        assert town.economy.run_due() == (2 if month <= 12 else 4)
        circulating.append(town.economy.vesting()["circulating_nano"])
    assert circulating[0] == 215_500_000 * OPEN
    assert circulating[12] - circulating[0] == 12 * (351_600_000 + 100_000_000) * OPEN // 48
    assert circulating[48] == SUPPLY_NANO
    assert town.available("user:team") == 150_000_000 * OPEN
    kept = 1001  # the register's own nano-OPEN, and those that genesis keeps for rounds of nonces
    assert town.available("treasury:community") == 517_100_000 * OPEN - kept
    assert town.ledger.audit().issued_nano == SUPPLY_NANO - (kept - 1)


def test_what_was_missed_is_released_at_once_and_only_once(bare):
    town, clock = bare
    clock.time_ms = at(2026, 1, 31)
    town.economy.found()
    clock.time_ms = at(2027, 3, 1)
    assert town.economy.run_due() == 13 * 2 + 2
    town.restart()
    assert town.economy.run_due() == 0
    town.ledger.audit()


def test_rounds_of_nonces_can_still_be_opened(bare):
    town, _ = bare
    town.economy.found()
    assert NonceBook(town.ledger).open("py-docs", 2, "user:owner").owner == "user:owner"
    town.ledger.audit()


def test_a_second_genesis_is_refused_and_a_grant_finds_nothing_left(bare):
    town, _ = bare
    town.economy.found()
    before = town.ledger.checkpoint()
    with pytest.raises(Conflict) as caught:
        town.economy.found()
    assert (caught.value.code, town.ledger.checkpoint()) == ("genesis_done", before)
    with pytest.raises(ValueError, match=r"genesis has 0 OPEN available"):
        town.economy.grant("user:bob", OPEN, "late")


def test_what_was_granted_before_genesis_comes_out_of_the_largest_circulating_part(bare):
    town, _ = bare
    town.economy.grant("user:bob", 5 * OPEN, "early")
    town.economy.found()
    assert town.available("treasury:community") == 165_500_000 * OPEN - 5 * OPEN - 1001
    town.ledger.audit()


@pytest.mark.parametrize(
    "change",
    [
        {"total_nano": SUPPLY_NANO - 1},
        {"initial_nano": SUPPLY_NANO + 1},
        {"months": 0},
        {"first_month": 0},
        {"recipient": "genesis"},
        {"initial_nano": 0.5},
        {"name": "Two Words"},
    ],
)
def test_a_plan_that_can_not_be_is_refused_and_changes_nothing(bare, change):
    town, _ = bare
    given = {"name": "all", "total_nano": SUPPLY_NANO, "initial_nano": SUPPLY_NANO // 2, "first_month": 1, "months": 48,
             "recipient": "user:all"}  # fmt: skip
    before = town.ledger.checkpoint()
    with pytest.raises(InvalidInput):
        town.economy.found([Bucket(**{**given, **change})])
    assert town.ledger.checkpoint() == before
