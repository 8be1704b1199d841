"""Adapters as labels of metrics: a few names for those asked most, one for all the others.

A time series for each of thousands of adapters would cost more than serving them; and a label once given stays in
Prometheus. So at most `max_labels` are ever given by one process, to adapters that were asked `min_uses` times.
"""

from collections import Counter

OTHER, BASE = "other", "base"
_SHORT = 12


class AdapterLabels:
    def __init__(self, max_labels: int = 20, min_uses: int = 50):
        self._max_labels, self._min_uses = max_labels, min_uses
        self._uses: Counter[str] = Counter()
        self._given: dict[str, str] = {}

    def of(self, digest: str) -> str:
        """The label under which a request is counted."""
        if not digest:
            return BASE
        if digest in self._given:
            return self._given[digest]
        if len(self._given) >= self._max_labels:
            return OTHER
        self._uses[digest] += 1
        if len(self._uses) > 64 * self._max_labels:
            self._uses = Counter(dict(self._uses.most_common(32 * self._max_labels)))
        if self._uses[digest] < self._min_uses:
            return OTHER
        del self._uses[digest]
        self._given[digest] = digest[:_SHORT]
        return self._given[digest]
