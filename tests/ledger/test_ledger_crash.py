"""kill -9 at random moments: every acknowledged transfer is there, once."""

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ledger_worker import TRANSFERS_PER_BATCH

from openledger.core.signing import SigningKey
from openledger.ledger import Ledger

WORKER = Path(__file__).parent.parent / "ledger_worker.py"


def start(path, first, last, ids="ids", die_at=-1):
    command = [sys.executable, str(WORKER), str(path), str(first), str(last), ids, str(die_at)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def run_until_killed(path, first, last, num_answers, delay_s):
    """The next batch to send, after the worker was killed some time after its answer number `num_answers`."""
    worker = start(path, first, last)
    answered = [int(worker.stdout.readline()) for _ in range(num_answers)]
    time.sleep(delay_s)
    worker.kill()
    answered += [int(line) for line in worker.stdout.read().splitlines()]
    worker.wait()
    worker.stdout.close()
    assert answered == list(range(first, first + len(answered)))
    return first + len(answered)


def run_to_the_end(path, first, last, ids="ids", die_at=-1):
    worker = start(path, first, last, ids, die_at)
    output, _ = worker.communicate(timeout=60)
    return worker.returncode, [int(line) for line in output.splitlines()]


def check_books(path, num_batches):
    """Each batch once, the balance what the clients' own books say, the audit clean."""
    ledger = Ledger(path, None, SigningKey(b"k" * 32), "openledger/test")
    expected = {
        f"b{batch}.{place}": batch + place + 1 for batch in range(num_batches) for place in range(TRANSFERS_PER_BATCH)
    }
    entries = ledger.transfers("user:a", limit=-1)
    assert {entry.transfer.transfer_id: entry.transfer.amount_nano for entry in entries} == expected
    assert len(entries) == len(expected)
    assert ledger.balance("user:a").posted_nano == sum(expected.values())
    ledger.audit()
    ledger.close()


def crash(path, num_kills, num_batches):
    chance, following = random.Random(3), 0
    for _ in range(num_kills):
        following = run_until_killed(path, following, 10**9, chance.randint(1, 20), chance.random() * 0.02)
    num_batches += following
    assert run_to_the_end(path, following, num_batches)[0] == 0
    check_books(path, num_batches)


def test_ten_kills_lose_and_double_nothing(tmp_path):
    crash(tmp_path / "ledger.db", num_kills=10, num_batches=20)


@pytest.mark.chaos
@pytest.mark.slow
def test_a_hundred_kills_lose_and_double_nothing(tmp_path):
    crash(tmp_path / "ledger.db", num_kills=100, num_batches=1000)


def test_a_batch_whose_answer_was_lost_is_there_once_after_the_retry(tmp_path):
    path = tmp_path / "ledger.db"
    code, answered = run_to_the_end(path, 0, 10, die_at=4)
    assert (code, answered) == (-9, [0, 1, 2, 3])
    assert run_to_the_end(path, 4, 10)[0] == 0
    check_books(path, 10)


def test_the_same_retry_without_ids_doubles(tmp_path):
    """The negative control: without it, the tests above could pass for nothing."""
    path = tmp_path / "ledger.db"
    run_to_the_end(path, 0, 10, "no-ids", die_at=4)
    run_to_the_end(path, 4, 10, "no-ids")
    ledger = Ledger(path, None, SigningKey(b"k" * 32), "openledger/test")
    assert len(ledger.transfers("user:a")) == 11 * TRANSFERS_PER_BATCH
    ledger.close()
