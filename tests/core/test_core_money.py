"""Money: exact text, and splits that keep the sum."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openledger.core.errors import InvalidInput
from openledger.core.money import OPEN, SUPPLY_NANO, Unit, format_money, format_open, parse_open, showing, split

amounts = st.integers(0, SUPPLY_NANO)
weights = st.dictionaries(st.text(min_size=1, max_size=3), st.integers(0, 10**18), min_size=1, max_size=12)


@given(amounts)
def test_an_amount_reads_back_from_its_text(amount_nano):
    assert parse_open(format_open(amount_nano)) == amount_nano


@pytest.mark.parametrize(
    ("amount_nano", "text"), [(1, "0.000000001"), (1_500_000_000, "1.5"), (-(10**9), "-1"), (0, "0")]
)
def test_amounts_print_exactly(amount_nano, text):
    assert format_open(amount_nano) == text


@pytest.mark.parametrize("text", ["", "-1", "+1", "1e3", "1.", ".5", "0.0000000001", "1,5", "nan", "1000000001"])
def test_what_is_no_amount_is_refused(text):
    with pytest.raises(InvalidInput) as caught:
        parse_open(text)
    assert caught.value.code == "invalid_amount"


@given(amounts, weights.filter(lambda drawn: any(drawn.values())))
def test_a_split_keeps_the_sum_and_stays_within_one_of_the_exact_part(total, drawn):
    parts = split(total, drawn)
    whole = sum(drawn.values())
    assert sum(parts.values()) == total
    assert parts.keys() == drawn.keys()
    assert all(total * drawn[key] // whole <= parts[key] <= total * drawn[key] // whole + 1 for key in drawn)
    assert all(parts[key] == 0 for key in drawn if drawn[key] == 0)


@given(amounts, weights.filter(lambda drawn: any(drawn.values())))
def test_a_split_does_not_depend_on_the_order_of_its_weights(total, drawn):
    assert split(total, dict(reversed(drawn.items()))) == split(total, drawn)


def test_equal_remainders_go_to_the_smaller_id():
    assert split(2, {"c": 1, "a": 1, "b": 1}) == {"a": 1, "b": 1, "c": 0}


@pytest.mark.parametrize(("total", "drawn"), [(-1, {"a": 1}), (1, {"a": -1, "b": 2}), (1, {"a": 0}), (1, {})])
def test_a_split_that_can_not_be_is_refused(total, drawn):
    with pytest.raises(InvalidInput):
        split(total, drawn)


def test_nothing_splits_into_nothing():
    assert split(0, {"a": 0}) == {"a": 0}


@pytest.mark.parametrize(("nano_open", "micro"), [(0, 0), (1, 1), (999, 1), (1000, 1), (200_000, 200), (10**9, 10**6)])
def test_as_many_euros_as_open(nano_open: int, micro: int) -> None:
    assert (Unit(name="EUR").as_many(nano_open), OPEN.as_many(nano_open)) == (micro, nano_open)


def test_a_unit_that_has_to_be_asked_for_is_asked_with_the_first_amount() -> None:
    asked: list[str] = []

    def answer() -> Unit:
        asked.append("unit")
        return Unit(name="EUR")

    with showing(answer):
        assert asked == []
        assert (format_money(1_500_000), parse_open("2")) == ("1.5 EUR", 2_000_000)
    assert (asked, format_money(10**9)) == (["unit", "unit", "unit"], "1 OPEN")
