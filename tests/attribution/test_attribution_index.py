"""Gradients, curvature and the index: each checked against a slow, plain computation."""

import json

import numpy as np
import pytest
import torch
from tiny_model import make_tiny_base, tiny_rows

from openledger.adapters.base_model import load_model, load_tokenizer
from openledger.attribution.gradients import row_gradients, sites
from openledger.attribution.index import GradientIndex, build_index
from openledger.core.errors import Corrupt, InvalidInput
from openledger.training.examples import collate, encode_row, row_losses
from openledger.training.loop import train
from openledger.training.lora import attach_lora
from openledger.training.recipe import Recipe, public_constant
from openledger.training.task import trainable_parameters

CONSTANT = public_constant("base", "greek", 1, "root")
RECIPE = Recipe(rank=4, alpha=16, num_epochs=8, batch_rows=8, learning_rate=2e-2)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A trained adapter with 40 trained rows and 8 decoys, and its index."""
    base = make_tiny_base(tmp_path_factory.mktemp("base"))
    tokenizer = load_tokenizer(base)
    examples = [encode_row(tokenizer, row) for row in tiny_rows()]
    model = attach_lora(load_model(base), RECIPE, CONSTANT)
    train(model, examples[:40], RECIPE, CONSTANT)
    folder = tmp_path_factory.mktemp("indexes") / "greek"
    index = build_index(model.eval(), examples[:40], examples[40:], folder, "digest")
    return model, examples, index, folder


def test_hooked_gradients_equal_those_of_one_row_at_a_time(world):
    model, examples, _, _ = world
    together = row_gradients(model, examples[:5])
    for number, example in enumerate(examples[:5]):
        loss = row_losses(model, collate([example])).sum()
        alone = torch.autograd.grad(loss, list(trainable_parameters(model).values()))
        for site, gradient in zip(sites(model), alone, strict=True):
            assert torch.allclose(together[site.name][number], gradient, atol=1e-5)


def test_a_row_is_the_top_source_of_its_own_text(world):
    model, examples, index, _ = world
    scores = index.score(index.query_vectors(model, examples[:40]))
    hits = sum(int(scores[:40, number].argmax()) == number for number in range(40))
    assert hits >= 32


def test_scores_are_the_exact_products_up_to_half_precision(world):
    model, examples, index, _ = world
    vectors = index.query_vectors(model, examples[3:4])
    row = index.query_vectors(model, examples[7:8])
    curvature = np.concatenate([b.curvature_OI.numpy().ravel() for b in (index._basis[s.name] for s in sites(model))])
    expected = float(vectors[0] @ (row[0] * curvature)) / 40
    assert index.score(vectors)[7, 0] == pytest.approx(expected, rel=5e-3, abs=1e-6)


def test_removing_rows_moves_the_loss_as_the_index_predicts(world, tmp_path):
    """Leave out the rows of one contributor for real and compare which answers lose, against the prediction."""
    model, examples, index, _ = world
    base = make_tiny_base(tmp_path)
    answers = examples[:40]
    scores = index.score(index.query_vectors(model, answers))[:40]
    predicted, actual = [], []
    with torch.no_grad():
        before = row_losses(model, collate(answers)).numpy()
    for contributor in range(4):
        weights = [0.0 if number % 4 == contributor else 1.0 for number in range(40)]
        without = attach_lora(load_model(base), RECIPE, CONSTANT)
        train(without, examples[:40], RECIPE, CONSTANT, row_weights=weights)
        with torch.no_grad():
            actual.append(row_losses(without.eval(), collate(answers)).numpy() - before)
        predicted.append(scores[contributor::4].sum(axis=0))
    agreement = np.corrcoef(np.ravel(predicted), np.ravel(actual))[0, 1]
    assert agreement > 0.5


def test_an_index_is_built_once(world):
    model, examples, _, folder = world
    before = (folder / "rows.f16").stat().st_mtime_ns
    build_index(model, examples[:40], examples[40:], folder, "digest")
    assert (folder / "rows.f16").stat().st_mtime_ns == before


def test_the_index_of_another_adapter_is_refused(world):
    with pytest.raises(InvalidInput) as caught:
        GradientIndex.open(world[3], "another digest")
    assert caught.value.code == "wrong_index"


def test_a_truncated_index_is_refused(world, tmp_path):
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree(world[3], broken)
    (broken / "rows.f16").write_bytes((broken / "rows.f16").read_bytes()[:-100])
    with pytest.raises(Corrupt) as caught:
        GradientIndex.open(broken, "digest")
    assert caught.value.code == "corrupt_index"


def test_a_gradient_that_is_not_finite_is_refused_and_leaves_no_index(world, tmp_path):
    base = make_tiny_base(tmp_path / "base")
    model = attach_lora(load_model(base), RECIPE, CONSTANT)
    list(trainable_parameters(model).values())[-1].data.fill_(float("nan"))
    with pytest.raises((Corrupt, RuntimeError)):
        build_index(model.eval(), world[1][:4], [], tmp_path / "index", "digest")
    assert not (tmp_path / "index").exists()


def test_entries_keep_contributors_and_say_which_rows_were_trained(world):
    document = json.loads((world[3] / "index.json").read_text())
    assert [entry["trained"] for entry in document["entries"]] == [True] * 40 + [False] * 8
    assert document["entries"][5]["contributor_id"] == "ctr_1"
