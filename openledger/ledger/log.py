"""The verifiable log: an RFC 9162 tree of batches over stored node hashes. Knows no storage: nodes are read by call.

A leaf is canonical JSON of {seq, time_ms, num_transfers, transfers_root, statement_digest}. `transfers_root` is the
root of a second tree over the canonical transfers of the batch, so each transfer is provable at the price of one leaf
for each batch; `num_transfers` stands beside it because a root alone doesn't fix the size of its tree.

A batch that came as packed records has `packed_root` in place of `transfers_root`: the root over chunks of its records
(see `packed`).

Node (level, position) is the hash of the full subtree over leaves [position x 2^level, (position + 1) x 2^level).
Opening a log of any size reads at most one node for each set bit of its size.
"""

from collections.abc import Callable, Sequence
from typing import Any

from openledger.core import merkle
from openledger.core.hashing import canonical_json, digest_json
from openledger.ledger.packed import RECORD_BYTES, packed_root
from openledger.ledger.transfers import Batch, Transfer, transfer_bytes

ReadNode = Callable[[int, int], bytes]
Node = tuple[int, int, bytes]


def leaf_of(batch: Batch) -> dict[str, Any]:
    """The leaf that commits to a batch. Digests in hex; the digest of no statement is empty."""
    if batch.packed:
        return packed_leaf(batch.seq, batch.time_ms, batch.packed)
    return leaf_over(batch, [transfer_bytes(transfer) for transfer in batch.transfers])


def leaf_over(batch: Batch, texts: Sequence[bytes]) -> dict[str, Any]:
    """`leaf_of` a batch that isn't packed, where the `transfer_bytes` of its transfers are at hand."""
    return {
        "seq": batch.seq,
        "time_ms": batch.time_ms,
        "num_transfers": len(batch.transfers),
        "transfers_root": merkle.root([merkle.leaf_hash(text) for text in texts]).hex(),
        "statement_digest": "" if batch.statement is None else digest_json(batch.statement),
    }


def packed_leaf(seq: int, time_ms: int, data: bytes) -> dict[str, Any]:
    """The leaf of a batch of packed records, which states nothing else."""
    return {
        "seq": seq,
        "time_ms": time_ms,
        "num_transfers": len(data) // RECORD_BYTES,
        "packed_root": packed_root(data).hex(),
        "statement_digest": "",
    }


def leaf_hash(leaf: dict[str, Any]) -> bytes:
    return merkle.leaf_hash(canonical_json(leaf))


def transfer_hashes(transfers: Sequence[Transfer]) -> list[bytes]:
    return [merkle.leaf_hash(transfer_bytes(transfer)) for transfer in transfers]


def nodes_after_append(size: int, leaf: bytes, read: ReadNode) -> list[Node]:
    """The nodes that become full when the leaf hash `leaf` joins a log of `size`, lowest level first."""
    level, position, value = 0, size, leaf
    nodes = [(level, position, value)]
    while position & 1:
        value = merkle.node_hash(read(level, position - 1), value)
        level, position = level + 1, position >> 1
        nodes.append((level, position, value))
    return nodes


def root(size: int, read: ReadNode) -> bytes:
    return _range_root(0, size, read) if size else merkle.EMPTY_ROOT


def inclusion_path(index: int, size: int, read: ReadNode) -> list[bytes]:
    """RFC 9162 section 2.1.3.1, lowest level first."""
    low, path = 0, []
    while size > 1:
        middle = _split_point(size)
        if index < low + middle:
            path.append(_range_root(low + middle, size - middle, read))
            size = middle
        else:
            path.append(_range_root(low, middle, read))
            low, size = low + middle, size - middle
    return path[::-1]


def consistency_path(old_size: int, size: int, read: ReadNode) -> list[bytes]:
    """RFC 9162 section 2.1.4.1: that the log of `old_size` (at least 1) is a prefix of the log of `size`."""
    low, path, complete = 0, [], True
    while old_size != size:
        middle = _split_point(size)
        if old_size <= middle:
            path.append(_range_root(low + middle, size - middle, read))
            size = middle
        else:
            path.append(_range_root(low, middle, read))
            low, size, old_size, complete = low + middle, size - middle, old_size - middle, False
    return ([] if complete else [_range_root(low, size, read)]) + path[::-1]


def _range_root(low: int, size: int, read: ReadNode) -> bytes:
    if size & (size - 1) == 0:
        level = size.bit_length() - 1
        return read(level, low >> level)
    middle = _split_point(size)
    return merkle.node_hash(_range_root(low, middle, read), _range_root(low + middle, size - middle, read))


def _split_point(size: int) -> int:
    return 1 << ((size - 1).bit_length() - 1)
