"""What each adapter of an ensemble is sold for."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openledger.platform.ensembles import shares_of

WEIGHTS = st.lists(st.floats(0.0009765625, 16), min_size=1, max_size=8)


@pytest.mark.parametrize(
    ("weights", "shares"),
    [
        ([0.75, 0.25], [Fraction(3, 4), Fraction(1, 4)]),
        ([0.25, 0.125], [Fraction(2, 3), Fraction(1, 3)]),
        ([0.5], [1]),
        ([1.5, 0.5], [1, Fraction(1, 2)]),
    ],
)
def test_weights_divide_a_price_and_never_less_than_one(weights: list[float], shares: list[Fraction]) -> None:
    assert shares_of(weights) == shares


@given(WEIGHTS, st.floats(0.0009765625, 16))
def test_another_adapter_makes_none_cheaper_than_its_weight(weights: list[float], other: float) -> None:
    """Else one that costs nothing and does nothing would be added to each request."""
    shares = shares_of([*weights, other])
    assert all(share >= min(1, Fraction(weight)) for share, weight in zip(shares, weights, strict=False))


@given(WEIGHTS)
def test_an_ensemble_costs_at_least_one_answer_and_no_adapter_more_than_alone(weights: list[float]) -> None:
    shares = shares_of(weights)
    assert sum(shares) >= 1
    assert max(shares) <= 1
