"""Datanets behind Ray actors: the same answers, and nothing lost when an actor is killed."""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from datanet_samples import key_of, open_datanets, sample_drafts, signed
from ray import exceptions

from openledger.core.errors import Corrupt, InvalidInput, Unavailable
from openledger.datanets import actor, ingest
from openledger.datanets.actor import DatanetsActor, start_datanets
from openledger.datanets.ingest import PREPARED_ROWS
from openledger.datanets.placement import shard_of
from openledger.datanets.shard import ShardHost

NAMESPACE = "openledger-datanets-test"


@pytest.mark.cluster
def test_contributions_survive_the_death_of_every_actor(cluster: Any, tmp_path: Path) -> None:
    import ray

    datanets = start_datanets(tmp_path, num_shards=2, namespace=NAMESPACE)
    ray.get(datanets.create.remote("docs", "What functions do", "acct_owner"))
    ray.get(datanets.register_contributor.remote(key_of("ada").public_key, "ada"))
    receipt = ray.get(datanets.contribute.remote(signed("ada", sample_drafts(20))))
    assert {verdict.outcome for verdict in receipt.verdicts} == {"accept"}

    with pytest.raises(InvalidInput) as caught:
        ray.get(datanets.create.remote("../docs", "Bad", "acct_owner"))
    assert caught.value.cause.code == "invalid_name"

    large = signed("bob", sample_drafts(PREPARED_ROWS, "large"))
    verdicts = ray.get(datanets.preview.remote(large))
    forged = replace(large, signature=key_of("eve").sign(b"something"))
    with pytest.raises(InvalidInput) as caught:  # by a task that prepares, as by the actor
        ray.get(datanets.preview.remote(forged))
    assert caught.value.cause.code == "invalid_signature"
    start_datanets(tmp_path, num_shards=2, namespace=NAMESPACE, gate_workers=0)
    assert ray.get(datanets.preview.remote(large)) == verdicts
    assert {verdict.outcome for verdict in verdicts} == {"accept"}

    for name in ("openledger-shard-0", "openledger-shard-1", "openledger-datanets"):
        ray.kill(ray.get_actor(name, namespace=NAMESPACE), no_restart=False)
    again = start_datanets(tmp_path, num_shards=2, namespace=NAMESPACE)
    assert ray.get(again.contribute.remote(signed("ada", sample_drafts(20)))) == receipt
    version = ray.get(again.publish.remote("docs"))
    rows = ray.get(again.rows.remote("docs", version.number))
    assert sorted(row.row_id for row in rows) == sorted(verdict.row_id for verdict in receipt.verdicts)

    _kill_all()

    grown = start_datanets(tmp_path, num_shards=3, namespace=NAMESPACE)
    assert sorted(row.row_id for row in ray.get(grown.rows.remote("docs", 1))) == sorted(row.row_id for row in rows)
    new = ray.get_actor("openledger-shard-2", namespace=NAMESPACE)
    wait_until(lambda: ray.get(new.count.remote("docs")) == sum(shard_of(row.row_id, 3) == 2 for row in rows) > 0)
    assert ray.get(grown.stored_count.remote("docs")) == len(rows)
    _kill_all()

    segment = next(tmp_path.glob("shard-1/docs/rows.lance/data/*.lance"))
    segment.write_bytes(segment.read_bytes()[:-1])
    damaged = start_datanets(tmp_path, num_shards=3, namespace=NAMESPACE)
    with pytest.raises(Corrupt, match=segment.name):
        ray.get(damaged.publish.remote("docs"))
    ray.get(damaged.create.remote("mails", "What mails say", "acct_owner"))
    sent = signed("ada", sample_drafts(3, "mail"), datanet="mails")
    assert {verdict.outcome for verdict in ray.get(damaged.contribute.remote(sent)).verdicts} == {"accept"}
    copied = signed("eve", [*sample_drafts(20), *sample_drafts(3, "mail")], datanet="mails")
    expected = ["accept" if shard_of(one.row_id, 3) == 1 else "reject" for one in receipt.verdicts] + ["reject"] * 3
    for by_shard in (None, True):
        start_datanets(tmp_path, num_shards=3, namespace=NAMESPACE, duplicates_by_shard=by_shard)
        assert [one.outcome for one in ray.get(damaged.preview.remote(copied))] == expected
    ray.kill(ray.get_actor("openledger-shard-1", namespace=NAMESPACE), no_restart=False)
    assert [one.outcome for one in ray.get(damaged.preview.remote(copied))] == expected
    _kill_all()


