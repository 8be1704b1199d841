"""RFC 9162 (and RFC 6962) Merkle trees over SHA-256: roots, inclusion proofs, consistency proofs.

A leaf's hash is SHA-256(0x00 || leaf), a node's SHA-256(0x01 || left || right); the tree over n leaves splits at the
largest power of two smaller than n. Section numbers in the docstrings are RFC 9162's. Values are bytes; callers who
store them choose hex.
"""

import hashlib
from collections.abc import Sequence

EMPTY_ROOT = hashlib.sha256(b"").digest()


def leaf_hash(leaf: bytes) -> bytes:
    return hashlib.sha256(b"\x00" + leaf).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()


def root(leaf_hashes: Sequence[bytes]) -> bytes:
    """Section 2.1.1. The root of the tree over `leaf_hashes`, level by level: a node without a sibling goes up as it
    is, which splits each tree where the recursion does."""
    if not leaf_hashes:
        return EMPTY_ROOT
    level = list(leaf_hashes)
    while len(level) > 1:
        paired = [node_hash(left, right) for left, right in zip(level[::2], level[1::2], strict=False)]
        level = paired + level[len(paired) * 2 :]
    return level[0]


class Frontier:
    """The right edge of a growing tree: O(log n) memory, amortised O(1) hashes for each leaf appended."""

    __slots__ = ("_subtrees", "size")

    def __init__(self) -> None:
        self.size = 0
        self._subtrees: list[bytes] = []  # full subtrees, largest first: one per set bit of `size`

    def append(self, value: bytes) -> None:
        carry, size = value, self.size
        while size & 1:
            carry = node_hash(self._subtrees.pop(), carry)
            size >>= 1
        self._subtrees.append(carry)
        self.size += 1

    def root(self) -> bytes:
        if not self._subtrees:
            return EMPTY_ROOT
        result = self._subtrees[-1]
        for left in reversed(self._subtrees[:-1]):
            result = node_hash(left, result)
        return result


def inclusion_proof(index: int, leaf_hashes: Sequence[bytes]) -> list[bytes]:
    """Section 2.1.3.1. The audit path for leaf `index` in the tree over `leaf_hashes`, lowest level first."""
    if not 0 <= index < len(leaf_hashes):
        raise IndexError(f"leaf {index} of a tree of {len(leaf_hashes)}")
    low, high, path = 0, len(leaf_hashes), []
    while high - low > 1:
        middle = low + _split_point(high - low)
        if index < middle:
            path.append(root(leaf_hashes[middle:high]))
            high = middle
        else:
            path.append(root(leaf_hashes[low:middle]))
            low = middle
    return path[::-1]


def root_from_inclusion(index: int, size: int, leaf: bytes, path: Sequence[bytes]) -> bytes | None:
    """Section 2.1.3.2. The root that `path` leads to from the leaf hash, or None if the path can't be one."""
    if not 0 <= index < size:
        return None
    node, last, result = index, size - 1, leaf
    for sibling in path:
        if last == 0:
            return None
        if node & 1 or node == last:
            result = node_hash(sibling, result)
            while not node & 1 and node:
                node, last = node >> 1, last >> 1
        else:
            result = node_hash(result, sibling)
        node, last = node >> 1, last >> 1
    return result if last == 0 else None


def verify_inclusion(index: int, size: int, leaf: bytes, path: Sequence[bytes], expected_root: bytes) -> bool:
    return root_from_inclusion(index, size, leaf, path) == expected_root


def consistency_proof(old_size: int, leaf_hashes: Sequence[bytes]) -> list[bytes]:
    """Section 2.1.4.1. Proof that the first `old_size` leaves are a prefix of the tree over `leaf_hashes`."""
    if not 0 < old_size <= len(leaf_hashes):
        raise IndexError(f"no tree of {old_size} within one of {len(leaf_hashes)}")
    return _subproof(old_size, leaf_hashes, complete=True)


def verify_consistency(old_size: int, new_size: int, old_root: bytes, new_root: bytes, proof: Sequence[bytes]) -> bool:
    """Section 2.1.4.2."""
    if not 0 < old_size <= new_size:
        return False
    if old_size == new_size:
        return not proof and old_root == new_root
    path = list(proof) if old_size & (old_size - 1) else [old_root, *proof]
    if not path:
        return False
    node, last = old_size - 1, new_size - 1
    while node & 1:
        node, last = node >> 1, last >> 1
    old = new = path[0]
    for sibling in path[1:]:
        if last == 0:
            return False
        if node & 1 or node == last:
            old, new = node_hash(sibling, old), node_hash(sibling, new)
            while not node & 1 and node:
                node, last = node >> 1, last >> 1
        else:
            new = node_hash(new, sibling)
        node, last = node >> 1, last >> 1
    return last == 0 and old == old_root and new == new_root


def _subproof(old_size: int, leaf_hashes: Sequence[bytes], *, complete: bool) -> list[bytes]:
    if old_size == len(leaf_hashes):
        return [] if complete else [root(leaf_hashes)]
    middle = _split_point(len(leaf_hashes))
    if old_size <= middle:
        return [*_subproof(old_size, leaf_hashes[:middle], complete=complete), root(leaf_hashes[middle:])]
    return [*_subproof(old_size - middle, leaf_hashes[middle:], complete=False), root(leaf_hashes[:middle])]


def _split_point(size: int) -> int:
    return 1 << ((size - 1).bit_length() - 1)
