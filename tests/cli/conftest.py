"""A house that commands ask over HTTP."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from house import House
from served_app import served

from openledger.api import create_app


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    made = House(tmp_path / "house")
    with served(create_app(made)) as url:
        made.url = url  # type: ignore[attr-defined]
        yield made
    made.end()
