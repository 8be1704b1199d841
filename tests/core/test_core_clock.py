"""Spans of time as people read them."""

import pytest

from openledger.core.clock import format_span


@pytest.mark.parametrize(
    ("span_ms", "told"),
    [
        (0, "0 s"),
        (999, "0 s"),
        (61_000, "1 min 1 s"),
        (3_600_000, "1 h 0 min"),
        (93_784_000, "1 d 2 h"),
        (59_000, "59 s"),
    ],
)
def test_a_span_has_its_two_largest_units(span_ms: int, told: str) -> None:
    assert format_span(span_ms) == told
