"""Which torch the set-up takes (tools/install_torch.py)."""

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

TOOL = Path(__file__).parents[2] / "tools" / "install_torch.py"


@pytest.fixture
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("install_torch", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def report(*names: str) -> dict[str, Any]:
    return {"install": [{"metadata": {"name": name}} for name in names]}


CPU_BUILD = report("torch", "sympy", "numpy", "filelock")
CUDA_BUILD = report("torch", "sympy", "nvidia-cublas-cu13", "cuda-bindings", "triton")


def test_an_index_that_gives_the_cpu_build_is_used_as_it_is(tool: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tool, "dry_run", lambda requirement: CPU_BUILD)
    assert tool.choose_index("2.13.0", gpu=False, index=[]) == ()


def test_an_index_that_gives_the_cuda_build_is_passed_over(tool: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tool, "dry_run", lambda requirement: CUDA_BUILD)
    assert tool.choose_index("2.13.0", gpu=False, index=[]) == tool.CPU_INDEX


def test_gpu_takes_what_the_index_gives(tool: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tool, "dry_run", lambda requirement: CUDA_BUILD)
    assert tool.choose_index("2.13.0", gpu=True, index=[]) == []


def test_a_named_index_is_used(tool: ModuleType) -> None:
    assert tool.choose_index("2.13.0", gpu=False, index=["--find-links", "wheels"]) == ["--find-links", "wheels"]


def test_an_index_without_torch_is_told_apart(tool: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tool, "dry_run", lambda requirement: None)
    assert tool.choose_index("2.13.0", gpu=False, index=[]) is None


@pytest.mark.parametrize(
    "name", ["nvidia-cublas-cu13", "nvidia_nccl_cu13", "cuda-bindings", "triton", "pytorch-triton"]
)
def test_cuda_packages_are_known_by_name(tool: ModuleType, name: str) -> None:
    assert tool.cuda_packages(report("torch", name)) == [name]


@pytest.mark.parametrize("name", ["torch", "sympy", "cudatoolkit-free", "tritonclient"])
def test_other_packages_are_not_taken_for_cuda(tool: ModuleType, name: str) -> None:
    assert tool.cuda_packages(report(name)) == []


def test_the_pin_is_read_from_the_constraints(tool: ModuleType) -> None:
    assert tool.pinned_version("torchvision==1.0\ntorch==2.13.0\n", "torch") == "2.13.0"


def test_constraints_without_the_pin_stop_the_set_up(tool: ModuleType) -> None:
    with pytest.raises(SystemExit, match="no line"):
        tool.pinned_version("numpy==2.0\n", "torch")
