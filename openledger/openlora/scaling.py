"""How many replicas there should be, from what waits in them and how full they are. Plain: Serve hands in its context.

wanted = max(queued tokens / target_queued_tokens, sum of busy / target_busy), each summed over replicas. Up at once,
as waiting people feel it; down by one at a time and only when a quarter less would do, or replicas come and go with
every lull.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

SCALE_DOWN_BELOW = 0.75


def wanted_replicas(
    current: int, stats: Iterable[Mapping[str, float]], *, target_queued_tokens: float, target_busy: float
) -> int:
    """`stats` are those of each replica: `queued_tokens`, `busy` (requests in the engine over its batch) and `kv`
    (of its memory for keys and values, the part in use)."""
    told = list(stats)
    queued = sum(one.get("queued_tokens", 0.0) for one in told)
    busy = sum(max(one.get("busy", 0.0), one.get("kv", 0.0)) for one in told)
    need = max(queued / target_queued_tokens, busy / target_busy)
    if need > current:
        return math.ceil(need)
    return current - 1 if current > 1 and need < SCALE_DOWN_BELOW * (current - 1) else current


class TokenPressure:
    """A Serve autoscaling policy: `AutoscalingPolicy(policy_function="openledger.openlora.scaling:TokenPressure",
    policy_kwargs={...})`."""

    def __init__(self, target_queued_tokens: float = 4096.0, target_busy: float = 0.8):
        self._target_queued_tokens, self._target_busy = target_queued_tokens, target_busy

    def __call__(self, context: Any) -> tuple[int, dict[str, Any]]:
        by_metric = context.aggregated_metrics or {}
        replicas = {replica for values in by_metric.values() for replica in values}
        stats = [{name: values.get(replica, 0.0) for name, values in by_metric.items()} for replica in replicas]
        current = max(1, context.target_num_replicas)
        wanted = wanted_replicas(
            current, stats, target_queued_tokens=self._target_queued_tokens, target_busy=self._target_busy
        )
        return max(context.capacity_adjusted_min_replicas, min(wanted, context.capacity_adjusted_max_replicas)), {}
