"""Which rows repeat an earlier row, seen by what they would teach: such rows aren't paid.

    a_i = Lambda^-1/2 Q^T g_i              g_i: gradient of row i's loss where the run begins, in EK-FAC's basis there
    likeness of i and j = cos(a_i, a_j)

    likeness/1   row i repeats row j: j is the likest of its contributor's own earlier rows, and the likeness is above
                 theta_c; n_c are the contributor's rows
    likeness/2   row i repeats row j: j is the likest of anybody's earlier rows, and the likeness is above theta

    theta_cpq    the likeness that no more than 2 alpha / n_c of the pairs of a row of p's and one of q's exceed, for
                 each pair (p, q) of other contributors
    theta_c      the lesser of two medians of theta_cpq, each pair counted once, and by its pairs of rows
    theta_g      the likeness to the likest earlier row of a stranger's that no more than alpha of the rows of group g
                 exceed, or one row of them where alpha of them is less
    theta        the median of theta_g, each group counted by its rows; both thetas from LEAST_MILLI to MOST_MILLI

The more rows, the nearer is each one's likest by chance. Theta follows: half of the rows belong to groups of which
alpha are named, whatever the number of rows and of contributors. A group is a contributor of GROUP rows or more; who
has fewer stands with others whom a hash puts beside him. Of fewer than SMALL rows theta is the least: chance is rare.

What later rows are like moves no theta_g of earlier ones. To move theta one needs weight: half of all rows to have it
wherever one wants, and less than that moves it no further than from one honest group's to another's. But names are
free: who divides many repeats over names of fewer than GROUP rows puts some in most groups, theta rises until the
median group has no more of them than alpha, and those below it are paid. So rows that are more alike than MOST_MILLI
are never paid, however they are divided, and others up to the point where honest rows would be taken for them.

By likeness/1 nobody's own rows move his theta, nor does one name more, of however many rows; with fewer than FEWEST
others theta_c is the least.

"Earlier" is by the order of credit (`datanets.versions`), which the run's record has. What has none, as runs of before
or of rows that belong to no Datanet, is judged by likeness/1: there "earlier" is by row id, since of one's own
rows that repeat each other one is paid, and which one makes no difference to him. Both lists are kept: which one a
period goes by, its rule of shares says.

The list is of the rows that were trained on and were there when it was made. A row that is withdrawn later stays in it
as long as the adapter does; of an adapter that wasn't trained on it, the earliest of the rows alike is paid.

Words find copies of text (`datanets.clusters`); this finds what has no words, or other ones.

Gradients are compared by a count sketch of SKETCH numbers (Charikar et al., 2002), whose cosines err by about 0.015: so
likeness takes 8 kB a row, and pairs of rows are compared in blocks, the strangers' between STRANGERS rows at most.
At LoRA's start B is zero, and so are A's gradients: they, and what EK-FAC would make of them, aren't computed.

Shapes: R rows, S of them that are compared with strangers' by likeness/1, C contributors of these, P pairs of
contributors, B rows of a batch, K the sketch.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
from openledger.core.errors import Corrupt, InvalidInput
from openledger.core.files import read_document, write_json_durably
from openledger.core.hashing import digest_json
from openledger.training.lora import attach_lora
from openledger.training.recipe import generator
from openledger.training.record import load_run, run_start
from openledger.training.task import LANGUAGE, Task, Trainable, trainable_parameters

OWN_RULE = "likeness/1"
RULE = "likeness/2"
FORMAT_1 = "openledger.repeats/1"  # one list, by likeness/1
FORMAT = "openledger.repeats/2"
LEAST_MILLI = 800
MOST_MILLI = 950
FEWEST = 3
GROUP = 25
SMALL = 100
ALPHA_PPM = 20_000
SKETCH = 4096
STRANGERS = 2048
_BLOCK = 1024

Sketches = npt.NDArray[np.float16]
Float = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]
Found = tuple[int, int, int]  # a row's number, the earlier one's, their likeness in thousandths


@dataclass(frozen=True, slots=True, kw_only=True)
class Repeat:
    """A row that repeats `earlier`, one of `contributor_id`'s; `likeness_milli` is their cosine in thousandths. The
    contributor is empty in lists of before, which have none but the row's own."""

    row_id: str
    earlier: str
    likeness_milli: int
    contributor_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Repeats:
    """The repeats among one run's rows: `own` by likeness/1; `anybodys` by likeness/2, None where nobody knows the
    order of credit, of which `credit_root` is the root."""

    own: tuple[Repeat, ...]
    anybodys: tuple[Repeat, ...] | None = None
    credit_root: str = ""

    def listed(self, *, of_others: bool) -> tuple[str, tuple[Repeat, ...]]:
        """The list that counts, with its rule: likeness/2 if rows that repeat others' are to count, and are known."""
        if of_others and self.anybodys is not None:
            return RULE, self.anybodys
        return OWN_RULE, self.own


