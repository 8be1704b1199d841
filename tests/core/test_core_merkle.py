"""RFC 6962 / 9162 trees: the vectors of Certificate Transparency, and proofs that hold for every leaf and prefix."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openledger.core import merkle

CT_LEAVES = ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"]
CT_ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
HASHES = [merkle.leaf_hash(bytes.fromhex(leaf)) for leaf in CT_LEAVES]
trees = st.lists(st.binary(max_size=8), min_size=1, max_size=40, unique=True).map(
    lambda leaves: [*map(merkle.leaf_hash, leaves)]
)


def test_the_empty_tree_has_the_hash_of_nothing():
    assert merkle.root([]).hex() == hashlib.sha256(b"").hexdigest()


@pytest.mark.parametrize("size", range(1, 9))
def test_roots_are_those_of_certificate_transparency(size):
    assert merkle.root(HASHES[:size]).hex() == CT_ROOTS[size - 1]


def test_the_audit_path_of_the_first_of_eight_leaves_is_the_known_one():
    path = [item.hex() for item in merkle.inclusion_proof(0, HASHES)]
    assert path == [
        "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
    ]


def test_the_consistency_proof_from_one_to_eight_leaves_is_the_known_one():
    path = [item.hex() for item in merkle.consistency_proof(1, HASHES)]
    assert path == [
        "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
    ]


@given(trees)
def test_every_leaf_is_provable_at_its_own_index_only(leaves):
    root = merkle.root(leaves)
    for index, leaf in enumerate(leaves):
        path = merkle.inclusion_proof(index, leaves)
        held = [at for at in range(-1, len(leaves) + 2) if merkle.verify_inclusion(at, len(leaves), leaf, path, root)]
        assert held == [index]


@given(trees, st.data())
def test_an_inclusion_proof_with_a_changed_part_fails(leaves, data):
    index = data.draw(st.integers(0, len(leaves) - 1))
    path = merkle.inclusion_proof(index, leaves)
    forged = merkle.leaf_hash(b"another leaf, longer than any drawn")
    root = merkle.root(leaves)
    assert not merkle.verify_inclusion(index, len(leaves), forged, path, root)
    assert not merkle.verify_inclusion(index, len(leaves), leaves[index], [*path, forged], root)
    for place in range(len(path)):
        changed = [*path[:place], forged, *path[place + 1 :]]
        assert not merkle.verify_inclusion(index, len(leaves), leaves[index], changed, root)
        assert not merkle.verify_inclusion(index, len(leaves), leaves[index], path[:place], root)


@given(trees)
def test_every_prefix_is_consistent_with_the_whole(leaves):
    root = merkle.root(leaves)
    for old in range(1, len(leaves) + 1):
        proof = merkle.consistency_proof(old, leaves)
        assert merkle.verify_consistency(old, len(leaves), merkle.root(leaves[:old]), root, proof)


@given(trees)
def test_a_rewritten_prefix_is_not_consistent(leaves):
    root, forged = merkle.root(leaves), merkle.leaf_hash(b"another leaf, longer than any drawn")
    for old in range(1, len(leaves) + 1):
        rewritten = merkle.root([forged, *leaves[1:old]])
        proof = merkle.consistency_proof(old, leaves)
        assert not merkle.verify_consistency(old, len(leaves), rewritten, root, proof)


def test_a_proof_for_a_leaf_that_is_not_there_is_refused():
    with pytest.raises(IndexError):
        merkle.inclusion_proof(8, HASHES)
    with pytest.raises(IndexError):
        merkle.consistency_proof(0, HASHES)
