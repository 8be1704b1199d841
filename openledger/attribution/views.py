"""An adapter over its base, with the points of its run that its index is measured at."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from openledger.adapters.base_model import BaseModel, load_model
from openledger.attribution.index import standing
from openledger.attribution.index_folder import View
from openledger.core.errors import InvalidInput, NotFound
from openledger.training.lora import load_lora, switch_lora
from openledger.training.record import load_weights


def load_views(base: BaseModel, paths: Sequence[str], device: str = "cpu") -> tuple[Any, list[View]]:
    """The module and a view for each path: a checkpoint in the adapter's folder, or a PEFT folder. Views bear the
    paths' names. Raises NotFound (`missing_index`), InvalidInput without a path."""
    module, views = load_lora(load_model(base).to(device), adapter_folder(paths)), list[View]()
    for path in map(Path, paths):
        if path.is_dir():
            switch_lora(module, path)
            views.append(standing(module, path.name))
        else:
            views.append(View(name=path.stem, weights=load_weights(path)))
    return module, views


def adapter_folder(paths: Sequence[str]) -> Path:
    """A PEFT folder of the shape of all of `paths`. Raises as `load_views`."""
    _check_there(paths)
    first = Path(paths[0])
    return first if first.is_dir() else first.parent.parent


def _check_there(paths: Sequence[str]) -> None:
    if not paths:
        raise InvalidInput("an index is measured at one point of a run at least", code="invalid_view", param="views")
    for path in paths:
        if not Path(path).exists():
            raise NotFound(
                f"the index is measured at {path}, which is gone",
                code="missing_index",
                param=path,
                fix="restore it, or build the index again: jobs/train.py with --datanet and --version of the adapter's"
                " card",
            )
