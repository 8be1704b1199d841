"""Ids: sortable by time, derivable from content, safe as names."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openledger.core.errors import InvalidInput
from openledger.core.ids import check_name, derived_id, new_id

times = st.integers(0, 2**48 - 1)


@given(times, times)
def test_ids_of_later_milliseconds_sort_later(one, other):
    low, high = sorted((one, other))
    if low != high:
        assert new_id("ans", low) < new_id("ans", high)


def test_fresh_ids_of_one_millisecond_differ():
    assert len({new_id("ans", 5) for _ in range(1000)}) == 1000


@given(st.lists(st.text(max_size=4), max_size=4), st.lists(st.text(max_size=4), max_size=4))
def test_derived_ids_are_equal_just_where_their_parts_are(one, other):
    assert (derived_id("x", *one) == derived_id("x", *other)) == (one == other)


@given(times.filter(bool), times.filter(bool))
def test_derived_ids_with_a_time_sort_by_it(one, other):
    low, high = sorted((one, other))
    if low != high:
        assert derived_id("x", "b", time_ms=low) < derived_id("x", "a", time_ms=high)


@pytest.mark.parametrize("name", ["py-docs", "a", "0.1_x", "a" * 128])
def test_a_good_name_is_given_back(name):
    assert check_name(name, "datanet") == name


@pytest.mark.parametrize("name", ["", "A", "../x", "a..b", "-a", "a/b", "a b", "a\n", "a" * 129, "ü"])
def test_a_bad_name_is_refused_by_param(name):
    with pytest.raises(InvalidInput) as caught:
        check_name(name, "datanet")
    assert (caught.value.code, caught.value.param) == ("invalid_name", "datanet")
