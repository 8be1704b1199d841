"""Actors, and whole nodes, killed at random moments of contributing and publishing: nothing lost, nothing doubled, no
half version."""

import contextlib
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import datanet_nodes
import pytest
from datanet_samples import key_of, sample_drafts, signed

from openledger.core.errors import OpenLedgerError
from openledger.datanets.actor import start_datanets
from openledger.datanets.versions import row_root

NAMESPACE = "openledger-datanets-faults"
ACTORS = ("openledger-shard-0", "openledger-shard-1", "openledger-datanets")
ROWS = 30
KILLS_OF_A_CLUSTER = 5


@pytest.mark.cluster
def test_five_kills_lose_nothing_and_double_nothing(cluster: Any, tmp_path: Path) -> None:
    check_kills(tmp_path, num_kills=5)


@pytest.mark.chaos
@pytest.mark.slow
@pytest.mark.cluster
def test_thirty_kills_lose_nothing_and_double_nothing(cluster: Any, tmp_path: Path) -> None:
    check_kills(tmp_path, num_kills=30)


@pytest.mark.cluster
def test_five_lost_nodes_lose_nothing_where_rows_lie_in_an_object_store(tmp_path: Path) -> None:
    check_lost_nodes(tmp_path, num_kills=5)


@pytest.mark.chaos
@pytest.mark.slow
@pytest.mark.cluster
def test_thirty_lost_nodes_lose_nothing_where_rows_lie_in_an_object_store(tmp_path: Path) -> None:
    check_lost_nodes(tmp_path, num_kills=30)


def check_lost_nodes(folder: Path, num_kills: int) -> None:
    """In processes of their own: the cluster of the session has one node, which must stay."""
    uri, registry = f"file-object-store://{folder}/store", folder / "registry"
    registry.mkdir()
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    lost = set[str]()
    for first in range(0, num_kills, KILLS_OF_A_CLUSTER):
        last = min(first + KILLS_OF_A_CLUSTER, num_kills)
        words = [sys.executable, datanet_nodes.__file__, str(registry), uri, str(first), str(last)]
        limit_s = 600 + 120 * (last - first)
        done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=limit_s)
        assert done.returncode == 0, done.stderr[-3000:]
        told = json.loads((registry / f"told-{first}.json").read_text())
        assert told["head"] not in told["lost"]
        assert told["num_answered"] > 0, "nothing was acknowledged, so nothing could be lost"
        assert told["num_cut_off"] > 0, "no node died under a call, so this test has shown nothing"
        lost |= set(told["lost"])
    assert len(lost) == num_kills
    assert not list(registry.glob("shard-*"))


def check_kills(folder: Path, num_kills: int) -> None:
    import ray

    dice, answered, versions, num_cut_off = random.Random(3), dict[int, Any](), list[Any](), 0
    datanets = start_datanets(folder, num_shards=2, namespace=NAMESPACE)
    try:
        ray.get(datanets.create.remote("docs", "What functions do", "acct_owner"))
        ray.get(datanets.register_contributor.remote(key_of("ada").public_key, "ada"))
        for number in range(num_kills):
            asked = [datanets.contribute.remote(contribution(number)), datanets.publish.remote("docs")]
            time.sleep(moment(number, dice))
            num_cut_off += num_unanswered(asked)
            ray.kill(ray.get_actor(ACTORS[number % 3], namespace=NAMESPACE), no_restart=False)
            with contextlib.suppress(OpenLedgerError, ray.exceptions.RayError):
                answered[number] = ray.get(asked[0], timeout=60)
            with contextlib.suppress(OpenLedgerError, ray.exceptions.RayError):
                versions.append(ray.get(asked[1], timeout=60))
        assert answered, "nothing was acknowledged, so nothing could be lost"
        assert num_cut_off > 0, "no kill fell into a call, so this test has shown nothing"
        check_after(datanets, num_kills, answered, versions)
    finally:
        for name in ACTORS:
            with contextlib.suppress(ValueError):
                ray.kill(ray.get_actor(name, namespace=NAMESPACE))


def moment(number: int, dice: random.Random) -> float:
    """Of a kill, in seconds after the calls: every fifth is at once, when no machine has answered yet."""
    drawn = dice.uniform(0.0, 0.15)
    return drawn if number % 5 else 0.0


def num_unanswered(asked: list[Any]) -> int:
    import ray

    return len(ray.wait(asked, num_returns=len(asked), timeout=0)[1])


def check_after(datanets: Any, num_kills: int, answered: dict[int, Any], versions: list[Any]) -> None:
    import ray

    receipts = [ray.get(datanets.contribute.remote(contribution(number))) for number in range(num_kills)]
    assert {number: receipts[number] for number in answered} == answered
    expected = {verdict.row_id for receipt in receipts for verdict in receipt.verdicts}
    assert len(expected) == num_kills * ROWS
    assert ray.get(datanets.stored_count.remote("docs")) == len(expected)
    last = ray.get(datanets.publish.remote("docs"))
    assert {row.row_id for row in ray.get(datanets.rows.remote("docs", last.number))} == expected
    published = ray.get(datanets.versions.remote("docs"))
    assert [one.number for one in published] == list(range(1, last.number + 1))
    assert all(version in published for version in versions)
    for version in published:
        rows = ray.get(datanets.rows.remote("docs", version.number))
        assert row_root([row.row_id for row in rows]) == version.row_root


def contribution(number: int) -> Any:
    return signed("ada", sample_drafts(ROWS, f"part{number}"), nonce=str(number))
