"""Keys and values of the requests in flight: one contiguous slot of a fixed number of tokens for each.

Owns the memory and its bound: `num_slots * slot_tokens` tokens in every layer, allocated when a layer is first
written; a request that finds no free slot waits outside. Knows nothing of requests.
"""

import heapq

import torch

from openledger.core.errors import invariant


class KeyValueSlots:
    """Per layer keys and values `[num_slots, kv_heads, slot_tokens, head_dim]`; head sizes may differ by layer.

    The lowest free slot is handed out first, so that the slots in use stay close together at the front and a batch
    can be attended to in place.
    """

    def __init__(self, num_slots: int, slot_tokens: int):
        self.num_slots, self.slot_tokens = num_slots, slot_tokens
        self._free = list(range(num_slots))
        self._layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def can_allocate(self) -> bool:
        return bool(self._free)

    def allocate(self) -> int:
        invariant(bool(self._free), "a slot was taken that isn't there")
        return heapq.heappop(self._free)

    def release(self, slot: int, *, wipe: bool = False) -> None:
        """`wipe` after a request whose values were not finite: nothing times NaN is NaN, even under a mask."""
        invariant(0 <= slot < self.num_slots and slot not in self._free, f"slot {slot} was released twice")
        if wipe:
            for keys, values in self._layers.values():
                keys[slot].zero_()
                values[slot].zero_()
        heapq.heappush(self._free, slot)

    def num_free(self) -> int:
        return len(self._free)

    def layer(self, index: int, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Storage of layer `index`, shaped like `key` and `value` `[1, kv_heads, T, head_dim]`."""
        if index not in self._layers:
            self._layers[index] = (self._zeros(key), self._zeros(value))
        return self._layers[index]

    def bytes_per_token(self) -> int:
        """Over all layers written so far."""
        return sum(x.element_size() * x.shape[1] * x.shape[3] for pair in self._layers.values() for x in pair)

    def _zeros(self, like: torch.Tensor) -> torch.Tensor:
        return like.new_zeros(self.num_slots, like.shape[1], self.slot_tokens, like.shape[3])
