"""The index actors that measure adapters: one for each base, started when the first adapter of it is measured.

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
        self._hosts: dict[BaseModel, Any] = {}

    def of(self, base_digest: str) -> Any:
        """Raises NotFound (`base_not_named`)."""
        base = self._bases.get(base_digest)
        if base is None:
            names = ", ".join(dict.fromkeys(each.name for each in self._bases.values()))
            raise NotFound(
                f"an adapter of the base model {base_digest[:12]} answered, and only {names} can be measured here",
                code="base_not_named",
                param="further_base",
                fix="name its base with --further-base and settle again; nothing was paid",
            )
        if base not in self._hosts:
            self._hosts[base] = self._start(base, 0 if self._hosts else 1)
        return self._hosts[base]

    def end(self) -> None:
        for host in self._hosts.values():
            ray.kill(host)
        self._hosts.clear()
