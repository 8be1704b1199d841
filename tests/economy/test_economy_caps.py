"""A key spends at most its cap in a day; whoever asks for more is told what is missing, and nothing is held."""

import pytest
from economy_values import TERMS, answer

from openledger.core.errors import InsufficientFunds, InvalidInput, Unauthenticated
from openledger.core.hashing import digest_bytes
from openledger.economy.caps import DAY_MS

CAP = 1500  # two answers of at most 700 fit


@pytest.fixture
def capped(town):
    """A town, and the digest of a key of alice's that has a cap."""
    return town, digest_bytes(town.economy.create_key("user:alice", CAP).encode())


def ask(town, digest, key):
    return town.economy.authorize("user:alice", TERMS, 10, 20, key, "", digest)


def test_what_is_reserved_counts_until_the_fee_is_known(capped):
    town, digest = capped
    first, _ = ask(town, digest, "k1"), ask(town, digest, "k2")
    with pytest.raises(InsufficientFunds) as caught:
        ask(town, digest, "k3")
    assert caught.value.code == "spending_cap_reached"
    assert "0.0000001 OPEN more today, this needs up to 0.0000007: 0.0000006 are missing" in caught.value.message
    assert "00:00 UTC" in caught.value.fix
    assert town.available() == 1_000_000 - 1400
    town.economy.complete(answer(first))  # 310 instead of 700
    with pytest.raises(InsufficientFunds):
        ask(town, digest, "k3")
    town.economy.cancel(town.economy.authorize("user:alice", TERMS, 10, 20, "k2", "", digest).answer_id)
    assert ask(town, digest, "k3").max_fee_nano == 700


def test_a_new_day_has_a_new_cap(capped, clock):
    town, digest = capped
    for key in ("k1", "k2"):
        town.economy.complete(answer(ask(town, digest, key), completion=20))
    with pytest.raises(InsufficientFunds):
        ask(town, digest, "k3")
    clock.advance(DAY_MS - clock.now_ms() % DAY_MS)
    assert ask(town, digest, "k3").max_fee_nano == 700


def test_a_refused_request_leaves_its_idempotency_key_free(capped, clock):
    town, digest = capped
    ask(town, digest, "k1"), ask(town, digest, "k2")
    with pytest.raises(InsufficientFunds):
        ask(town, digest, "k3")
    clock.advance(DAY_MS)
    assert ask(town, digest, "k3").answer_id


def test_a_retry_counts_once_and_a_restart_forgets_nothing(capped):
    town, digest = capped
    assert ask(town, digest, "k1") == ask(town, digest, "k1")
    town.restart()
    ask(town, digest, "k1")
    assert ask(town, digest, "k2").max_fee_nano == 700


def test_other_keys_of_the_account_spend_on(capped):
    town, digest = capped
    ask(town, digest, "k1"), ask(town, digest, "k2")
    assert town.authorize("k3").max_fee_nano == 700


@pytest.mark.parametrize("cap", [0, -1, 1.5, None, 2**63])
def test_a_cap_that_is_no_amount_is_refused(town, cap):
    key = town.economy.create_key("user:alice")
    with pytest.raises(InvalidInput):
        town.economy.set_daily_cap(key, cap)
    with pytest.raises(Unauthenticated):
        town.economy.set_daily_cap("olk_nobodys", 5)
