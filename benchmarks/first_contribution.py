"""How long a first-time contributor waits for the gate's verdict on 100 rows, and a contributor for the first payout.

    openledger quickstart --port 8420                                 in another terminal
    python benchmarks/first_contribution.py python-stdlib --url http://127.0.0.1:8420

Each contributor is new: a fresh key, no account, no balance. The commands are those of docs/guides/contribute.md, each
a process of its own: `openledger keys new`, `keys recovery` and `contribute`. The rows are documentation strings of an
installed package that no contributor of the quickstart has, written to a folder; each contributor sends other ones.
The same rows are sent a second time, which the server answers from what it knows: that is the program's own time.

The time to the first payout is the server's own, from its leaderboard: between a contributor's first contribution and
his first payout, on the ledger's clock.
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

PACKAGE = "rich"
LIMIT_S = 10.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("datanet")
    parser.add_argument("--url", default="http://127.0.0.1:8420")
    parser.add_argument("--package", default=PACKAGE, help="whose documentation strings are contributed")
    parser.add_argument("--rows", type=int, default=100)
    parser.add_argument("--people", type=int, default=3, help="one after the other")
    arguments = parser.parse_args()
    rows = [
        {"prompt": row.prompt, "completion": row.completion, "source": row.source}
        for row in package_rows(arguments.package)
    ]
    waited = [
        contribute(arguments, rows[number * arguments.rows : (number + 1) * arguments.rows], number)
        for number in range(arguments.people)
    ]
    print(
        f"verdicts after {min(waited):.1f} / {median(waited):.1f} / {max(waited):.1f} s (min/median/max),"
        f" {'within' if max(waited) <= LIMIT_S else 'NOT within'} {LIMIT_S:.0f} s"
    )
    print_payouts(arguments)


def contribute(arguments: argparse.Namespace, rows: list[dict[str, str]], number: int) -> float:
    """Seconds from `contribute` to all verdicts, the program's start included."""
    with tempfile.TemporaryDirectory(prefix="bench-first-") as name:
        folder, key, receipts = Path(name) / "notes", Path(name) / "my.key", Path(name) / "verdicts.jsonl"
        folder.mkdir()
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        prepared_s = run("keys", "new", "--out", str(key))
        recovery = str(Path(name) / "recovery.key")
        prepared_s += run("keys", "recovery", "--key", str(key), "--out", recovery, "--url", arguments.url)
        words = "contribute", arguments.datanet, str(folder), "--key", str(key), "--url", arguments.url
        seconds = run(*words, "--receipts", str(receipts))
        outcomes = Counter(json.loads(line)["outcome"] for line in receipts.read_text().splitlines())
        again_s = run(*words)
    print(
        f"contributor {number + 1}: {len(rows)} rows, 3 commands; key and recovery key {prepared_s:.1f} s,"
        f" verdicts {seconds:.1f} s {dict(outcomes)}, sent again {again_s:.1f} s",
        flush=True,
    )
    return seconds


def print_payouts(arguments: argparse.Namespace) -> None:
    with OpenLedger(arguments.url) as client:
        people = client.leaderboard(arguments.datanet)["contributors"]
    waited = [one["first_payout_ms"] for one in people if one["first_payout_ms"] is not None]
    if not waited:
        print(f"nobody was paid in {arguments.datanet} yet")
        return
    spans = [format_span(round(span)) for span in (min(waited), median(waited), max(waited))]
    print(f"first payout of {len(waited)} contributors of {arguments.datanet}: {' / '.join(spans)} (min/median/max)")


def run(*words: str) -> float:
    began = time.monotonic()
    subprocess.run([sys.executable, "-m", "openledger.cli", *words], check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - began


if __name__ == "__main__":
    main()
