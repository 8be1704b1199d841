"""Canonical JSON: one byte string for one value, and no floats."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openledger.core.errors import InvalidInput
from openledger.core.hashing import canonical_json, digest_bytes, digest_file, digest_json, digest_tree

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(exclude_categories=("Cs",))),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("abc", max_size=3), inner, max_size=4),
)


@given(values)
def test_canonical_json_reads_back_and_encodes_again_to_the_same_bytes(value):
    data = canonical_json(value)
    assert json.loads(data) == value
    assert canonical_json(json.loads(data)) == data


def test_the_order_of_keys_does_not_matter():
    assert canonical_json({"b": 1, "a": [2, "é"]}) == '{"a":[2,"é"],"b":1}'.encode()


@pytest.mark.parametrize("value", [1.0, [1, {"a": 0.5}], float("nan"), {1: 2}, {"a": object()}, b"x", "\ud800"])
def test_what_has_no_canonical_form_is_refused(value):
    with pytest.raises(InvalidInput) as caught:
        canonical_json(value)
    assert caught.value.code == "not_canonical"


def test_a_digest_is_sha256_in_hex(tmp_path):
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    (tmp_path / "abc").write_bytes(b"abc")
    assert digest_bytes(b"abc") == known
    assert digest_file(tmp_path / "abc") == known
    assert digest_json({"a": 1}) == digest_bytes(b'{"a":1}')


def test_a_tree_digest_covers_names_and_contents(tmp_path):
    (tmp_path / "a").write_text("1")
    first = digest_tree(tmp_path)
    (tmp_path / "a").rename(tmp_path / "b")
    renamed = digest_tree(tmp_path)
    (tmp_path / "b").write_text("2")
    assert len({first, renamed, digest_tree(tmp_path)}) == 3
