"""Datanets in this process under a clock that a test moves; a module that needs rows in them first has its own."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from datanet_samples import open_datanets

from openledger.datanets.datanets import Datanets


@pytest.fixture
def datanets(tmp_path: Path) -> Iterator[Datanets]:
    opened = open_datanets(tmp_path)
    yield opened
    opened.close()
