"""The grammar of `openledger attribution`, for the command line and for `python -m openledger.attribution`.

Imports nothing heavy: the command line reads it for its help.
"""

import argparse
from pathlib import Path
from typing import Any

ABOUT = "How much each row and contributor made the answers likelier, and how well that was measured."
_DEFAULT = "of the bank (default {}; evaluate: as many as the adapter's bank has, where it has one)"
METHODS = ("index", "bank", "estimate", "replay")
_SCORE_EXAMPLES = """examples:
  a plain PEFT directory, by the index alone:
    openledger attribution score --base BASE --adapter PEFT_DIR --rows rows.jsonl --queries queries.jsonl \\
        --method index --out scores.npy
  train the adapter and its bank, then estimate every row's expected influence:
    openledger attribution score --base BASE --adapter runs/mine --recipe recipe.yaml --rows rows.jsonl \\
        --queries queries.jsonl --method estimate --out scores.npy
"""
_EVALUATE = """examples:
  openledger attribution evaluate --base BASE --adapter runs/mine --rows rows.jsonl --queries queries.jsonl \\
      --coalitions 32 --audits 8
"""
_PLAN_EXAMPLES = """examples:
  openledger attribution plan --rows rows.jsonl --budget 20
  openledger attribution plan --rows rows.jsonl --fees 120 --answers 4000 --share 0.1 --training-cost 0.5
"""


def add_commands(commands: Any) -> None:
    """Add each command's parser to `commands`; `action` in the parsed options is its name."""
    score = _add(commands, "score", "write the influence of rows or contributors on queries", _SCORE_EXAMPLES)
    add_inputs(score)
    score.add_argument(
        "--method", choices=METHODS, default="estimate", help="default: estimate (index and bank, no replays)"
    )
    score.add_argument("--out", type=Path, required=True, metavar="FILE", help="float32 .npy; its .json explains it")
    score.add_argument("--errors", type=Path, metavar="FILE", help="standard deviations beside the scores")
    score.add_argument("--weights", type=Path, metavar="FILE", help="for replay: a JSON list, one for each query")
    score.add_argument("--dry-run", action="store_true", help="say what would be trained and do nothing")
    evaluate = _add(commands, "evaluate", "measure the instruments against trainings they haven't seen", _EVALUATE)
    add_inputs(evaluate)
    evaluate.set_defaults(coalitions=None, twins=None)
    evaluate.add_argument("--audits", type=int, default=8, metavar="N", help="halves, of contributors and of rows")
    evaluate.add_argument("--second-initial", action="store_true", help="also from another initial A")
    evaluate.add_argument("--check-replay", action="store_true", help="also the replay, by changing all row weights")
    evaluate.add_argument("--decoys", type=Path, metavar="FILE", help="rows never trained on, as JSON lines")
    evaluate.add_argument("--planted", type=Path, metavar="FILE", help="JSON: row id to 'copy' or 'mislabelled'")
    evaluate.add_argument("--out", type=Path, metavar="FILE", help="the report as JSON")
    evaluate.add_argument("--dry-run", action="store_true", help="say what would be trained and do nothing")
    plan = _add(commands, "plan", "what a budget buys, and how good it will be, before anything runs", _PLAN_EXAMPLES)
    plan.add_argument("--rows", type=Path, required=True, metavar="FILE", help="only contributors are read")
    plan.add_argument("--recipe", type=Path, metavar="FILE", help="YAML settings; for the number of epochs")
    plan.add_argument("--budget", type=float, default=20.0, metavar="N", help="in trainings (default 20)")
    plan.add_argument("--hours", type=float, metavar="H", help="budget in hours, with --training-seconds")
    plan.add_argument("--training-seconds", type=float, metavar="S", help="what one training takes")
    plan.add_argument(
        "--fees", type=float, metavar="OPEN", help="the adapter's fees, with --training-cost and --answers"
    )
    plan.add_argument("--share", type=float, default=0.1, metavar="X", help="of the fees to spend (default 0.1)")
    plan.add_argument("--training-cost", type=float, metavar="OPEN", help="one training's cost")
    plan.add_argument("--answers", type=int, metavar="N", help="sold in the period: each costs a replay a pass")


def add_inputs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--base", required=True, metavar="ID_OR_PATH", help="the base model")
    parser.add_argument("--adapter", type=Path, required=True, metavar="DIR", help="a run, or any PEFT directory")
    parser.add_argument("--recipe", type=Path, metavar="FILE", help="YAML settings; trains the adapter if not there")
    parser.add_argument("--rows", type=Path, required=True, metavar="FILE", help="what it was trained on, JSON lines")
    parser.add_argument("--queries", type=Path, required=True, metavar="FILE", help="answers, as JSON lines")
    parser.add_argument("--coalitions", type=int, default=32, metavar="N", help=_DEFAULT.format(32))
    parser.add_argument("--twins", type=int, default=3, metavar="N", help=_DEFAULT.format(3))
    parser.add_argument("--no-train", action="store_true", help="use what is trained; fail where something is missing")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--pack", type=int, default=1, metavar="N", help="adapters trained side by side, for a GPU")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="of the CPU (default 1)")


def arguments_of(options: argparse.Namespace) -> list[str]:
    """The command line that `options` came from, with only what was given."""
    given = []
    for name, value in vars(options).items():
        if name in ("run", "action") or value is None or value is False:
            continue
        option = "--" + name.replace("_", "-")
        given.append(option if value is True else f"{option}={value}")
    return [options.action, *given]


def _add(commands: Any, name: str, about: str, examples: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=about,
        description=f"{about}.",
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="machine-readable output, errors too")
    parser.set_defaults(action=name)
    return parser
