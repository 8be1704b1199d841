"""Which rows repeat an earlier row of their own contributor's, seen by what they would teach: such rows aren't paid.

    a_i = Lambda^-1/2 Q^T g_i              g_i: gradient of row i's loss where the run begins, in EK-FAC's basis there
    likeness of i and j = cos(a_i, a_j)

    row i repeats row j    j is the likest of its contributor's earlier rows, and the likeness is above theta_c
    theta_c                the lesser of two medians of theta_cpq over the pairs (p, q) of other contributors: each pair
                           counted once, and counted by its pairs of rows; LEAST_MILLI to MOST_MILLI
    theta_cpq              the likeness that no more than 2 alpha / n_c of the pairs of a row of p's and one of q's
                           exceed; n_c: the contributor's rows

So a contributor whose rows are no more alike than strangers' loses about a part alpha of them, however many he brings:
the more rows, the nearer is each one's likest by chance. Nobody's own rows raise his theta, nor does one name more: the
medians stand until more than half of the pairs are raised, of contributors and of rows. Where there are fewer than
FEWEST others theta is the least. "Earlier" is by row id: of rows that repeat each other one is paid, and which one
makes no difference to him.

Words find copies of text (`datanets.clusters`); this finds what has no words, or other ones. It sees nothing across
contributors: whose row was first an index doesn't know.

Gradients are compared by a count sketch of SKETCH numbers (Charikar et al., 2002), whose cosines err by about 0.015: so
likeness takes 8 kB a row, and pairs of rows are compared in blocks, the strangers' between STRANGERS rows at most.
At LoRA's start B is zero, and so are A's gradients: they, and what EK-FAC would make of them, aren't computed.

Shapes: R rows, S of them that are compared with strangers', C contributors of these, P pairs of contributors, B rows of
a batch, K the sketch.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from openledger.adapters.base_model import BaseModel, load_model
from openledger.attribution.ekfac import Eigenbasis, fit
from openledger.attribution.gradients import Site, row_gradients, sites
from openledger.attribution.index import batches
from openledger.core.errors import Corrupt
from openledger.core.files import read_document, write_json_durably
from openledger.core.hashing import digest_json
from openledger.training.lora import attach_lora
from openledger.training.recipe import generator
from openledger.training.record import load_run, run_start
from openledger.training.task import LANGUAGE, Task, Trainable, trainable_parameters

RULE = "likeness/1"
FORMAT = "openledger.repeats/1"
LEAST_MILLI = 800
MOST_MILLI = 950
FEWEST = 3
ALPHA_PPM = 20_000
SKETCH = 4096
STRANGERS = 2048
_BLOCK = 1024

Sketches = npt.NDArray[np.float16]
Float = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Repeat:
    """A row that repeats `earlier`, one of the same contributor's; `likeness_milli` is their cosine in thousandths."""

    row_id: str
    earlier: str
    likeness_milli: int


def find_repeats(module: Any, examples: Sequence[Trainable], task: Task = LANGUAGE) -> tuple[Repeat, ...]:
    """The repeats among `examples` by row id; `module` stands where the run begins. Raises as `ekfac.fit`."""
    ordered = sorted(examples, key=lambda example: example.row_id)
    return repeats_among(
        [example.row_id for example in ordered],
        [example.contributor_id for example in ordered],
        sketches(module, ordered, task),
    )


def repeats_among(
    row_ids: Sequence[str], contributors: Sequence[str], sketches_RK: npt.NDArray[Any]
) -> tuple[Repeat, ...]:
    """As the module says, of sketches of length one (or zero, which are alike to nothing), in the order of the rows."""
    by_contributor: defaultdict[str, list[int]] = defaultdict(list)
    for number, name in enumerate(contributors):
        by_contributor[name].append(number)
    strangers = _strangers(contributors, sketches_RK)
    found = []
    for name, numbers in by_contributor.items():
        least_milli = strangers.threshold_milli(name, len(numbers))
        for place, (earlier, likeness) in enumerate(_likest_earlier(sketches_RK[numbers])):
            if (milli := min(1000, round(1000 * likeness))) > least_milli:
                found.append((numbers[place], numbers[earlier], milli))
    return tuple(
        Repeat(row_id=row_ids[row], earlier=row_ids[earlier], likeness_milli=milli)
        for row, earlier, milli in sorted(found)
    )


