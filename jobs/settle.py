"""Close the current period, attribute every pool that waits, and pay each once.

    ray job submit --working-dir . -- python jobs/settle.py --workdir /data/openledger

Needs the serving application of the same working folder on the cluster: what an adapter gained over its base is
measured by the engine that served it. Running it again pays nobody twice. A pool that can't be paid is named with its
reason, and the exit code isn't 0 then; it waits for the next run.

    python jobs/settle.py --workdir .openledger --replay-share 0.1 --training-cost 25

also replays the training of each adapter whose fees of the period buy that (docs/concepts/replay.md), and keeps every
row's scores in WORKDIR/rows. Stopped on the way, it goes on when it is run again.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from openledger.core.errors import InvalidInput, OpenLedgerError
from openledger.core.money import parse_open
from openledger.core.values import Row, Settlement
from openledger.platform.job import begin, ended
from openledger.platform.stages import tell
from openledger.platform.workdir import Workdir

if TYPE_CHECKING:  # it imports ray
    from openledger.platform.pipeline import SettledPool


def main() -> int:
    arguments = parse_arguments()

    def settled() -> int:
        workdir = begin(arguments.workdir)  # before anything imports ray
        return settle(workdir, [arguments.base_model, *arguments.further_base], _budget(arguments), arguments.gpus)

    return ended(settled)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--base-model", default="", help="as the application was deployed with")
    parser.add_argument("--further-base", action="append", default=[], help="one of its base_models; may be repeated")
    parser.add_argument("--gpus", type=float, help="for measuring and replaying; default: what each recipe says")
    parser.add_argument("--replay-share", type=float, default=0.0, metavar="X", help="of an adapter's fees; default 0")
    parser.add_argument("--training-cost", metavar="OPEN", help="of one training of an adapter; with --replay-share")
    return parser.parse_args()


def _budget(arguments: argparse.Namespace) -> tuple[int, int] | None:
    """The fees' parts per million, and what a training costs in nano-OPEN; None where nothing is to be replayed."""
    from openledger.attribution.planner import budget_from_fees

    if not arguments.replay_share:
        return None
    if arguments.training_cost is None:
        raise InvalidInput(
            "--replay-share needs --training-cost, in OPEN", code="invalid_budget", param="training_cost"
        )
    share_ppm, cost_nano = round(arguments.replay_share * 10**6), parse_open(arguments.training_cost)
    budget_from_fees(0, share_ppm, cost_nano)  # raises for what can't be
    return share_ppm, cost_nano


def settle(
    workdir: Workdir, base_models: Sequence[str], budget: tuple[int, int] | None = None, num_gpus: float | None = None
) -> int:
    """Pay pool by pool; one that can't be paid doesn't keep the others waiting."""
    import ray

    from openledger.adapters.base_model import find_base_model
    from openledger.adapters.card import AdapterCard
    from openledger.adapters.registry import AdapterRegistry
    from openledger.economy.actor import RemoteLedger
    from openledger.platform import pipeline
    from openledger.platform.actors import datanets_actor, economy_actor, ledger_actor
    from openledger.platform.cluster import connected
    from openledger.platform.credit import rows_and_credit
    from openledger.platform.hosts import IndexHosts
    from openledger.platform.replaying import Replays, forget_orphans
    from openledger.platform.serving import engine_score
    from openledger.training.trainer import check_gpus

    with connected(workdir):
        tell("loading ledger, economy and engines ...")
        registry = AdapterRegistry(workdir.adapters)
        score = engine_score(registry)  # first: without an engine, or a GPU, nothing must be opened or closed
        check_gpus(num_gpus or 0)
        economy = economy_actor(workdir)
        hosts = IndexHosts([find_base_model(named or None) for named in base_models], num_gpus=num_gpus)
        replays = None
        if budget is not None:
            datanets = datanets_actor(workdir)
            replays = Replays(
                share_ppm=budget[0],
                training_cost_nano=budget[1],
                folder=workdir.rows,
                rows_of=lambda card: pipeline.published(datanets, card.datanet, card.datanet_version)[1],
                host_lost=hosts.end,
            )
        ray.get(economy.open_period.remote())
        forget_orphans(workdir.rows, ray.get(economy.pools.remote()))

        def rows_of(card: AdapterCard) -> tuple[Sequence[Row], Sequence[str]]:
            return rows_and_credit(datanets_actor(workdir), RemoteLedger(ledger_actor(workdir)), card)

        try:
            return report(
                pipeline.settle_waiting(economy, hosts.of, score, registry, workdir.indexes, replays, rows_of)
            )
        finally:
            hosts.end()


def report(pools: Iterable["SettledPool"]) -> int:
    """A line for each pool as it comes; the exit code: 0 where all were paid."""
    exit_code = 0
    for pool in pools:
        if pool.settlement is not None:
            print(json.dumps({**told(pool.settlement), "quality": dict(pool.quality)}), flush=True)
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
