"""Ray Train runs the same arithmetic as the loop in one process, for whole adapters and for shared ones."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_model import make_tiny_base, tiny_rows

from openledger.adapters.base_model import BaseModel, load_model, load_tokenizer
from openledger.adapters.card import adapter_digest, load_card
from openledger.core.values import DatanetVersion
from openledger.training.examples import Example, encode_row
from openledger.training.loop import train
from openledger.training.lora import attach_lora
from openledger.training.recipe import Recipe, public_constant
from openledger.training.record import check_run, checkpoints, load_held_out, load_run
from openledger.training.task import trainable_parameters
from openledger.training.trainer import TrainingJob, train_adapters, write_adapter

RECIPE = Recipe(rank=4, alpha=16, num_epochs=4, batch_rows=8, learning_rate=2e-2)


def job(base, folder: Path, name: str) -> TrainingJob:
    version = DatanetVersion(datanet=name, number=1, row_root="aa", num_rows=48, gate_version="gate/1", published_ms=1)
    return TrainingJob(name=name, base=base, version=version, rows=tuple(tiny_rows(name)), recipe=RECIPE, output="").at(
        folder
    )


def encoded(one: TrainingJob) -> list[Example]:
    tokenizer = load_tokenizer(one.base)
    return [encode_row(tokenizer, row) for row in one.rows]


def trained_here(one: TrainingJob) -> dict[str, torch.Tensor]:
    model = attach_lora(load_model(one.base), one.recipe, one.constant)
    train(model, encoded(one), one.recipe, one.constant)
    return {name.replace(".default", ""): p.detach() for name, p in trainable_parameters(model).items()}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_tiny_base(tmp_path_factory.mktemp("base"))


def with_another_row_root(one: TrainingJob) -> TrainingJob:
    return replace(one, version=replace(one.version, row_root="bb"))


def test_with_nonces_no_row_moves_the_constant_and_without_them_every_row_does(base, tmp_path):
    bare = job(base, tmp_path, "greek")
    drawn = replace(bare, nonces=("0a" * 32, "0b" * 32))
    assert drawn.constant == public_constant(base.digest, "greek", 1, drawn.nonces)
    assert with_another_row_root(drawn).constant == drawn.constant
    assert with_another_row_root(bare).constant != bare.constant


@pytest.mark.parametrize("num_gpus", [0, 0.5, 1, 1.0])
def test_where_it_is_trained_makes_no_other_job(num_gpus):
    """The digest is that of before recipes named GPUs: folders and interrupted runs are found under it."""
    base = BaseModel(path="", name="b", digest="base", max_positions=64)
    asked = replace(job(base, Path(), "greek"), rows=(), recipe=Recipe(num_gpus=num_gpus))
    assert asked.key == "c44ed4e2cba0f02b6e2688559b06712aedeadd0bfc05b173a4903e71b09e06e4"


def test_jobs_of_other_nonces_are_other_jobs(base, tmp_path):
    bare = job(base, tmp_path, "greek")
    keys = {replace(bare, nonces=nonces).key for nonces in ((), ("0a" * 32, "0b" * 32), ("0b" * 32, "0a" * 32))}
    assert len(keys) == 3


@pytest.mark.parametrize(("nonces", "initial_from"), [((), "row_root"), (("0a" * 32, "0b" * 32), "nonces")])
def test_the_card_says_what_the_initial_a_comes_from(base, tmp_path, nonces, initial_from):
    one = replace(job(base, tmp_path, "greek"), nonces=nonces, output=str(tmp_path / "adapter"))
    write_adapter(attach_lora(load_model(base), RECIPE, one.constant), one, encoded(one), [1.0], world_size=1)
    card = load_card(tmp_path / "adapter")
    assert (card.initial_a, card.initial_from) == (one.constant, initial_from)


def test_the_card_is_written_after_all_else_is_on_disk(base, tmp_path, monkeypatch):
    one = replace(job(base, tmp_path, "greek"), output=str(tmp_path / "adapter"))
    for name in ("held_out.json", "checkpoints/epoch-1.safetensors", "middle/adapter_model.safetensors"):
        (tmp_path / "adapter" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "adapter" / name).write_text("{}")
    synced, fsync = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: synced.append(os.fstat(file).st_ino) or fsync(file))
    write_adapter(attach_lora(load_model(base), RECIPE, one.constant), one, encoded(one), [1.0], world_size=1)
    card, inodes = (tmp_path / "adapter" / "card.json").stat().st_ino, {}
    for path in (tmp_path / "adapter").rglob("*"):
        inodes[path.stat().st_ino] = path.name
    before = {inodes.get(inode) for inode in synced[: synced.index(card)]}
    assert set(inodes.values()) - before == {"card.json"}


@pytest.mark.cluster
def test_two_workers_sharing_one_adapter_train_what_one_process_trains(cluster, base, tmp_path):
    shared = job(base, tmp_path / "adapters", "shared")
    train_adapters([shared], folder=tmp_path / "runs", num_workers=2)
    stored = load_file(Path(shared.output) / "adapter_model.safetensors")
    for name, value in trained_here(shared).items():
        assert torch.allclose(stored[name], value, atol=2e-4), name


@pytest.mark.cluster
def test_an_adapter_of_its_own_worker_is_equal_to_the_bit_and_carries_its_card(cluster, base, tmp_path):
    jobs = [job(base, tmp_path / "adapters", name) for name in ("one", "two", "three")]
    train_adapters(jobs, folder=tmp_path / "runs", num_workers=2)
    for one in jobs:
        stored = load_file(Path(one.output) / "adapter_model.safetensors")
        assert all(torch.equal(stored[name], value) for name, value in trained_here(one).items())
        card = load_card(Path(one.output))
        assert card.digest == adapter_digest(Path(one.output))
        assert card.rows_trained == tuple(row.row_id for row in one.rows)
        assert sum(card.contributors.values()) == 48
        assert len(json.loads((Path(one.output) / "curve.json").read_text())) == RECIPE.num_epochs


@pytest.mark.cluster
def test_a_trained_adapter_has_its_run_record_its_checkpoints_and_what_was_held_out(cluster, base, tmp_path):
    whole = job(base, tmp_path / "adapters", "recorded")
    one = replace(whole, rows=whole.rows[:40], held_out=whole.rows[40:])
    train_adapters([one], folder=tmp_path / "runs", num_workers=1)
    record = load_run(Path(one.output))
    check_run(record, base, encoded(one))
    assert (record.initial, record.order) == (one.constant, one.constant)
    assert record.environment["world_size"] == 1
    found = checkpoints(Path(one.output))
    assert list(found) == [1, 2, 3, 4]
    stored = load_file(Path(one.output) / "adapter_model.safetensors")
    assert all(torch.equal(stored[name.replace(".default", "")], value) for name, value in found[4].items())
    assert load_held_out(Path(one.output)) == [encode_row(load_tokenizer(base), row) for row in one.held_out]
