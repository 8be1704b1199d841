"""Rows that move to more shards, or to fewer, while everything else goes on."""

from collections import Counter
from pathlib import Path

import pytest
from datanet_samples import key_of, sample_drafts, signed

from openledger.core.clock import ManualClock
from openledger.core.errors import Unavailable
from openledger.datanets import layout
from openledger.datanets.datanets import Datanets
from openledger.datanets.placement import shard_of
from openledger.datanets.removal import sign_withdrawal
from openledger.datanets.shard import ShardHost


class CountingHost(ShardHost):
    """Counts the rows that are written to it."""

    num_appended = 0

    def append(self, datanet, rows, key):  # type: ignore[no-untyped-def]
        before = self.count(datanet)
        super().append(datanet, rows, key)
        self.num_appended += self.count(datanet) - before


def open_with(folder: Path, num_given: int, num_shards: int) -> tuple[Datanets, list[CountingHost]]:
    hosts = [CountingHost(folder / f"shard-{number}") for number in range(num_given)]
    return Datanets(folder, hosts, ManualClock(), num_shards=num_shards, moves_later=True), hosts


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "MOVED_AT_ONCE", 7)


def filled(folder: Path, num_shards: int) -> list[str]:
    datanets, _ = open_with(folder, num_shards, num_shards)
    datanets.create("docs", "What functions do", "acct_owner")
    datanets.register_contributor(key_of("ada").public_key, "ada")
    receipt = datanets.contribute(signed("ada", sample_drafts(120)))
    assert datanets.publish("docs").num_rows == 120
    datanets.close()
    return [verdict.row_id for verdict in receipt.verdicts]


def move_all(datanets: Datanets) -> int:
    steps = 0
    while datanets.move_rows():
        steps += 1
    return steps


@pytest.mark.parametrize(("before", "after"), [(3, 5), (5, 3)])
def test_only_the_rows_move_that_must(tmp_path: Path, before: int, after: int) -> None:
    ids = filled(tmp_path, before)
    datanets, hosts = open_with(tmp_path, max(before, after), after)
    assert move_all(datanets) > 5
    moving = Counter(shard_of(i, after) for i in ids if shard_of(i, after) != shard_of(i, before))
    assert {n: host.num_appended for n, host in enumerate(hosts) if host.num_appended} == moving
    assert [set(host.row_ids("docs")) for host in hosts[:after]] == [
        {i for i in ids if shard_of(i, after) == number} for number in range(after)
    ]
    assert all(host.count("docs") == 0 for host in hosts[after:])
    datanets.close()
    reopened, _ = open_with(tmp_path, after, after)
    assert (len(reopened.rows("docs", 1)), reopened.stored_count("docs")) == (120, 120)
    reopened.close()


@pytest.mark.parametrize(("before", "after"), [(3, 5), (5, 3)])
def test_reads_writes_and_withdrawals_go_on_between_any_two_steps(tmp_path: Path, before: int, after: int) -> None:
    ids = filled(tmp_path, before)
    datanets, _ = open_with(tmp_path, max(before, after), after)
    number, gone = 0, set[str]()
    more = True
    while more:
        more = datanets.move_rows()
        assert {row.row_id for row in datanets.rows("docs", 1)} == set(ids) - gone
        datanets.contribute(signed("ada", sample_drafts(3, f"new{number}"), nonce=f"new{number}"))
        datanets.contribute(signed("ada", sample_drafts(3, f"new{number}"), nonce=f"new{number}"))
        datanets.withdraw(sign_withdrawal(key_of("ada"), "docs", [ids[number]], f"w{number}"))
        gone.add(ids[number])
        number += 1
        assert datanets.stored_count("docs") == 120 - len(gone) + 3 * number
    assert number > 5
    assert datanets.publish("docs").num_rows == 120 - len(gone) + 3 * number
    datanets.close()
    reopened, _ = open_with(tmp_path, after, after)
    assert reopened.stored_count("docs") == 120 - len(gone) + 3 * number
    reopened.close()


@pytest.mark.parametrize("steps", range(0, 16, 3))
@pytest.mark.parametrize("after", [5, 2])
def test_a_crash_in_the_middle_is_gone_on_from(tmp_path: Path, steps: int, after: int) -> None:
    ids = filled(tmp_path, 3)
    datanets, hosts = open_with(tmp_path, 5, after)
    for _ in range(steps):
        datanets.move_rows()
    datanets.close()
    again, rest = open_with(tmp_path, 5, after)
    assert {row.row_id for row in again.rows("docs", 1)} == set(ids)
    move_all(again)
    num_moving = sum(shard_of(i, after) != shard_of(i, 3) for i in ids)
    assert sum(host.num_appended for host in [*hosts, *rest]) == num_moving
    assert sum(host.count("docs") for host in rest) == len(again.rows("docs", 1)) == 120
    again.close()


def test_another_number_ends_the_move_before_it_begins_its_own(tmp_path: Path) -> None:
    ids = filled(tmp_path, 3)
    datanets, _ = open_with(tmp_path, 5, 5)
    datanets.move_rows()
    datanets.close()
    again, hosts = open_with(tmp_path, 5, 4)
    move_all(again)
    assert [host.count("docs") for host in hosts] == [sum(shard_of(i, 4) == n for i in ids) for n in range(5)]
    again.close()


def test_a_shard_that_refuses_stops_the_step_and_not_the_move(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = filled(tmp_path, 3)
    datanets, _ = open_with(tmp_path, 4, 4)

    def refuse(*arguments: object) -> None:
        raise Unavailable("full", code="storage_unavailable")

    with monkeypatch.context() as patch:
        patch.setattr(CountingHost, "append", refuse)
        with pytest.raises(Unavailable):
            datanets.move_rows()
    assert {row.row_id for row in datanets.rows("docs", 1)} == set(ids)
    move_all(datanets)
    assert datanets.stored_count("docs") == 120
    datanets.close()
