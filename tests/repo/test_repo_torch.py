"""Which torch the set-up takes (tools/install_torch.py)."""

import importlib.util
import subprocess
import sys
import zipfile
from importlib.metadata import distributions
from pathlib import Path
from types import ModuleType

import pytest

TOOL = Path(__file__).parents[2] / "tools" / "install_torch.py"


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("install_torch", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "install_torch", module)
    spec.loader.exec_module(module)
    return module


def test_on_linux_only_the_cpu_build_is_asked_for(tool: ModuleType) -> None:
    tried = tool.attempts("2.13.0", platform="linux", gpu=False, index=[])
    assert [attempt.requirement for attempt in tried] == ["torch==2.13.0+cpu"] * 2
    assert [attempt.options for attempt in tried] == [(), tool.CPU_INDEX]


def test_gpu_takes_what_the_index_gives(tool: ModuleType) -> None:
    tried = tool.attempts("2.13.0", platform="linux", gpu=True, index=[])
    assert tried == [tool.Attempt(requirement="torch==2.13.0")]


def test_elsewhere_the_one_build_is_taken(tool: ModuleType) -> None:
    tried = tool.attempts("2.13.0", platform="darwin", gpu=False, index=[])
    assert tried == [tool.Attempt(requirement="torch==2.13.0")]


def test_a_named_index_is_the_only_one_asked(tool: ModuleType) -> None:
    tried = tool.attempts("2.13.0", platform="linux", gpu=False, index=["--find-links", "wheels"])
    assert tried == [tool.Attempt(requirement="torch==2.13.0", options=("--find-links", "wheels"))]


def test_the_pin_is_read_from_the_constraints(tool: ModuleType) -> None:
    assert tool.pinned_version("torchvision==1.0\ntorch==2.13.0\n", "torch") == "2.13.0"


def test_constraints_without_the_pin_stop_the_set_up(tool: ModuleType) -> None:
    with pytest.raises(SystemExit, match="no line"):
        tool.pinned_version("numpy==2.0\n", "torch")


def wheel(folder: Path, version: str) -> None:
    """A package called torch that holds nothing but its name and version."""
    info = f"torch-{version}.dist-info"
    with zipfile.ZipFile(folder / f"torch-{version}-py3-none-any.whl", "w") as archive:
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")


def installed(folder: Path, *versions: str, pin: str) -> list[str]:
    """The versions that the set-up's own command installs with `versions` on the configured index, and no other."""
    for version in versions:
        wheel(folder, version)
    (folder / "tools").mkdir()
    (folder / "tools" / "install_torch.py").write_text(TOOL.read_text().replace(*unreachable(folder)))
    (folder / "constraints.txt").write_text(f"torch=={pin}\n")
    index = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(folder), "PIP_CONFIG_FILE": "/dev/null"}
    command = [sys.executable, folder / "tools" / "install_torch.py"]
    subprocess.run(command, env={**index, "PIP_TARGET": str(folder / "site")}, capture_output=True, check=False)
    return [found.version for found in distributions(name="torch", path=[str(folder / "site")])]


def unreachable(folder: Path) -> tuple[str, str]:
    """The CPU index, and a folder without wheels in its place."""
    return "https://download.pytorch.org/whl/cpu", (folder / "empty").as_uri()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere there is only one build of torch")
class TestOnLinux:
    # A version that nothing else here is, so that no installed torch ends the set-up early.
    def test_the_cpu_build_is_chosen_from_an_index_that_has_both(self, tmp_path: Path) -> None:
        assert installed(tmp_path, "9.9.1", "9.9.1+cpu", "9.9.1+cu130", "9.9.2", pin="9.9.1") == ["9.9.1+cpu"]

    def test_the_cuda_build_is_left_alone_where_there_is_no_other(self, tmp_path: Path) -> None:
        assert installed(tmp_path, "9.9.1", "9.9.1+cu130", pin="9.9.1") == []
