"""Which replica answers under which adapter, so that each adapter is loaded in few places and no place has too much.

Rendezvous hashing (Thaler and Ravishankar, 1998): replica r scores hash(r, digest), and the best `num_homes` replicas
are the adapter's homes. One home for most; as many as its part of the traffic needs for a hot one:
num_homes = ceil(replicas * heat / total heat), at most `max_homes`. When a replica comes or goes, only the adapters
that it wins or loses move. A replica that has over `bound` times the mean load is passed by (consistent hashing with
bounded loads, Mirrokni et al., 2018). What replicas tell of themselves corrects this: one that holds the adapter
already goes before one that would have to load it, and work that waits there counts as load. A replica that has an
adapter merged goes first for that one, and last for all others as long as it has half of the mean load.

The cost of a choice depends on the number of replicas, never on that of adapters. Plain: knows no Ray.
"""

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from openledger.openlora.residency import Heat

_KEPT_HEATS = 1024
_TAG_HEX = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutingOptions:
    """`tokens_per_request` is what queued prompt tokens count for, in requests."""

    max_homes: int = 8
    bound: float = 1.25
    slack: float = 2.0
    tokens_per_request: float = 512.0
    half_life_s: float = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaState:
    """What a replica told last. `resident` are tags of digests, see `tag`; `merged` is that of the one it has merged, 0
    where there is none."""

    resident: frozenset[int] = frozenset()
    queued_tokens: float = 0.0
    merged: int = 0


@dataclass(slots=True)
class Homes:
    """Chooses replicas. `now_s` is a monotonic clock."""

    now_s: Callable[[], float]
    options: RoutingOptions = field(default_factory=RoutingOptions)
    _states: dict[str, ReplicaState] = field(default_factory=dict)
    _heat: Heat = field(init=False)
    _total: Heat = field(init=False)

    def __post_init__(self) -> None:
        self._heat = Heat(_KEPT_HEATS, self.now_s, self.options.half_life_s)
        self._total = Heat(1, self.now_s, self.options.half_life_s)

    def update(self, states: Mapping[str, ReplicaState]) -> None:
        """The replicas there are now, and what they tell."""
        self._states = dict(states)

    def count(self, digest: str) -> None:
        """A request for an adapter came."""
        self._heat.add(digest)
        self._total.add("")

    def num_homes(self, digest: str, num_replicas: int, mean_load: float) -> int:
        """One where replicas have next to nothing to do: a second copy of an adapter would buy nobody anything."""
        if mean_load < 1:
            return 1
        total = self._total.of("")
        part = self._heat.of(digest) / total if total else 0.0
        return max(1, min(self.options.max_homes, num_replicas, math.ceil(part * num_replicas)))

    def homes(self, digest: str, replicas: Sequence[str]) -> list[str]:
        """All `replicas`, the adapter's homes first and the others in the order in which they would become it."""
        return sorted(replicas, key=lambda replica: _score(replica, digest), reverse=True)

    def rank(self, digest: str, requests: Mapping[str, float]) -> list[list[str]]:
        """Replicas to try, best rank first, and within a rank the least loaded first. `requests` has, for each replica
        that may be asked, how many it has now."""
        loads = {replica: self._load(replica, number) for replica, number in requests.items()}
        if len(loads) < 2:
            return [_by_load(loads, loads)]
        mean_load = sum(loads.values()) / len(loads)
        limit = self.options.bound * mean_load + self.options.slack
        own = tag(digest)
        closed = {each for each in loads if self._state(each).merged not in (0, own) and 2 * loads[each] >= mean_load}
        if len(closed) == len(loads):  # one is for all others, so that the rest stay with what they have merged
            closed.remove(min(closed, key=lambda replica: _score(replica, "")))
        order = self.homes(digest, [each for each in loads if each not in closed])
        homes = order[: self.num_homes(digest, len(order), mean_load)]
        light = [replica for replica in order if loads[replica] <= limit]
        if not digest:
            return _without_repeats((_by_load(light, loads), _by_load(loads, loads)))
        holding = [replica for replica in light if own in self._state(replica).resident]
        at_home = [replica for replica in light if replica in homes]
        ranks = (
            _by_load([replica for replica in light if own and self._state(replica).merged == own], loads),
            _by_load([replica for replica in at_home if replica in holding], loads),
            _by_load(at_home, loads),
            _by_load(holding, loads),
            *([replica] for replica in light),
            _by_load(loads, loads),
        )
        return _without_repeats(ranks)

    def _load(self, replica: str, num_requests: float) -> float:
        return num_requests + self._state(replica).queued_tokens / self.options.tokens_per_request

    def _state(self, replica: str) -> ReplicaState:
        return self._states.get(replica, _UNKNOWN)


def tag(digest: str) -> int:
    """32 bits of a digest: enough to tell a replica's few residents apart, and to send them every few seconds."""
    try:
        return int(digest[:_TAG_HEX], 16)
    except ValueError:
        return 0


def routing_stats(resident: Iterable[str], load: Mapping[str, float], merged: str = "") -> dict[str, Any]:
    """What a replica tells the routers."""
    return {
        "resident": [tag(digest) for digest in resident],
        "queued_tokens": load.get("queued_tokens", 0.0),
        "merged": tag(merged),
    }


def replica_state(stats: Mapping[str, Any]) -> ReplicaState:
    """`routing_stats` as they arrive; empty before the first."""
    return ReplicaState(
        resident=frozenset(stats.get("resident", ())),
        queued_tokens=float(stats.get("queued_tokens", 0.0)),
        merged=int(stats.get("merged", 0)),
    )


_UNKNOWN = ReplicaState()


def _score(replica: str, digest: str) -> bytes:
    return hashlib.blake2b(digest.encode(), key=hashlib.blake2b(replica.encode(), digest_size=16).digest()).digest()


def _by_load(replicas: Iterable[str], loads: Mapping[str, float]) -> list[str]:
    return sorted(replicas, key=loads.__getitem__)


def _without_repeats(ranks: Iterable[Sequence[str]]) -> list[list[str]]:
    seen: set[str] = set()
    told = []
    for rank in ranks:
        fresh = [replica for replica in rank if replica not in seen]
        seen.update(fresh)
        if fresh:
            told.append(fresh)
    return told
