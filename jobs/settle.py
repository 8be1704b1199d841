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
from openledger.core.values import Settlement
from openledger.platform.environment import prepare_environment
from openledger.platform.workdir import Workdir


def main() -> int:
    arguments = parse_arguments()
    workdir = Workdir(arguments.workdir.resolve())
    prepare_environment(workdir)  # before anything imports ray
    try:
        return settle(workdir, arguments.base_model)
    except OpenLedgerError as error:
        return _complain(error)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--base-model", default="", help="as the application was deployed with")
    return parser.parse_args()


def settle(workdir: Workdir, base_model: str) -> int:
    """Pay pool by pool, a line for each; one that can't be paid doesn't keep the others waiting."""
    import ray

    from openledger.adapters.base_model import find_base_model
    from openledger.adapters.registry import AdapterRegistry
    from openledger.attribution.actor import start_index_host
    from openledger.platform import pipeline
    from openledger.platform.actors import economy_actor
    from openledger.platform.cluster import connected
    from openledger.platform.serving import engine_score

    exit_code = 0
    with connected(workdir):
        score = engine_score()  # first: without an engine nothing must be opened or closed
        economy = economy_actor(workdir)
        ray.get(economy.open_period.remote())
        host = start_index_host(find_base_model(base_model or None))
        registry = AdapterRegistry(workdir.adapters)
        for pool in pipeline.settle_waiting(economy, host, score, registry, workdir.indexes):
            if pool.settlement is not None:
                print(json.dumps(told(pool.settlement)), flush=True)
            if pool.error is not None:
                exit_code = _complain(pool.error, adapter=pool.adapter, period=pool.period)
    return exit_code


def told(settlement: Settlement) -> dict[str, object]:
    return {
        "adapter": settlement.adapter,
        "period": settlement.period,
        "pool_nano": settlement.pool_nano,
        "payouts_nano": settlement.payouts_nano,
        "parts": {
            name: {"pool_nano": part.pool_nano, "measured": part.measured, "payouts_nano": part.payouts_nano}
            for name, part in settlement.parts.items()
        },
    }


def _complain(error: OpenLedgerError, **pool: str) -> int:
    print(json.dumps({"error": error.to_dict(), **pool}), file=sys.stderr)
    return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
