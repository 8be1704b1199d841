"""Appends that wait for a shard become one change: each is durable before it is answered, and none is stored twice."""

import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from appending_process import NUM_APPENDS, NUM_ROWS, NUM_THREADS, appends
from test_datanets_shard import refuse, sample_rows

from openledger.core.errors import Conflict, Unavailable
from openledger.datanets.rows import rows_of
from openledger.datanets.shard import Shard

Queued = Callable[..., list[Future[None]]]


@pytest.fixture(autouse=True)
def without_a_journal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Appends come into the dataset at once; `test_datanets_journal` has small ones."""
    monkeypatch.setattr("openledger.datanets.shard.MAX_SMALL_BYTES", 0)


class Gate:
    """Holds the first change of a shard until it is opened."""

    def __init__(self, shard: Shard, monkeypatch: pytest.MonkeyPatch):
        self.num_changes = 0
        self.open = threading.Event()
        self.fails = False
        settle = shard._files.settle

        def held(dataset: Any) -> None:
            self.num_changes += 1
            assert self.open.wait(60)
            if self.fails and self.num_changes > 1:
                raise OSError(28, "No space left on device")
            settle(dataset)

        monkeypatch.setattr(shard._files, "settle", held)


@pytest.fixture
def shard(tmp_path: Path) -> Shard:
    return Shard(tmp_path / "s")


@pytest.fixture
def gate(shard: Shard, monkeypatch: pytest.MonkeyPatch) -> Gate:
    return Gate(shard, monkeypatch)


@pytest.fixture
def queued(shard: Shard, gate: Gate) -> Iterator[Queued]:
    """Start the first append, let the others queue behind it in their order, then let all of them go."""
    with ThreadPoolExecutor(16) as pool:

        def start(*given: tuple[list[Any], str]) -> list[Future[None]]:
            first, *others = given
            found = [pool.submit(shard.append, *first)]
            wait_until(lambda: gate.num_changes == 1)
            for number, one in enumerate(others):
                found.append(pool.submit(shard.append, *one))
                wait_until(lambda n=number: len(shard._waiting) == n + 1)
            gate.open.set()
            return found

        yield start
        gate.open.set()


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def parts(num_parts: int) -> list[tuple[list[Any], str]]:
    return [(sample_rows(3, f"part{number}"), f"key-{number}") for number in range(num_parts)]


def stored(folder: Path) -> Counter[str]:
    return Counter(row.row_id for batch in Shard(folder).scan() for row in rows_of(batch))


class TestSharedCommits:
    def test_those_that_wait_are_one_change_in_their_order(self, shard: Shard, gate: Gate, queued: Queued) -> None:
        given = parts(7)
        for one in queued(*given):
            one.result()
        assert gate.num_changes == 2
        assert shard.row_ids() == [row.row_id for rows, _ in given for row in rows]

    def test_each_key_is_kept_for_its_retry(self, tmp_path: Path, queued: Queued) -> None:
        given = parts(7)
        for one in queued(*given):
            one.result()
        again = Shard(tmp_path / "s")
        for rows, key in given:
            again.append(rows, key)
        assert set(stored(tmp_path / "s").values()) == {1}
        with pytest.raises(Conflict, match="already holds other rows"):
            again.append(sample_rows(1, "another"), "key-3")

    def test_where_the_change_fails_none_is_acknowledged(self, tmp_path: Path, gate: Gate, queued: Queued) -> None:
        gate.fails, given = True, parts(5)
        first, *others = queued(*given)
        first.result()
        for one in others:
            with pytest.raises(Unavailable):
                one.result()
        assert len(stored(tmp_path / "s")) == 3

    def test_what_could_not_be_stored_can_be_sent_again(self, shard: Shard, gate: Gate, queued: Queued) -> None:
        gate.fails, given = True, parts(5)
        queued(*given)[-1].exception()
        gate.fails = False
        for rows, key in given:
            shard.append(rows, key)
        assert shard.count == 15

    def test_one_that_conflicts_is_told_and_the_others_are_stored(self, shard: Shard, queued: Queued) -> None:
        given = parts(4)
        taken = (given[0][0][:1], "taken")
        found = queued(given[0], given[1], taken, *given[2:])
        assert isinstance(found.pop(2).exception(), Conflict)
        assert [one.exception() for one in found] == [None] * 4
        assert shard.count == 12

    def test_the_same_append_twice_is_stored_once(self, shard: Shard, queued: Queued) -> None:
        given = parts(3)
        assert [one.exception() for one in queued(*given, given[1], given[2])] == [None] * 5
        assert shard.count == 9

    def test_of_two_that_share_a_row_the_first_has_it(self, shard: Shard, gate: Gate, queued: Queued) -> None:
        given = parts(3)
        late = (given[1][0], "late")
        found = queued(*given, late)
        assert isinstance(found[-1].exception(), Conflict)
        assert shard.count == 9

    def test_a_change_holds_no_more_than_its_share(
        self, shard: Shard, gate: Gate, queued: Queued, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("openledger.datanets.shard.MAX_BYTES_TOGETHER", 1)
        for one in queued(*parts(4)):
            one.result()
        assert (gate.num_changes, shard.count) == (4, 12)

    def test_a_failure_that_is_no_refusal_reaches_everyone_who_waited(
        self, shard: Shard, queued: Queued, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write, calls = shard._write, iter(range(100))

        def failing(appends: Any) -> None:
            if next(calls):
                raise RuntimeError("a defect")
            write(appends)

        monkeypatch.setattr(shard, "_write", failing)
        found = [one.exception() for one in queued(*parts(3))]
        assert [str(error) for error in found] == ["None", "a defect", "a defect"]


def test_a_disk_that_refuses_is_told_to_a_lone_append_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shard = Shard(tmp_path / "s")
    monkeypatch.setattr("os.fsync", refuse)
    with pytest.raises(Unavailable):
        shard.append(sample_rows(2), "a")


@pytest.mark.parametrize(
    ("journal_bytes", "kill_at"),
    [(0, 1), (0, 9), (0, 14), (0, 19), (0, 26), *((16_000, kill_at) for kill_at in (1, 2, 4, 6, 8, 10, 12))],
)
def test_a_crash_between_loses_nothing_that_was_answered_and_doubles_nothing(
    tmp_path: Path, journal_bytes: int, kill_at: int
) -> None:
    """Eight threads append; a change of the dataset syncs about six times, one of the journal once, so the kills fall
    at their beginning, midst and end, and while the journal comes into the dataset."""
    script = Path(__file__).with_name("appending_process.py")
    killed = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "s"), str(kill_at), str(journal_bytes)],
        stdout=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=120,
    )
    assert killed.returncode == -9, "it ended before it was killed, so this test has shown nothing"
    answered = {line for line in killed.stdout.decode().splitlines(keepends=True) if line.endswith("\n")}
    shard = Shard(tmp_path / "s")
    held = set(shard.row_ids())
    for key, rows in appends():
        found = [row.row_id in held for row in rows]
        assert all(found) if f"{key}\n" in answered else all(found) or not any(found)
        shard.append(rows, key)
    assert len(stored(tmp_path / "s")) == stored(tmp_path / "s").total() == NUM_THREADS * NUM_APPENDS * NUM_ROWS
