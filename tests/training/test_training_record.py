"""The run record: a run is found again, and one of other rows, recipe, base or weights is refused."""

import json
import os
import shutil
from dataclasses import replace

import pytest
import torch
from tiny_model import make_tiny_base, tiny_rows

from openledger.adapters.base_model import load_model, load_tokenizer
from openledger.core.errors import Corrupt, InvalidInput, NotFound
from openledger.training.examples import encode_row
from openledger.training.loop import train
from openledger.training.lora import attach_lora
from openledger.training.recipe import Recipe
from openledger.training.record import (
    check_run,
    checkpoints,
    load_run,
    load_weights,
    run_environment,
    save_run,
    save_weights,
    train_run,
)
from openledger.training.task import trainable_parameters

RECIPE = Recipe(rank=2, alpha=4, num_epochs=2, batch_rows=8, learning_rate=1e-2)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    base = make_tiny_base(tmp_path_factory.mktemp("base"))
    tokenizer = load_tokenizer(base)
    examples = [encode_row(tokenizer, row) for row in tiny_rows()[:16]]
    folder = tmp_path_factory.mktemp("runs") / "run"
    return base, examples, folder, train_run(base, examples, RECIPE, folder)


def test_the_record_is_enough_to_train_the_same_adapter_again(world):
    base, examples, folder, _ = world
    record = load_run(folder)
    module = attach_lora(load_model(base), record.recipe, record.initial)
    train(module, examples, record.recipe, record.order)
    last = checkpoints(folder)[RECIPE.num_epochs]
    assert all(torch.equal(parameter, last[name]) for name, parameter in trainable_parameters(module).items())


def test_a_checkpoint_is_kept_for_each_epoch(world):
    assert sorted(checkpoints(world[2])) == [1, 2]


def test_no_template_of_a_card_that_names_this_machine_lies_beside_an_adapter(world):
    folder = world[2]
    assert (folder / "adapter_model.safetensors").exists()
    assert not (folder / "README.md").exists()


def test_a_run_on_the_cpu_of_a_machine_with_a_gpu_says_cpu(world, tmp_path, monkeypatch):
    base, examples, _, _ = world
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "a card")
    environment = train_run(base, examples, replace(RECIPE, num_epochs=1), tmp_path / "run").environment
    assert (environment["device"], environment["accelerator"]) == ("cpu", "")
    assert run_environment(1, device=torch.device("cuda", 0))["accelerator"] == "a card"


def test_a_record_says_what_decides_a_runs_last_bits(world):
    _, _, _, record = world
    asked = {"torch", "python", "machine", "cpu", "device", "accelerator", "blas", "threads", "world_size"}
    assert set(record.environment) == asked
    assert record.environment["cpu"] == torch.backends.cpu.get_cpu_capability()
    assert (record.environment["threads"], record.environment["world_size"]) == (RECIPE.threads, 1)


def test_a_finished_run_is_found_and_not_trained_again(world, monkeypatch):
    base, examples, folder, record = world
    monkeypatch.setattr("openledger.training.record.train", None)
    assert train_run(base, examples, RECIPE, folder) == record


def test_a_folder_with_a_run_of_another_recipe_is_refused(world):
    base, examples, folder, _ = world
    with pytest.raises(InvalidInput) as caught:
        train_run(base, examples, replace(RECIPE, learning_rate=1e-3), folder)
    assert caught.value.code == "other_run"


def test_other_rows_and_another_base_are_refused(world):
    base, examples, _, record = world
    with pytest.raises(InvalidInput, match="1 of its rows are missing"):
        check_run(record, base, examples[1:])
    with pytest.raises(InvalidInput, match="equal in text, contributor and order"):
        check_run(record, base, [replace(examples[0], contributor_id="thief"), *examples[1:]])
    with pytest.raises(InvalidInput) as caught:
        check_run(replace(record, base_digest="other"), base, examples)
    assert caught.value.code == "other_base"


