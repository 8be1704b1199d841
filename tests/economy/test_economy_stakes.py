"""Stake: what it earns by amount and time, how it comes back, how it is lost; to the nano-OPEN."""

import pytest
from economy_values import TERMS, answer
from hypothesis import given
from hypothesis import strategies as st

from openledger.core.errors import Conflict, Forbidden, InsufficientFunds, InvalidInput, NotFound, Unavailable
from openledger.core.money import NANO_PER_OPEN
from openledger.economy import Parameters
from openledger.ledger.parameters import Opened
from openledger.ledger.stakes import Stakes, reward_payouts

OPEN = NANO_PER_OPEN
P = Parameters()
DAY_MS = 24 * 60 * 60_000
ADAPTER, DATANET = f"adapter:{TERMS.adapter}", f"datanet:{TERMS.datanet}"
EVIDENCE = "ab" * 32


@pytest.fixture
def backed(town):
    """Bob and carol have 100 OPEN each; bob has staked 10 of his on the adapter."""
    return settle_down(town)


@pytest.fixture(scope="module")
def unmoved(standing):
    """The same, for what is refused and changes nothing."""
    return settle_down(standing)


def settle_down(town):
    for name in ("user:bob", "user:carol"):
        town.economy.grant(name, 100 * OPEN, name)
    town.economy.stake("user:bob", ADAPTER, 10 * OPEN, "s1")
    return town


def test_stake_leaves_the_account_and_lies_with_its_object(backed):
    assert backed.available("user:bob") == 90 * OPEN
    assert backed.economy.balance(f"holds:stake:{ADAPTER}").posted_nano == 10 * OPEN
    assert backed.economy.stakes("user:bob")["staked_nano"] == {ADAPTER: 10 * OPEN}
    assert backed.ledger.audit().num_registered == 3


def test_with_nothing_staked_the_stakers_part_is_the_treasurys(town):
    assert "stakers:py:p0001" not in town.sell("k1").parts


def test_the_stakers_part_waits_and_is_paid_when_the_period_closes(backed, clock):
    assert backed.sell("k1").parts == {"pool:py:p0001": 155, "user:owner": 62, "stakers:py:p0001": 62, "treasury": 31}
    clock.advance(DAY_MS)
    backed.economy.open_period()
    assert backed.available("user:bob") == 90 * OPEN + 62
    assert backed.economy.balance("stakers:py:p0001").posted_nano == 0
    (paid,) = backed.economy.payouts("user:bob")
    assert (paid.code, paid.funding, paid.reference, paid.amount_nano) == ("stake_reward", "fees", "py:p0001", 62)
    backed.ledger.audit()


def test_it_is_divided_by_amount_and_time(backed, clock):
    backed.sell("k1", completion=20)
    clock.advance(3 * DAY_MS)
    backed.economy.stake("user:carol", ADAPTER, 30 * OPEN, "s1")
    clock.advance(DAY_MS)
    backed.economy.open_period()
    # bob 10 OPEN for 4 days, carol 30 for one: 40 to 30 of 140
    assert backed.available("user:bob") - 90 * OPEN == 80
    assert backed.available("user:carol") - 70 * OPEN == 60
    backed.ledger.audit()


def test_a_nano_open_on_the_datanet_counts_half(backed, clock):
    backed.economy.stake("user:carol", DATANET, 10 * OPEN, "s1")
    backed.sell("k1", completion=20)
    clock.advance(DAY_MS)
    backed.economy.open_period()
    assert backed.available("user:bob") - 90 * OPEN == 93
    assert backed.available("user:carol") - 90 * OPEN == 47
    backed.ledger.audit()


def test_stake_on_another_adapter_earns_nothing_here(backed, clock):
    backed.economy.stake("user:carol", "adapter:other", 50 * OPEN, "s1")
    backed.sell("k1")
    clock.advance(DAY_MS)
    backed.economy.open_period()
    assert backed.economy.payouts("user:carol") == []


