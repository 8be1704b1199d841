"""Install the pinned torch: the CPU build, unless GPU=1 asks for what the index gives.

    python tools/install_torch.py [--gpu] [--index "--index-url URL"]

On Linux, PyPI's torch is the CUDA build and drags in gigabytes of packages that a machine without a GPU never loads.
Whether an index would do that is asked of pip itself (a dry run, which reads metadata only); if so, the CPU build
comes from torch's own CPU index. A mirror, a folder of wheels or macOS, which give a CPU build, are used as they are.
Only torch is installed here: what it depends on follows with the package, from the configured index.

Runs in the fresh virtual environment, so it needs nothing but the standard library and pip.
"""

import argparse
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

CONSTRAINTS = Path(__file__).parent.parent / "constraints.txt"
CPU_INDEX = ("--index-url", "https://download.pytorch.org/whl/cpu")
_CUDA_PACKAGE = re.compile(r"nvidia[-_].*|cuda[-_].*|(pytorch[-_])?triton")
_FIX = """
torch could not be installed. Name the place to take it from, or let pip take the CUDA build:
    make quickstart TORCH_INDEX="--index-url https://download.pytorch.org/whl/cpu"
    make quickstart TORCH_INDEX="--find-links /folder/with/wheels"
    make quickstart GPU=1"""


def main() -> int:
    arguments = parse_arguments()
    pin = pinned_version(CONSTRAINTS.read_text(), "torch")
    if installed_version("torch") == pin:
        print(f"torch {version('torch')} is installed")
        return 0
    options = choose_index(pin, gpu=arguments.gpu, index=shlex.split(arguments.index))
    if options is None or pip("install", "--no-deps", *options, f"torch=={pin}").returncode:
        print(_FIX, file=sys.stderr)
        return 1
    return 0


def choose_index(pin: str, *, gpu: bool, index: Sequence[str]) -> Sequence[str] | None:
    """The index options to install torch with; none for the configured index, None where pip finds no torch at all."""
    if gpu or index:
        return index
    report = dry_run(f"torch=={pin}")
    if report is None:
        return None
    return CPU_INDEX if cuda_packages(report) else ()


def cuda_packages(report: dict[str, Any]) -> list[str]:
    """Names of the CUDA packages in pip's installation report (https://pip.pypa.io/en/stable/reference/installation-report)."""
    names = (item["metadata"]["name"].lower() for item in report["install"])
    return sorted(name for name in names if _CUDA_PACKAGE.fullmatch(name))


def pinned_version(constraints: str, package: str) -> str:
    match = re.search(rf"^{package}==(\S+)$", constraints, re.MULTILINE)
    if match is None:
        raise SystemExit(f"constraints.txt has no line '{package}==...'")
    return match[1]


def installed_version(package: str) -> str | None:
    """Without the local part: 2.13.0 for 2.13.0+cpu."""
    try:
        return version(package).split("+")[0]
    except PackageNotFoundError:
        return None


def dry_run(requirement: str) -> dict[str, Any] | None:
    result = pip("install", "--dry-run", "--ignore-installed", "--quiet", "--report", "-", requirement, capture=True)
    return json.loads(result.stdout) if result.returncode == 0 else None


def pip(*arguments: str, capture: bool = False) -> subprocess.CompletedProcess[str]:
    command = (sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments)
    return subprocess.run(command, stdout=subprocess.PIPE if capture else None, text=True, check=False)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Install the pinned torch")
    parser.add_argument("--gpu", action="store_true", help="take the index's own build, CUDA included")
    parser.add_argument("--index", default="", help="pip options that name another place to take torch from")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
