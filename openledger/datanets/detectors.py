"""Detectors of the installation: what looks at rows beside the gate's own rules, for toxicity, a policy, or personal
data that patterns don't find.

A package that is installed beside this one names them as entry points of the group `openledger.detectors`: the name
is the reason that a row in review is given, the object a function from a `RowDraft` to whether it has found something.
A row's columns and turns stand in its `extra`, which `row_schema.read_extra` reads; a detector that looks at prompt and
completion alone misses what is in the columns. What it says has to depend on the row alone, and the same package has to
be installed wherever rows are judged again.
"""

import re
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from openledger.core.errors import InvalidInput
from openledger.datanets.gate import REASONS, Detectors

GROUP = "openledger.detectors"
_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")


def installed_detectors() -> Detectors:
    """By reason. Raises InvalidInput (`invalid_detector`) for one that can't be loaded or takes the gate's own word: a
    gate that looks less closely than it was told to must not start."""
    return {point.name: _loaded(point) for point in sorted(entry_points(group=GROUP), key=lambda point: point.name)}


def _loaded(point: EntryPoint) -> Any:
    if not _NAME.fullmatch(point.name) or point.name in REASONS:
        raise _invalid(point, "its name is no reason of its own")
    try:
        found = point.load()
    except (ImportError, AttributeError) as error:
        raise _invalid(point, f"it can't be loaded: {error}") from error
    if not callable(found):
        raise _invalid(point, "it is no function")
    return found


def _invalid(point: EntryPoint, problem: str) -> InvalidInput:
    return InvalidInput(
        f"the detector {point.name} ({point.value}): {problem}",
        code="invalid_detector",
        param=GROUP,
        fix="mend the package that names it, or uninstall it",
    )
