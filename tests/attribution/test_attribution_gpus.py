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
from openledger.training.examples import encode_row
from openledger.training.recipe import Recipe, gpus_for
from openledger.training.record import load_run, train_run
from openledger.training.trainer import check_gpus, train_adapters

RECIPE = Recipe(rank=2, alpha=4, num_epochs=2, batch_rows=4, learning_rate=1e-2, num_gpus=0.5)
ROWS = tiny_rows()[:24]
ANSWER = Answer(
    answer_id="ans_1", adapter="greek", adapter_digest="digest", period="p", prompt_ids=(1, 4), completion_ids=(5, 6)
)
WORK = {
    "bank-member", "index-basis", "index-shards", "replay", "index",
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
    on_gpu = {note["name"]: note["num_gpus"] for note in notes if note["device"] == "cuda"}
    assert on_gpu == dict.fromkeys(WORK, 0.5)
    assert {note["name"] for note in notes if note["device"] == "cpu"} <= {"index-plan"}  # it only reads shapes


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
    assert (caught.value.code, caught.value.param) == ("no_gpu", "num_gpus")
    assert not list(tmp_path.iterdir())


@pytest.mark.cluster
def test_who_starts_the_work_may_ask_for_less_than_the_recipe(cluster, world, tmp_path):
    target = [[(world.examples[0], 1.0)]]
    found = replay_distributed(world.base, load_run(world.run), world.examples, target, tmp_path / "replay", num_gpus=0)
    assert found.num_steps == 12


@pytest.mark.parametrize(
    ("nodes", "groups", "num_gpus", "passes"),
    [
        ([{}], [], 0, True),
        ([{"GPU": 4.0}, {}], [], 1, True),
        ([{"GPU": 0.5}, {"GPU": 0.5}], [], 1, False),
        ([{}], [{"CPU": 4}, {"GPU": 8}], 1, True),
        ([{}], [{"CPU": 4}], 0.5, False),
    ],
)
def test_one_node_must_have_it_or_be_one_that_the_autoscaler_may_start(monkeypatch, nodes, groups, num_gpus, passes):
    monkeypatch.setattr("ray.nodes", lambda: [{"Alive": True, "Resources": own} for own in nodes])
    config = SimpleNamespace(node_group_configs=[SimpleNamespace(resources=own) for own in groups])
    monkeypatch.setattr("ray._private.state.state.get_cluster_config", lambda: config)
    if passes:
        check_gpus(num_gpus)
    else:
        with pytest.raises(Unavailable, match=f"{num_gpus:g} GPUs for each task"):
            check_gpus(num_gpus)


def test_a_node_that_died_has_none(monkeypatch):
    monkeypatch.setattr("ray.nodes", lambda: [{"Alive": False, "Resources": {"GPU": 1.0}}])
    monkeypatch.setattr("ray._private.state.state.get_cluster_config", lambda: None)
    with pytest.raises(Unavailable):
        check_gpus(0.5)


@pytest.mark.parametrize("num_gpus", [-0.5, 1.5, 2, float("nan")])
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
