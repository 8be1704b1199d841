"""The economy as a named, detached Ray actor that calls the ledger's. No logic: every method is `Economy`'s."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from openledger.economy.economy import Economy
from openledger.economy.port import Commit, Committed
from openledger.ledger.accounts import Account, Balance
from openledger.ledger.transfers import Batch, Entry, Transfer

ECONOMY_ACTOR = "openledger-economy"
NAMESPACE = "openledger"
EconomyActor = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Economy)


class RemoteLedger:
    """A `LedgerPort` over the ledger actor's handle; each call waits for its answer."""

    def __init__(self, handle: Any):
        self._handle = handle

    def create_accounts(self, accounts: Sequence[Account]) -> list[str]:
        return self._get("create_accounts", accounts)

    def commit(self, transfers: Sequence[Transfer], statement: dict[str, Any] | None = None) -> list[str]:
        return self._get("commit", transfers, statement)

    def commit_each(self, commits: Sequence[Commit]) -> list[Committed]:
        return self._get("commit_each", commits)

    def balance(self, account_id: str) -> Balance:
        return self._get("balance", account_id)

    def transfers(self, account_id: str, limit: int = 1000) -> list[Entry]:
        return self._get("transfers", account_id, limit)

    def find(self, transfer_id: str) -> Entry | None:
        return self._get("find", transfer_id)

    def batch(self, seq: int) -> Batch:
        return self._get("batch", seq)

    def batches(self, seqs: Sequence[int]) -> list[Batch]:
        return self._get("batches", seqs)

    def usages(self, pool: str) -> list[dict[str, Any]]:
        return self._get("usages", pool)

    def verdicts(self, pool: str) -> list[dict[str, Any]]:
        return self._get("verdicts", pool)

    def _get(self, method: str, *arguments: Any) -> Any:
        return ray.get(getattr(self._handle, method).remote(*arguments))


def start_economy(ledger: Any, folder: Path) -> Any:
    """The handle of the cluster's economy actor over the ledger actor, started on this node where there is none."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return EconomyActor.options(
        name=ECONOMY_ACTOR, namespace=NAMESPACE, lifetime="detached", get_if_exists=True, scheduling_strategy=here
    ).remote(RemoteLedger(ledger), folder)


def find_economy() -> Any:
    """The running economy's handle. Raises ValueError (Ray's) where there is none."""
    return ray.get_actor(ECONOMY_ACTOR, namespace=NAMESPACE)
