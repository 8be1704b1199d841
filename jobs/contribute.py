"""Sign and hand in rows of a file or folder to a Datanet, of at most 10,000 rows; all of them, or none.

python jobs/contribute.py --workdir .openledger --datanet tables --rows rows.jsonl --key alice.key --name alice
python jobs/contribute.py ... --dry-run     the gate's verdicts, nothing stored
"""

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openledger.platform.job import begin, ended
from openledger.platform.stages import tell
from openledger.platform.workdir import Workdir

if TYPE_CHECKING:
    from openledger.core.signing import SigningKey
    from openledger.core.values import Contribution, Verdict

Ask = Callable[..., Any]  # a method of the Datanets by name, and its arguments


def main() -> int:
    arguments = parse_arguments()

    def told() -> None:
        workdir = begin(arguments.workdir)  # before anything imports ray
        for verdict in contribute(workdir, arguments):
            print(json.dumps(verdict))

    return ended(told)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--datanet", required=True)
    parser.add_argument("--rows", type=Path, required=True, help="a file or folder that openledger contribute reads")
    parser.add_argument("--key", type=Path, required=True, help="the contributor's key; made where there is none")
    parser.add_argument("--name", required=True, help="what reports call the contributor")
    parser.add_argument("--dry-run", action="store_true", help="the gate's verdicts, nothing stored")
    return parser.parse_args()


def contribute(workdir: Workdir, arguments: argparse.Namespace) -> list[dict[str, object]]:
    import ray

    from openledger.core.signing import SigningKey
    from openledger.datanets.contribution import sign_contribution
    from openledger.datanets.reading import only_rows, read_drafts
    from openledger.platform.actors import datanets_actor
    from openledger.platform.cluster import connected

    key = SigningKey.load_or_create(arguments.key)
    drafts = tuple(only_rows(read_drafts(arguments.rows)))
    contribution = sign_contribution(key, arguments.datanet, drafts, nonce="once")
    with connected(workdir):
        tell("loading the Datanets ...")
        datanets = datanets_actor(workdir)

        def ask(method: str, *given: Any) -> Any:
            return ray.get(getattr(datanets, method).remote(*given))

        verdicts = hand_in(ask, key, contribution, arguments)
    return [asdict(verdict) for verdict in verdicts]


def hand_in(
    ask: Ask, key: "SigningKey", contribution: "Contribution", arguments: argparse.Namespace
) -> "tuple[Verdict, ...]":
    """Through `ask`; rows that came in before are told."""
    from openledger.core.signed import contribution_id

    if ask("judged", contribution_id(contribution)) is not None:
        num_rows = len(contribution.drafts)
        tell(
            f"all {num_rows} rows came in before, with the same key: they aren't stored again, the verdicts are of then"
        )
    if arguments.dry_run:
        return tuple(ask("preview", contribution))
    ask("register_contributor", key.public_key, arguments.name)
    return tuple(ask("contribute", contribution).verdicts)


if __name__ == "__main__":
    sys.exit(main())
