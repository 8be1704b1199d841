"""Measure how well an adapter's attribution is right, against trainings that its bank and index have never seen.

    python jobs/audit.py --workdir .openledger --adapter tables --dry-run
    python jobs/audit.py --workdir .openledger --adapter tables
    ray job submit --working-dir . -- python jobs/audit.py --workdir /data/openledger --adapter tables --gpus 0.5

It trains the adapter's rows again by halves: with 8 halves (the default) 32 trainings on half of the rows, and one
without each contributor. The report goes to audit.json beside the adapter and to its card, and every settlement by it
quotes the figures from then on. Killed on the way, it goes on when it is run again. The last line, on standard output,
is JSON.
"""

import argparse
import sys
from pathlib import Path

from openledger.platform.job import run_job
from openledger.platform.stages import tell
from openledger.platform.workdir import Workdir


def main() -> int:
    return run_job(audit, parse_arguments())


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--adapter", required=True, metavar="NAME", help="as it is served")
    parser.add_argument("--base-model", default="", help="that it was trained on; default: the embedded model")
    parser.add_argument("--bank", type=int, default=0, metavar="N",
                        help="train a bank of N coalitions where it has none; settlements pay by it then")  # fmt: skip
    parser.add_argument("--audits", type=int, default=8, metavar="N",
                        help="halves, of contributors and of rows (default 8)")  # fmt: skip
    parser.add_argument("--gpus", type=float, help="for each task; a fraction shares one; default: its recipe's")
    parser.add_argument("--dry-run", action="store_true", help="only say what would be trained")
    return parser.parse_args()


def audit(workdir: Workdir, arguments: argparse.Namespace) -> dict[str, object]:
    from openledger.adapters.base_model import find_base_model
    from openledger.adapters.card import load_card
    from openledger.adapters.registry import AdapterRegistry
    from openledger.platform import auditing, pipeline
    from openledger.platform.actors import datanets_actor
    from openledger.platform.cluster import connected

    folder = Path(AdapterRegistry(workdir.adapters).get(arguments.adapter).folder)
    card, base = load_card(folder), find_base_model(arguments.base_model or None)
    with connected(workdir):
        tell("loading the Datanets ...")
        _, rows = pipeline.published(datanets_actor(workdir), card.datanet, card.datanet_version)
        plan = auditing.plan_adapter_audit(
            folder, base, rows, num_coalitions=arguments.bank, num_halves=arguments.audits
        )
        told = {"adapter": arguments.adapter, "coalitions": len(plan.bank.coalitions), "trainings": len(plan.missing)}
        if arguments.dry_run:
            return {**told, "finishes_bank": plan.finishes_bank}
        found = auditing.audit_adapter(plan, num_gpus=arguments.gpus, tell=tell)
    return {**told, "halves": found["halves"], "contributors": found["contributors"], "rows": found["rows"],
            "leave_one_out": found["leave_one_out"], "coverage": found["coverage"]}  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
