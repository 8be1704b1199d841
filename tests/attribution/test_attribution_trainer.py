"""Banks, indexes and replays by Ray tasks are those of one process, even where a worker is killed on the way."""

import shutil
import threading
import time
from contextlib import suppress
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
from tiny_model import make_tiny_base, tiny_rows

from openledger.adapters.base_model import load_model, load_tokenizer
from openledger.attribution import index as index_module
from openledger.attribution import trainer as trainer_module
from openledger.attribution.actor import IndexHost
from openledger.attribution.bank import plan_bank, run_bank
from openledger.attribution.index import build_index, standing
from openledger.attribution.index_folder import is_finished
from openledger.attribution.instruments import make
from openledger.attribution.likeness import load_repeats
from openledger.attribution.replay import replay_run
from openledger.attribution.subject import Subject
from openledger.attribution.trainer import (
    build_index_distributed,
    index_tasks,
    prepare,
    replay_distributed,
    train_bank,
)
from openledger.core.errors import Corrupt, InvalidInput
from openledger.training.examples import encode_row
from openledger.training.lora import load_lora
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


def workers(task):
    """Processes of the session's cluster that run a task of that name now, as Ray titles them."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):  # it has ended meanwhile
            if f"ray::{task}" in process.cmdline():
                found.append(process)
    return found


def kill_one_worker(killed, *tasks):
    """SIGKILL the first worker that runs one of the tasks."""
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline:
        if found := [process for task in tasks for process in workers(task)]:
            found[0].kill()
            killed.append(found[0].pid)
            return
        time.sleep(0.01)


def test_a_killed_worker_leaves_no_member_missing_or_different(cluster, world, tmp_path):
    base, examples, folder, record, plan = world
    killed: list[int] = []
    killer = threading.Thread(target=kill_one_worker, args=(killed, "bank-member"))
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


@pytest.mark.parametrize(("num_gpus", "device"), [(0, "cpu"), (0.5, "cuda")])
def test_a_member_is_trained_on_a_gpu_only_where_one_was_asked_for(world, tmp_path, monkeypatch, num_gpus, device):
    base, examples, _, record, plan = world
    devices, asked, bank = [], [], run_bank(tmp_path / "bank", record, base, examples)
    bank.train = lambda members: None

    def run_here(function, name, num_cpus, num_gpus):
        asked.append(num_gpus)
        return SimpleNamespace(remote=function)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(trainer_module.ray, "put", lambda value: value)
    monkeypatch.setattr(trainer_module, "check_gpus", lambda num_gpus: None)
    monkeypatch.setattr(trainer_module, "_remote", run_here)
    monkeypatch.setattr(trainer_module, "_finish", lambda tasks, called, on_done: None)
    monkeypatch.setattr(trainer_module, "run_bank", lambda *_, device=None, start=None: devices.append(device) or bank)
    train_bank(tmp_path / "bank", record, base, examples, plan.members[:1], num_gpus=num_gpus)
    assert devices == [None, device]  # the driver's own bank trains nothing
    assert asked == [num_gpus]


def test_members_of_many_rows_begin_before_those_of_few(world, tmp_path, monkeypatch):
    base, examples, _, record, _ = world
    plan, begun = plan_bank(record, examples, num_coalitions=8, num_twins=1), []
    begin = SimpleNamespace(remote=lambda _, member: begun.append(member) or member)
    monkeypatch.setattr(trainer_module.ray, "put", lambda value: value)
    monkeypatch.setattr(trainer_module, "_remote", lambda *_: begin)
    monkeypatch.setattr(trainer_module, "_finish", lambda *_: None)
    train_bank(tmp_path / "bank", record, base, examples, plan.members)
    assert [len(member.rows) for member in begun] == [48, 36, *[24] * 6, 12]
    assert sorted(member.name for member in begun) == sorted(member.name for member in plan.members)


def test_what_is_trained_is_not_trained_again(cluster, world, tmp_path):
    base, examples, _, record, plan = world
    train_bank(tmp_path / "bank", record, base, examples, plan.members[:2])
    again = []
    train_bank(tmp_path / "bank", record, base, examples, plan.members[:3], on_member=again.append)
    assert again == [plan.members[2]]


def test_an_index_is_built_once_and_a_second_build_goes_on(cluster, world, tmp_path):
    base, examples, folder, record, _ = world
    module = load_lora(load_model(base), folder)
    asked = {"adapter_digest": record.adapter_digest, "views": [standing(module, "end")], "shard_rows": 16}
    here = build_index(module, examples[:40], examples[40:], tmp_path / "here", base_digest=base.digest, **asked)

    def build():
        return build_index_distributed(tmp_path / "there", base, folder, examples[:40], examples[40:], **asked)

    there, vectors = build(), here.query_vectors(module, examples[:3], views=asked["views"])
    assert np.array_equal(there.score(vectors), here.score(vectors))
    second = tmp_path / "there" / "view-00" / "rows-00001.f16"
    before = {path: path.stat().st_mtime_ns for path in second.parent.iterdir()}
    second.unlink()
    (tmp_path / "there" / "index.json").unlink()
    assert np.array_equal(build().score(vectors), here.score(vectors))
    made = {path.name for path, time_ns in before.items() if path.stat().st_mtime_ns != time_ns}
    assert made == {"rows-00001.f16", "rows-00001.sha256", "sums.f32", "sums.sha256"}


def test_tasks_build_what_one_process_builds_though_one_was_killed(cluster, world, tmp_path):
    """As jobs/train.py builds an index: rows, checkpoints, decoys and the list of repeated rows."""
    base, _, folder, record, _ = world
    views = [str(folder / "checkpoints" / f"epoch-{epoch}.safetensors") for epoch in (1, 3, 6)]
    decoys = [replace(row, row_id=f"decoy_{row.row_id}") for row in tiny_rows()[:5]]
    asked = views, record.adapter_digest, tiny_rows(), decoys
    assert IndexHost(base).build(*asked, str(tmp_path / "here"), str(folder)) == 53
    killed: list[int] = []
    killer = threading.Thread(target=kill_one_worker, args=(killed, "index-basis", "index-shards"))
    killer.start()
    assert index_tasks(base, spread_from=159)(*asked, str(tmp_path / "there"), str(folder)) == 53
    killer.join()
    assert len(killed) == 1
    here, there = (
        {path.relative_to(tmp_path / side): path.read_bytes() for path in (tmp_path / side).rglob("*.*")}
        for side in ("here", "there")
    )
    assert len([path for path in here if path.suffix == ".f16"]) == 3
    assert here.keys() == there.keys()
    assert [path for path in here if here[path] != there[path]] == []


def test_an_index_whose_list_of_repeats_fails_is_not_finished(cluster, world, tmp_path):
    """Settlements pay by a finished index, once for all; without the list its repeated rows would be paid."""
    base, _, folder, record, _ = world
    views, place = [str(folder / "checkpoints" / "epoch-1.safetensors")], tmp_path / "index"
    place.mkdir()
    (place / "repeats.json").write_text("half")
    with pytest.raises(Corrupt) as caught:
        index_tasks(base, spread_from=1)(views, record.adapter_digest, tiny_rows(), [], str(place), str(folder))
    assert caught.value.code == "corrupt_repeats"
    assert not is_finished(place)
    (place / "repeats.json").unlink()
    index_tasks(base, spread_from=1)(views, record.adapter_digest, tiny_rows(), [], str(place), str(folder))
    assert is_finished(place)
    assert load_repeats(place) is not None


def test_an_index_of_few_rows_is_one_tasks(world, monkeypatch):
    base = world[0]
    monkeypatch.setattr(trainer_module, "index_task", lambda base, num_gpus: lambda *arguments: ("one", *arguments))
    monkeypatch.setattr(trainer_module, "_build_spread", lambda base, *arguments: ("many", *arguments))
    build, asked = index_tasks(base, spread_from=8, num_gpus=0.5), ("digest", ["row"] * 3, ["decoy"], "index", "run")
    assert build(["view"], *asked) == ("one", ["view"], *asked)
    assert build(["view", "other"], *asked) == ("many", ["view", "other"], *asked, 0.5)


@pytest.mark.parametrize(("num_shards", "expected"), [(1, 1), (7, 1), (8, 2), (100, 4)])
def test_every_processor_gets_shards_to_build(monkeypatch, num_shards, expected):
    monkeypatch.setattr(trainer_module.ray, "cluster_resources", lambda: {"CPU": 8.0})
    assert trainer_module._shards_per_task(num_shards, threads=2) == expected


def test_tasks_build_an_index_by_the_method_that_is_asked_for(cluster, world, tmp_path):
    base, examples, folder, record, _ = world
    asked = {"adapter_digest": record.adapter_digest, "method": "index/ekfac-2"}
    module = load_lora(load_model(base), folder)
    here = build_index(module, examples[:40], (), tmp_path / "here", base_digest=base.digest, **asked)
    there = build_index_distributed(tmp_path / "there", base, folder, examples[:40], (), **asked)
    assert there.plan.method == here.plan.method == "index/ekfac-2"
    vectors = here.query_vectors(module, examples[:3])
    assert np.array_equal(there.score(vectors), here.score(vectors))


def test_errors_of_tasks_come_out_as_themselves(cluster, world, tmp_path):
    base, examples, folder, record, _ = world
    module = load_lora(load_model(base), folder)
    for name, parameter in module.named_parameters():
        if "lora_B" in name:
            parameter.data.fill_(float("nan"))
    module.save_pretrained(tmp_path / "nan")
    with pytest.raises(Corrupt, match="the loss of row row_000") as caught:
        build_index_distributed(tmp_path / "index", base, tmp_path / "nan", examples, [], "digest")
    assert caught.value.code == "not_finite"
    with pytest.raises(InvalidInput) as caught:
        replay_distributed(base, record, examples[:3], [[(examples[0], 1.0)]], tmp_path / "replay")
    assert caught.value.code == "other_rows"


def kill_the_replay(checkpoints, killed):
    """SIGKILL the worker once it has left two segments."""
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline:
        segments = len(list(checkpoints.glob("segment-*")))
        if segments >= 2 and (found := workers("replay")):
            found[0].kill()
            killed.append(segments)
            return
        time.sleep(0.01)


def test_a_replay_whose_worker_was_killed_goes_on_to_the_same_numbers(cluster, world, tmp_path):
    base, examples, folder, record, _ = world
    targets, final = [[(examples[0], 0.5), (examples[1], 2.0)]], load_weights(folder / "adapter_model.safetensors")
    killed: list[int] = []
    killer = threading.Thread(target=kill_the_replay, args=(tmp_path / "replay", killed))
    killer.start()
    found = replay_distributed(base, record, examples, targets, tmp_path / "replay", final=final)
    killer.join()
    assert 2 <= killed[0] <= 12
    assert found.deviation == 0
    assert np.array_equal(found.scores_RT, replay_run(base, record, examples, targets, final=final).scores_RT)


def test_what_was_prepared_is_scored_with_as_it_is(cluster, world, tmp_path, monkeypatch):
    base, examples, folder, record, _ = world
    run = shutil.copytree(
        folder, tmp_path / "run", ignore=shutil.ignore_patterns("bank", "epoch-[2-9].*", "epoch-1[0-9].*")
    )
    subject = Subject(base=base, folder=run, examples=tuple(examples), record=record)
    plan = plan_bank(record, examples, num_coalitions=2, num_twins=1)
    trained = []
    index = prepare(subject, plan, on_member=trained.append)
    assert [name for name, _ in index.plan.views] == ["epoch-1", *(f"twin-1-epoch-{epoch}" for epoch in range(1, 7))]
    assert sorted(member.name for member in trained) == ["coalition-000", "coalition-001", "twin-1"]
    monkeypatch.setattr(index_module, "fit", None)
    monkeypatch.setattr(index_module, "row_vectors", None)
    found = make("estimate", subject, num_coalitions=2, num_twins=1, may_train=False, report=lambda line: None)
    assert found.attribute(examples[:2]).scores.shape == (48, 2)
