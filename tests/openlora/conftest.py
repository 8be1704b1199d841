from pathlib import Path

import pytest
from openlora_models import Served, make_served

from openledger.adapters.registry import AdapterRegistry
from openledger.openlora.torch_engine import EngineOptions, TorchEngine


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Served:
    return make_served(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="session")
def corrupt_folder(served: Served, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first adapter, cut short."""
    folder = tmp_path_factory.mktemp("corrupt")
    for path in served.folders["one"].iterdir():
        data = path.read_bytes()
        (folder / path.name).write_bytes(data[: len(data) // 2] if path.suffix == ".safetensors" else data)
    return folder


@pytest.fixture
def engine(served: Served) -> TorchEngine:
    """With all three adapters resident."""
    engine = TorchEngine(served.base, EngineOptions(max_batch=8))
    for name, folder in served.folders.items():
        engine.load(served.digests[name], folder)
    return engine


@pytest.fixture
def registry(served: Served) -> AdapterRegistry:
    """Of all three adapters, each under its name."""
    registry = AdapterRegistry(served.folders["one"].parent)
    for name, folder in served.folders.items():
        registry.register(name, folder, served.digests[name])
    return registry
