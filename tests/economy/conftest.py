"""An economy over a ledger in one folder, under a clock that stands still; alice has 1,000,000 nano-OPEN."""

import pytest
from economy_values import Town

from openledger.core.clock import ManualClock


@pytest.fixture
def clock():
    return ManualClock()


@pytest.fixture
def town(tmp_path, clock):
    made = Town(tmp_path, clock)
    made.economy.grant("user:alice", 1_000_000, "start")
    yield made
    made.close()


@pytest.fixture(scope="module")
def standing(tmp_path_factory):
    """A town for tests that change nothing in it, one for each file; alice has 1,000,000 nano-OPEN."""
    made = Town(tmp_path_factory.mktemp("standing"), ManualClock())
    made.economy.grant("user:alice", 1_000_000, "start")
    yield made
    made.close()


@pytest.fixture
def bare(tmp_path, clock):
    """A town where nobody has anything, and its clock."""
    made = Town(tmp_path, clock)
    yield made, clock
    made.close()
