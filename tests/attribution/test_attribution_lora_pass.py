"""LoRA layers taken in one step give what hooks on each of their matrices give, and are left as they were."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_model import make_tiny_base, tiny_rows

from openledger.adapters.base_model import load_model, load_tokenizer
from openledger.attribution import gradients
from openledger.attribution.ekfac import fit
from openledger.attribution.gradients import row_gradients, sites
from openledger.attribution.index import build_index
from openledger.attribution.lora_pass import lora_layers
from openledger.training.examples import encode_row
from openledger.training.lora import attach_lora
from openledger.training.recipe import Recipe
from openledger.training.task import trainable_parameters

NUM_LAYERS = 14  # of the tiny Llama: seven in each of two blocks
RECIPE = Recipe(rank=3, alpha=4)  # a scale of 4/3 rounds


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    torch.set_num_threads(1)
    return make_tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def examples(base):
    tokenizer = load_tokenizer(base)
    return [encode_row(tokenizer, row) for row in tiny_rows()]


@pytest.fixture
def module(base):
    """An adapter whose B isn't zero."""
    found = attach_lora(load_model(base), RECIPE, "constant").eval()
    torch.manual_seed(5)
    for name, parameter in trainable_parameters(found).items():
        if ".lora_B." in name:
            parameter.data.normal_(std=0.1)
    return found


@pytest.fixture
def by_hooks(monkeypatch):
    """Within the call, every matrix is hooked by itself."""

    def call(function, *arguments, **options):
        with monkeypatch.context() as patch:
            patch.setattr(gradients, "lora_layers", lambda _: [])
            return function(*arguments, **options)

    return call


def assert_close(found, expected, of_largest=1e-5):
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert float((found[name] - gradient).abs().max()) <= of_largest * float(gradient.abs().max()), name


def test_every_layer_of_an_adapter_is_taken(module):
    found = lora_layers(module)
    assert len(found) == NUM_LAYERS
    assert {name for own in found for name in (own.down, own.up)} == set(trainable_parameters(module))


def test_gradients_are_those_of_hooks(module, examples, by_hooks):
    found, expected = row_gradients(module, examples[:9]), by_hooks(row_gradients, module, examples[:9])
    assert len(found) == 2 * NUM_LAYERS
    assert_close(found, expected)


def test_gradients_of_b_alone_are_those_of_hooks(module, examples, by_hooks):
    for name, parameter in module.named_parameters():
        if ".lora_A." in name:
            parameter.requires_grad_(False)
    found, expected = row_gradients(module, examples[:9]), by_hooks(row_gradients, module, examples[:9])
    assert len(found) == NUM_LAYERS
    assert_close(found, expected)
    assert not any(parameter.requires_grad for name, parameter in module.named_parameters() if ".lora_A." in name)


def test_curvature_is_that_of_hooks(module, examples, by_hooks):
    """Eigenvectors of nearly equal eigenvalues turn freely: what the basis does to gradients is compared."""
    rows = row_gradients(module, examples[:6])
    found, expected = fit(module, examples), by_hooks(fit, module, examples)
    for site in sites(module):
        one, other = (basis[site.name].precondition(rows[site.name]) for basis in (found, expected))
        assert torch.allclose(one, other, rtol=1e-2, atol=2e-3 * float(other.abs().max()))


def test_scores_of_an_index_are_those_of_hooks(module, examples, by_hooks, tmp_path):
    scores = []
    for name, call in (("steps", lambda function, *a: function(*a)), ("hooks", by_hooks)):
        index = call(build_index, module, examples[:40], examples[40:], tmp_path / name, "digest")
        scores.append(index.score(index.query_vectors(module, examples[:8])))
    assert np.abs(scores[0] - scores[1]).max() < 1e-3 * np.abs(scores[1]).max()


def test_what_follows_a_layer_may_work_in_place(by_hooks):
    torch.manual_seed(2)
    layers = torch.nn.Linear(3, 5), torch.nn.ReLU(inplace=True), torch.nn.Linear(5, 2)
    config = LoraConfig(r=2, target_modules=["0", "2"], init_lora_weights=False)
    module = get_peft_model(torch.nn.Sequential(*layers), config).eval()
    points = [Point(point) for point in torch.randn(4, 3)]
    assert len(lora_layers(module)) == 2
    assert_close(row_gradients(module, points, Squares()), by_hooks(row_gradients, module, points, Squares()))


class Squares:
    def losses(self, module, examples):
        return module(torch.stack([example.point for example in examples])).square().sum(dim=1)


@dataclass(frozen=True)
class Point:
    point: torch.Tensor
    row_id = "p"


def test_a_pass_leaves_the_layers_as_they_were(module, examples):
    before = module(torch.tensor([examples[0].ids])).logits
    row_gradients(module, examples[:4])
    assert not any("forward" in vars(own.layer) for own in lora_layers(module))
    assert torch.equal(module(torch.tensor([examples[0].ids])).logits, before)


def test_a_pass_that_fails_leaves_them_too(module):
    with pytest.raises(AttributeError):
        row_gradients(module, [object(), object()])
    assert not any("forward" in vars(own.layer) for own in lora_layers(module))
    assert all(parameter.requires_grad for name, parameter in module.named_parameters() if ".lora_" in name)


@pytest.mark.parametrize("what", ["dropout", "two adapters", "DoRA", "merged", "disabled"])
def test_a_layer_that_does_more_is_hooked(base, what):
    options = {"dropout": {"lora_dropout": 0.5}, "DoRA": {"use_dora": True}}.get(what, {})
    config = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM", **options)
    module = get_peft_model(load_model(base), config).train()
    if what == "two adapters":
        module.add_adapter("other", config)
        module.base_model.set_adapter(["default", "other"])
    if what == "merged":
        module.merge_adapter()
    if what == "disabled":
        module.base_model.disable_adapter_layers()
    assert lora_layers(module) == []


def test_dropout_that_is_off_is_no_hindrance(base):
    config = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM", lora_dropout=0.5)
    assert len(lora_layers(get_peft_model(load_model(base), config).eval())) == NUM_LAYERS


def test_layers_of_several_precisions_are_hooked(module):
    for own in lora_layers(module)[:3]:
        own.layer.base_layer.to(torch.bfloat16)
    assert len(lora_layers(module)) == NUM_LAYERS - 3
