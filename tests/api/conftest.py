"""A house of real books behind HTTP, for the tests of what people claim, own and review."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from house import House
from starlette.testclient import TestClient

from openledger.api import create_app


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    made = House(tmp_path)
    yield made
    made.end()


@pytest.fixture
def client(house: House) -> Iterator[TestClient]:
    with TestClient(create_app(house)) as client:
        yield client
