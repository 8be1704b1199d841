"""Gradients, curvature and the index's scores: each checked against a slow, plain computation."""

import numpy as np
import pytest
import torch
from tiny_model import make_tiny_base, tiny_rows

from openledger.adapters.base_model import load_model, load_tokenizer
from openledger.attribution.ekfac import fit
from openledger.attribution.gradients import row_gradients, sampled_fisher_pass, sites
from openledger.attribution.index import View, build_index, gradient_vectors, standing
from openledger.core.errors import Corrupt, InvalidInput
from openledger.training.examples import collate, encode_row, row_losses
from openledger.training.loop import train
from openledger.training.lora import attach_lora
from openledger.training.recipe import Recipe, row_root_constant
from openledger.training.task import LANGUAGE, trainable_parameters

CONSTANT = row_root_constant("base", "greek", 1, "root")
RECIPE = Recipe(rank=4, alpha=16, num_epochs=8, batch_rows=8, learning_rate=2e-2)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A trained adapter with 40 trained rows and 8 decoys, and its index."""
    torch.set_num_threads(1)
    base = make_tiny_base(tmp_path_factory.mktemp("base"))
    tokenizer = load_tokenizer(base)
    examples = [encode_row(tokenizer, row) for row in tiny_rows()]
    model = attach_lora(load_model(base), RECIPE, CONSTANT)
    train(model, examples[:40], RECIPE, CONSTANT)
    folder = tmp_path_factory.mktemp("indexes") / "greek"
    index = build_index(model.eval(), examples[:40], examples[40:], folder, "digest")
    return model, examples, index


class Points:
    """Points in the plane in two classes: the smallest task that is no language model."""

    def losses(self, module, examples):
        points, labels = zip(*[(e.point, e.label) for e in examples], strict=True)
        return torch.nn.functional.cross_entropy(module(torch.tensor(points)), torch.tensor(labels), reduction="none")

    def sampled_losses(self, module, examples, seed):
        logits = module(torch.tensor([e.point for e in examples]))
        random = torch.Generator().manual_seed(seed)
        labels = torch.multinomial(logits.detach().softmax(-1), 1, generator=random)[:, 0]
        return torch.nn.functional.cross_entropy(logits, labels, reduction="none")


class Point:
    num_tokens = 1

    def __init__(self, number):
        self.row_id, self.contributor_id = f"p{number}", f"c{number % 3}"
        self.point, self.label = (np.sin(number * 2.3), np.cos(number * 1.7), 0.1 * number), number % 2
        self.point = tuple(float(value) for value in self.point)


def make_mlp(bias=True, inplace=True):
    torch.manual_seed(3)
    return torch.nn.Sequential(
        torch.nn.Linear(3, 5, bias=bias), torch.nn.ReLU(inplace=inplace), torch.nn.Linear(5, 2, bias=bias)
    )


def slow_gradients(module, examples, task):
    """One row at a time, by autograd over the parameters: {name: [B, *shape]}."""
    parameters = trainable_parameters(module)
    rows = [torch.autograd.grad(task.losses(module, [e]).sum(), list(parameters.values())) for e in examples]
    return {name: torch.stack(found) for name, found in zip(parameters, zip(*rows, strict=True), strict=True)}


def as_matrix(site, gradient_BSL):
    return gradient_BSL.transpose(1, 2) if site.tall else gradient_BSL


def test_hooked_gradients_equal_those_of_one_row_at_a_time(world):
    model, examples, _ = world
    together, alone = row_gradients(model, examples[:5]), slow_gradients(model, examples[:5], LANGUAGE)
    assert any(site.tall for site in sites(model))
    for site in sites(model):
        assert torch.allclose(as_matrix(site, together[site.name]), alone[site.name], atol=1e-5)


@pytest.mark.parametrize("bias", [True, False])
def test_layers_that_take_no_tokens_are_indexed_with_their_biases(bias):
    module, examples = make_mlp(bias), [Point(number) for number in range(6)]
    together, alone = row_gradients(module, examples, Points()), slow_gradients(module, examples, Points())
    for site in sites(module):
        matrix = as_matrix(site, together[site.name])
        weight = matrix[..., :-1] if bias else matrix
        assert torch.allclose(weight, alone[site.name], atol=1e-6)
        if bias:
            assert torch.allclose(matrix[..., -1], alone[site.name.replace("weight", "bias")], atol=1e-6)


@pytest.mark.parametrize("bias", [True, False])
def test_one_row_alone_has_the_gradients_it_has_in_a_batch(world, bias):
    model, rows, _ = world
    for module, examples, task in ((model, rows, LANGUAGE), (make_mlp(bias), [Point(1), Point(2)], Points())):
        together, alone = row_gradients(module, examples[:2], task), row_gradients(module, examples[:1], task)
        assert all(torch.allclose(together[name][:1], alone[name], atol=1e-5) for name in together)
        assert [together[name].shape[1:] for name in together] == [alone[name].shape[1:] for name in together]


def test_a_layer_used_twice_has_the_sum_of_both_uses():
    class Twice(torch.nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(1)
            self.layer, self.head = torch.nn.Linear(3, 3, bias=False), torch.nn.Linear(3, 2, bias=False)

        def forward(self, x):
            return self.head(self.layer(self.layer(x).tanh()))

    module, examples = Twice(), [Point(number) for number in range(4)]
    together, alone = row_gradients(module, examples, Points()), slow_gradients(module, examples, Points())
    for site in sites(module):
        assert torch.allclose(as_matrix(site, together[site.name]), alone[site.name], atol=1e-6)


def test_gradients_leave_the_module_as_it_was(world):
    model, examples, _ = world
    row_gradients(model, examples[:2])
    parameters = trainable_parameters(model).values()
    assert len(list(parameters)) == 28
    assert all(parameter.requires_grad and parameter.grad is None for parameter in parameters)
    assert not any(layer._forward_hooks for layer in model.modules())


def test_a_trained_parameter_outside_linear_layers_is_refused():
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4), torch.nn.Linear(4, 2))
    with pytest.raises(InvalidInput) as caught:
        sites(module)
    assert caught.value.code == "not_indexable"


def test_a_layer_that_sees_rows_flattened_is_refused():
    class Flat(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(1, 2)

        def forward(self, x):
            return self.layer(x.reshape(-1, 1)).reshape(len(x), -1, 2).sum(dim=1)

    with pytest.raises(InvalidInput) as caught:
        row_gradients(Flat(), [Point(1), Point(2)], Points())
    assert caught.value.code == "not_indexable"


def slow_basis(module, examples, task, batch_rows=16):
    """Covariances' eigenvectors over all tokens, and the rotated rows' mean squares, damped: {name: (O, I, Lambda)}."""
    seen = {site.name: ([], [], []) for site in sites(module)}

    def visit(site, inputs, gradients):
        reaches = gradients.flatten(0, 1).abs().sum(1) > 0
        seen[site.name][0].append(inputs.flatten(0, 1)[reaches].double())
        seen[site.name][1].append(gradients.flatten(0, 1)[reaches].double())
        seen[site.name][2].append(torch.einsum("bto,bti->boi", gradients, inputs).double())

    for start in range(0, len(examples), batch_rows):
        sampled_fisher_pass(module, examples[start : start + batch_rows], visit, start, task)
    found = {}
    for name, (inputs, gradients, rows) in seen.items():
        x, g, rows_BOI = torch.cat(inputs), torch.cat(gradients), torch.cat(rows)
        q_g, q_x = torch.linalg.eigh(g.T @ g)[1], torch.linalg.eigh(x.T @ x)[1]
        square = (q_g.T @ rows_BOI @ q_x).square().mean(0)
        damping = 0.01 + 0.25 * max(square.shape) / len(x)
        found[name] = q_g, q_x, square + damping * square.mean()
    return found


@pytest.mark.parametrize("kind", ["language", "mlp"])
def test_preconditioning_is_ekfac_written_out(world, kind):
    module, examples, task = world[0], world[1][:24], LANGUAGE
    if kind == "mlp":
        module, examples, task = make_mlp(), [Point(number) for number in range(40)], Points()
    basis, slow = fit(module, examples, task=task), slow_basis(module, examples, task)
    gradients = row_gradients(module, examples[:4], task)
    for site in sites(module):
        q_g, q_x, damped = slow[site.name]
        gradient = as_matrix(site, gradients[site.name]).double()
        expected = q_g @ ((q_g.T @ gradient @ q_x) / damped) @ q_x.T
        found = as_matrix(site, basis[site.name].precondition(gradients[site.name])).double()
        assert torch.allclose(found, expected, rtol=1e-2, atol=2e-3 * float(expected.abs().max()))


def test_the_fit_takes_a_stated_number_of_rows(world):
    model, examples, _ = world
    few, same = fit(model, examples[:40], fit_rows=20), fit(model, examples[:40:2])
    name = sites(model)[0].name
    assert torch.equal(few[name].curvature_SL, same[name].curvature_SL)


def test_scores_are_the_products_in_the_eigenbasis_up_to_half_precision(world):
    """The query's side preconditioned in double precision, against the stored rows."""
    model, examples, index = world
    basis = fit(model, examples[:40])
    answers, rows = (row_gradients(model, chosen) for chosen in (examples[3:6], examples))
    expected = torch.zeros(48, 3, dtype=torch.float64)
    for name, own in basis.items():
        rotated_answers, rotated_rows = own.rotate(answers[name]).double(), own.rotate(rows[name]).double()
        expected += rotated_rows.flatten(1) @ (rotated_answers / own.curvature_SL).flatten(1).T / 40
    scores = index.score(index.query_vectors(model, examples[3:6]))
    assert np.abs(scores - expected.numpy()).max() < 1e-3 * expected.abs().max()


