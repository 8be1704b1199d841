"""The economy's unit of account: the parameters it starts with, and that all it tells and takes is written in it."""

from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from typing import Any, Protocol, TypeVar

from openledger.core.money import OPEN, Unit, showing
from openledger.economy.parameters import PRESETS, Parameters
from openledger.economy.port import LedgerPort
from openledger.ledger.register import place_id
from openledger.ledger.units import UNITS


class InUnit(Protocol):
    def unit(self) -> Unit: ...


Kind = TypeVar("Kind", bound=type[InUnit])


def unit_of(ledger: LedgerPort) -> Unit:
    """What its log states first, or OPEN."""
    first = ledger.find(place_id(0))
    statement = {} if first is None else ledger.batch(first.seq).statement or {}
    return Unit(name=statement["unit"]) if statement.get("format") in UNITS else OPEN


def parameters_in(unit: Unit) -> Parameters:
    """The defaults, with as many whole units as they have OPEN; the least fee is the smallest part of either."""
    start = Parameters()
    if unit == OPEN:
        return start
    amounts = {name: value for name, value in start.values.items() if name.endswith("_nano") and value}
    scaled: dict[str, Any] = {name: unit.as_many(value) for name, value in amounts.items()}
    return replace(start, **scaled)


def presets_in(unit: Unit) -> dict[str, dict[str, int]]:
    """`PRESETS`, with as many whole units as they have OPEN."""
    return {
        preset: {name: unit.as_many(value) if name.endswith("_nano") else value for name, value in values.items()}
        for preset, values in PRESETS.items()
    }


def told_in_its_unit(kind: Kind) -> Kind:
    """Amounts in what public methods of `kind` say and refuse are of the unit that its `unit()` gives."""
    for name in dir(kind):
        method = getattr(kind, name)
        if callable(method) and not name.startswith("_") and name != "unit":
            setattr(kind, name, _showing(method))
    return kind


def _showing(method: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(method)
    def shown(self: InUnit, *given: Any, **named: Any) -> Any:
        with showing(self.unit()):
            return method(self, *given, **named)

    return shown
