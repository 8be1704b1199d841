"""The named actors of an installation: started where they are missing, found where they run.

They hold the disk, so on a cluster they are pinned to the node they first start on (the one with the working folder).
Shards in an object store are not.
"""

import os
from typing import Any

import ray

from openledger.core.clock import SystemClock
from openledger.core.money import Unit
from openledger.datanets.actor import start_datanets
from openledger.datanets.storage import storage_uri
from openledger.economy.actor import RemoteLedger, start_economy
from openledger.economy.register import RegisterBook
from openledger.ledger.actor import start_ledger
from openledger.platform.workdir import Workdir

NUM_SHARDS = 2
LEDGER_NAME = "openledger/local"


def datanets_actor(workdir: Workdir, gate_workers: int | None = None, duplicates_by_shard: bool | None = None) -> Any:
    """Rows lie in the working folder, or where OPENLEDGER_STORAGE says. The rest is as `start_datanets` has it."""
    return start_datanets(
        workdir.datanets,
        NUM_SHARDS,
        storage=storage_uri(os.environ),
        gate_workers=gate_workers,
        duplicates_by_shard=duplicates_by_shard,
    )


def ledger_actor(workdir: Workdir) -> Any:
    return start_ledger(workdir.ledger / "ledger.db", name=LEDGER_NAME)


def economy_actor(workdir: Workdir, unit: str = "") -> Any:
    """An empty `unit` leaves it as the log has it, which begins in OPEN. Raises what `choose_unit` does."""
    ledger = ledger_actor(workdir)
    if unit:
        choose_unit(ledger, unit)
    return start_economy(ledger, workdir.ledger)


def choose_unit(ledger: Any, name: str) -> Unit:
    """Before there is an economy, which would begin in OPEN. May be repeated. Raises InvalidInput (`invalid_unit`),
    Conflict (`unit_chosen`) where the log is in another."""
    unit = Unit(name=name)
    RegisterBook(RemoteLedger(ledger), SystemClock()).choose(unit)
    return unit


def wait_until_ready(ledger: Any, economy: Any, datanets: Any) -> None:
    """Until each has opened its storage; their first error comes out here."""
    ray.get([ledger.verification_key.remote(), economy.current_period.remote(), datanets.names.remote()])
