"""Where a row lives: rendezvous hashing (Thaler and Ravishankar, 1998) of its id over the shards.

A shard more or less moves only the rows it gains or loses, one in n on average; all others stay.
"""

import hashlib

from openledger.core.errors import invariant


def shard_of(row_id: str, num_shards: int) -> int:
    """The number, from 0, of the shard that wins the highest hash for `row_id`."""
    invariant(num_shards > 0, "rows need a shard to live in")
    return max(range(num_shards), key=lambda number: _score(row_id, number))


def _score(row_id: str, number: int) -> bytes:
    return hashlib.blake2b(f"{number}:{row_id}".encode(), digest_size=8).digest()