def test_damage_is_logged_when_it_is_found_also_by_a_shard_that_starts_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    before = open_datanets(tmp_path, 2)
    before.contribute(signed("ada", sample_drafts(20)))
    before.divide_duplicates(by_shard=True)
    before.close()
    monkeypatch.setattr(actor, "ShardHandle", lambda shard: shard)
    monkeypatch.setattr(DatanetsActor, "_call_for_next_step", lambda _: None)
    hosts = [ShardHost(tmp_path / f"shard-{number}") for number in range(2)]
    datanets = DatanetsActor(tmp_path, hosts, 2)
    journal = tmp_path / "shard-1" / "docs" / "recent.journal"
    journal.write_bytes(journal.read_bytes()[:-1] + b"?")
    assert caplog.messages == []
    vars(hosts[1]).update(vars(ShardHost(tmp_path / "shard-1")))  # as an actor that is started anew
    for _ in range(2):
        datanets.divide_duplicates(by_shard=False)
        datanets.divide_duplicates(by_shard=True)
    datanets.close()
    again = DatanetsActor(tmp_path, hosts, 2)
    again.close()
    told = [message for message in caplog.messages if message.startswith("the Datanet docs is closed")]
    assert len(told) == 2
    assert all(journal.name in message for message in told)


def test_a_move_that_storage_stopped_is_told_and_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = open_datanets(tmp_path, 1)
    before.contribute(signed("ada", sample_drafts(20)))
    before.close()
    calls: list[float] = []
    monkeypatch.setattr(actor, "ShardHandle", lambda shard: shard)
    monkeypatch.setattr(DatanetsActor, "_call_for_next_step", lambda _, delay_s=0: calls.append(delay_s))
    datanets = DatanetsActor(tmp_path, [ShardHost(tmp_path / f"shard-{number}") for number in range(2)], 2)

    with monkeypatch.context() as broken:
        broken.setattr(ShardHost, "append", _refuse)
        assert datanets.move_rows()
    assert calls == [0, actor.RETRY_S]
    assert datanets.move_state() == {"is_moving": True, "problem": "storage_unavailable"}

    while datanets.move_rows():
        pass
    assert datanets.move_state() == {"is_moving": False, "problem": ""}
    assert datanets.stored_count("docs") == 20
    datanets.close()


@pytest.fixture
def without_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[DatanetsActor]:
    monkeypatch.setattr(actor, "ShardHandle", lambda shard: shard)
    monkeypatch.setattr(DatanetsActor, "_call_for_next_step", lambda _, delay_s=0: None)
    datanets = DatanetsActor(tmp_path, [ShardHost(tmp_path / "shard-0")], 1)
    datanets.create("docs", "What functions do", "acct_owner")
    yield datanets
    datanets.close()


@pytest.mark.parametrize("num_rows", [3, 12])
async def test_a_dry_run_has_the_verdicts_of_a_contribution(
    without_ray: DatanetsActor, monkeypatch: pytest.MonkeyPatch, num_rows: int
) -> None:
    async def prepared(*arguments: Any) -> Any:
        return ingest.prepare_here(*arguments)

    monkeypatch.setattr(ingest, "PREPARED_ROWS", 10)
    monkeypatch.setattr(actor, "_prepare_task", lambda: SimpleNamespace(remote=prepared))
    sent = signed("ada", sample_drafts(num_rows))
    verdicts = await without_ray.preview(sent)
    assert len(verdicts) == num_rows
    assert (await without_ray.contribute(sent)).verdicts == verdicts


@pytest.mark.parametrize("number", [0, 1, 5])
def test_as_many_gate_workers_as_were_asked_for_are_there_after_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(actor, "ShardHandle", lambda shard: shard)
    monkeypatch.setattr(DatanetsActor, "_call_for_next_step", lambda _, delay_s=0: None)
    shards, asked = [ShardHost(tmp_path / "shard-0")], list[int]()
    monkeypatch.setattr(ingest.Ingest, "use_workers", lambda _, number: asked.append(number))
    for changed in (None, number, None):
        datanets = DatanetsActor(tmp_path, shards, 1)
        if changed is not None:
            datanets.use_gate_workers(changed)
        datanets.close()
    assert asked == [actor.GATE_WORKERS, actor.GATE_WORKERS, number, number]


@pytest.mark.parametrize(
    "lost",
    [
        exceptions.WorkerCrashedError(),
        exceptions.OutOfMemoryError("killed"),
        exceptions.NodeDiedError("gone"),
        exceptions.LocalRayletDiedError(),
        exceptions.ObjectLostError("0" * 56, None, "made"),
    ],
    ids=lambda lost: type(lost).__name__,
)
async def test_a_contribution_whose_preparation_is_lost_is_judged_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: Exception
) -> None:
    async def ends(*_: Any) -> None:
        raise lost

    monkeypatch.setattr(ingest, "PREPARED_ROWS", 1)
    monkeypatch.setattr(actor, "_prepare_task", lambda: SimpleNamespace(remote=ends))
    datanets = open_datanets(tmp_path, 1)
    arriving = ingest.Ingest(datanets, actor._prepared_by_ray, 1)
    receipt = await arriving.contribute(signed("ada", sample_drafts(3)))
    arriving.close()
    assert {verdict.outcome for verdict in receipt.verdicts} == {"accept"}


def _refuse(*_: Any) -> None:
    raise Unavailable("the disk is full", code="storage_unavailable")


def wait_until(holds: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.1)


def _kill_all() -> None:
    import ray

    for name in ("openledger-datanets", *(f"openledger-shard-{number}" for number in range(3))):
        with contextlib.suppress(ValueError):  # an actor that couldn't start has no name any more
            ray.kill(ray.get_actor(name, namespace=NAMESPACE))
