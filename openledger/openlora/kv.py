"""Keys and values of the requests in flight and of prompts seen lately, in blocks of 16 positions.

Owns the memory and its bound, `num_blocks` blocks in every layer, allocated when a layer is first written. A full block
is known by the digest of everything that decided its content: base, adapter, tenant, and all tokens up to its end. So
a block found under a key holds that very state (up to rounding, where steps with merged weights made it), and nobody
finds another tenant's or another adapter's. Blocks that nobody uses keep their content until room is needed, the least
recently used goes first. Knows nothing of requests.
"""

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence

import torch

from openledger.core.errors import invariant
from openledger.openlora.native import BLOCK


def root_key(base_digest: str, adapter_digest: str, tenant: str) -> bytes:
    """What the first block of a prompt hangs from."""
    parts = (part.encode() for part in (base_digest, adapter_digest, tenant))
    return hashlib.sha256(b"".join(len(part).to_bytes(8, "little") + part for part in parts)).digest()


def block_key(before: bytes, token_ids: Sequence[int]) -> bytes:
    return hashlib.sha256(before + array("q", token_ids).tobytes()).digest()


def num_blocks_of(num_tokens: int) -> int:
    return -(-num_tokens // BLOCK)


class KeyValueBlocks:
    """Per layer keys `[num_blocks, G, d, 16]` and values `[num_blocks, G, 16, d]`; head sizes may differ by layer."""

    def __init__(self, num_blocks: int):
        self.num_blocks = num_blocks
        self._empty = list(range(num_blocks - 1, -1, -1))
        self._unused: OrderedDict[int, None] = OrderedDict()  # keep their content; least recently used first
        self._uses = [0] * num_blocks
        self._key_of: dict[int, bytes] = {}
        self._block_of: dict[bytes, int] = {}
        self._layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def num_free(self) -> int:
        return len(self._empty) + len(self._unused)

    def can_allocate(self, count: int) -> bool:
        return count <= self.num_free()

    def allocate(self, count: int) -> list[int]:
        invariant(self.can_allocate(count), "blocks were taken that aren't there")
        return [self._take() for _ in range(count)]

    def release(self, blocks: Iterable[int], *, wipe: bool = False) -> None:
        """`wipe` after a request whose values were not finite: nothing times NaN is NaN, even under a mask."""
        for block in reversed(list(blocks)):  # the end of a prompt is worth less than its beginning
            invariant(self._uses[block] > 0, f"block {block} was released twice")
            self._uses[block] -= 1
            if wipe:
                self._forget(block)
            if self._uses[block] == 0:
                if wipe:
                    self._wipe(block)
                self._set_aside(block)

    def find(self, keys: Iterable[bytes]) -> list[int]:
        """Blocks of the longest beginning of `keys` that is here."""
        found = []
        for key in keys:
            if key not in self._block_of:
                break
            found.append(self._block_of[key])
        return found

    def hold(self, blocks: Iterable[int]) -> None:
        """Use blocks that were found; each is released as often as it is held."""
        for block in blocks:
            self._unused.pop(block, None)
            self._uses[block] += 1

    def publish(self, block: int, key: bytes) -> None:
        """Let others find a full block. The first of two with one content stays."""
        if key not in self._block_of:
            self._block_of[key], self._key_of[block] = block, key

    def num_known(self) -> int:
        """Blocks that can be found."""
        return len(self._block_of)

    def layer(self, index: int, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Storage of layer `index`; `key` and `value` are `[1, G, T, d]`."""
        if index not in self._layers:
            self._layers[index] = (
                key.new_zeros(self.num_blocks, key.shape[1], key.shape[3], BLOCK),
                value.new_zeros(self.num_blocks, value.shape[1], BLOCK, value.shape[3]),
            )
        return self._layers[index]

    def bytes_per_token(self) -> int:
        """Over all layers written so far."""
        return sum(x[0].numel() * x.element_size() for pair in self._layers.values() for x in pair) // BLOCK

    def _take(self) -> int:
        if self._empty:
            block = self._empty.pop()
        else:
            block, _ = self._unused.popitem(last=False)
            self._forget(block)
        self._uses[block] = 1
        return block

    def _set_aside(self, block: int) -> None:
        if block in self._key_of:
            self._unused[block] = None
        else:
            self._empty.append(block)

    def _forget(self, block: int) -> None:
        if (key := self._key_of.pop(block, None)) is not None:
            del self._block_of[key]

    def _wipe(self, block: int) -> None:
        for keys, values in self._layers.values():
            keys[block].zero_()
            values[block].zero_()
