"""Install the pinned torch: the CPU build, unless GPU=1 asks for what the index gives.

    python tools/install_torch.py [--gpu] [--index "--index-url URL"]

On Linux, PyPI's torch is the CUDA build and drags in gigabytes of packages that a machine without a GPU never loads.
The CPU build carries `+cpu` in its version, so asking for that version can't give the other one: the configured index
is asked first (a mirror or a folder of wheels may have it), then torch's own CPU index. Nothing is downloaded to find
out. Elsewhere there is one build, without CUDA. Only torch is installed here: what it depends on follows with the
package.

Runs in the fresh virtual environment, so it needs nothing but the standard library and pip.
"""

import argparse
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

CONSTRAINTS = Path(__file__).parent.parent / "constraints.txt"
CPU_INDEX = ("--index-url", "https://download.pytorch.org/whl/cpu")
_FIX = """
torch could not be installed. Name the place to take it from, or let pip take what the index gives:
    make quickstart TORCH_INDEX="--index-url https://download.pytorch.org/whl/cpu"
    make quickstart TORCH_INDEX="--find-links /folder/with/wheels"
    make quickstart GPU=1"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One way to ask pip: what for, and with which index options (none for the configured index)."""

    requirement: str
    options: tuple[str, ...] = ()


def main() -> int:
    arguments = parse_arguments()
    pin = pinned_version(CONSTRAINTS.read_text(), "torch")
    if installed_version("torch") == pin:
        print(f"torch {version('torch')} is installed")
        return 0
    tried = attempts(pin, platform=sys.platform, gpu=arguments.gpu, index=shlex.split(arguments.index))
    if any(install(attempt, quietly=attempt is not tried[-1]) for attempt in tried):
        print(f"torch {version('torch')} installed")
        return 0
    print(_FIX, file=sys.stderr)
    return 1


def attempts(pin: str, *, platform: str, gpu: bool, index: Sequence[str]) -> list[Attempt]:
    """What to try, in order; the first that pip can install is taken."""
    if index:
        return [Attempt(requirement=f"torch=={pin}", options=tuple(index))]
    if gpu or not platform.startswith("linux"):
        return [Attempt(requirement=f"torch=={pin}")]
    cpu_build = f"torch=={pin}+cpu"
    return [Attempt(requirement=cpu_build), Attempt(requirement=cpu_build, options=CPU_INDEX)]


def install(attempt: Attempt, *, quietly: bool) -> bool:
    """Whether pip could. `quietly` hides its complaint where another attempt follows."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "install", "--no-deps"]
    errors = subprocess.DEVNULL if quietly else None
    return subprocess.run([*command, *attempt.options, attempt.requirement], stderr=errors, check=False).returncode == 0


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


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Install the pinned torch")
    parser.add_argument("--gpu", action="store_true", help="take the index's own build, CUDA included")
    parser.add_argument("--index", default="", help="pip options that name another place to take torch from")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
