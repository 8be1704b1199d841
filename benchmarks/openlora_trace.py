"""S-LoRA's traffic over HTTP as aiperf replays it: an outside judge of throughput and latency.

    python -m benchmarks.openlora_trace FOLDER --aiperf aiperf-venv/bin/aiperf

aiperf wants an environment of its own (benchmarks/aiperf_requirements.txt): it pins other versions than this project.
Without `--aiperf` the trace is written and the command is printed. Each line of the trace (aiperf's `mooncake_trace`)
holds the time at which it is sent and the request's body word for word, so that which adapter is asked, and when, is
S-LoRA's law exactly: a power law over the adapters, Gamma arrivals, lengths uniform. The seed is openlora_world's.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks import openlora_world as world
from benchmarks.openlora_serve import IN_FLIGHT, deployed

ALPHA, CV, RATE, DURATION_S, LENGTHS = 0.3, 1.0, 2.0, 30.0, (8, 64)
_TOKENS = 1000  # the world's model has more tokens than its tokenizer, which the API doesn't take


def main() -> int:
    arguments = parse_arguments()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    made = world.make_world(arguments.folder / "world", IN_FLIGHT)
    asked = world.arrivals(
        IN_FLIGHT, alpha=ALPHA, cv=CV, rate=arguments.rate, duration_s=arguments.duration_s, lengths=LENGTHS
    )
    trace = arguments.folder / "trace.jsonl"
    trace.write_text("".join(line + "\n" for line in lines(asked)))
    print(f"{len(asked)} requests in {trace}; {world.top_share(asked, IN_FLIGHT):.0%} to the tenth asked most")
    if arguments.aiperf is None:
        print(shlex.join(command("aiperf", trace, "http://127.0.0.1:8420", made, arguments.folder)))
        return 0
    with deployed(arguments.folder, made) as url:
        return subprocess.run(command(arguments.aiperf, trace, url, made, arguments.folder), check=False).returncode


def lines(asked: Sequence[world.Arrival]) -> Iterator[str]:
    for each in asked:
        body = {
            "model": f"m{each.adapter}",
            "prompt": [token % _TOKENS for token in each.prompt_ids],
            "max_tokens": each.new_tokens,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        yield json.dumps({"timestamp": round(1000 * each.at_s), "payload": body})


def command(aiperf: str, trace: Path, url: str, made: world.World, folder: Path) -> list[str]:
    """The tokenizer is given by a relative path: aiperf takes an absolute one for a hub id."""
    return [
        aiperf, "profile", "-m", "m0", "--url", url, "--endpoint-type", "completions", "--streaming",
        "--input-file", str(trace), "--custom-dataset-type", "mooncake_trace", "--fixed-schedule",
        "--use-server-token-count", "--tokenizer", os.path.relpath(made.base.path),
        "--api-key", os.environ.get("BENCH_KEY", "$OPENLEDGER_API_KEY"), "--artifact-dir", str(folder / "aiperf"),
        "--ui", "none",
    ]  # fmt: skip


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="keeps models and adapters, about 350 MB")
    parser.add_argument("--aiperf", help="the program, in an environment of its own")
    parser.add_argument("--rate", type=float, default=RATE, help="requests a second")
    parser.add_argument("--duration-s", type=float, default=DURATION_S)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
