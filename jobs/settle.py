"""Close the current period, attribute every pool that waits, and pay each once.

    ray job submit --working-dir . -- python jobs/settle.py --workdir /data/openledger

Needs the serving application of the same working folder on the cluster: what an adapter gained over its base is
measured by the engine that served it. Running it again pays nobody twice.
"""

import argparse
import json
import sys
from pathlib import Path

from openledger.core.errors import OpenLedgerError
from openledger.platform.environment import prepare_environment
from openledger.platform.workdir import Workdir


def main() -> int:
    arguments = parse_arguments()
    workdir = Workdir(arguments.workdir.resolve())
    prepare_environment(workdir)  # before anything imports ray
    try:
        for line in settle(workdir, arguments.base_model):
            print(json.dumps(line))
    except OpenLedgerError as error:
        print(json.dumps({"error": error.to_dict()}), file=sys.stderr)
        return error.exit_code
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--base-model", default="", help="as the application was deployed with")
    return parser.parse_args()


def settle(workdir: Workdir, base_model: str) -> list[dict[str, object]]:
    import ray

    from openledger.adapters.base_model import find_base_model
    from openledger.adapters.registry import AdapterRegistry
    from openledger.attribution.actor import start_index_host
    from openledger.platform import pipeline
    from openledger.platform.actors import economy_actor
    from openledger.platform.cluster import connected
    from openledger.platform.serving import engine_score

    paid = []
    with connected(workdir):
        economy = economy_actor(workdir)
        score = engine_score()
        ray.get(economy.open_period.remote())
        host = start_index_host(find_base_model(base_model or None))
        for adapter, period in ray.get(economy.pools.remote()):
            pool = ray.get(economy.pool.remote(adapter, period))
            registry = AdapterRegistry(workdir.adapters)
            found = pipeline.attribute(pool, host, score, registry, workdir.indexes)
            settlement = pipeline.settle(economy, found)
            paid.append(
                {
                    "adapter": adapter,
                    "period": period,
                    "pool_nano": settlement.pool_nano,
                    "payouts_nano": settlement.payouts_nano,
                }
            )
    return paid


if __name__ == "__main__":
    sys.exit(main())
