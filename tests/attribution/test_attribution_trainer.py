"""A bank trained by Ray tasks is the bank trained in one process, even where a worker is killed on the way."""

import os
import signal
import threading
import time

import pytest
import torch
from ray.util.state import list_tasks
from tiny_model import make_tiny_base, tiny_rows

from openledger.adapters.base_model import load_tokenizer
from openledger.attribution.bank import plan_bank, run_bank
from openledger.attribution.trainer import train_bank
from openledger.training.examples import encode_row
from openledger.training.recipe import Recipe
from openledger.training.record import load_weights, train_run

RECIPE = Recipe(rank=2, alpha=4, num_epochs=12, batch_rows=4, learning_rate=1e-2)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    base = make_tiny_base(tmp_path_factory.mktemp("base"))
    tokenizer = load_tokenizer(base)
    examples = [encode_row(tokenizer, row) for row in tiny_rows()]
    folder = tmp_path_factory.mktemp("runs") / "run"
    record = train_run(base, examples, RECIPE, folder)
    return base, examples, folder, record, plan_bank(record, examples, num_coalitions=6, num_twins=0)


def kill_one_worker(killed):
    """SIGKILL the first worker that trains a member."""
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline:
        running = list_tasks(filters=[("name", "=", "bank-member"), ("state", "=", "RUNNING")], detail=True)
        for task in running:
            if task.worker_pid:
                os.kill(task.worker_pid, signal.SIGKILL)
                killed.append(task.worker_pid)
                return
        time.sleep(0.05)


def test_a_killed_worker_leaves_no_member_missing_or_different(cluster, world, tmp_path):
    base, examples, folder, record, plan = world
    killed: list[int] = []
    killer = threading.Thread(target=kill_one_worker, args=(killed,))
    killer.start()
    trained = []
    bank = train_bank(tmp_path / "bank", record, base, examples, plan.members, on_member=trained.append)
    killer.join()
    assert len(killed) == 1
    assert sorted(member.name for member in trained) == sorted(member.name for member in plan.members)
    assert len(list((tmp_path / "bank").glob("*.safetensors"))) == len(plan.members)
    here = run_bank(folder / "bank", record, base, examples)
    here.train(plan.members[:2])
    for member in plan.members[:2]:
        other = load_weights(bank.path(member))
        assert all(torch.allclose(t, other[n], atol=1e-6) for n, t in load_weights(here.path(member)).items())


def test_what_is_trained_is_not_trained_again(cluster, world, tmp_path):
    base, examples, _, record, plan = world
    train_bank(tmp_path / "bank", record, base, examples, plan.members[:2])
    again = []
    train_bank(tmp_path / "bank", record, base, examples, plan.members[:3], on_member=again.append)
    assert again == [plan.members[2]]
