"""Merge LoRA adapters of one base into one, and offer it; those whose data made its parents are paid for its answers.

    python jobs/merge.py --workdir .openledger --name both --adapters tables=1 python-stdlib=1/2
    python jobs/merge.py --workdir .openledger --name both --adapters tables=1 python-stdlib=1/2 --dry-run

Weights are exact: 1/3 is a third. The merge computes the weighted sum of what its parents change in the base, and its
rank is the sum of theirs. How its pool is divided is in docs/concepts/lineage.md. Where deploying an adapter costs
something, the owner pays it, once for each merge.
"""

import argparse
import sys
from pathlib import Path

from openledger.core.errors import InvalidInput
from openledger.platform.job import run_job
from openledger.platform.stages import tell
from openledger.platform.workdir import Workdir


def main() -> int:
    return run_job(merge, parse_arguments())


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--name", required=True, help="what the merge is sold as")
    parser.add_argument("--adapters", nargs="+", required=True, metavar="NAME=WEIGHT", help="registered adapters")
    parser.add_argument("--base-model", default="", help="a folder or hub id; default: the embedded model")
    parser.add_argument("--owner", default="", help="account that earns the owner's part; default: user:NAME-owner")
    parser.add_argument("--prices", type=int, nargs=2, metavar="NANO",
                        help="for each prompt and each completion token, in the smallest part of the ledger's unit"
                             " (nano-OPEN, micro-EUR); default: 0.0002 and 0.001 of it")  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="only say what would be merged")
    return parser.parse_args()


def merge(workdir: Workdir, arguments: argparse.Namespace) -> dict[str, object]:
    import ray

    from openledger.adapters.base_model import find_base_model
    from openledger.adapters.registry import AdapterRegistry
    from openledger.platform import pipeline
    from openledger.platform.actors import economy_actor
    from openledger.platform.cluster import connected
    from openledger.platform.prices import prices_in

    registry, parts = AdapterRegistry(workdir.adapters), read_parts(arguments.adapters)
    parents = [{"name": name, "digest": registry.get(name).digest, "weight": parts[name]} for name in parts]
    if arguments.dry_run:
        return {"adapter": arguments.name, "parents": parents}
    base, owner = find_base_model(arguments.base_model or None), arguments.owner or f"user:{arguments.name}-owner"
    with connected(workdir):
        tell("loading ledger and economy ...")
        economy = economy_actor(workdir)
        prices = prices_in(ray.get(economy.unit.remote()), arguments.prices)

        def charge(digest: str) -> None:
            ray.get(economy.charge_adapter.remote(owner, digest))

        terms = pipeline.merge(registry, workdir.adapters, base, parts, arguments.name, owner, prices, charge, economy)
    return {"adapter": terms.adapter, "digest": terms.adapter_digest, "parents": parents}


def read_parts(named: list[str]) -> dict[str, str]:
    parts = {}
    for part in named:
        name, _, weight = part.partition("=")
        if not weight or name in parts:
            raise InvalidInput(
                f"{part!r} is no adapter with its weight, or names one a second time",
                code="invalid_merge",
                param="adapters",
                fix="write each adapter once, like tables=1/2",
            )
        parts[name] = weight
    return parts


if __name__ == "__main__":
    sys.exit(main())
