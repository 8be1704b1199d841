"""Who is served next: weighted fair queues by tenant, and within a tenant by adapter, in front of the engine.

Each tenant has a counter of the service it had, in tokens over its weight, and the one with the least is next; so has
each adapter of a tenant. A tenant that comes back from having nothing waiting starts at the least of those who wait, so
that nobody saves up while away (the virtual token counter, Sheng et al., "Fairness in Serving Large Language Models",
2024). A prompt's token counts once and a generated one twice, as there.

Plain and synchronous: knows neither asyncio nor engines.
"""

from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from openledger.core.errors import TooManyRequests

COST_OF_GENERATED = 2.0
_KEPT_COUNTERS = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmissionLimits:
    """`weights` are by tenant, `adapter_weights` by digest; 1 where none is given. A request that has waited
    `patience_s` for its adapter's slot goes before those whose adapters are loaded; one that has not begun after
    `start_within_s` is refused."""

    max_waiting: int = 1024
    max_waiting_per_tenant: int = 256
    patience_s: float = 2.0
    start_within_s: float = 120.0
    weights: Mapping[str, float] = field(default_factory=dict)
    adapter_weights: Mapping[str, float] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True, eq=False)
class Waiting:
    """A request that has yet to be handed to the engine. `num_tokens` are its prompt's."""

    tenant: str
    adapter: str
    num_tokens: int
    since_s: float


class FairQueue:
    def __init__(self, limits: AdmissionLimits):
        self._limits = limits
        self._tenants: dict[str, dict[str, deque[Waiting]]] = {}
        self._service: dict[str, float] = defaultdict(float)
        self._adapter_service: dict[tuple[str, str], float] = defaultdict(float)
        self._num_waiting = 0
        self._num_tokens = 0

    def __len__(self) -> int:
        return self._num_waiting

    @property
    def num_tokens(self) -> int:
        """Prompt tokens that wait: what a replica tells autoscaling and routing of its backlog."""
        return self._num_tokens

    def put(self, waiting: Waiting, retry_after_s: Callable[[], int] = lambda: 1) -> None:
        """Raises TooManyRequests (`queue_full`, `tenant_queue_full`), which says when to try again."""
        adapters = self._tenants.get(waiting.tenant, {})
        if self._num_waiting >= self._limits.max_waiting:
            raise _too_many("queue_full", f"{self._num_waiting} requests are waiting", retry_after_s())
        if sum(map(len, adapters.values())) >= self._limits.max_waiting_per_tenant:
            raise _too_many(
                "tenant_queue_full",
                f"{self._limits.max_waiting_per_tenant} of your requests are waiting",
                retry_after_s(),
            )
        self._wake(waiting.tenant, waiting.adapter)
        self._tenants.setdefault(waiting.tenant, {}).setdefault(waiting.adapter, deque()).append(waiting)
        self._num_waiting += 1
        self._num_tokens += waiting.num_tokens

    def pop(self, can_run: Callable[[str], bool]) -> Waiting | None:
        """The next whose adapter `can_run`; None where there is none. Its prompt is charged."""
        for waiting in self._in_order():
            if can_run(waiting.adapter):
                self.remove(waiting)
                self.charge(waiting.tenant, waiting.adapter, waiting.num_tokens)
                return waiting
        return None

    def remove(self, waiting: Waiting) -> bool:
        """Take out one that waits; False where it doesn't (any more)."""
        adapters = self._tenants.get(waiting.tenant, {})
        queue = adapters.get(waiting.adapter, deque())
        if waiting not in queue:
            return False
        queue.remove(waiting)
        if not queue:
            del adapters[waiting.adapter]
        if not adapters:
            del self._tenants[waiting.tenant]
        self._num_waiting -= 1
        self._num_tokens -= waiting.num_tokens
        return True

    def remove_adapter(self, adapter: str) -> list[Waiting]:
        """Take out all that wait for an adapter: it can't be loaded."""
        found = [waiting for adapters in self._tenants.values() for waiting in adapters.get(adapter, ())]
        for waiting in found:
            self.remove(waiting)
        return found

    def charge(self, tenant: str, adapter: str, num_tokens: float) -> None:
        """Service that a tenant had under an adapter, in prompt tokens."""
        self._service[tenant] += num_tokens / self._limits.weights.get(tenant, 1.0)
        self._adapter_service[tenant, adapter] += num_tokens / self._limits.adapter_weights.get(adapter, 1.0)

    def adapters(self) -> Iterator[Waiting]:
        """The oldest that waits for each adapter, in the order in which they will be served."""
        seen = set()
        for waiting in self._in_order():
            if waiting.adapter not in seen:
                seen.add(waiting.adapter)
                yield waiting

    def _in_order(self) -> Iterator[Waiting]:
        """The first of each tenant's adapters, the least served tenant first and its least served adapter first."""
        for tenant in sorted(self._tenants, key=self._service.__getitem__):
            queues = self._tenants[tenant]
            for adapter in sorted(queues, key=lambda each: self._adapter_service[tenant, each]):
                yield queues[adapter][0]

    def _wake(self, tenant: str, adapter: str) -> None:
        if tenant not in self._tenants:
            least = min((self._service[other] for other in self._tenants), default=0.0)
            self._service[tenant] = max(self._service[tenant], least)
        queues = self._tenants.get(tenant, {})
        if adapter not in queues:
            least = min((self._adapter_service[tenant, other] for other in queues), default=0.0)
            self._adapter_service[tenant, adapter] = max(self._adapter_service[tenant, adapter], least)
        self._forget_idle()

    def _forget_idle(self) -> None:
        """Counters of those who have nothing waiting, once there are many: the least served of them would start at
        the least of the active anyway."""
        if len(self._service) > _KEPT_COUNTERS + len(self._tenants):
            self._service = defaultdict(float, {t: self._service[t] for t in self._tenants})
        if len(self._adapter_service) > _KEPT_COUNTERS + self._num_waiting:
            kept = {(t, a): self._adapter_service[t, a] for t, queues in self._tenants.items() for a in queues}
            self._adapter_service = defaultdict(float, kept)


def _too_many(code: str, message: str, retry_after_s: int) -> TooManyRequests:
    return TooManyRequests(
        message, code=code, fix=f"try again in {retry_after_s} s, as Retry-After says", retry_after_s=retry_after_s
    )
