"""What rows would teach where a run begins, small enough to compare all of them.

    a_i = Lambda^-1/2 Q^T g_i              g_i: gradient of row i's loss where the run begins, in EK-FAC's basis there
    likeness of i and j = cos(a_i, a_j)

Gradients are compared by a count sketch of SKETCH numbers (Charikar et al., 2002), whose cosines err by about 0.015. A
sketch is 8 kB, and a row of a run that knows the order of credit has two, one in each basis. At LoRA's start B is zero,
and so are A's gradients: they, and what EK-FAC would make of them, aren't computed. Every rule of likeness compares
such sketches; on which rows its basis is fitted, it says itself.

Shapes: R rows, B rows of a batch, P numbers of a site, K the sketch.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from openledger.attribution.ekfac import Basis, Damping, Eigenbasis, fit
from openledger.attribution.gradients import Site, row_gradients, sites
from openledger.attribution.index import batches
from openledger.training.recipe import generator
from openledger.training.task import LANGUAGE, Task, Trainable, trainable_parameters

SKETCH = 4096
# Rules of likeness are published: their basis stays as it is, whatever the index's becomes.
FIT_ROWS = 64  # of the first two rules
DAMPING = Damping(least=0.01, unseen=0.0)
_HASHED_BY = "likeness/1"  # of the first rule, whose sketches all later ones took over
Sketches = npt.NDArray[np.float16]


def fit_places(num_rows: int) -> Sequence[int]:
    """Which of so many rows the first rules' basis is fitted on."""
    return range(0, num_rows, max(1, -(-num_rows // FIT_ROWS)))


def sketches_by(
    module: Any, examples: Sequence[Trainable], fitted: Sequence[Sequence[int]], task: Task = LANGUAGE
) -> list[Sketches]:
    """Those in each basis, all by the same gradients; `fitted` are the places of the examples that it is fitted on."""
    chosen, bases = [tuple(places) for places in fitted], dict[tuple[int, ...], Basis]()
    with _without_idle(module):
        for places in dict.fromkeys(chosen):
            rows = [examples[place] for place in places]
            bases[places] = fit(module, rows, task=task, fit_rows=max(1, len(places)), damping=DAMPING)
        found = dict(zip(bases, _sketches(list(bases.values()), module, examples, task), strict=True))
    return [found[places] for places in chosen]


def _sketches(bases: Sequence[Basis], module: Any, examples: Sequence[Trainable], task: Task) -> list[Sketches]:
    all_sites = sites(module)
    found = [np.zeros((len(examples), SKETCH), np.float16) for _ in bases]
    hashes = {site.name: _hash(site) for site in all_sites}
    for numbers in batches(examples, sum(site.size for site in all_sites)):
        gradients = row_gradients(module, [examples[number] for number in numbers], task, all_sites)
        for found_RK, basis in zip(found, bases, strict=True):
            sketch_BK = torch.zeros(len(numbers), SKETCH)
            for site in all_sites:
                place_P, sign_P = hashes[site.name]
                whitened_BP = _whitened(basis[site.name], gradients[site.name].cpu()).flatten(1)
                sketch_BK.index_add_(1, place_P, whitened_BP * sign_P)
            found_RK[numbers] = torch.nn.functional.normalize(sketch_BK, dim=1).numpy()
    return found


@contextmanager
def _without_idle(module: Any) -> Iterator[None]:
    """While open, no A of LoRA's takes gradients whose B is zero: they would be zero."""
    parameters = trainable_parameters(module)
    pairs = [(own, parameters.get(name.replace(".lora_A.", ".lora_B."))) for name, own in parameters.items()]
    idle = [own for own, other in pairs if other is not None and other is not own and not other.any()]
    for own in idle:
        own.requires_grad_(False)
    try:
        yield
    finally:
        for own in idle:
            own.requires_grad_(True)


def _hash(site: Site) -> tuple[torch.Tensor, torch.Tensor]:
    """For each of the site's numbers its place in the sketch, and its sign there."""
    random = generator(_HASHED_BY, f"{site.name} {site.outputs} {site.inputs}")
    place_P = torch.from_numpy(random.integers(0, SKETCH, site.size))
    return place_P, torch.from_numpy(2 * random.integers(0, 2, site.size) - 1).float()


def _whitened(own: Eigenbasis, gradient_BSL: torch.Tensor) -> torch.Tensor:
    return own.rotate(gradient_BSL) / own.curvature_SL.sqrt()
