"""Four years of the economy in seconds: supply that vests, stake that earns and comes back, votes that execute."""

from datetime import UTC, datetime

from economy_values import Town, scores

from openledger.core.clock import ManualClock
from openledger.core.money import NANO_PER_OPEN, SUPPLY_NANO
from openledger.economy import Parameters
from openledger.ledger.vesting import month_start_ms

OPEN = NANO_PER_OPEN
START_MS = int(datetime(2026, 1, 31, tzinfo=UTC).timestamp() * 1000)
DAY_MS = 24 * 60 * 60_000
YEAR = 12


def test_four_years_of_vesting_stake_and_votes(tmp_path):
    clock = ManualClock()
    clock.time_ms = START_MS
    town = Town(tmp_path, clock)
    town.economy.grant("user:alice", OPEN, "start")
    town.economy.grant("user:bob", 1000 * OPEN, "bob")
    town.economy.found()
    earned, fees = 0, 0
    for month in range(1, 4 * YEAR + 1):
        town.economy.stake("user:bob", "adapter:py", 200 * OPEN, f"s{month}")
        if month % YEAR == 1:
            propose_and_pass(town, month // YEAR)
        fees += sum(town.sell(f"m{month}-{number}").fee_nano for number in range(2))
        clock.time_ms = month_start_ms(START_MS, month)
        town.economy.unstake("user:bob", "adapter:py", 200 * OPEN, f"u{month}")
        before = town.available("user:bob")
        town.economy.settle(scores(town.economy.current_period()), {})
        earned += town.available("user:bob") - before
    clock.advance(22 * DAY_MS)
    town.economy.run_due()
    assert town.economy.vesting()["circulating_nano"] == SUPPLY_NANO
    assert town.available("user:bob") == 1000 * OPEN + earned
    assert earned == fees * 200_000 // 10**6
    table = town.economy.parameter_table()
    assert (table["in_force"], table["values"]["payout_minimum_nano"]) == (Parameters().version + 4, 4 * OPEN)
    report = town.ledger.audit()
    assert (report.num_settlements, report.num_answers) == (48, 96)
    town.close()


def propose_and_pass(town, year):
    """A vote in the year's first month, by the only one who has staked: the minimum payout is as many OPEN as years."""
    values = Parameters()
    town.clock.advance(1)
    action = {"kind": "parameters", "changes": {"payout_minimum_nano": (year + 1) * OPEN}}
    made = town.economy.propose("user:bob", "more", "", action, f"p{year}")["proposal"]
    town.clock.advance(values.vote_delay_ms + 1)
    town.economy.vote("user:bob", made, "for")
    town.clock.advance(values.vote_period_ms + values.vote_timelock_ms)
    assert town.economy.proposal(made)["state"] == "Executed"
