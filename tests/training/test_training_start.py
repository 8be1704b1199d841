"""Runs that go on from another adapter begin at its matrices, say so, and can be made again without its folder."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_model import make_tiny_base, tiny_rows

from openledger.adapters.base_model import load_model, load_tokenizer
from openledger.adapters.card import adapter_digest, load_card, save_card
from openledger.core.errors import Conflict, Corrupt, InvalidInput, NotFound
from openledger.core.values import DatanetVersion
from openledger.training.examples import encode_row
from openledger.training.loop import train
from openledger.training.lora import attach_lora
from openledger.training.members import Member
from openledger.training.packed import PackedRuns
from openledger.training.recipe import Recipe, from_adapter
from openledger.training.record import checkpoints, load_run, train_run
from openledger.training.start import Parent, check_parent, start_folder
from openledger.training.task import trainable_parameters
from openledger.training.trainer import TrainingJob, train_adapters, write_adapter

RECIPE = Recipe(rank=2, alpha=4, num_epochs=2, batch_rows=8, learning_rate=1e-2)


def job(base, folder, name, rows, parent=None, recipe=RECIPE):
    version = DatanetVersion(datanet=name, number=1, row_root="aa", num_rows=48, gate_version="gate/1", published_ms=1)
    own = TrainingJob(name=name, base=base, version=version, rows=tuple(rows), recipe=recipe, output="", parent=parent)
    return own.at(folder)


def examples_of(base, rows):
    tokenizer = load_tokenizer(base)
    return [encode_row(tokenizer, row) for row in rows]


def trained_here(own, *, write=False):
    """What the worker does, in this process."""
    model = attach_lora(load_model(own.base), own.recipe, own.initial, Path(own.parent.folder) if own.parent else None)
    examples = examples_of(own.base, own.rows)
    progress = train(model, examples, own.recipe, own.constant)
    if write:
        write_adapter(model, own, examples, progress.curve, 1)
    return {name: p.detach().clone() for name, p in trainable_parameters(model).items()}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def first(base, tmp_path_factory):
    """A trained adapter with its card, to go on from."""
    own = job(base, tmp_path_factory.mktemp("adapters"), "first", tiny_rows()[:24])
    trained_here(own, write=True)
    return Parent(folder=own.output, digest=adapter_digest(Path(own.output)))


@pytest.fixture
def parent(first, tmp_path):
    """The same in a folder that a test may spoil."""
    shutil.copytree(first.folder, tmp_path / "parent")
    return replace(first, folder=str(tmp_path / "parent"))


@pytest.fixture(scope="module")
def derived(base, first, tmp_path_factory):
    """(folder, record, examples) of a run that goes on from `first`."""
    examples = examples_of(base, tiny_rows()[24:])
    folder = tmp_path_factory.mktemp("runs") / "run"
    return folder, train_run(base, examples, RECIPE, folder, parent=first), examples


def test_a_run_begins_where_its_parent_ended(base, first):
    module = attach_lora(load_model(base), RECIPE, from_adapter(first.digest), Path(first.folder))
    stored = load_file(Path(first.folder) / "adapter_model.safetensors")
    begun = {name.replace(".default.", "."): p for name, p in trainable_parameters(module).items()}
    assert begun.keys() == stored.keys()
    assert all(torch.equal(begun[name], tensor) for name, tensor in stored.items())
    assert any(tensor.abs().max() > 0 for name, tensor in stored.items() if ".lora_B." in name)


def test_the_record_names_the_parent_and_is_enough_to_train_the_run_again_without_its_folder(base, derived):
    folder, record, examples = derived
    assert load_run(folder).initial == f"adapter:{adapter_digest(start_folder(folder))}"
    module = attach_lora(load_model(base), record.recipe, record.initial, start_folder(folder))
    train(module, examples, record.recipe, record.order)
    last = checkpoints(folder)[RECIPE.num_epochs]
    assert all(torch.equal(parameter, last[name]) for name, parameter in trainable_parameters(module).items())


def test_a_start_that_was_lost_or_changed_is_refused_by_name(base, derived, tmp_path):
    folder, record, _ = derived
    shutil.copytree(start_folder(folder), tmp_path / "start")
    (tmp_path / "start" / "adapter_model.safetensors").write_bytes(b"other")
    for start in (None, tmp_path / "gone", tmp_path / "start"):
        with pytest.raises(Corrupt) as caught:
            attach_lora(load_model(base), record.recipe, record.initial, start)
        assert caught.value.code == "corrupt_start"


def test_members_go_on_from_the_parent_as_the_run_did(base, derived):
    folder, record, examples = derived
    runs = PackedRuns(base=base, examples=examples, recipe=RECIPE, start=start_folder(folder))
    everything = tuple(range(len(examples)))
    same = Member(name="same", rows=everything, initial=record.initial, order=record.order)
    (weights,) = runs.train([same])
    last = checkpoints(folder)[RECIPE.num_epochs]
    assert all(torch.allclose(weights[name], tensor, atol=1e-5) for name, tensor in last.items())
    with pytest.raises(InvalidInput) as caught:
        runs.train([replace(same, initial="another constant")])
    assert (caught.value.code, caught.value.param) == ("invalid_run", "initial")


@pytest.mark.parametrize("spoil", ["folder", "card", "weights", "base"])
def test_a_parent_that_is_not_what_it_was_is_refused(base, parent, spoil):
    folder = Path(parent.folder)
    expected = {"folder": NotFound, "card": NotFound, "weights": Conflict, "base": InvalidInput}[spoil]
    code = {"folder": "missing_parent", "card": "missing_parent", "weights": "parent_changed", "base": "lineage_base"}
    if spoil == "folder":
        shutil.rmtree(folder)
    elif spoil == "card":
        (folder / "card.json").unlink()
    elif spoil == "weights":
        (folder / "adapter_model.safetensors").write_bytes(b"others")
    else:
        save_card(folder, replace(load_card(folder), base_digest="another"))
    with pytest.raises(expected) as caught:
        check_parent(parent, base, RECIPE)
    assert caught.value.code == code[spoil]
    assert caught.value.fix


@pytest.mark.parametrize(
    "changes", [{"rank": 4}, {"alpha": 8}, {"target_modules": ("q_proj",)}], ids=["rank", "scale", "targets"]
)
def test_a_parent_of_another_shape_is_refused_with_the_settings_that_would_fit(base, first, changes, tmp_path):
    with pytest.raises(InvalidInput) as caught:
        train_run(base, examples_of(base, tiny_rows()[:4]), replace(RECIPE, **changes), tmp_path / "run", parent=first)
    assert caught.value.code == "parent_shape"
    assert "rank: 2, alpha: 4" in (caught.value.fix or "")
    assert not (tmp_path / "run").exists()


def test_a_job_with_a_parent_is_another_job_and_one_without_keeps_its_key(base, first, tmp_path):
    bare = job(base, tmp_path, "greek", tiny_rows())
    assert replace(bare, parent=first).key != bare.key
    assert replace(bare, parent=first).key != replace(bare, parent=replace(first, digest="ab")).key
    assert (bare.initial, bare.initial_from) == (bare.constant, "row_root")


def test_training_that_changes_nothing_is_no_generation(base, first, tmp_path):
    own = job(base, tmp_path, "still", tiny_rows()[24:], first)
    model = attach_lora(load_model(base), own.recipe, own.initial, Path(first.folder))
    with pytest.raises(InvalidInput) as caught:
        write_adapter(model, own, examples_of(base, own.rows), [1.0], 1)
    assert caught.value.code == "lineage_cycle"
    assert not (Path(own.output) / "card.json").exists()


@pytest.mark.cluster
def test_ray_train_goes_on_from_the_parent_and_the_card_names_it(cluster, base, parent, tmp_path):
    own = job(base, tmp_path / "adapters", "second", tiny_rows()[24:], parent)
    expected = trained_here(own)
    train_adapters([own], folder=tmp_path / "runs", num_workers=1)
    stored = load_file(Path(own.output) / "adapter_model.safetensors")
    assert all(torch.equal(stored[name.replace(".default.", ".")], value) for name, value in expected.items())
    card = load_card(Path(own.output))
    assert card.parents == ((parent.digest, "1"),)
    assert (card.initial_a, card.initial_from) == (f"adapter:{parent.digest}", "parent")
    assert adapter_digest(start_folder(Path(own.output))) == parent.digest
    shutil.rmtree(parent.folder)
    with pytest.raises(NotFound) as caught:
        train_adapters([replace(own, output=str(tmp_path / "again"))], folder=tmp_path / "runs", num_workers=1)
    assert caught.value.code == "missing_parent"
