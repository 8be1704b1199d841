"""A ledger in a storage of its own, under a clock that stands still. `storage` runs a test over both kinds."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from ledger_values import accounts

from openledger.core.clock import ManualClock
from openledger.core.signing import SigningKey
from openledger.ledger import Ledger

KEY = SigningKey(b"k" * 32)
NAME = "openledger/test"


def open_ledger(storage: Path | str, clock: ManualClock | None = None) -> Ledger:
    return Ledger(storage, clock or ManualClock(), KEY, NAME)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


@pytest.fixture(params=["sqlite", "postgres"])
def storage(request: pytest.FixtureRequest, path: Path) -> Path | str:
    """A path, or the URL of an empty database."""
    if request.param == "sqlite":
        return path
    url: str = request.getfixturevalue("postgres_server").new_database()
    return url


@pytest.fixture
def ledger(storage: Path | str, clock: ManualClock) -> Iterator[Ledger]:
    """Accounts genesis, user:a, user:b and user:c; nobody has anything."""
    opened = open_ledger(storage, clock)
    opened.create_accounts(accounts())
    yield opened
    opened.close()
