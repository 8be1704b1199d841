"""The tree over stored nodes agrees with the plain tree of `core.merkle`, at every size."""

import pytest

from openledger.core import merkle
from openledger.core.errors import InvalidInput
from openledger.ledger import log
from openledger.ledger.checkpoints import open_checkpoint

SIZES = range(1, 40)
LEAVES = [merkle.leaf_hash(bytes([number])) for number in SIZES]


def nodes(size):
    stored = {}
    for index, leaf in enumerate(LEAVES[:size]):
        stored.update(
            {(lvl, at): value for lvl, at, value in log.nodes_after_append(index, leaf, lambda *at: stored[at])}
        )
    return lambda level, position: stored[level, position]


@pytest.mark.parametrize("size", SIZES)
def test_roots_agree(size):
    assert log.root(size, nodes(size)) == merkle.root(LEAVES[:size])


@pytest.mark.parametrize("size", SIZES)
def test_inclusion_paths_agree(size):
    read = nodes(size)
    for index in range(size):
        assert log.inclusion_path(index, size, read) == merkle.inclusion_proof(index, LEAVES[:size])


@pytest.mark.parametrize("size", SIZES)
def test_consistency_paths_agree(size):
    read = nodes(size)
    for old in range(1, size + 1):
        assert log.consistency_path(old, size, read) == merkle.consistency_proof(old, LEAVES[:size])


def test_appending_stores_each_full_subtree_once():
    stored = []
    found = {}
    for index, leaf in enumerate(LEAVES[:32]):
        fresh = log.nodes_after_append(index, leaf, lambda *at: found[at])
        found.update({(level, position): value for level, position, value in fresh})
        stored += fresh
    assert len(stored) == len(found) == 63


def test_the_empty_log_has_the_empty_root():
    assert log.root(0, nodes(0)) == merkle.EMPTY_ROOT


def test_a_ledgers_checkpoints_are_consistent_as_it_grows(ledger):
    from ledger_values import move

    key, seen = ledger.verification_key(), []
    for number in range(9):
        ledger.commit([move(f"t{number}", 1)])
        seen.append(open_checkpoint(ledger.checkpoint(), key))
    last = seen[-1]
    for old in seen:
        path = [bytes.fromhex(item) for item in ledger.consistency(old.size)]
        assert merkle.verify_consistency(old.size, last.size, bytes.fromhex(old.root), bytes.fromhex(last.root), path)
    with pytest.raises(InvalidInput):
        ledger.consistency(last.size + 1)