def test_a_row_is_the_top_source_of_its_own_text(world):
    model, examples, index = world
    tops = index.top_rows(index.query_vectors(model, examples[:40]), 1)
    assert sum(top[0].row_id == example.row_id for top, example in zip(tops, examples[:40], strict=True)) >= 32


def test_many_answers_at_once_are_the_answers_one_by_one(world):
    model, examples, index = world
    together = index.query_vectors(model, examples[:6])
    alone = np.concatenate([index.query_vectors(model, [example]) for example in examples[:6]], axis=1)
    assert np.allclose(together, alone, atol=1e-5 * np.abs(alone).max())


def test_removing_rows_moves_the_loss_as_the_index_predicts(world, tmp_path):
    """Leave out the rows of one contributor for real and compare which answers lose, against the prediction."""
    model, examples, index = world
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


def test_removing_rows_from_a_classifier_moves_the_loss_as_the_index_predicts(tmp_path):
    examples, answers = [Point(number) for number in range(45)], [Point(number) for number in range(100, 140)]
    recipe, task = Recipe(num_epochs=30, batch_rows=9, learning_rate=2e-2), Points()
    module = make_mlp()
    train(module, examples, recipe, CONSTANT, task=task)
    index = build_index(module, examples, [], tmp_path / "index", "digest", task=task)
    sums = index.contributor_scores(index.query_vectors(module, answers, task=task))
    actual = []
    with torch.no_grad():
        before = task.losses(module, answers).numpy()
    for contributor in index.contributors:
        without = make_mlp()
        train(
            without, examples, recipe, CONSTANT, task=task,
            row_weights=[float(e.contributor_id != contributor) for e in examples],
        )  # fmt: skip
        with torch.no_grad():
            actual.append(task.losses(without, answers).numpy() - before)
    assert np.corrcoef(np.ravel(sums), np.ravel(actual))[0, 1] > 0.5


