"""Pins: every dependency has one, what is installed is what is pinned, and set-up really uses the file."""

import re
import tomllib
from importlib.metadata import distribution, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINS = {
    canonicalize_name(name): pin
    for name, pin in re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
}


def required_distributions() -> set[str]:
    """Names of everything that the package and its development extra pull in, directly or not."""
    waiting = [Requirement(text) for text in PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"]]
    seen: set[tuple[str, str]] = set()
    while waiting:
        requirement = waiting.pop()
        for extra in {"", *requirement.extras}:
            key = (canonicalize_name(requirement.name), extra)
            if key not in seen:
                seen.add(key)
                waiting += _needs(requirement.name, extra)
    return {name for name, _ in seen}


def _needs(name: str, extra: str) -> list[Requirement]:
    requirements = [Requirement(text) for text in distribution(name).requires or ()]
    return [r for r in requirements if r.marker is None or r.marker.evaluate({"extra": extra})]


def test_every_distribution_that_set_up_installs_is_pinned() -> None:
    # CUDA builds bring packages that torch itself pins to one version.
    assert {name for name in required_distributions() if not name.startswith(("nvidia", "cuda", "triton"))} <= set(PINS)


@pytest.mark.parametrize("name", sorted(required_distributions() & set(PINS)))
def test_what_is_installed_is_what_is_pinned(name: str) -> None:
    assert version(name).split("+")[0] == PINS[name]


def test_every_install_command_of_the_makefile_uses_the_pins() -> None:
    installs = re.findall(r"^.*\$\(PIP\) install.*$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert installs
    assert all("-c constraints.txt" in line for line in installs)


def test_a_cpu_build_of_torch_stands_without_cuda_packages() -> None:
    if not version("torch").endswith("+cpu"):
        pytest.skip(f"torch {version('torch')} is not marked as a CPU build")
    assert {name for name in required_distributions() if name.startswith(("nvidia", "cuda", "triton"))} == set()
