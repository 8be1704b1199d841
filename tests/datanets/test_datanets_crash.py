"""`kill -9` of a process that contributes: nothing answered is lost, nothing is stored twice."""

import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from contributing_process import contribution, seal
from datanet_samples import open_datanets

from openledger.datanets.registry import Registry
from openledger.datanets.rows import rows_of
from openledger.datanets.seals import digest_of
from openledger.datanets.shard import ShardHost

NUM_ATTEMPTS = 6
NEW_IN_EACH_ATTEMPT = 10
NUM_CONTRIBUTIONS = NUM_ATTEMPTS * NEW_IN_EACH_ATTEMPT


def test_nothing_answered_is_lost_and_nothing_doubled_under_kill_9(tmp_path: Path) -> None:
    dice, answered, cut_off = random.Random(11), {}, 0
    for attempt in range(NUM_ATTEMPTS):
        process_answers = _kill_at_fsync if attempt % 2 else _kill_later
        for number, receipt in process_answers(tmp_path, NEW_IN_EACH_ATTEMPT * (attempt + 1), dice):
            assert answered.setdefault(number, receipt) == receipt
        cut_off += _num_pending(tmp_path)
    assert cut_off > 0, "no kill fell between verdict and storage, so this test has shown nothing"
    _check_after_crashes(tmp_path, answered)


def _check_after_crashes(folder: Path, answered: dict[int, Any]) -> None:
    datanets = open_datanets(folder)
    for number, receipt in answered.items():
        assert json.loads(json.dumps(asdict(datanets.contribute(contribution(number))))) == receipt
    for number in range(NUM_CONTRIBUTIONS):
        if number % 2:
            seal(datanets, number)
        datanets.contribute(contribution(number))
    openings = {one.digest for one in datanets.unlogged_seals() if one.signed is not None}
    assert openings == {digest_of(contribution(number)) for number in range(1, NUM_CONTRIBUTIONS, 2)}
    (ada,) = datanets.statistics("docs")
    stored = Counter(
        row.row_id
        for number in range(3)
        for batch in ShardHost(folder / f"shard-{number}").scan("docs")
        for row in rows_of(batch)
    )
    assert (ada.accepted, ada.rejected, ada.review) == (12 * NUM_CONTRIBUTIONS, 2 * NUM_CONTRIBUTIONS, 0)
    assert len(stored) == stored.total() == ada.accepted
    assert datanets.publish("docs").num_rows == len(datanets.rows("docs", 1)) == ada.accepted
    datanets.close()


def _kill_later(folder: Path, num_contributions: int, dice: random.Random) -> list[Any]:
    process = _start(folder, num_contributions)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    time.sleep(dice.uniform(0.02, 0.3))
    process.kill()
    return _answers(process)


def _kill_at_fsync(folder: Path, num_contributions: int, dice: random.Random) -> list[Any]:
    """A contribution of twelve rows syncs two or three times, once for each shard, so new ones reach any of these."""
    process = _start(folder, num_contributions, str(dice.randrange(1, 2 * NEW_IN_EACH_ATTEMPT)))
    found = _answers(process)
    assert process.returncode == -9
    return found


def _answers(process: "subprocess.Popen[str]") -> list[Any]:
    """Whole lines alone: an answer of which a part arrived was not given."""
    output, errors = process.communicate(timeout=60)
    assert not errors, errors
    lines = output.splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.startswith("[") and line.endswith("\n")]


def _start(folder: Path, num_contributions: int, *arguments: str) -> "subprocess.Popen[str]":
    script = Path(__file__).with_name("contributing_process.py")
    return subprocess.Popen(
        [sys.executable, str(script), str(folder), str(num_contributions), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def _num_pending(folder: Path) -> int:
    registry = Registry(folder / "registry.sqlite")
    found = len(registry.pending_ids(registry.names()))
    registry.close()
    return found