def two_views():
    module = make_mlp()
    first = standing(module, "first")
    second = View(name="second", weights={name: tensor * 1.5 for name, tensor in first.weights.items()})
    return module, [first, second]


def test_scores_of_several_views_are_the_mean_of_each_ones(tmp_path):
    module, views = two_views()
    examples, task = [Point(number) for number in range(12)], Points()
    index = build_index(module, examples, [], tmp_path / "both", "digest", views=views, task=task)
    both = index.score(index.query_vectors(module, examples[:3], views=views, task=task))
    alone = []
    for view in views:
        one = build_index(module, examples, [], tmp_path / view.name, "digest", views=[view], task=task)
        alone.append(one.score(one.query_vectors(module, examples[:3], views=[view], task=task)))
    assert not np.allclose(alone[0], alone[1], rtol=1e-2)
    assert np.allclose(both, np.mean(alone, axis=0), rtol=1e-5, atol=1e-7)


def test_views_are_loaded_in_turn_and_the_module_is_put_back(tmp_path):
    module, views = two_views()
    before = standing(module).weights
    index = build_index(
        module, [Point(number) for number in range(12)], [], tmp_path / "index", "digest", views=views, task=Points()
    )
    index.query_vectors(module, [Point(3)], views=views, task=Points())
    assert all(torch.equal(before[name], now) for name, now in standing(module).weights.items())


def test_answers_are_refused_where_the_module_stands_elsewhere_than_the_index(tmp_path):
    module, views = two_views()
    index = build_index(
        module, [Point(number) for number in range(12)], [], tmp_path / "index", "digest", task=Points()
    )
    for wrong in (views[1:], views):
        with pytest.raises(InvalidInput) as caught:
            index.query_vectors(module, [Point(3)], views=wrong, task=Points())
        assert caught.value.code == "wrong_index"


def test_a_view_of_another_module_is_refused(tmp_path):
    view = View(name="other", weights={"0.weight": torch.zeros(2, 2)})
    with pytest.raises(InvalidInput) as caught:
        build_index(make_mlp(), [Point(1)], [], tmp_path / "index", "digest", views=[view], task=Points())
    assert caught.value.code == "invalid_view"


def test_a_loss_that_is_not_finite_is_refused_by_the_rows_name(tmp_path):
    base = make_tiny_base(tmp_path / "base")
    examples = [encode_row(load_tokenizer(base), row) for row in tiny_rows()[:4]]
    model = attach_lora(load_model(base), RECIPE, CONSTANT)
    list(trainable_parameters(model).values())[-1].data.fill_(float("nan"))
    with pytest.raises(Corrupt, match="row_000") as caught:
        build_index(model.eval(), examples, [], tmp_path / "index", "digest")
    assert caught.value.code == "not_finite"
    assert not (tmp_path / "index" / "index.json").exists()


@pytest.mark.parametrize("value", [float("nan"), 1e38])
def test_a_row_whose_gradient_is_not_finite_is_named(tmp_path, value):
    examples = [Point(number) for number in range(12)]
    bad = Point(99)
    bad.point = (value, value, value)
    with pytest.raises(Corrupt, match="p99") as caught:
        build_index(make_mlp(), examples, [bad], tmp_path / "index", "digest", task=Points())
    assert caught.value.code == "not_finite"


def test_gradient_vectors_stand_in_the_order_of_examples():
    module, examples = make_mlp(), [Point(number) for number in range(5)]
    for number, example in enumerate(examples):
        example.num_tokens = 5 - number
    together = gradient_vectors(module, examples, Points())
    assert np.allclose(together[1], gradient_vectors(module, examples[1:2], Points())[0], atol=1e-6)
