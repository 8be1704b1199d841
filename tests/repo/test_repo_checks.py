"""The static checks: what `make check` and CI hold every file to."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
CHECKS = {
    "ruff check": ["ruff", "check"],
    "ruff format": ["ruff", "format", "--check"],
    "mypy": ["mypy"],
    "mypy tools": ["mypy", "--config-file", "pyproject.toml", "tools/install_torch.py"],
    "import contracts": ["lint-imports", "--no-logo"],
}


@pytest.mark.parametrize("name", CHECKS)
def test_static_check(name: str) -> None:
    program, *arguments = CHECKS[name]
    result = subprocess.run([BIN / program, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    if result.returncode:
        pytest.fail(f"{program} {' '.join(arguments)}\n{result.stdout[-4000:]}{result.stderr[-2000:]}", pytrace=False)


def test_import_contracts_catch_a_forbidden_import(tmp_path: Path) -> None:
    """Negative control: the same contracts over a house in which core imports ray."""
    package = tmp_path / "openledger"
    for source in (ROOT / "openledger").rglob("*.py"):
        copy = package / source.relative_to(ROOT / "openledger")
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(source.read_text())
    (package / "core" / "clock.py").write_text("import ray\n\nprint(ray)\n")
    (tmp_path / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text())
    result = subprocess.run(
        [BIN / "lint-imports", "--no-logo", "--no-cache"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path), "PATH": str(BIN)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert "openledger.core.clock -> ray" in result.stdout
