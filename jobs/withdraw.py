"""Serve an adapter without a contributor's rows, at once: the one of its bank that never saw them takes its name.

    python jobs/withdraw.py --workdir .openledger --adapter tables --contributor ctr_3f2a... --dry-run
    python jobs/withdraw.py --workdir .openledger --adapter tables --contributor ctr_3f2a...

Where the bank has no such adapter it is trained first (one training), which needs the rows to be there still, and that
the Datanet's licence and terms let the seller train on them; else take the adapter out of sale. Answers sold before
stay attributed to the old adapter. Train a clean one without the rows when there is time: it takes the name.
"""

import argparse
import sys
from pathlib import Path

from openledger.platform.job import run_job
from openledger.platform.stages import tell
from openledger.platform.workdir import Workdir


def main() -> int:
    return run_job(withdraw, parse_arguments())


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--adapter", required=True, help="the name it is sold under")
    parser.add_argument("--contributor", required=True, help="the id, ctr_...")
    parser.add_argument("--base-model", default="", help="a folder or hub id; default: the embedded model")
    parser.add_argument("--gpus", type=float, help="for training and index; default: the recipe's")
    parser.add_argument("--dry-run", action="store_true", help="only say what would be done")
    return parser.parse_args()


def withdraw(workdir: Workdir, arguments: argparse.Namespace) -> dict[str, object]:
    from openledger.adapters.base_model import find_base_model
    from openledger.adapters.registry import AdapterRegistry
    from openledger.attribution.actor import index_task
    from openledger.economy.actor import RemoteLedger
    from openledger.platform import pipeline, withdrawal
    from openledger.platform.actors import datanets_actor, economy_actor, ledger_actor
    from openledger.platform.cluster import connected
    from openledger.platform.credit import checked_credit
    from openledger.platform.hosts import gpus_of

    registry = AdapterRegistry(workdir.adapters)
    plan = withdrawal.plan_withdrawal(registry, arguments.adapter, arguments.contributor)
    told = {"adapter": plan.name, "without": plan.contributor, "rows": plan.num_rows, "was": plan.adapter.digest}
    if arguments.dry_run:
        return {**told, "trainings": 0 if plan.ready else 1}
    base = find_base_model(arguments.base_model or None)
    with connected(workdir):
        tell("loading the Datanets ...")
        datanets = datanets_actor(workdir)
        version, rows = pipeline.published(datanets, plan.card.datanet, plan.card.datanet_version, plan.trainer)
        ledger, trained = RemoteLedger(ledger_actor(workdir)), set(plan.card.rows_trained)
        num_gpus = gpus_of([plan.card]) if arguments.gpus is None else arguments.gpus
        card = withdrawal.withdraw(
            plan, registry, base, rows, index_task(base, num_gpus=num_gpus), workdir.adapters, workdir.indexes,
            economy=economy_actor(workdir), num_gpus=num_gpus,
            credit=lambda: checked_credit(datanets, version, [row for row in rows if row.row_id in trained], ledger),
            tell=tell,
        )  # fmt: skip
    return {**told, "digest": card.digest}


if __name__ == "__main__":
    sys.exit(main())
