"""The ledger as a named, detached Ray actor. No logic: every method is `Ledger`'s."""

from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from openledger.ledger.ledger import Ledger

LEDGER_ACTOR = "openledger-ledger"
NAMESPACE = "openledger"
LedgerActor = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Ledger)


def start_ledger(path: Path, *, name: str = "openledger/local") -> Any:
    """The handle of the cluster's ledger actor, started on this node (which has the disk) where there is none."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return LedgerActor.options(
        name=LEDGER_ACTOR, namespace=NAMESPACE, lifetime="detached", get_if_exists=True, scheduling_strategy=here
    ).remote(path, name=name)


def find_ledger() -> Any:
    """The running ledger's handle. Raises ValueError (Ray's) where there is none."""
    return ray.get_actor(LEDGER_ACTOR, namespace=NAMESPACE)
