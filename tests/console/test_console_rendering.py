"""The filters: money, shares, charts, and values that are not there."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openledger.console.rendering import (
    NOTHING,
    bar_width,
    curve_points,
    format_number,
    format_open,
    format_share,
    format_time,
    is_web_address,
    shorten,
)


@given(st.integers(-(10**18), 10**18))
def test_open_loses_no_nano(amount_nano: int):
    shown = format_open(amount_nano).replace(",", "").replace("−", "-").replace(".", "")
    assert int(shown) == amount_nano


@pytest.mark.parametrize("formatter", [format_open, format_number, format_share, format_time])
@pytest.mark.parametrize("value", [None, "text", True, [], math.nan])
def test_what_is_not_a_number_is_a_dash(formatter, value):
    assert formatter(value) == NOTHING


def test_numbers_are_grouped_and_rounded():
    assert (format_number(1234567), format_number(0.41249)) == ("1,234,567", "0.412")


def test_a_share_is_per_cent():
    assert format_share(288_400_112) == "28.84 %"


def test_time_is_utc():
    assert format_time(1_700_000_123_000) == "2023-11-14 22:15:23 UTC"


@given(st.one_of(st.none(), st.integers(), st.floats()), st.one_of(st.none(), st.integers(), st.floats(0, 1e9)))
def test_a_bar_stays_in_its_box(part, whole):
    assert 0 <= float(bar_width(part, whole)) <= 100


def test_a_bar_is_in_proportion():
    assert (bar_width(1, 4), bar_width(-1, 4), bar_width(9, 4), bar_width(1, 0)) == ("25.00", "25.00", "100.00", "0")


@given(st.lists(st.floats()))
def test_a_curve_stays_in_its_box(values):
    for point in curve_points(values, 240, 48).split():
        x, y = map(float, point.split(","))
        assert 0 <= x <= 240
        assert 0 <= y <= 48


def test_a_curve_of_one_point_or_of_text_is_none():
    assert [curve_points(values) for values in ([1.0], "12", None, [math.nan, 1.0])] == [""] * 4


def test_a_falling_curve_falls():
    assert curve_points([3, 2, 1], 2, 2) == "0.0,0.0 1.0,1.0 2.0,2.0"


def test_long_hashes_are_shortened_and_short_names_are_not():
    assert (shorten("a" * 64), shorten("os-docs"), shorten(None)) == ("a" * 12 + "…", "os-docs", "")


def test_only_http_is_a_web_address():
    assert is_web_address("https://a.example")
    assert not any(map(is_web_address, ("javascript:alert(1)", "data:text/html,x", " http://x", None, 5)))
