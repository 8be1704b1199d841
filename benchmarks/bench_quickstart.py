"""Time `openledger quickstart`: several first runs in empty folders, and a second run in each.

    python benchmarks/bench_quickstart.py --runs 3

Prints each stage's median seconds and peak memory (proportional set size of everything the run started), and what the
runs found: rows, ROUGE-L and what gaming earned. Runs one after another; nothing else should run beside it.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    first, second = [], []
    for number in range(arguments.runs):
        with tempfile.TemporaryDirectory(prefix="bench-") as folder:
            first.append(timed_run(Path(folder)))
            second.append(timed_run(Path(folder)))
        print(f"run {number + 1}: {first[-1][0]:.0f} s, then {second[-1][0]:.0f} s", file=sys.stderr, flush=True)
    print(f"{os.cpu_count()} cores, {platform.processor() or platform.machine()}, Python {platform.python_version()}")
    print_stages("first run", first)
    print_stages("second run", second)
    print_findings([report for _, report in first])


def timed_run(workdir: Path) -> tuple[float, dict[str, Any]]:
    command = [sys.executable, "-m", "openledger.cli", "quickstart", "--exit", "--json", "--port", "0"]
    started = time.monotonic()
    output = subprocess.run([*command, "--workdir", str(workdir)], stdout=subprocess.PIPE, check=True, timeout=1800)
    return time.monotonic() - started, json.loads(output.stdout)


def print_stages(title: str, runs: list[tuple[float, dict[str, Any]]]) -> None:
    seconds = [run[0] for run in runs]
    print(f"\n{title}: median {statistics.median(seconds):.0f} s of {', '.join(f'{s:.0f}' for s in seconds)}")
    print("| stage | median s | peak MiB |\n| --- | --- | --- |")
    for stages in zip(*(report["stages"] for _, report in runs), strict=True):
        duration = statistics.median(stage["seconds"] for stage in stages)
        print(f"| {stages[0]['name']} | {duration:.1f} | {max(stage['peak_mib'] for stage in stages)} |")


def print_findings(reports: list[dict[str, Any]]) -> None:
    last = reports[-1]
    print(f"\nrows {last['totals']}")
    print(f"quality {last['quality']}")
    for entry in last["gaming"]:
        print(
            f"{entry['kind']}: {entry['earned_nano']} nano-OPEN beside {entry['reference_nano']} ({entry['reference']})"
        )


if __name__ == "__main__":
    main()