def find_repeats(
    module: Any,
    examples: Sequence[Trainable],
    task: Task = LANGUAGE,
    *,
    credit: Mapping[str, int] | None = None,
    credit_root: str = "",
) -> Repeats:
    """The repeats among `examples`; `module` stands where the run begins, `credit` is each row's place in the order of
    credit (`RunRecord.places`). Raises as `ekfac.fit`, and InvalidInput (`unknown_credit`) for a row without a place.
    """
    ordered = sorted(examples, key=lambda example: example.row_id)
    places = None if credit is None else [_place(credit, example.row_id) for example in ordered]
    return repeats_among(
        [example.row_id for example in ordered],
        [example.contributor_id for example in ordered],
        sketches(module, ordered, task),
        places,
        credit_root=credit_root,
    )


def repeats_among(
    row_ids: Sequence[str],
    contributors: Sequence[str],
    sketches_RK: npt.NDArray[Any],
    places: Sequence[int] | None = None,
    *,
    credit_root: str = "",
) -> Repeats:
    """As the module says, of sketches of length one (or zero, which are alike to nothing), in the order of row ids."""

    def named(found: Iterable[Found]) -> tuple[Repeat, ...]:
        return tuple(
            Repeat(
                row_id=row_ids[row],
                earlier=row_ids[earlier],
                likeness_milli=milli,
                contributor_id=contributors[earlier],
            )
            for row, earlier, milli in sorted(found)
        )

    return Repeats(
        own=named(_of_own(contributors, sketches_RK)),
        anybodys=None if places is None else named(_of_anybody(contributors, sketches_RK, places)),
        credit_root=credit_root,
    )


def _of_own(contributors: Sequence[str], sketches_RK: npt.NDArray[Any]) -> Iterator[Found]:
    """By likeness/1."""
    strangers = _strangers(contributors, sketches_RK)
    by_contributor: defaultdict[str, list[int]] = defaultdict(list)
    for number, name in enumerate(contributors):
        by_contributor[name].append(number)
    for name, numbers in by_contributor.items():
        theta_milli = strangers.theta_milli(name, len(numbers))
        for place, (earlier, milli) in enumerate(_likest_earlier(sketches_RK[numbers])):
            if milli > theta_milli:
                yield numbers[place], numbers[earlier], milli


def _of_anybody(contributors: Sequence[str], sketches_RK: npt.NDArray[Any], places: Sequence[int]) -> Iterator[Found]:
    """By likeness/2."""
    order = np.argsort(np.asarray(places), kind="stable").tolist()
    whose, sorted_RK = [contributors[row] for row in order], sketches_RK[order]
    name_R = np.unique(whose, return_inverse=True)[1]
    anybodys, strangers = _Likest.of(len(order)), _Likest.of(len(order))
    for rows, others, products in _earlier_products(sorted_RK):
        anybodys.see(rows, others, products)
        strangers.see(rows, others, np.where(name_R[rows][:, None] == name_R[others], -1.0, products))
    theta = theta_milli(whose, [milli for _, milli in strangers.found()])
    for row, (earlier, milli) in enumerate(anybodys.found()):
        if milli > theta:
            yield order[row], order[earlier], milli


def theta_milli(contributors: Sequence[str], strangers_milli: Sequence[int]) -> int:
    """Theta of likeness/2, of rows' contributors and how alike each row is to the likest earlier one of a stranger's,
    in thousandths."""
    if len(contributors) < SMALL:
        return LEAST_MILLI
    by_name: defaultdict[str, list[int]] = defaultdict(list)
    for name, milli in zip(contributors, strangers_milli, strict=True):
        by_name[name].append(milli)
    each = sorted((_theta_of(group), len(group)) for group in _groups(by_name))
    weights = np.cumsum([weight for _, weight in each])
    median = each[int(np.searchsorted(2 * weights, len(contributors)))][0]
    return min(MOST_MILLI, max(LEAST_MILLI, median))


