"""The ledger as a named, detached Ray actor. No logic: every method is `Ledger`'s."""

from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from openledger.ledger.ledger import Ledger
from openledger.ledger.opening import is_postgres

LEDGER_ACTOR = "openledger-ledger"
NAMESPACE = "openledger"
_PATIENCE_S = 3600  # an actor whose constructor fails is dead for good
LedgerActor = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Ledger)


def start_ledger(storage: Path | str, *, name: str = "openledger/local", signing_key: Path | None = None) -> Any:
    """The handle of the cluster's ledger actor, started where there is none.

    Over a file it is pinned to this node, which has the disk. Over PostgreSQL any node may have it, and another gets it
    when that node is lost; `signing_key` must be there on each.
    """
    where = {} if is_postgres(storage) else {"scheduling_strategy": _here()}
    return LedgerActor.options(
        name=LEDGER_ACTOR, namespace=NAMESPACE, lifetime="detached", get_if_exists=True, **where
    ).remote(storage, name=name, signing_key=signing_key, patience_s=_PATIENCE_S)


def find_ledger() -> Any:
    """The running ledger's handle. Raises ValueError (Ray's) where there is none."""
    return ray.get_actor(LEDGER_ACTOR, namespace=NAMESPACE)


def _here() -> NodeAffinitySchedulingStrategy:
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
