"""What each adapter of an ensemble is sold for."""

from dataclasses import replace
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import pytest
from economy_values import TERMS
from hypothesis import given
from hypothesis import strategies as st

from openledger.platform.ensembles import ensemble_of

WEIGHTS = st.floats(0.0009765625, 16)


def prices(*members: tuple[int, float]) -> list[int]:
    """What a completion token costs by each of the members of an ensemble, given as (price, weight)."""
    return [part.terms.completion_price_nano for part in parts(*members)]


def parts(*members: tuple[int, float]) -> Any:
    bases: Any = SimpleNamespace(named=lambda model: model, of=lambda adapter: "base")
    adapters: list[Any] = [
        SimpleNamespace(
            name=f"a{number}", digest=f"d{number}", is_base=False, place="/here",
            terms=replace(TERMS, prompt_price_nano=price, completion_price_nano=price),
        )
        for number, (price, _) in enumerate(members)
    ]  # fmt: skip
    weights = (weight for _, weight in members)
    return ensemble_of(bases, "base", list(zip(adapters, weights, strict=True)))[1]


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ((0.75, 0.25), [750_000, 250_000]),
        ((0.1, 0.7), [100_000, 700_000]),  # as they are written, though neither is a binary fraction
        ((0.25, 0.125), [250_000, 125_000]),
        ((0.5,), [500_000]),
        ((1.5, 0.5), [1_000_000, 500_000]),
    ],
)
def test_each_costs_its_weight_of_its_price_and_never_more_than_alone(
    weights: tuple[float, ...], expected: list[int]
) -> None:
    assert prices(*((1_000_000, weight) for weight in weights)) == expected


@given(WEIGHTS, st.lists(st.tuples(st.integers(0, 10**6), WEIGHTS), max_size=7))
def test_no_other_adapter_changes_what_one_costs(weight: float, others: list[tuple[int, float]]) -> None:
    """Else one that costs nothing and does nothing would be added to each request."""
    assert prices((10**6, weight), *others)[0] == prices((10**6, weight))[0]


@given(st.integers(1, 10), WEIGHTS)
def test_a_price_never_becomes_nothing(price: int, weight: float) -> None:
    """In a currency a token costs a few of its smallest parts."""
    (found,) = prices((price, weight))
    share = min(Fraction(1), Fraction(str(weight)))
    assert max(Fraction(1), price * share) <= found <= price


def test_what_is_free_stays_free() -> None:
    assert prices((0, 16.0)) == [0]


def test_weights_reach_the_engine_as_they_are() -> None:
    assert [part.weight for part in parts((1, 0.7), (1, 16.0))] == [0.7, 16.0]