def sketches(module: Any, examples: Sequence[Trainable], task: Task = LANGUAGE) -> Sketches:
    """a of the module's formula for each example, sketched and of length one: [R, K]."""
    with _without_idle(module):
        return _sketches(module, examples, task)


def _sketches(module: Any, examples: Sequence[Trainable], task: Task) -> Sketches:
    basis, all_sites = fit(module, examples, task=task), sites(module)
    found_RK = np.zeros((len(examples), SKETCH), np.float16)
    hashes = {site.name: _hash(site) for site in all_sites}
    for numbers in batches(examples, sum(site.size for site in all_sites)):
        gradients = row_gradients(module, [examples[number] for number in numbers], task, all_sites)
        sketch_BK = torch.zeros(len(numbers), SKETCH)
        for site in all_sites:
            place_P, sign_P = hashes[site.name]
            whitened_BP = _whitened(basis[site.name], gradients[site.name].cpu()).flatten(1)
            sketch_BK.index_add_(1, place_P, whitened_BP * sign_P)
        found_RK[numbers] = torch.nn.functional.normalize(sketch_BK, dim=1).numpy()
    return found_RK


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


def build_repeats(base: BaseModel, adapter: Path, trained: Sequence[Trainable], folder: Path) -> tuple[Repeat, ...]:
    """Those of a recorded adapter's rows, written to the folder of its index, or found there. Raises NotFound where the
    run has no record, and as `find_repeats`."""
    if (known := load_repeats(folder)) is not None:
        return known
    record = load_run(adapter)
    module = attach_lora(load_model(base), record.recipe, record.initial, run_start(adapter, record)).eval()
    found = find_repeats(module, trained)
    save_repeats(folder, found)
    return found


def save_repeats(folder: Path, found: Sequence[Repeat]) -> None:
    rows = [list(astuple(repeat)) for repeat in found]
    write_json_durably(_path(folder), {"format": FORMAT, "rule": RULE, "rows": rows, "digest": digest_json(rows)})


def load_repeats(folder: Path) -> tuple[Repeat, ...] | None:
    """What `build_repeats` wrote; None where it never did, as in indexes built before. Raises Corrupt
    (`corrupt_repeats`)."""
    if not _path(folder).exists():
        return None

    def parse(values: dict[str, Any]) -> tuple[Repeat, ...]:
        if digest_json(values["rows"]) != values["digest"] or values["rule"] != RULE:
            raise ValueError("it was changed")
        return tuple(
            Repeat(row_id=row_id, earlier=earlier, likeness_milli=milli) for row_id, earlier, milli in values["rows"]
        )

    return read_document(
        _path(folder),
        FORMAT,
        parse,
        lambda reason: Corrupt(
            f"the list of repeated rows at {_path(folder)} can't be read: {reason}",
            code="corrupt_repeats",
            param=str(folder),
            fix="remove the file and build the index again: it is made from the adapter and its rows",
        ),
    )


def likeness_stated(repeats: Sequence[Repeat] | None) -> str:
    """What scores say of it: the rule and how many rows it found, or that it was not measured."""
    return "unmeasured" if repeats is None else f"{RULE} {len(repeats)}"


def _path(folder: Path) -> Path:
    return folder / "repeats.json"


def _hash(site: Site) -> tuple[torch.Tensor, torch.Tensor]:
    """For each of the site's numbers its place in the sketch, and its sign there."""
    random = generator(RULE, f"{site.name} {site.outputs} {site.inputs}")
    place_P = torch.from_numpy(random.integers(0, SKETCH, site.size))
    return place_P, torch.from_numpy(2 * random.integers(0, 2, site.size) - 1).float()


