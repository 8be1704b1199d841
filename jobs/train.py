"""Publish a Datanet, fine-tune its LoRA adapter with Ray Train, build its attribution index and offer it for sale.

It is sold under the Datanet's name, in the place of what was sold under it before; what that one has sold is still
settled by itself. Progress goes to standard error; the last line, on standard output, is JSON.

    python jobs/train.py --workdir .openledger --datanet tables --workers 2
    ray job submit --working-dir . -- python jobs/train.py --workdir /data/openledger --datanet tables --gpu

So that nobody chooses the training's random numbers, commit to nonces while contributions are open; the next run
without the option publishes the version, reveals the nonces and trains (docs/concepts/initial_constant.md). What no
witness gave a nonce for is refused before it is trained, unless a vote set witnesses_required to 0:

    python jobs/train.py --workdir .openledger --datanet tables --commit-nonces user:witness
    python jobs/train.py --workdir .openledger --datanet tables

To go on from an adapter instead of from the base, name it; its contributors stay paid (docs/concepts/lineage.md):

    python jobs/train.py --workdir .openledger --datanet tables --parent python-stdlib

To make again what was lost of an adapter that others come from, name its version; with its recipe and parent, what is
there is found, what isn't is made, and nothing is offered for sale:

    python jobs/train.py --workdir .openledger --datanet tables --version 2

Without --recipe and --base-model they are those of the working folder's config.yaml, where a quickstart has left one.
`--recipe` names a YAML file with settings of training.recipe.Recipe; what is not named keeps that class's default
(docs/concepts/attribution.md lists them).
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from openledger.platform.job import run_job
from openledger.platform.stages import tell
from openledger.platform.workdir import Workdir


def main() -> int:
    return run_job(train, parse_arguments())


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--datanet", required=True, help="also the name under which the adapter is offered for sale")
    parser.add_argument("--base-model", default="",
                        help="a folder or hub id; default: config.yaml's, else the embedded model")  # fmt: skip
    parser.add_argument("--recipe", type=Path, help="YAML; default: config.yaml's recipe, else all defaults")
    parser.add_argument("--parent", default="", metavar="ADAPTER",
                        help="go on from this adapter of one shape: a name, digest or folder")  # fmt: skip
    parser.add_argument("--version", type=int, default=0, metavar="N",
                        help="make what is missing of this version's adapter, and offer nothing")  # fmt: skip
    parser.add_argument("--workers", type=int, help="of the training; default: 2, on GPUs 1, each with a whole one")
    parser.add_argument(
        "--gpu", action="store_true",
        help="as num_gpus: 1 in the recipe; without it, what the recipe says. Bank and index take as much",
    )  # fmt: skip
    parser.add_argument("--bank", type=int, default=0, metavar="N",
                        help="also train a bank of N coalitions; default: attribute by the index alone")  # fmt: skip
    parser.add_argument("--spread-index-from", type=int, default=0, metavar="N",
                        help="build an index of N rows times checkpoints, or more, by tasks over the nodes;"
                             " default: 1000")  # fmt: skip
    parser.add_argument("--commit-nonces", nargs="+", metavar="WITNESS",
                        help="only commit to nonces (owner's, WITNESSes') for the version to come, or for"
                             " --version N if that has no round yet")  # fmt: skip
    parser.add_argument("--owner", default="",
                        help="account that trains, as the terms must let it, and earns the owner's part;"
                             " default: user:DATANET-owner")  # fmt: skip
    parser.add_argument("--prices", type=int, nargs=2, metavar="NANO",
                        help="for each prompt and each completion token, in the smallest part of the ledger's unit"
                             " (nano-OPEN, micro-EUR); default: 0.0002 and 0.001 of it")  # fmt: skip
    return parser.parse_args()


def train(workdir: Workdir, arguments: argparse.Namespace) -> dict[str, object]:
    import ray

    from openledger.adapters.base_model import find_base_model
    from openledger.adapters.registry import AdapterRegistry
    from openledger.attribution.trainer import SPREAD_FROM, index_tasks
    from openledger.core.config import load_settings
    from openledger.economy.actor import RemoteLedger
    from openledger.economy.nonces import NonceBook
    from openledger.platform import pipeline
    from openledger.platform.actors import datanets_actor, economy_actor, ledger_actor
    from openledger.platform.cluster import connected
    from openledger.platform.credit import credit_to_train
    from openledger.platform.prices import prices_in
    from openledger.platform.progress import told_epochs
    from openledger.platform.quickstart import QuickstartSettings
    from openledger.training.recipe import Recipe
    from openledger.training.trainer import check_workers

    kept = load_settings(QuickstartSettings, workdir.config) if workdir.config.exists() else None
    base = find_base_model(arguments.base_model or (kept.base_model if kept else "") or None)
    recipe = load_settings(Recipe, arguments.recipe) if arguments.recipe else kept.recipe if kept else Recipe()
    if arguments.gpu and not recipe.num_gpus:
        recipe = replace(recipe, num_gpus=1.0)
    num_workers = arguments.workers or (1 if recipe.num_gpus else 2)
    tell(f"recipe of {arguments.recipe or (workdir.config if kept else 'the defaults')}: {recipe.num_epochs} epochs, "
         f"at most {recipe.max_rows} rows, LoRA rank {recipe.rank}; base {base.name}")  # fmt: skip
    owner = arguments.owner or f"user:{arguments.datanet}-owner"
    with connected(workdir):
        tell("loading Datanets, ledger and economy ...")
        datanets, ledger, economy = datanets_actor(workdir), RemoteLedger(ledger_actor(workdir)), economy_actor(workdir)
        book = NonceBook(ledger)
        if arguments.commit_nonces:
            number = arguments.version or pipeline.next_version(datanets, arguments.datanet)
            witnesses = arguments.commit_nonces
            pipeline.commit_nonces(book, workdir.nonces, arguments.datanet, number, owner, witnesses)
            return {"datanet": arguments.datanet, "version": number, "committed": [owner, *witnesses]}
        registry, parent = AdapterRegistry(workdir.adapters), None
        check_workers(recipe.num_gpus, num_workers)  # first: a GPU that isn't there must not cost a version's nonces
        if arguments.parent:  # what can't be built on must not cost a version either
            parent = pipeline.find_parent(registry, arguments.parent, base, recipe)
        if arguments.version:
            version, rows = pipeline.published(datanets, arguments.datanet, arguments.version, owner)
        else:
            version, rows = pipeline.publish(datanets, arguments.datanet, owner)
        tell(f"{version.datanet} version {version.number}: {len(rows)} rows")
        copies, alike = pipeline.find_copies(datanets, version), pipeline.find_alike(datanets, version)
        credit = credit_to_train(datanets, version, rows, ledger, tell)
        nonces = pipeline.draw_nonces(book, workdir.nonces, version, base, recipe)
        job, decoys = pipeline.plan_training(
            base, version, rows, recipe, workdir.adapters,
            nonces=nonces, copies={**copies, **credit.left_out}, alike=alike, credit=credit.order, parent=parent,
        )  # fmt: skip
        if not arguments.version:  # first: what can't be offered must not cost a training
            pipeline.check_plan(economy, registry, job, owner)
        tell(f"training on {len(job.rows)} rows with {num_workers} workers")
        with told_epochs(Path(job.output), recipe.num_epochs, tell):
            card = pipeline.train([job], workdir.runs, num_workers)[0]
        coalitions = 0
        if arguments.bank:
            coalitions = pipeline.build_bank(
                job,
                arguments.bank,
                num_gpus=recipe.num_gpus,
                on_member=lambda one: tell(f"bank: {one.name} trained"),
            )
        tell("building the index")
        border = arguments.spread_index_from or SPREAD_FROM
        build = index_tasks(base, spread_from=border, num_gpus=recipe.num_gpus)
        indexed = pipeline.build_indexes(build, [job], [decoys], workdir.indexes)[0]
        if not arguments.version:
            tell(f"offering it as {card.name}")
            ray.get(economy.charge_adapter.remote(owner, card.digest))
            prices = prices_in(ray.get(economy.unit.remote()), arguments.prices)
            pipeline.register(registry, job, card, owner, prices, economy)
    return {
        "adapter": card.name,
        "digest": card.digest,
        "parents": [digest for digest, _ in card.parents],
        "final_loss": card.final_loss,
        "rows_indexed": indexed,
        "coalitions_trained": coalitions,
    }


if __name__ == "__main__":
    sys.exit(main())
