"""kill -9 amid settling, staking, voting, executing, refunding: the books end as if nothing had happened."""

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from civic_worker import ROUND, Affairs

WORKER = Path(__file__).parent.parent / "civic_worker.py"


def start(folder, first, last=10**6, die_at=-1):
    command = [sys.executable, str(WORKER), str(folder), str(first), str(last), str(die_at)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def run_until_killed(folder, first, num_answers, delay_s):
    """The step to take next, after the worker was killed some time after its answer number `num_answers`."""
    worker = start(folder, first)
    answered = [int(worker.stdout.readline()) for _ in range(num_answers)]
    time.sleep(delay_s)
    worker.kill()
    answered += [int(line) for line in worker.stdout.read().splitlines()]
    worker.wait()
    worker.stdout.close()
    assert answered == list(range(first, first + len(answered)))
    return first + len(answered)


def check_against_one_run(tmp_path, num_steps):
    crashed, whole = Affairs(tmp_path / "crashed", num_steps - 1), Affairs(tmp_path / "whole")
    for number in range(num_steps):
        whole.step(number)
    crashed.step(num_steps - 1)  # the last acknowledged one again: it changes nothing
    report = crashed.town.ledger.audit()
    assert crashed.books() == whole.books()
    assert crashed.town.economy.parameter_table() == whole.town.economy.parameter_table()
    assert report.num_registered == whole.town.ledger.audit().num_registered
    assert report.num_refunds >= num_steps // ROUND
    states = [proposal["state"] for proposal in crashed.town.economy.proposals()]
    assert states.count("Executed") >= num_steps // ROUND - 3
    crashed.town.close()
    whole.town.close()


def crash(tmp_path, num_kills):
    chance, following = random.Random(7), 0
    for _ in range(num_kills):
        following = run_until_killed(tmp_path / "crashed", following, chance.randint(1, 9), chance.random() * 0.05)
    end = max(following + ROUND, 5 * ROUND)
    end += -end % ROUND
    worker = start(tmp_path / "crashed", following, end)
    worker.communicate(timeout=60)
    assert worker.returncode == 0
    check_against_one_run(tmp_path, end)


def test_kills_between_any_two_steps_leave_the_books_of_one_run(tmp_path):
    crash(tmp_path, num_kills=5)


@pytest.mark.chaos
@pytest.mark.slow
def test_a_hundred_kills_leave_the_books_of_one_run(tmp_path):
    crash(tmp_path, num_kills=100)