def _groups(by_name: Mapping[str, list[int]]) -> list[list[int]]:
    groups, small = [some for some in by_name.values() if len(some) >= GROUP], list[int]()
    for name in sorted(by_name, key=digest_json):
        if len(by_name[name]) < GROUP:
            small = small + by_name[name]
            if len(small) >= GROUP:
                groups.append(small)
                small = []
    if groups:
        groups[-1] = groups[-1] + small  # too few for a group of their own
    return groups


def _theta_of(group: Sequence[int]) -> int:
    falling, num_allowed = sorted(group, reverse=True), max(1, ALPHA_PPM * len(group) // 10**6)
    return falling[num_allowed] if num_allowed < len(group) else 0


def _place(credit: Mapping[str, int], row_id: str) -> int:
    if row_id not in credit:
        raise InvalidInput(
            f"nobody knows the place of {row_id} in the order of credit",
            code="unknown_credit",
            param="credit",
            fix="give the places of all rows, as the run's record has them, or none",
        )
    return credit[row_id]


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


def build_repeats(base: BaseModel, adapter: Path, trained: Sequence[Trainable], folder: Path) -> Repeats:
    """Those of a recorded adapter's rows, written to the folder of its index, or found there. Raises NotFound where the
    run has no record, and as `find_repeats`."""
    if (known := load_repeats(folder)) is not None:
        return known
    record = load_run(adapter)
    module = attach_lora(load_model(base), record.recipe, record.initial, run_start(adapter, record)).eval()
    found = find_repeats(module, trained, credit=record.places, credit_root=record.credit_root)
    save_repeats(folder, found)
    return found


def save_repeats(folder: Path, found: Repeats) -> None:
    lists = {
        rule: [list(astuple(repeat)) for repeat in rows]
        for rule, rows in ((OWN_RULE, found.own), (RULE, found.anybodys))
        if rows is not None
    }
    told = {"lists": lists, "credit_root": found.credit_root}
    write_json_durably(_path(folder), {"format": FORMAT, **told, "digest": digest_json(told)})


def load_repeats(folder: Path) -> Repeats | None:
    """What `build_repeats` wrote; None where it never did, as in indexes built before. Raises Corrupt
    (`corrupt_repeats`)."""
    if not _path(folder).exists():
        return None

    def refused(reason: str) -> Corrupt:
        return Corrupt(
            f"the list of repeated rows at {_path(folder)} can't be read: {reason}",
            code="corrupt_repeats",
            param=str(folder),
            fix="remove the file and build the index again: it is made from the adapter and its rows",
        )

    return read_document(_path(folder), (FORMAT, FORMAT_1), _parsed, refused)


def _parsed(values: dict[str, Any]) -> Repeats:
    told = {name: value for name, value in values.items() if name != "digest"}
    if told.keys() == {"rule", "rows"} and told["rule"] == OWN_RULE:  # as FORMAT_1 has it
        told = {"lists": {OWN_RULE: told["rows"]}}
        if digest_json(values["rows"]) != values["digest"]:
            raise ValueError("it was changed")
    elif told.keys() != {"lists", "credit_root"} or digest_json(told) != values["digest"]:
        raise ValueError("it was changed")
    lists = {rule: tuple(_repeat(*row) for row in rows) for rule, rows in told["lists"].items()}
    return Repeats(own=lists[OWN_RULE], anybodys=lists.get(RULE), credit_root=told.get("credit_root", ""))


def _repeat(row_id: str, earlier: str, likeness_milli: int, contributor_id: str = "") -> Repeat:
    return Repeat(row_id=row_id, earlier=earlier, likeness_milli=likeness_milli, contributor_id=contributor_id)


def likeness_stated(rule: str, rows: Sequence[Repeat]) -> str:
    """What scores say of it: the rule, and how many rows it found."""
    return f"{rule} {len(rows)}"


def _path(folder: Path) -> Path:
    return folder / "repeats.json"


def _hash(site: Site) -> tuple[torch.Tensor, torch.Tensor]:
    """For each of the site's numbers its place in the sketch, and its sign there."""
    random = generator(OWN_RULE, f"{site.name} {site.outputs} {site.inputs}")
    place_P = torch.from_numpy(random.integers(0, SKETCH, site.size))
    return place_P, torch.from_numpy(2 * random.integers(0, 2, site.size) - 1).float()


def _whitened(own: Eigenbasis, gradient_BSL: torch.Tensor) -> torch.Tensor:
    return own.rotate(gradient_BSL) / own.curvature_SL.sqrt()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Strangers:
    """Of rows that are evenly spaced: whose they are, and how many each contributor has. Of pairs of contributors with
    rows that are more alike than LEAST_MILLI: who they are, and where in `likenesses` theirs are, falling."""

    names: Sequence[str]
    sizes_C: Integers
    one_P: Integers
    other_P: Integers
    start_P: Integers
    number_P: Integers
    likenesses: Float

    def theta_milli(self, name: str, num_rows: int) -> int:
        """theta_c of the contributor, in thousandths, `num_rows` being n_c."""
        sizes = self._others(name)
        theta_P, fewer_P, more_P = self._above(name, num_rows)
        once = _median(theta_P, np.ones_like(fewer_P), len(sizes) * (len(sizes) - 1) // 2)
        by_rows = _median(theta_P, fewer_P * more_P, int(sizes.sum() ** 2 - (sizes**2).sum()) // 2)
        return _bounded(min(once, by_rows), sizes)

    def _others(self, name: str) -> Integers:
        """How many rows each has, the most first."""
        return np.sort(self.sizes_C[[other != name for other in self.names]])[::-1]

    def _above(self, name: str, num_rows: int) -> tuple[Float, Integers, Integers]:
        """theta_cpq of the pairs of others of which it is above LEAST_MILLI, and the rows of either's, the fewer
        first."""
        one_P, other_P = self.sizes_C[self.one_P], self.sizes_C[self.other_P]
        allowed_P = 2 * ALPHA_PPM * one_P * other_P // (10**6 * num_rows)
        others_C = np.array([other != name for other in self.names])
        above_P = others_C[self.one_P] & others_C[self.other_P] & (allowed_P < self.number_P)
        theta_P = self.likenesses[(self.start_P + allowed_P)[above_P]]
        return theta_P, np.minimum(one_P, other_P)[above_P], np.maximum(one_P, other_P)[above_P]


def _bounded(median: float, sizes: Integers) -> int:
    if len(sizes) < FEWEST:
        return LEAST_MILLI
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


def _likest_earlier(sketches_RK: npt.NDArray[Any]) -> list[tuple[int, int]]:
    """As `_Likest.found`, of all earlier rows."""
    likest = _Likest.of(len(sketches_RK))
    for rows, others, products in _earlier_products(sketches_RK):
        likest.see(rows, others, products)
    return likest.found()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Likest:
    """For each row the likest earlier one of those that were seen: its number, and their likeness."""

    number_R: Integers
    likeness_R: Float

    @classmethod
    def of(cls, num_rows: int) -> "_Likest":
        return cls(number_R=np.zeros(num_rows, np.int64), likeness_R=np.zeros(num_rows, np.float32))

    def see(self, rows: slice, others: slice, products: Float) -> None:
        """Of `others` those count whose product is above 0."""
        best_R = products.argmax(axis=1)
        most_R = products[np.arange(len(products)), best_R]
        better_R = most_R > self.likeness_R[rows]
        self.likeness_R[rows] = np.where(better_R, most_R, self.likeness_R[rows])
        self.number_R[rows] = np.where(better_R, best_R + others.start, self.number_R[rows])

    def found(self) -> list[tuple[int, int]]:
        """Likenesses in thousandths; (0, 0) where there is none."""
        milli = [min(1000, round(1000 * likeness)) for likeness in self.likeness_R.tolist()]
        return list(zip(self.number_R.tolist(), milli, strict=True))


def _earlier_products(sketches_RK: npt.NDArray[Any]) -> Iterator[tuple[slice, slice, Float]]:
    """As `_products`; -1 where the other row isn't earlier."""
    for rows, others, products in _products(sketches_RK):
        if rows == others:
            products = np.where(np.tri(len(products), k=-1, dtype=bool), products, -1.0)
        yield rows, others, products


def _products(sketches_RK: npt.NDArray[Any]) -> Iterator[tuple[slice, slice, Float]]:
    """(rows, the same or earlier rows, their products), block by block."""
    blocks = [slice(at, min(at + _BLOCK, len(sketches_RK))) for at in range(0, len(sketches_RK), _BLOCK)]
    for place, rows in enumerate(blocks):
        own = sketches_RK[rows].astype(np.float32)
        for others in blocks[: place + 1]:
            yield rows, others, own @ sketches_RK[others].astype(np.float32).T
