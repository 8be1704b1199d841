"""What computes for an adapter takes of a GPU what its recipe says, and waits for none that the cluster hasn't."""

import json
import pickle
import shutil
import subprocess
import sys
from types import SimpleNamespace

import gpu_node
import pytest
from tiny_model import make_tiny_base, tiny_rows

from openledger.adapters.base_model import load_tokenizer
from openledger.attribution import actor as actor_module
from openledger.attribution.actor import index_task, start_index_host
from openledger.attribution.bank import plan_bank
from openledger.attribution.subject import Subject
from openledger.attribution.trainer import (
    build_index_distributed,
    prepare,
    replay_distributed,
    train_bank,
    train_bank_of,
)
from openledger.core.errors import InvalidInput, Unavailable
from openledger.core.values import Answer
from openledger.training import trainer as trainer_module
from openledger.training.examples import encode_row
from openledger.training.recipe import Recipe, gpus_for
from openledger.training.record import load_run, train_run
from openledger.training.trainer import check_gpus, check_workers, train_adapters

RECIPE = Recipe(rank=2, alpha=4, num_epochs=2, batch_rows=4, learning_rate=1e-2, num_gpus=0.5)
ROWS = tiny_rows()[:24]
ANSWER = Answer(
    answer_id="ans_1", adapter="greek", adapter_digest="digest", period="p", prompt_ids=(1, 4), completion_ids=(5, 6)
)
WORK = {
    "bank-member", "index-basis", "index-shards", "index-repeats", "replay", "index",
    "IndexHost.build", "IndexHost.score", "IndexHost.bank_outcomes", "IndexHost.replay",
}  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    base = make_tiny_base(folder / "base")
    tokenizer = load_tokenizer(base)
    examples = [encode_row(tokenizer, row) for row in ROWS]
    train_run(base, examples, RECIPE, folder / "run")
    used = shutil.copytree(folder / "run", folder / "used")  # it gets a bank and an index
    asked = {"base": base, "run": used, "rows": ROWS, "answer": ANSWER}
    (folder / "world.pickle").write_bytes(pickle.dumps(asked))
    return SimpleNamespace(folder=folder, base=base, run=folder / "run", examples=examples)


@pytest.mark.cluster
def test_all_work_for_an_adapter_takes_of_a_gpu_what_its_recipe_says(world, tmp_path):
    command = [sys.executable, gpu_node.__file__, str(world.folder), str(tmp_path / "notes")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-4000:]
    notes = [json.loads(path.read_text()) for path in (tmp_path / "notes").iterdir()]
    on_gpu = {(note["name"], note["num_gpus"]) for note in notes if note["device"] == "cuda"}
    assert on_gpu == {*((work, 0.5) for work in WORK), ("bank-member", 1), ("index", 1)}
    only_read = {"index-plan", "index-views"}
    assert {note["name"] for note in notes if note["device"] == "cpu"} <= only_read
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["code"] == "gpu_busy"
    assert "--gpus 0" in told["fix"]


def test_who_holds_gpus_is_named(monkeypatch):
    actors = [("Replica", {"GPU": 0.75}), ("Ledger", {"CPU": 1.0}), ("Other", {})]
    told = [SimpleNamespace(class_name=name, required_resources=own) for name, own in actors]
    task = SimpleNamespace(name="bank-member", required_resources={"GPU": 0.25})
    monkeypatch.setattr("ray.util.state.list_actors", lambda **_: told)
    monkeypatch.setattr("ray.util.state.list_tasks", lambda **_: [task])
    assert actor_module._gpu_holders() == "Replica (0.75), bank-member (0.25)"


@pytest.mark.cluster
@pytest.mark.parametrize("work", ["bank", "index", "prepared", "replay", "task", "host", "training"])
def test_without_a_gpu_in_the_cluster_the_work_is_refused_at_once(cluster, world, tmp_path, work):
    record = load_run(world.run)
    subject = Subject(base=world.base, folder=world.run, examples=tuple(world.examples), record=record)
    target = [[(world.examples[0], 1.0)]]
    begin = {
        "bank": lambda: train_bank_of(world.run, world.base, ROWS, 2),
        "index": lambda: build_index_distributed(
            tmp_path / "index", world.base, world.run, world.examples, [], "digest", num_gpus=1
        ),
        "prepared": lambda: prepare(subject),
        "replay": lambda: replay_distributed(world.base, record, world.examples, target, tmp_path / "replay"),
        "task": lambda: index_task(world.base)([], "digest", ROWS, [], str(tmp_path / "index"), str(world.run)),
        "host": lambda: start_index_host(world.base, num_gpus=0.5),
        "training": lambda: train_adapters([SimpleNamespace(recipe=RECIPE)], folder=tmp_path),
    }
    with pytest.raises(Unavailable) as caught:
        begin[work]()
    expected = ("too_few_gpus", "num_workers") if work == "training" else ("no_gpu", "num_gpus")
    assert (caught.value.code, caught.value.param) == expected
    assert not list(tmp_path.iterdir())


@pytest.mark.cluster
def test_who_starts_the_work_may_ask_for_less_than_the_recipe(cluster, world, tmp_path):
    target = [[(world.examples[0], 1.0)]]
    found = replay_distributed(world.base, load_run(world.run), world.examples, target, tmp_path / "replay", num_gpus=0)
    assert found.num_steps == 12


