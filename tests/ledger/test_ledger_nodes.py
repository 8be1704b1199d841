"""The node that has the ledger's actor is lost: with PostgreSQL another one goes on, and nothing is lost or doubled."""

import json
import os
import subprocess
import sys

import ledger_nodes
import pytest

from openledger.core.signing import SigningKey
from openledger.ledger import Ledger


@pytest.mark.chaos
@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.parametrize("storage", ["postgres"], indirect=True)
def test_another_node_takes_the_ledger_over_and_loses_and_doubles_nothing(storage, tmp_path):
    key = SigningKey.load_or_create(tmp_path / "key")
    words = [sys.executable, ledger_nodes.__file__, storage, str(tmp_path / "key"), str(tmp_path / "told.json")]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=550)
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads((tmp_path / "told.json").read_text())
    assert told["before"] == told["lost"] != told["after"]
    count = ledger_nodes.BATCHES * ledger_nodes.BATCH
    assert set(told["results"]) <= {"created", "exists"}
    assert sum(told["results"].values()) == count
    ledger = Ledger(storage, None, key, ledger_nodes.NAME)
    assert ledger.audit().num_transfers == count
    assert ledger.balance("user:a").posted_nano == count * (count + 1) // 2
    ledger.close()
