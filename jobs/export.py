"""Write a published version as files for others: Parquet, Croissant metadata, a Hugging Face card, and its manifest.

    python jobs/export.py --workdir .openledger --datanet tables --out tables-1 --version 1 --dry-run
    python jobs/export.py --workdir .openledger --datanet tables --out tables-1 --version 1
    python jobs/export.py --workdir .openledger --datanet tables --out latest --account user:lab

For an account that may have the rows (`datanet terms --train`); the Datanet's owner unless another is named. A folder
that holds anything but an earlier export is left alone.
"""

import argparse
import sys
from pathlib import Path

from openledger.platform.job import run_job
from openledger.platform.stages import tell
from openledger.platform.workdir import Workdir


def main() -> int:
    return run_job(export, parse_arguments())


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--datanet", required=True)
    parser.add_argument("--version", type=int, default=0, metavar="N", help="default: the newest")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="made where there is none")
    parser.add_argument("--account", default="", metavar="ACCOUNT", help="for whom; default: the Datanet's owner")
    parser.add_argument("--dry-run", action="store_true", help="check everything, and write nothing")
    return parser.parse_args()


def export(workdir: Workdir, arguments: argparse.Namespace) -> dict[str, object]:
    from openledger.platform.actors import datanets_actor
    from openledger.platform.cluster import connected
    from openledger.platform.exporting import export_version

    with connected(workdir):
        tell("loading the Datanets ...")
        given = arguments.datanet, arguments.version, arguments.account, arguments.out
        return export_version(datanets_actor(workdir), *given, is_dry_run=arguments.dry_run)


if __name__ == "__main__":
    sys.exit(main())