def test_stake_that_was_there_for_no_time_leaves_its_part_to_the_treasury(backed):
    backed.sell("k1")
    before = backed.economy.balance("treasury").posted_nano
    backed.economy.open_period()
    assert backed.economy.balance("treasury").posted_nano == before + 62
    backed.ledger.audit()


def test_cooling_stake_earns_nothing_and_comes_back_by_itself(backed, clock):
    backed.economy.unstake("user:bob", ADAPTER, 10 * OPEN, "u1")
    assert "stakers:py:p0001" not in backed.sell("k1").parts
    clock.advance(P.stake_cooldown_ms - 1)
    assert backed.economy.run_due() == 0
    assert backed.available("user:bob") == 90 * OPEN
    clock.advance(1)
    assert backed.economy.run_due() == 1
    assert backed.available("user:bob") == 100 * OPEN
    assert backed.economy.run_due() == 0
    backed.ledger.audit()


def test_the_same_key_stakes_once_also_after_a_restart(backed):
    first = backed.economy.stake("user:bob", ADAPTER, 10 * OPEN, "s1")
    backed.restart()
    assert backed.economy.stake("user:bob", ADAPTER, 10 * OPEN, "s1") == first
    assert backed.available("user:bob") == 90 * OPEN
    with pytest.raises(Conflict) as caught:
        backed.economy.stake("user:bob", ADAPTER, 11 * OPEN, "s1")
    assert caught.value.code == "idempotency_conflict"


@pytest.mark.parametrize(
    ("account", "of", "amount", "error", "code"),
    [
        ("user:bob", ADAPTER, 0, InvalidInput, "invalid_amount"),
        ("user:bob", ADAPTER, -OPEN, InvalidInput, "invalid_amount"),
        ("user:bob", ADAPTER, 1.5 * OPEN, InvalidInput, "invalid_amount"),
        ("user:bob", ADAPTER, 2**63, InvalidInput, "invalid_amount"),
        ("user:bob", ADAPTER, OPEN - 1, InvalidInput, "stake_too_small"),
        ("user:bob", ADAPTER, 91 * OPEN, InsufficientFunds, "insufficient_funds"),
        ("user:bob", "py", OPEN, InvalidInput, "invalid_object"),
        ("user:bob", "adapter:../x", OPEN, InvalidInput, "invalid_object"),
        ("treasury", ADAPTER, OPEN, InvalidInput, "invalid_account"),
        ("user:nobody", ADAPTER, OPEN, InsufficientFunds, "insufficient_funds"),
    ],
)
def test_a_stake_that_can_not_be_changes_nothing(unmoved, account, of, amount, error, code):
    before = unmoved.ledger.checkpoint()
    with pytest.raises(error) as caught:
        unmoved.economy.stake(account, of, amount, "s2")
    assert (caught.value.code, unmoved.ledger.checkpoint()) == (code, before)


@pytest.mark.parametrize(("amount", "code"), [(11 * OPEN, "not_staked"), (10 * OPEN - 1, "stake_too_small")])
def test_more_than_is_staked_or_a_crumb_left_is_refused(backed, amount, code):
    with pytest.raises(Conflict) as caught:
        backed.economy.unstake("user:bob", ADAPTER, amount, "u1")
    assert caught.value.code == code


def test_a_slash_takes_the_same_part_of_all_and_waits_in_escrow(backed):
    backed.economy.stake("user:carol", ADAPTER, 20 * OPEN, "s1")
    backed.economy.unstake("user:carol", ADAPTER, 5 * OPEN, "u1")
    slash = backed.economy.slash(ADAPTER, "false_lineage", EVIDENCE)
    assert slash["taken_nano"] == {"user:bob": OPEN, "user:carol": 2 * OPEN}
    assert backed.economy.balance(f"holds:slash:{slash['number']}").posted_nano == 3 * OPEN
    assert backed.economy.stakes("user:bob")["staked_nano"] == {ADAPTER: 9 * OPEN}
    assert backed.economy.stakes("user:carol")["cooling"][0]["amount_nano"] == int(4.5 * OPEN)
    backed.ledger.audit()


