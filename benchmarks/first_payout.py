"""How long it takes, and how many steps, from a folder of files to the first payout: the whole way, by one command.

    python benchmarks/first_payout.py --workdir work/first           minutes: the quickstart runs twice

First an installation: `openledger quickstart`, with its own contributors, adapters, sales and payouts; `--workdir` may
have one already. Then a newcomer, with the commands of docs/guides/contribute.md, each a process of its own: a fresh
key, a folder of 100 rows that nobody contributed, `contribute`. The clock starts at his first command. The operator's
part is to run the quickstart again: it publishes the version, trains and indexes its adapter, sells answers and
settles. The clock stops when `openledger payouts --key` would show the newcomer a payout; it is asked each second.

The rows are documentation strings of an installed package that no contributor of the quickstart has.
"""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from openledger.client import OpenLedger
from openledger.core.clock import format_span
from openledger.core.errors import OpenLedgerError
from openledger.core.money import format_open
from openledger.core.signing import SigningKey
from openledger.datanets.docstrings import package_rows

LIMIT_S = 3 * 60 * 60
SERVING = "press Ctrl-C to stop"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--datanet", default="tables")
    parser.add_argument("--package", default="networkx", help="whose documentation strings are contributed")
    parser.add_argument("--rows", type=int, default=100)
    parser.add_argument("--config", help="the quickstart's, where it isn't to run at its full size")
    arguments = parser.parse_args()
    arguments.workdir.mkdir(parents=True, exist_ok=True)
    with Installation(arguments, "installed") as installed:
        print(f"the installation, before anything is counted: {installed.took_s:.0f} s", flush=True)
        newcomer = Newcomer(arguments, f"http://127.0.0.1:{installed.port}")
        began = time.monotonic()
        newcomer.take("keys new", "keys", "new", "--out", str(newcomer.key))
        words = ("contribute", arguments.datanet, str(newcomer.folder), "--key", str(newcomer.key))
        newcomer.take("contribute", *words, "--recovery", newcomer.recovery)
    with Installation(arguments, "paid") as paying:
        told = newcomer.told_by(f"http://127.0.0.1:{paying.port}", arguments.datanet)
    stages = json.loads((arguments.workdir / "work" / "report.json").read_text())["stages"]
    Console(width=110).print(steps(newcomer.steps, stages, paying.paid_at - began if paying.payout else None))
    print(f"verdicts {told['verdicts']}: {len(newcomer.steps)} of the contributor until then, one of the operator's")
    print("(the quickstart ended, and started again), one of the contributor's to see the payout")
    if paying.payout:
        amount = format_open(paying.payout["amount_nano"])
        print(f"paid {amount}; by the ledger's clock {told['span']} from the contribution to the payout")


def steps(own: Sequence[tuple[str, float]], stages: Sequence[dict[str, Any]], paid_s: float | None) -> Table:
    table = Table("step", "by whom", "took", "since the first command")
    since_s = 0.0
    for name, took_s in own:
        since_s += took_s
        table.add_row(name, "contributor", f"{took_s:.1f} s", f"{since_s:.1f} s")
    for stage in stages:
        table.add_row(f"quickstart: {stage['name']}", "operator", f"{stage['seconds']:.0f} s", "")
    table.add_row("payouts", "contributor", "", "no payout" if paid_s is None else f"{paid_s:.0f} s")
    return table


class Newcomer:
    """A fresh key, and a folder of rows; `steps` are the commands and their seconds."""

    def __init__(self, arguments: argparse.Namespace, url: str):
        place = arguments.workdir / f"newcomer-{int(time.time())}"
        self.folder, self.key, self.recovery = place / "notes", place / "my.key", str(place / "recovery.key")
        self.folder.mkdir(parents=True)
        rows = list(package_rows(arguments.package))[: arguments.rows]
        lines = [{"prompt": row.prompt, "completion": row.completion, "source": row.source} for row in rows]
        (self.folder / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (arguments.workdir / "newcomer").write_text(str(self.key))
        self.steps: list[tuple[str, float]] = []
        self._url = url

    def take(self, name: str, *words: str) -> None:
        began = time.monotonic()
        where = [] if words[:2] == ("keys", "new") else ["--url", self._url]
        command = [sys.executable, "-m", "openledger.cli", *words, *where]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        self.steps.append((name, time.monotonic() - began))

    def told_by(self, url: str, datanet: str) -> dict[str, Any]:
        with OpenLedger(url) as client:
            people = client.leaderboard(datanet)["contributors"]
        own = SigningKey.load_or_create(self.key).contributor_id
        (one,) = [person for person in people if person["contributor_id"] == own]
        counts = Counter({name: one[name] for name in ("accepted", "rejected", "review") if one.get(name)})
        span = one["first_payout_ms"]
        return {"verdicts": dict(counts), "span": "nothing" if span is None else format_span(round(span))}


class Installation:
    """The quickstart, until it serves; ended by Ctrl-C. Its second run is asked for the newcomer's payout."""

    def __init__(self, arguments: argparse.Namespace, name: str):
        self.port, self.payout, self.paid_at = free_port(), None, 0.0
        self._key = arguments.workdir / "newcomer" if name == "paid" else None
        words = ["quickstart", "--workdir", str(arguments.workdir / "work"), "--port", str(self.port)]
        words += ["--config", arguments.config] if arguments.config else []
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        self._log = arguments.workdir / f"{name}.log"
        began = time.monotonic()
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "openledger.cli", *words], stdout=log, stderr=subprocess.STDOUT, env=environment
            )
        self._wait()
        self.took_s = time.monotonic() - began

    def __enter__(self) -> "Installation":
        return self

    def __exit__(self, *failure: object) -> None:
        self._process.send_signal(signal.SIGINT)
        self._process.wait(timeout=300)

    def _wait(self) -> None:
        key = SigningKey.load_or_create(Path(self._key.read_text())) if self._key else None
        deadline = time.monotonic() + LIMIT_S
        while SERVING not in self._log.read_text():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"the quickstart ended before it served:\n{self._log.read_text()[-2000:]}")
            if key is not None and self.payout is None:
                self._ask(key)
            time.sleep(1)
        if key is not None and self.payout is None:
            self._ask(key)

    def _ask(self, key: SigningKey) -> None:
        with suppress(OpenLedgerError), OpenLedger(f"http://127.0.0.1:{self.port}") as client:
            if found := client.payouts(key):
                self.payout, self.paid_at = found[-1], time.monotonic()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    main()
