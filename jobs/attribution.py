"""Train an adapter's bank and build its index, as tasks over the cluster's nodes; scoring then trains nothing more.

    python jobs/attribution.py --workdir .openledger --base BASE --adapter RUN --rows rows.jsonl
    ray job submit --working-dir . -- python jobs/attribution.py --workdir /data/openledger --base /data/base \
        --adapter /data/run --rows /data/rows.jsonl --gpus 1

Base, adapter and rows lie where every node sees them. Killed on the way, or with a node lost, it goes on when it is run
again. An adapter without a run record, or of one contributor, gets an index and no bank.
"""

import argparse
import sys
from pathlib import Path

from openledger.platform.job import run_job
from openledger.platform.stages import tell
from openledger.platform.workdir import Workdir


def main() -> int:
    return run_job(prepare, parse_arguments(), makes_workdir=True)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--base", required=True, help="a folder or hub id")
    parser.add_argument("--adapter", type=Path, required=True, help="a run's folder, or a plain PEFT directory")
    parser.add_argument("--rows", type=Path, required=True, help="JSON lines, as `openledger attribution score` takes")
    parser.add_argument("--coalitions", type=int, default=32)
    parser.add_argument("--twins", type=int, default=3)
    parser.add_argument("--gpus", type=float, help="for each task; a fraction shares one; default: its recipe's")
    return parser.parse_args()


def prepare(workdir: Workdir, arguments: argparse.Namespace) -> dict[str, object]:
    from openledger.attribution import trainer
    from openledger.attribution.instruments import subject_plan
    from openledger.attribution.subject import open_subject
    from openledger.platform.cluster import connected

    subject = open_subject(arguments.base, arguments.adapter.resolve(), arguments.rows)
    plan = None
    if subject.record is not None and len(subject.contributors) > 1:
        plan = subject_plan(subject, arguments.coalitions, arguments.twins)
    with connected(workdir):
        tell("loading the workers that train and index ...")
        index = trainer.prepare(
            subject,
            plan,
            num_gpus=arguments.gpus,
            on_member=lambda member: tell(f"bank: {member.name} trained"),
        )
    views = [name for name, _ in index.plan.views]
    return {"members": len(plan.members) if plan else 0, "rows": len(index.entries), "views": views}


if __name__ == "__main__":
    sys.exit(main())
