"""A ledger in PostgreSQL on two Ray nodes of one machine, of which the one that has the actor dies under load.

    python ledger_nodes.py URL KEY OUT

The cluster is this process's own, with its own short folder, and ends with it. OUT says which nodes had the actor, and
how often each result was given. Transfer n moves n nano-OPEN.
"""

import json
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

NAME = "openledger/test"
BATCHES, BATCH, KILL_AT = 120, 10, 30
# A dead raylet refuses connections: noticed after three periods. A slow one on a busy machine has half a minute.
HEALTH = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 1_000,
    "health_check_timeout_ms": 10_000,
    "health_check_failure_threshold": 3,
}


def main(url: str, key: Path, out: Path) -> None:
    folder = tempfile.mkdtemp(prefix="ol", dir="/tmp")  # AF_UNIX paths end at 107 bytes
    os.environ["RAY_TMPDIR"] = folder
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "_system_config": HEALTH})
    try:
        other = cluster.add_node(num_cpus=1)
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR", namespace="openledger")
        out.write_text(json.dumps(lose_its_node(cluster, other, url, key)))
    finally:
        ray.shutdown()
        cluster.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def lose_its_node(cluster, other, url: str, key: Path) -> dict:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from openledger.ledger import Account
    from openledger.ledger.actor import LEDGER_ACTOR, LedgerActor, find_ledger

    there = NodeAffinitySchedulingStrategy(other.node_id, soft=True)
    LedgerActor.options(name=LEDGER_ACTOR, lifetime="detached", scheduling_strategy=there).remote(
        url, name=NAME, signing_key=key, patience_s=600
    )
    ledger = find_ledger()
    accounts = [Account(account_id="genesis", kind="genesis", may_go_negative=True),
                Account(account_id="user:a", kind="user")]  # fmt: skip
    ray.get(ledger.create_accounts.remote(accounts))
    while node_of(ledger) != other.node_id:  # a node that has just come isn't chosen at once
        os.kill(ray.get(ledger.__ray_call__.remote(lambda self: os.getpid())), signal.SIGKILL)
        time.sleep(1)
    told = {"before": node_of(ledger), "lost": other.node_id, "results": Counter()}
    for number in range(BATCHES):
        if number == KILL_AT:
            threading.Thread(target=cluster.remove_node, args=(other,), kwargs={"allow_graceful": False}).start()
        told["results"].update(send(ledger, number))
    return {**told, "after": node_of(ledger)}


def send(ledger, number: int) -> list[str]:
    """Until it is answered, with the same ids."""
    import ray

    from openledger.core.errors import Unavailable
    from openledger.ledger import Transfer

    batch = [
        Transfer(transfer_id=f"t{n}", debit="genesis", credit="user:a", amount_nano=n, code="pay")
        for n in range(number * BATCH + 1, (number + 1) * BATCH + 1)
    ]
    while True:
        try:
            return ray.get(ledger.commit.remote(batch))
        except (Unavailable, ray.exceptions.RayActorError):
            continue


def node_of(ledger) -> str:
    import ray

    while True:
        try:
            return ray.get(ledger.__ray_call__.remote(lambda self: ray.get_runtime_context().get_node_id()))
        except ray.exceptions.RayActorError:
            time.sleep(0.1)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
