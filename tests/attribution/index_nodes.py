"""An index built on four Ray nodes of one machine, of which one dies and a worker of another is killed.

    python index_nodes.py WORLD OUT

WORLD holds what the test wrote. Each node has one CPU. The cluster is this process's own, with its own short folder,
and ends with it. OUT.json says which pids were killed and how many shards were finished by then.
"""

import json
import os
import pickle
import shutil
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil

SHARDS = "ray::index-shards"
BUILDING = {"fit_rows": 32, "shard_rows": 16}
# A dead raylet refuses connections: noticed after three periods. A slow one on a busy machine has half a minute.
HEALTH = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 1_000,
    "health_check_timeout_ms": 10_000,
    "health_check_failure_threshold": 3,
}


def main(world: Path, out: Path) -> None:
    folder = tempfile.mkdtemp(prefix="ol", dir="/tmp")  # AF_UNIX paths end at 107 bytes
    os.environ["RAY_TMPDIR"] = folder
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "_system_config": HEALTH})
    try:
        for _ in range(3):
            cluster.add_node(num_cpus=1, wait=False)
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
        told = build(cluster, pickle.loads((world / "world.pickle").read_bytes()), out)
        out.with_suffix(".json").write_text(json.dumps(told))
    finally:
        ray.shutdown()
        cluster.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def build(cluster, world, out: Path) -> dict:
    from openledger.attribution.trainer import build_index_distributed

    killed: dict = {}
    killer = threading.Thread(target=kill, args=(cluster, out, killed))
    killer.start()
    index = build_index_distributed(out, **world, **BUILDING, shards_per_task=2)
    killer.join()
    return {**killed, "rows": len(index.entries)}


def kill(cluster, out: Path, killed: dict) -> None:
    """SIGKILL the first worker that has finished a shard of its task, then a whole node whose worker builds shards."""
    worker = wait_for(lambda: shard_workers(psutil.Process().children(recursive=True)) if finished(out) else [])
    os.kill(worker, signal.SIGKILL)
    killed["worker"] = {"pid": worker, "finished": finished(out)}
    nodes = list(cluster.worker_nodes)
    node = wait_for(lambda: [node for node in nodes if worker_of(node) not in (None, worker)])
    killed["node"] = {"pid": worker_of(node), "finished": finished(out)}
    cluster.remove_node(node, allow_graceful=False)


def wait_for(find):
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline:
        if found := find():
            return found[0]
        time.sleep(0.01)
    raise TimeoutError("no worker builds shards")


def worker_of(node) -> int | None:
    raylet = node.all_processes["raylet"][0].process
    try:
        found = shard_workers(psutil.Process(raylet.pid).children())
    except psutil.NoSuchProcess:
        return None
    return found[0] if found else None


def shard_workers(processes) -> list[int]:
    return [process.pid for process in processes if title(process).startswith(SHARDS)]


def title(process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def finished(out: Path) -> int:
    return len(list(out.glob("view-*/rows-*.sha256")))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
