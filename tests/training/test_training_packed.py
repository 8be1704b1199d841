"""Adapters trained side by side are those trained one at a time; scores are each adapter's own."""

import pytest
import torch
from tiny_model import make_tiny_base, tiny_rows

from openledger.adapters.base_model import load_model, load_tokenizer
from openledger.core.errors import Corrupt, InvalidInput
from openledger.training.examples import collate, encode_row, row_losses
from openledger.training.loop import train
from openledger.training.lora import attach_lora
from openledger.training.members import Member
from openledger.training.packed import score_members, train_members
from openledger.training.recipe import Recipe
from openledger.training.task import trainable_parameters

RECIPE = Recipe(rank=4, alpha=8, num_epochs=2, batch_rows=8, learning_rate=1e-2)
INITIAL = "a" * 64


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def examples(base):
    tokenizer = load_tokenizer(base)
    return [encode_row(tokenizer, row) for row in tiny_rows()]


def member(name, rows, row_weights=()):
    return Member(name=name, rows=tuple(rows), initial=INITIAL, order=name, row_weights=row_weights)


def alone(base, examples, run):
    module = attach_lora(load_model(base), RECIPE, run.initial)
    rows = [examples[row] for row in run.rows]
    train(module, rows, RECIPE, run.order, row_weights=run.row_weights or None)
    return module


def test_a_pack_trains_each_member_as_if_it_were_alone(base, examples):
    weighted = member("weighted", range(48), tuple(float(row % 3 > 0) for row in range(48)))
    runs = [member("all", range(48)), weighted]
    for run, found in zip(runs, train_members(base, examples, runs, RECIPE), strict=True):
        for name, parameter in trainable_parameters(alone(base, examples, run)).items():
            assert torch.allclose(found[name], parameter, atol=2e-5), name


def test_members_of_different_lengths_end_as_those_trained_alone(base, examples):
    short, long = member("short", range(10)), member("long", range(40))
    together = train_members(base, examples, [short, long], RECIPE)
    for run, found in zip([short, long], together, strict=True):
        (single,) = train_members(base, examples, [run], RECIPE)
        for name, tensor in single.items():
            assert torch.allclose(found[name], tensor, atol=2e-5), name


def test_a_row_of_weight_zero_leaves_no_trace(base, examples):
    weights = (0.0, *[1.0] * 47)
    other = [examples[9], *examples[1:]]
    (found,) = train_members(base, examples, [member("run", range(48), weights)], RECIPE)
    changed = [examples[0].__class__(row_id="other", contributor_id="x", ids=other[0].ids, num_prompt=3), *examples[1:]]
    (same,) = train_members(base, changed, [member("run", range(48), weights)], RECIPE)
    assert all(torch.allclose(found[name], same[name], atol=1e-6) for name in found)


def test_scores_are_each_adapters_own_log_likelihood(base, examples):
    runs = [member("first", range(24)), member("second", range(24, 48))]
    weights = train_members(base, examples, runs, RECIPE)
    scores = score_members(base, RECIPE, weights, examples[:5])
    for number, run in enumerate(runs):
        losses = row_losses(alone_from(base, run, weights[number]), collate(examples[:5]))
        assert torch.allclose(scores[number], -losses, atol=1e-5)


def test_scores_do_not_depend_on_how_members_are_packed(base, examples):
    runs = [member(f"run-{number}", range(8 * number, 8 * number + 8)) for number in range(5)]
    weights = train_members(base, examples, runs, RECIPE)
    one_by_one, together = (score_members(base, RECIPE, weights, examples[:4], pack_members=n) for n in (1, 5))
    assert together.std(dim=0).min() > 1e-4
    assert torch.allclose(score_members(base, RECIPE, weights, examples[:4], pack_members=2), together, atol=1e-5)
    assert torch.allclose(one_by_one, together, atol=1e-5)


def alone_from(base, run, weights):
    module = attach_lora(load_model(base), RECIPE, run.initial)
    for name, parameter in trainable_parameters(module).items():
        parameter.data.copy_(weights[name])
    return module


def test_an_exploding_member_is_named(base, examples):
    wild = member("wild", range(8), (float("inf"), *[1.0] * 7))
    with pytest.raises(Corrupt, match="wild") as caught:
        train_members(base, examples, [member("tame", range(8)), wild], RECIPE)
    assert caught.value.code == "diverged"


def test_a_run_without_rows_or_with_a_missing_weight_is_refused():
    with pytest.raises(InvalidInput, match="no rows"):
        member("none", [])
    with pytest.raises(InvalidInput, match="weights"):
        member("few", [1, 2], (1.0,))
