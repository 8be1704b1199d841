"""The duplicate index divided over real shard actors, which are killed while contributions come."""

import contextlib
import random
import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest
from datanet_samples import key_of
from duplicate_world import DATANETS, NAMES, contribute_all, contributions, hosts_of, opened

from openledger.datanets.actor import start_datanets
from openledger.datanets.removal import sign_withdrawal

NAMESPACE = "openledger-divided-test"
SHARDS = ("openledger-shard-0", "openledger-shard-1")
DATANETS_ACTOR = "openledger-datanets"


@pytest.mark.cluster
def test_killed_shards_change_no_verdict_and_lose_and_double_nothing(cluster: Any, tmp_path: Path) -> None:
    import ray

    some, dice = list(contributions()), random.Random(2)
    alone = opened(tmp_path / "alone", hosts_of(tmp_path / "alone", 1))
    expected = contribute_all(alone, some)
    ids = [verdict.row_id for verdict in expected[0]]
    withdrawal = sign_withdrawal(key_of("ada"), "docs", [ids[0], ids[4]], "1")
    alone.withdraw(withdrawal)
    copies = alone.preview(some[-1])
    alone.close()
    try:
        datanets = start_datanets(tmp_path, num_shards=2, namespace=NAMESPACE, duplicates_by_shard=True)
        for name in DATANETS:
            ray.get(datanets.create.remote(name, "What functions do", "acct_owner"))
        for name in NAMES:
            ray.get(datanets.register_contributor.remote(key_of(name).public_key, name))
        killed, found = (SHARDS[0], "", SHARDS[1], DATANETS_ACTOR, "", SHARDS[0]), []
        for one, name in zip(some, (*killed, ""), strict=True):
            asked = datanets.contribute.remote(one)
            time.sleep(dice.uniform(0.0, 0.1))
            if name:
                ray.kill(ray.get_actor(name, namespace=NAMESPACE), no_restart=False)
            found.append(ray.get(asked, timeout=900).verdicts)
        assert found == expected
        ray.get(datanets.withdraw.remote(withdrawal))
        stored = {verdict.row_id for verdicts in expected for verdict in verdicts if verdict.outcome != "reject"}
        count = sum(ray.get([datanets.stored_count.remote(name) for name in DATANETS]))
        assert count == len(stored - set(withdrawal.row_ids))
        assert ray.get(datanets.preview.remote(some[-1])) == copies
        again = start_datanets(tmp_path, num_shards=2, namespace=NAMESPACE, duplicates_by_shard=False)
        assert ray.get(again.preview.remote(some[-1])) == copies
        ray.kill(again, no_restart=False)  # it starts anew with what it was first started with
        assert ray.get(again.preview.remote(some[-1]), timeout=900) == copies
        with contextlib.closing(sqlite3.connect(tmp_path / "registry.sqlite")) as registry:
            (kept,) = registry.execute("SELECT value FROM properties WHERE name = 'duplicates_by_shard'").fetchone()
        assert kept == "0"
    finally:
        for name in (*SHARDS, DATANETS_ACTOR):
            with contextlib.suppress(ValueError):
                ray.kill(ray.get_actor(name, namespace=NAMESPACE))
