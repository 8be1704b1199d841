"""The check that ends every test session: it must see what is left running, or its silence means nothing."""

import os
import subprocess
import sys

from processes import MARK, processes_marked, wait_until_gone

SLEEP = [sys.executable, "-c", "import time; print('awake', flush=True); time.sleep(60)"]


def started(mark: str) -> "subprocess.Popen[bytes]":
    child = subprocess.Popen(SLEEP, env={**os.environ, MARK: mark}, start_new_session=True, stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()  # a process that has only begun shows no environment yet
    child.stdout.close()
    return child


def test_a_process_left_running_is_found_and_one_that_ended_is_not() -> None:
    child = started("left-running")
    try:
        assert child.pid in [process.pid for process in wait_until_gone("left-running", timeout_s=0.5)]
    finally:
        child.kill()
        child.wait()
    assert processes_marked("left-running") == []


def test_processes_of_another_run_are_not_ours() -> None:
    child = started("another-run")
    try:
        assert child.pid not in [process.pid for process in processes_marked("this-run")]
    finally:
        child.kill()
        child.wait()