@pytest.fixture
def nodes(monkeypatch):
    """A cluster, by what its nodes have and what its autoscaler says that it may start; none of it is free, and nobody
    is waited for."""
    come = []

    def of(live, groups=None, *, own=False):
        told = [{"Alive": alive, "Resources": {"GPU": gpus}} for gpus, alive in live]
        config = groups and SimpleNamespace(
            node_group_configs=[SimpleNamespace(resources={"GPU": gpus}, max_count=most) for gpus, most in groups]
        )
        monkeypatch.setattr("ray.nodes", lambda: told)
        monkeypatch.setattr("ray.available_resources", lambda: {"CPU": 1.0})
        monkeypatch.setattr("ray._private.worker._global_node", SimpleNamespace(is_head=lambda: own))
        monkeypatch.setattr("ray._private.state.state.get_cluster_config", lambda: config)
        return come

    monkeypatch.setattr(trainer_module, "_come", lambda *asked: come.append(asked) or False)
    return of


@pytest.mark.parametrize(
    ("live", "num_gpus"), [([(0.0, True)], 0), ([(4.0, True), (0.0, True)], 1), ([(1.0, True)], 0.3)]
)
def test_a_node_that_has_it_suffices(nodes, live, num_gpus):
    come = nodes(live, [(0.0, 1)])
    check_gpus(num_gpus)
    assert come == []


@pytest.mark.parametrize("live", [[(0.0, True)], [(0.5, True), (0.5, True)], [(1.0, False)]])
@pytest.mark.parametrize("known", [{"own": True}, {"groups": [(0.0, 9), (8.0, 0)]}])
def test_where_none_can_come_it_is_refused_at_once(nodes, live, known):
    come = nodes(live, **known)
    with pytest.raises(Unavailable, match="1 GPUs for each task") as caught:
        check_gpus(1)
    assert caught.value.code == "no_gpu"
    assert "--gpus 0" in caught.value.fix
    assert come == []


@pytest.mark.parametrize("groups", [None, [(8.0, 2)], [(8.0, -1)]])
def test_where_one_may_come_it_is_waited_for_and_then_refused(nodes, monkeypatch, groups):
    come = nodes([(0.0, True)], groups)
    with pytest.raises(Unavailable):
        check_gpus(0.5)
    assert come == [(0.5, 1)]
    monkeypatch.setattr(trainer_module, "_come", lambda *_: True)
    check_gpus(0.5)


def test_where_ray_tells_nothing_a_node_is_waited_for(nodes, monkeypatch):
    come = nodes([(0.0, True)])
    monkeypatch.setattr("ray._private.state.state.get_cluster_config", None)
    with pytest.raises(Unavailable):
        check_gpus(0.5)
    assert come == [(0.5, 1)]


@pytest.mark.cluster
def test_the_autoscaler_is_asked_for_a_node_and_waited_for_with_a_limit(cluster, monkeypatch, caplog):
    monkeypatch.setattr(trainer_module, "_NODE_WAIT_S", 1)
    assert not trainer_module._come(1.0, 2)
    assert "waiting up to 1 s" in caplog.text


def test_a_training_takes_a_whole_gpu_for_each_worker(nodes):
    nodes([(2.0, True), (0.5, True), (1.0, True), (4.0, False)], own=True)
    check_workers(0.25, 3)
    check_workers(0.0, 100)
    with pytest.raises(Unavailable) as caught:
        check_workers(0.25, 4)
    assert caught.value.code == "too_few_gpus"
    assert "--workers 1" in caught.value.fix


def test_that_every_gpu_is_taken_is_told(nodes, monkeypatch, caplog):
    nodes([(1.0, True)])
    check_gpus(0.5)
    assert "is taken at this moment" in caplog.text
    caplog.clear()
    monkeypatch.setattr("ray.available_resources", lambda: {"GPU": 0.5})
    check_gpus(0.5)
    assert caplog.text == ""


@pytest.mark.parametrize("num_gpus", [-0.5, 1.5, 2, float("nan"), True, "1"])
def test_a_part_of_a_gpu_that_no_task_takes_is_refused(num_gpus):
    for begin in (lambda: Recipe(num_gpus=num_gpus), lambda: check_gpus(num_gpus)):
        with pytest.raises(InvalidInput) as caught:
            begin()
        assert caught.value.code == "invalid_gpus"


def test_a_wish_goes_before_the_recipe_and_without_either_none_is_taken():
    assert (gpus_for(RECIPE), gpus_for(RECIPE, 1), gpus_for(RECIPE, 0), gpus_for(None)) == (0.5, 1, 0, 0)


@pytest.mark.cluster
def test_what_is_trained_already_needs_no_gpu(cluster, world, tmp_path):
    record = load_run(world.run)
    plan = plan_bank(record, world.examples, num_coalitions=2, num_twins=0)
    train_bank(tmp_path, record, world.base, world.examples, plan.members, num_gpus=0)
    again = []
    train_bank(tmp_path, record, world.base, world.examples, plan.members, on_member=again.append)
    assert again == []
