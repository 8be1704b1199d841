"""Adapters trained for real (`trained_world`): what tests of them share. A module's own `trained` makes them."""

import shutil

import pytest
import torch
from trained_world import Market, World, in_this_process


@pytest.fixture(scope="module")
def here():
    patch = pytest.MonkeyPatch()
    in_this_process(patch)
    torch.set_num_threads(1)
    yield
    patch.undo()


@pytest.fixture
def world(trained, tmp_path):
    """The trained adapters in a folder that a test may spoil."""
    shutil.copytree(trained.folder, tmp_path / "world")
    return World(trained.base, tmp_path / "world")


@pytest.fixture
def market(trained, tmp_path):
    market = Market(tmp_path, trained.base)
    yield market
    market.close()