def _whitened(own: Eigenbasis, gradient_BSL: torch.Tensor) -> torch.Tensor:
    return own.rotate(gradient_BSL) / own.curvature_SL.sqrt()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Strangers:
    """Of rows that are evenly spaced: whose they are, and how many each contributor has. Of pairs of contributors with
    rows that are more alike than the least: who they are, and where in `likenesses` theirs are, falling."""

    names: Sequence[str]
    sizes_C: Integers
    one_P: Integers
    other_P: Integers
    start_P: Integers
    number_P: Integers
    likenesses: Float

    def threshold_milli(self, name: str, num_rows: int) -> int:
        """theta of the contributor with `num_rows`, in thousandths."""
        others_C = np.array([other != name for other in self.names])
        sizes = self.sizes_C[others_C]
        if len(sizes) < FEWEST:
            return LEAST_MILLI
        rows_P = self.sizes_C[self.one_P] * self.sizes_C[self.other_P]
        allowed_P = 2 * ALPHA_PPM * rows_P // (10**6 * num_rows)
        raised_P = others_C[self.one_P] & others_C[self.other_P] & (allowed_P < self.number_P)
        theta, weight = self.likenesses[(self.start_P + allowed_P)[raised_P]], rows_P[raised_P]
        num_pairs = len(sizes) * (len(sizes) - 1) // 2
        num_row_pairs = int(sizes.sum() ** 2 - (sizes**2).sum()) // 2
        median = min(_median(theta, np.ones_like(weight), num_pairs), _median(theta, weight, num_row_pairs))
        return min(MOST_MILLI, max(LEAST_MILLI, round(1000 * median)))


def _median(values: Float, weights: Integers, total: int) -> float:
    """Of numbers that weigh `total`, of which those not among `values` are less; 0 where it is one of them."""
    falling = np.argsort(-values, kind="stable")
    place = int(np.searchsorted(2 * np.cumsum(weights[falling]), total, side="right"))
    return float(values[falling[place]]) if place < len(falling) else 0.0


def _strangers(contributors: Sequence[str], sketches_RK: npt.NDArray[Any]) -> _Strangers:
    chosen = np.arange(0, len(contributors), -(-max(1, len(contributors)) // STRANGERS))
    whose = [contributors[row] for row in chosen.tolist()]
    names = sorted(set(whose))
    number = {name: place for place, name in enumerate(names)}
    name_S = np.array([number[name] for name in whose], dtype=np.int64)
    codes, found = [np.zeros(0, np.int64)], [np.zeros(0, np.float32)]
    for rows, others, products in _products(sketches_RK[chosen]):
        one, other = name_S[rows][:, None], name_S[others][None, :]
        pairs = (one != other) & (products > LEAST_MILLI / 1000)
        if rows == others:
            pairs &= np.tri(len(products), k=-1, dtype=bool)
        codes.append((np.minimum(one, other) * len(names) + np.maximum(one, other))[pairs])
        found.append(products[pairs])
    code, likeness = np.concatenate(codes), np.concatenate(found)
    order = np.lexsort((-likeness, code))
    code_P, start_P, number_P = np.unique(code[order], return_index=True, return_counts=True)
    return _Strangers(
        names=names,
        sizes_C=np.bincount(name_S, minlength=len(names)),
        one_P=code_P // len(names),
        other_P=code_P % len(names),
        start_P=start_P,
        number_P=number_P,
        likenesses=likeness[order],
    )


def _likest_earlier(sketches_RK: npt.NDArray[Any]) -> list[tuple[int, float]]:
    """For each row the number of the likest row before it, and their likeness; (0, 0.0) for the first."""
    number_R, likeness_R = np.zeros(len(sketches_RK), int), np.zeros(len(sketches_RK), np.float32)
    for rows, others, products in _products(sketches_RK):
        if rows == others:
            products = np.where(np.tri(len(products), k=-1, dtype=bool), products, -1.0)
        best_R = products.argmax(axis=1)
        most_R = products[np.arange(len(products)), best_R]
        better_R = most_R > likeness_R[rows]
        likeness_R[rows] = np.where(better_R, most_R, likeness_R[rows])
        number_R[rows] = np.where(better_R, best_R + others.start, number_R[rows])
    return list(zip(number_R.tolist(), likeness_R.tolist(), strict=True))


def _products(sketches_RK: npt.NDArray[Any]) -> Iterator[tuple[slice, slice, Float]]:
    """(rows, the same or earlier rows, their products), block by block."""
    blocks = [slice(at, min(at + _BLOCK, len(sketches_RK))) for at in range(0, len(sketches_RK), _BLOCK)]
    for place, rows in enumerate(blocks):
        own = sketches_RK[rows].astype(np.float32)
        for others in blocks[: place + 1]:
            yield rows, others, own @ sketches_RK[others].astype(np.float32).T
