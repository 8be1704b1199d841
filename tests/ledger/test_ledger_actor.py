"""Ledger and economy as Ray actors: found by name, one writer, and whole again after being killed."""

import os
import signal
from dataclasses import replace

import pytest
from economy_values import TERMS, answer, scores
from ledger_values import move

from openledger.core.errors import Conflict, InsufficientFunds, InvalidInput
from openledger.core.money import NANO_PER_OPEN
from openledger.ledger import Account, audit_file

pytestmark = pytest.mark.cluster


@pytest.fixture
def actors(cluster, tmp_path):
    import ray

    from openledger.economy.actor import start_economy
    from openledger.ledger.actor import start_ledger

    ledger = start_ledger(tmp_path / "ledger.db")
    economy = start_economy(ledger, tmp_path)
    ray.get(economy.current_period.remote())  # it opens the house's accounts as it starts
    yield ledger, economy
    ray.kill(economy)
    ray.kill(ledger)


def kill_process_of(actor):
    """SIGKILL, as a crash would: the actor itself names its process, so it can be no other's."""
    import ray

    os.kill(ray.get(actor.__ray_call__.remote(lambda self: os.getpid())), signal.SIGKILL)


def test_the_whole_way_of_a_payment_through_actors(actors, tmp_path):
    import ray

    from openledger.economy.actor import find_economy
    from openledger.ledger.actor import find_ledger

    economy, ledger = find_economy(), find_ledger()
    ray.get(economy.grant.remote("user:alice", 1_000_000, "start"))
    authorized = ray.get(economy.authorize.remote("user:alice", TERMS, 10, 20, "k1"))
    assert ray.get(economy.complete.remote(answer(authorized))).fee_nano == 310
    settlement = ray.get(economy.settle.remote(scores(), {}))
    assert sum(settlement.payouts_nano.values()) == 155
    assert audit_file(tmp_path / "ledger.db", ray.get(ledger.verification_key.remote())).num_settlements == 1


def test_errors_cross_the_processes_as_themselves(actors):
    import ray

    ledger, economy = actors
    ray.get(economy.grant.remote("user:poor", 1, "little"))
    with pytest.raises(InsufficientFunds) as caught:
        ray.get(economy.authorize.remote("user:poor", TERMS, 10, 20, "k1"))
    assert caught.value.code == "insufficient_funds"
    with pytest.raises(InvalidInput):
        ray.get(ledger.commit.remote([]))


def test_killed_actors_come_back_and_a_retry_takes_the_fee_once(actors):
    import ray

    ledger, economy = actors
    ray.get(economy.grant.remote("user:alice", 1_000_000, "start"))
    authorized = ray.get(economy.authorize.remote("user:alice", TERMS, 10, 20, "k1"))
    for actor in (ledger, economy):
        kill_process_of(actor)
    assert ray.get(economy.complete.remote(answer(authorized))).fee_nano == 310
    kill_process_of(ledger)
    assert ray.get(economy.complete.remote(answer(authorized))).fee_nano == 310
    assert ray.get(economy.balance.remote("user:alice")).posted_nano == 1_000_000 - 310
    ray.get(ledger.audit.remote())


def test_a_batch_sent_again_to_a_restarted_actor_exists(actors):
    import ray

    ledger, _ = actors
    ray.get(ledger.create_accounts.remote([Account(account_id="user:a", kind="user")]))
    batch = [move("t1", 5), replace(move("t2", 5), reference="x")]
    assert ray.get(ledger.commit.remote(batch)) == ["created", "created"]
    kill_process_of(ledger)
    assert ray.get(ledger.commit.remote(batch)) == ["exists", "exists"]


def test_stake_and_votes_survive_a_killed_economy_and_a_retry_changes_nothing(actors, tmp_path):
    import ray

    ledger, economy = actors
    ray.get(economy.grant.remote("user:alice", 200 * NANO_PER_OPEN, "start"))
    given = ("user:alice", "adapter:py", 150 * NANO_PER_OPEN, "s1")
    staked = ray.get(economy.stake.remote(*given))
    kill_process_of(economy)
    assert ray.get(economy.stake.remote(*given)) == staked
    proposed = ray.get(economy.propose.remote("user:alice", "t", "", {"kind": "text"}, "p1"))
    kill_process_of(economy)
    assert ray.get(economy.proposals.remote()) == [proposed]
    with pytest.raises(Conflict) as caught:
        ray.get(economy.vote.remote("user:alice", proposed["proposal"], "for"))
    assert caught.value.code == "not_active"
    audit_file(tmp_path / "ledger.db", ray.get(ledger.verification_key.remote()))