def test_a_plain_adapter_has_no_record_and_the_error_says_what_works(tmp_path):
    with pytest.raises(NotFound) as caught:
        load_run(tmp_path)
    assert caught.value.code == "no_run_record"
    assert "--method index" in caught.value.fix


def test_a_record_beside_other_weights_or_of_rubbish_is_refused(world, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(world[2], folder)
    values = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**values, "adapter_digest": "0" * 64}))
    with pytest.raises(Corrupt, match="not the one"):
        load_run(folder)
    (folder / "run.json").write_text("{")
    with pytest.raises(Corrupt, match="can't be read"):
        load_run(folder)


@pytest.fixture
def kept(world, tmp_path):
    shutil.copytree(world[2], tmp_path / "run")
    return tmp_path / "run", world[3]


def test_a_record_keeps_each_rows_place_in_the_order_of_credit(kept):
    folder, record = kept
    places = tuple(range(40, 40 - len(record.row_ids), -1))
    save_run(folder, replace(record, credit=places, credit_root="ab"))
    assert load_run(folder).places == dict(zip(record.row_ids, places, strict=True))


def test_a_record_of_before_knows_no_order_of_credit(kept):
    folder, record = kept
    values = json.loads((folder / "run.json").read_text())
    del values["credit"], values["credit_root"]
    (folder / "run.json").write_text(json.dumps(values))
    assert load_run(folder) == record
    assert record.places is None


@pytest.mark.parametrize(
    ("told", "why"),
    [
        ({"credit_root": "ab"}, "come together"),
        ({"credit": [*range(16)]}, "come together"),
        ({"credit": [*range(15), True], "credit_root": "ab"}, "whole number"),
        ({"credit": [*range(15), -1], "credit_root": "ab"}, "whole number"),
        ({"credit": [*range(15), "15"], "credit_root": "ab"}, "whole number"),
    ],
)
def test_a_record_whose_order_can_be_no_versions_is_refused(kept, told, why):
    folder, record = kept
    values = json.loads((folder / "run.json").read_text())
    assert len(record.row_ids) == 16
    (folder / "run.json").write_text(json.dumps({**values, **told}))
    with pytest.raises(Corrupt, match=why) as caught:
        load_run(folder)
    assert caught.value.code == "corrupt_run"


@pytest.mark.parametrize("places", [[0, 1], [0] * 16])
def test_a_record_without_a_place_for_each_row_is_refused(kept, places):
    folder, _ = kept
    values = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**values, "credit": places}))
    with pytest.raises(Corrupt, match="not one place") as caught:
        load_run(folder)
    assert caught.value.code == "corrupt_run"


def test_damaged_weights_are_named(tmp_path):
    (tmp_path / "epoch-1.safetensors").write_bytes(b"rubbish")
    with pytest.raises(Corrupt) as caught:
        load_weights(tmp_path / "epoch-1.safetensors")
    assert caught.value.code == "corrupt_weights"


def test_weights_are_on_disk_before_they_have_their_name(tmp_path, monkeypatch):
    path, synced, fsync = tmp_path / "bank" / "twin-1.safetensors", [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: synced.append((os.fstat(file).st_ino, path.exists())) or fsync(file))
    save_weights(path, {"lora_A": torch.ones(2)})
    assert synced == [(path.stat().st_ino, False), (path.parent.stat().st_ino, True)]


def test_two_processes_that_save_the_same_weights_dont_write_into_one_file(tmp_path, monkeypatch):
    path, own = tmp_path / "twin-1.safetensors", {"lora_A": torch.ones(2)}
    written, replaced = [], type(path).replace
    monkeypatch.setattr(type(path), "replace", lambda old, new: written.append(old) or replaced(old, new))
    for process in (7, 8):
        monkeypatch.setattr(os, "getpid", lambda process=process: process)
        save_weights(path, own)
    assert len(set(written)) == 2
    assert torch.equal(load_weights(path)["lora_A"], own["lora_A"])
