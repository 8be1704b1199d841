"""How long a first-time contributor waits for the gate's verdict on 100 rows, and the first contributors for their pay.

    openledger quickstart --port 8420                                 in another terminal
    python benchmarks/first_contribution.py numpy-docs --url http://127.0.0.1:8420

The contributor is new: a fresh key, no account, no balance. Two commands, as docs/guides/contribute.md has them, each
a process of its own: `openledger keys new` and `openledger contribute`. The rows are documentation strings of an
installed package that no contributor of the quickstart has, written to a folder. The time to the first payout is the
server's own, from its leaderboard: between a contributor's first contribution and his first payout, on the ledger's
clock.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from statistics import median

from openledger.client import OpenLedger
from openledger.core.clock import format_span
from openledger.datanets.docstrings import package_rows

PACKAGE = "jinja2"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("datanet")
    parser.add_argument("--url", default="http://127.0.0.1:8420")
    parser.add_argument("--package", default=PACKAGE, help="whose documentation strings are contributed")
    parser.add_argument("--rows", type=int, default=100)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-first-") as name:
        folder = write_rows(Path(name) / "notes", arguments.package, arguments.rows)
        key, receipts = Path(name) / "my.key", Path(name) / "verdicts.jsonl"
        start = time.monotonic()
        run("keys", "new", "--out", str(key))
        words = "contribute", arguments.datanet, str(folder), "--key", str(key), "--receipts", str(receipts)
        run(*words, "--url", arguments.url)
        seconds = time.monotonic() - start
        outcomes = Counter(json.loads(line)["outcome"] for line in receipts.read_text().splitlines())
    print(f"{sum(outcomes.values())} rows, 2 commands, verdicts after {seconds:.1f} s: {dict(outcomes)}")
    with OpenLedger(arguments.url) as client:
        people = client.leaderboard(arguments.datanet)["contributors"]
    waited = [one["first_payout_ms"] for one in people if one["first_payout_ms"] is not None]
    if waited:
        spans = [format_span(round(span)) for span in (min(waited), median(waited), max(waited))]
        print(
            f"first payout of {len(waited)} contributors of {arguments.datanet}: {' / '.join(spans)} (min/median/max)"
        )
    else:
        print(f"nobody was paid in {arguments.datanet} yet")


def write_rows(folder: Path, package: str, num_rows: int) -> Path:
    folder.mkdir()
    rows = [{"prompt": row.prompt, "completion": row.completion, "source": row.source} for row in package_rows(package)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:num_rows]))
    return folder


def run(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "openledger.cli", *words], check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
