"""Ray Train runs the same arithmetic as the loop in one process, for whole adapters and for shared ones."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_model import make_tiny_base, tiny_rows

from openledger.adapters.base_model import load_model, load_tokenizer
from openledger.adapters.card import adapter_digest, load_card
from openledger.core.values import DatanetVersion
from openledger.training.examples import encode_row
from openledger.training.loop import train
from openledger.training.lora import attach_lora
from openledger.training.recipe import Recipe
from openledger.training.task import trainable_parameters
from openledger.training.trainer import TrainingJob, train_adapters

RECIPE = Recipe(rank=4, alpha=16, num_epochs=4, batch_rows=8, learning_rate=2e-2)


def job(base, folder: Path, name: str) -> TrainingJob:
    version = DatanetVersion(datanet=name, number=1, row_root="aa", num_rows=48, gate_version="gate/1", published_ms=1)
    return TrainingJob(name=name, base=base, version=version, rows=tuple(tiny_rows(name)), recipe=RECIPE, output="").at(
        folder
    )


def trained_here(one: TrainingJob) -> dict[str, torch.Tensor]:
    tokenizer = load_tokenizer(one.base)
    model = attach_lora(load_model(one.base), one.recipe, one.constant)
    train(model, [encode_row(tokenizer, row) for row in one.rows], one.recipe, one.constant)
    return {name.replace(".default", ""): p.detach() for name, p in trainable_parameters(model).items()}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_tiny_base(tmp_path_factory.mktemp("base"))


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
