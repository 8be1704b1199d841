"""Shards in an object store on Ray nodes of one machine that die, one after another, while rows come and are published.

    python datanet_nodes.py FOLDER URI FIRST LAST

FOLDER holds the registry, on the node that stays; URI is where the rows lie, outside of every node. Contributions FIRST
to LAST (not included) are sent, and a node is killed at each; what earlier processes sent is looked for too. The
cluster is this process's own, with its own short folder, and ends with it: after many dead nodes Ray takes no new one.
FOLDER/told-FIRST.json says, after each kill, which nodes had the shards that died, how many contributions were
answered, and how many calls weren't when a node died.
"""

import contextlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

NAMESPACE = "openledger-datanet-nodes"
ROWS = 30
# A dead raylet refuses connections: noticed after three periods. A slow one on a busy machine has half a minute.
HEALTH = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 1_000,
    "health_check_timeout_ms": 10_000,
    "health_check_failure_threshold": 3,
}


def main(folder: Path, uri: str, first: int, last: int) -> None:
    short = tempfile.mkdtemp(prefix="ol", dir="/tmp")  # AF_UNIX paths end at 107 bytes
    os.environ["RAY_TMPDIR"] = short
    import ray
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 1, "include_dashboard": False, "_system_config": HEALTH}  # its port may be another cluster's
    cluster = patiently(lambda: Cluster(initialize_head=True, head_node_args=head))
    try:
        for _ in range(2):
            add_node(cluster)
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR", namespace="openledger")
        lose_nodes(cluster, folder, uri, range(first, last))
    finally:
        ray.shutdown()
        cluster.shutdown()
        shutil.rmtree(short, ignore_errors=True)


def lose_nodes(cluster, folder: Path, uri: str, numbers: range) -> None:
    import ray
    from datanet_samples import key_of
    from test_datanets_faults import check_after, contribution, moment, num_unanswered

    from openledger.core.errors import OpenLedgerError
    from openledger.datanets.actor import start_datanets

    datanets = start_datanets(folder, num_shards=2, namespace=NAMESPACE, storage=uri)
    ray.get(datanets.create.remote("docs", "What functions do", "acct_owner"))
    ray.get(datanets.register_contributor.remote(key_of("ada").public_key, "ada"))
    dice, answered, versions, lost, num_cut_off = random.Random(f"5-{numbers.start}"), {}, [], [], 0
    here = ray.get_runtime_context().get_node_id()
    for number in numbers:
        shard = ray.get_actor(f"openledger-shard-{number % 2}", namespace=NAMESPACE)
        node = node_off_the_head(cluster, shard)
        asked = [datanets.contribute.remote(contribution(number)), datanets.publish.remote("docs")]
        time.sleep(moment(number, dice))
        num_cut_off += num_unanswered(asked)
        lost.append(node.node_id)
        killer = threading.Thread(target=cluster.remove_node, args=(node,), kwargs={"allow_graceful": False})
        killer.start()
        add_node(cluster)
        with contextlib.suppress(OpenLedgerError, ray.exceptions.RayError):
            answered[number] = ray.get(asked[0], timeout=120)
        with contextlib.suppress(OpenLedgerError, ray.exceptions.RayError):
            versions.append(ray.get(asked[1], timeout=120))
        killer.join()
        told = {"head": here, "lost": lost, "num_answered": len(answered), "num_cut_off": num_cut_off}
        (folder / f"told-{numbers.start}.json").write_text(json.dumps(told))
    check_after(datanets, numbers.stop, answered, versions)


def add_node(cluster) -> None:
    patiently(lambda: cluster.add_node(num_cpus=1, wait=False))


def patiently(start, tries: int = 10):
    """Ray gives a raylet 30 seconds to come up, which a busy machine may not have."""
    try:
        return start()
    except Exception:
        if tries == 1:
            raise
        return patiently(start, tries - 1)


def node_off_the_head(cluster, shard):
    """The node that has the shard. Of a shard on the head, which stays, the process is killed until it is elsewhere."""
    import ray

    workers = {node.node_id: node for node in cluster.worker_nodes}
    for _ in range(100):
        with contextlib.suppress(ray.exceptions.RayError):
            node_id, pid = ray.get(shard.__ray_call__.remote(_where), timeout=120)
            if node_id in workers:
                return workers[node_id]
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.2)
    raise TimeoutError("the shard stays on the head")


def _where(_) -> tuple[str, int]:
    import ray

    return ray.get_runtime_context().get_node_id(), os.getpid()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