def test_a_slash_that_nobody_appeals_goes_to_the_treasury(backed, clock):
    slash = backed.economy.slash(ADAPTER, "poisoned_rows", EVIDENCE)
    clock.advance(P.slash_appeal_ms)
    assert backed.economy.run_due() == 0
    clock.advance(1)
    assert backed.economy.run_due() == 1
    assert backed.economy.balance("treasury").posted_nano == OPEN
    assert backed.economy.stakes("user:bob")["slashed"][0]["state"] == "final"
    assert backed.economy.balance(f"holds:slash:{slash['number']}").posted_nano == 0
    backed.ledger.audit()


@pytest.mark.parametrize(
    ("of", "cause", "evidence", "error", "code"),
    [
        (ADAPTER, "i dislike it", EVIDENCE, InvalidInput, "invalid_slash"),
        (ADAPTER, "false_lineage", "because", InvalidInput, "invalid_slash"),
        ("adapter:nobody", "false_lineage", EVIDENCE, NotFound, "nothing_staked"),
    ],
)
def test_a_slash_outside_the_rules_is_refused(backed, of, cause, evidence, error, code):
    with pytest.raises(error) as caught:
        backed.economy.slash(of, cause, evidence)
    assert caught.value.code == code


def test_the_same_evidence_slashes_once(backed):
    backed.economy.slash(ADAPTER, "false_lineage", EVIDENCE)
    with pytest.raises(Conflict) as caught:
        backed.economy.slash(ADAPTER, "poisoned_rows", EVIDENCE)
    assert caught.value.code == "already_slashed"


def test_a_clock_that_went_back_is_refused_and_nothing_is_written(backed, clock):
    clock.advance(-2 * DAY_MS)
    before = backed.economy.balance("user:carol")
    with pytest.raises(Unavailable) as caught:
        backed.economy.stake("user:carol", ADAPTER, OPEN, "s1")
    assert caught.value.code == "clock_went_backwards"
    assert backed.economy.balance("user:carol") == before


def test_another_house_account_can_not_be_delegated_to(backed):
    with pytest.raises(Forbidden) as caught:
        backed.economy.delegate("user:bob", "treasury")
    assert caught.value.code == "not_a_voter"


def test_an_answer_completed_late_in_another_period_pays_that_periods_stakers(backed, clock):
    late = backed.authorize("k1")
    clock.advance(DAY_MS)
    backed.economy.open_period()
    assert "stakers:py:p0002" in backed.economy.complete(answer(late)).parts
    clock.advance(DAY_MS)
    backed.economy.open_period()
    assert [paid.reference for paid in backed.economy.payouts("user:bob")] == ["py:p0002"]
    backed.ledger.audit()


moves = st.lists(
    st.tuples(st.sampled_from(["a", "b", "c"]), st.integers(-5, 9), st.integers(0, 50)), min_size=1, max_size=12
)


@given(moves, st.integers(1, 10**12))
def test_rewards_are_the_whole_pool_in_proportion_to_amount_times_time(drawn, pool_nano):
    """Against a count of every millisecond."""
    stakes, now_ms, held, counted = Stakes(), 0, {}, {}
    for account, change, wait_ms in drawn:
        change = max(change, -held.get(account, 0))
        stakes._change(account, ADAPTER, change, now_ms)
        held[account] = held.get(account, 0) + change
        for name, amount in held.items():
            counted[name] = counted.get(name, 0) + amount * wait_ms
        now_ms += wait_ms
    period = Opened(version=1, opened_ms=0, ends_ms=now_ms)
    weights = stakes.weights(TERMS.adapter, [TERMS.datanet], period, 500_000)
    assert weights == {name: amount * 10**6 for name, amount in counted.items() if amount}
    payouts = reward_payouts(pool_nano, weights)
    assert sum(payouts.values()) == pool_nano
    total = sum(counted.values())
    assert all(abs(payouts[name] * total - pool_nano * counted[name]) < total for name in weights)
