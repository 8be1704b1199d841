"""The attributable recipe, and its public constant: what it takes, and what moves it."""

import json

import pytest

from openledger.core.errors import InvalidInput
from openledger.training.recipe import Recipe, public_constant, recipe_from, row_root_constant

NONCES = ("0a" * 32, "0b" * 32)
CONSTANT = public_constant("base", "py", 1, NONCES)


@pytest.mark.parametrize(
    "other",
    [
        ("other", "py", 1, NONCES),
        ("base", "tables", 1, NONCES),
        ("base", "py", 2, NONCES),
        ("base", "py", 1, (NONCES[0], "0c" * 32)),
        ("base", "py", 1, ("0c" * 32, NONCES[1])),
        ("base", "py", 1, NONCES[::-1]),
        ("base", "py", 1, (*NONCES, "0c" * 32)),
    ],
)
def test_base_datanet_version_and_each_nonce_move_the_constant(other):
    assert public_constant(*other) != CONSTANT


def test_the_constant_is_the_same_for_everyone_who_computes_it():
    assert public_constant("base", "py", 1, list(NONCES)) == CONSTANT
    assert CONSTANT == "f1bf77f0cf72004c1498d3410dca3772038c10167e0bde7f39de5e693983d78a"


@pytest.mark.parametrize("nonces", [(), NONCES[:1], (NONCES[0], ""), "root"])
def test_an_owner_without_a_witness_has_no_constant(nonces):
    with pytest.raises(InvalidInput) as caught:
        public_constant("base", "py", 1, nonces)
    assert caught.value.code == "no_nonces"


def test_the_constant_without_nonces_is_another_one_and_follows_the_row_root():
    without = {row_root_constant("base", "py", 1, root) for root in ("aa", "bb")}
    assert len(without | {CONSTANT}) == 3


def test_the_default_recipe_is_the_attributable_one():
    """An adapter's digest follows from it: another default would train other adapters under the same settings."""
    recipe = Recipe()
    assert (recipe.learning_rate, recipe.beta1, recipe.beta2, recipe.eps_root) == (3e-3, 0.9, 0.99, 1e-8)
    assert (recipe.batch_rows, recipe.num_epochs, recipe.length_pool, recipe.threads) == (16, 6, 1, 1)


def test_a_recipe_names_its_gpus_where_it_asks_for_any():
    """Digests of recipes stand in records, cards and the log: those without a GPU stay what they were."""
    assert "num_gpus" not in Recipe().to_dict()
    assert [json.dumps(Recipe(num_gpus=one).to_dict()["num_gpus"]) for one in (1, 1.0)] == ["1.0", "1.0"]
    asked = Recipe(num_gpus=0.5)
    assert asked.to_dict()["num_gpus"] == 0.5
    assert recipe_from(asked.to_dict()) == asked
    assert recipe_from(Recipe().to_dict()) == Recipe()
