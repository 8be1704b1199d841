"""The index actor that measures adapters, of one base after another.

The last base's ends before the next one's starts, so that no more than one is in memory, however many bases there are.
They are asked one after another, so only the first takes a processor from what else the cluster has to do.
"""

from collections.abc import Callable, Sequence
from typing import Any

import ray

from openledger.adapters.base_model import BaseModel
from openledger.attribution.actor import start_index_host
from openledger.core.errors import NotFound

HostOf = Callable[[str], Any]  # the index actor that measures adapters of a base, by the base's digest


class IndexHosts:
    """Of `bases`. The first measures adapters of which no base is known, too."""

    def __init__(self, bases: Sequence[BaseModel], start: Callable[[BaseModel, float], Any] = start_index_host):
        self._bases = {"": bases[0], **{base.digest: base for base in bases}}
        self._start = start
        self._host: tuple[BaseModel, Any] | None = None
        self._num_cpus = 1.0

    def of(self, base_digest: str) -> Any:
        """The actor of the base; the last one's ends, where that was another. Raises NotFound (`base_not_named`)."""
        base = self._bases.get(base_digest)
        if base is None:
            names = ", ".join(dict.fromkeys(each.name for each in self._bases.values()))
            raise NotFound(
                f"an adapter of the base model {base_digest[:12]} answered, and only {names} can be measured here",
                code="base_not_named",
                param="further_base",
                fix="name its base with --further-base and settle again; nothing was paid",
            )
        if self._host is None or self._host[0] != base:
            self.end()
            self._host = (base, self._start(base, self._num_cpus))
            self._num_cpus = 0.0
        return self._host[1]

    def end(self) -> None:
        """The next one that is asked for is started anew; also where this one died by itself."""
        if self._host is not None:
            ray.kill(self._host[1])
            self._host = None
