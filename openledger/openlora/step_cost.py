"""How many adapters may be in one step.

An adapter costs a step the reading of its weights, the base costs

    t_base = max(bytes_base / bandwidth, rows * flops_base / speed)

and the cap is the number of adapters whose reading takes `share` of t_base. Bandwidth and speed are measured, on as
many threads as torch has.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

_READ_BYTES, _SQUARE = 1 << 26, 512


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCost:
    """What one step reads and computes of the base, and how fast the machine does either."""

    base_bytes: float
    base_flops_per_row: float
    bytes_per_s: float
    flops_per_s: float

    def base_s(self, num_rows: int) -> float:
        return max(self.base_bytes / self.bytes_per_s, num_rows * self.base_flops_per_row / self.flops_per_s)

    def max_distinct(self, num_rows: int, adapter_bytes: float, share: float) -> int:
        """How many distinct adapters a step of `num_rows` may hold; at least one."""
        if not adapter_bytes:
            return num_rows
        return max(1, min(num_rows, int(share * self.base_s(num_rows) * self.bytes_per_s / adapter_bytes)))


def measure_step_cost(base_folder: Path) -> StepCost:
    """For the base in `base_folder`, in the precision in which it is stored; takes some 50 ms."""
    base_bytes = sum(path.stat().st_size for path in base_folder.glob("*.safetensors"))
    bytes_per_s, flops_per_s = measure_machine()
    return StepCost(
        base_bytes=base_bytes, base_flops_per_row=base_bytes / 2, bytes_per_s=bytes_per_s, flops_per_s=flops_per_s
    )


def measure_machine() -> tuple[float, float]:
    """Bytes read and operations done a second, the best of three: other work on the machine only ever slows."""
    memory, square = torch.ones(_READ_BYTES // 4), torch.ones(_SQUARE, _SQUARE)
    read_s = min(_seconds(memory.sum) for _ in range(3))
    product_s = min(_seconds(lambda: square @ square) for _ in range(3))
    return _READ_BYTES / read_s, 2 * _SQUARE**3 / product_s


def _seconds(function: Callable[[], object]) -> float:
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin
