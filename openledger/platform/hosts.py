"""The index actor that measures adapters, of one base after another.

The last base's ends before the next one's starts, so that no more than one is in memory, however many bases there are.
They are asked one after another, so only the first takes a processor from what else the cluster has to do. Each takes
of a GPU what the recipe of the adapters that it measures says: adapters that ask for another part have another actor.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import ray

from openledger.adapters.base_model import BaseModel
from openledger.adapters.card import AdapterCard
from openledger.attribution.actor import start_index_host
from openledger.core.errors import NotFound, Unavailable


@dataclass(frozen=True, slots=True, kw_only=True)
class HostNeeds:
    """What an adapter is measured by: an actor of its base (by digest; empty where nobody knows it), with so much of a
    GPU."""

    base_digest: str = ""
    num_gpus: float = 0.0


HostOf = Callable[[HostNeeds], Any]  # the index actor that has it


def gpus_of(cards: Iterable[AdapterCard | None]) -> float:
    """The most that any of the adapters' recipes says. A merge's, and one of before, say nothing."""
    return max([float(card.recipe.get("num_gpus", 0.0)) for card in cards if card is not None], default=0.0)


class IndexHosts:
    """Of `bases`. The first measures adapters of which no base is known, too. `num_gpus` is in the place of what
    recipes say, where it is given."""

    def __init__(
        self,
        bases: Sequence[BaseModel],
        start: Callable[[BaseModel, float, float], Any] = start_index_host,
        *,
        num_gpus: float | None = None,
    ):
        self._bases = {"": bases[0], **{base.digest: base for base in bases}}
        self._start, self._num_gpus = start, num_gpus
        self._host: tuple[tuple[BaseModel, float], Any] | None = None
        self._refused: dict[tuple[BaseModel, float], Unavailable] = {}
        self._num_cpus = 1.0

    def of(self, needs: HostNeeds) -> Any:
        """The actor; the last one ends, where that was another. Raises NotFound (`base_not_named`), and Unavailable
        (`no_gpu`, `gpu_busy`) where it got no GPU. That is waited for once: who asks again is refused at once."""
        base_digest, num_gpus = needs.base_digest, needs.num_gpus if self._num_gpus is None else self._num_gpus
        base = self._bases.get(base_digest)
        if base is None:
            names = ", ".join(dict.fromkeys(each.name for each in self._bases.values()))
            raise NotFound(
                f"an adapter of the base model {base_digest[:12]} answered, and only {names} can be measured here",
                code="base_not_named",
                param="further_base",
                fix="name its base with --further-base and settle again; nothing was paid",
            )
        key = base, num_gpus
        if key in self._refused:
            raise self._refused[key]
        if self._host is None or self._host[0] != key:
            self.end()
            try:
                self._host = (key, self._start(base, self._num_cpus, num_gpus))
            except Unavailable as error:
                self._refused[key] = error
                raise
            self._num_cpus = 0.0
        return self._host[1]

    def end(self) -> None:
        """The next one that is asked for is started anew; also where this one died by itself."""
        if self._host is not None:
            ray.kill(self._host[1])
            self._host = None
