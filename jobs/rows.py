"""Write the rows that an adapter was trained on, in the run's order, as `openledger attribution` reads them.

    python jobs/rows.py --workdir .openledger --adapter tables --out rows.jsonl

Prompts carry the chat template and completions the end token, as text: read again they are the run's own tokens. Rows
that were withdrawn since can't be written, and the run can't be attributed from files any more.
"""

import argparse
import json
import sys
from pathlib import Path

from openledger.platform.job import run_job
from openledger.platform.stages import tell
from openledger.platform.workdir import Workdir


def main() -> int:
    return run_job(write, parse_arguments())


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--adapter", required=True, metavar="NAME", help="as it is served")
    parser.add_argument("--base-model", default="", help="that it was trained on; default: the embedded model")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="JSON lines")
    return parser.parse_args()


def write(workdir: Workdir, arguments: argparse.Namespace) -> dict[str, object]:
    from openledger.adapters.base_model import find_base_model, load_tokenizer
    from openledger.adapters.card import load_card
    from openledger.adapters.registry import AdapterRegistry
    from openledger.attribution.records import record_of
    from openledger.core.files import write_durably
    from openledger.platform import pipeline
    from openledger.platform.actors import datanets_actor
    from openledger.platform.cluster import connected
    from openledger.training.examples import encode_row
    from openledger.training.record import check_run, load_run

    folder = Path(AdapterRegistry(workdir.adapters).get(arguments.adapter).folder)
    card, record = load_card(folder), load_run(folder)
    base = find_base_model(arguments.base_model or None)
    with connected(workdir):
        tell("loading the Datanets ...")
        _, rows = pipeline.published(datanets_actor(workdir), card.datanet, card.datanet_version)
    tokenizer = load_tokenizer(base)
    known = {row.row_id: row for row in rows}
    examples = [encode_row(tokenizer, known[row_id]) for row_id in record.row_ids if row_id in known]
    check_run(record, base, examples)
    lines = "".join(json.dumps(record_of(tokenizer, example)) + "\n" for example in examples)
    write_durably(arguments.out, lines.encode())
    return {"adapter": str(folder), "base": base.path, "rows": len(examples), "written": str(arguments.out)}


if __name__ == "__main__":
    sys.exit(main())
