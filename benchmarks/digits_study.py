"""The digits' run, its bank, the trainings that no method saw, and what every method says of the rows.

Members are files under FOLDER, named by what they were trained on; scores are arrays under FOLDER/scores. What is there
is not made again.

    full, twin-N            all rows; where they stood after each epoch is kept
    coalition-NNN           the bank, whose players are contributors; without-NAME its leave-one-out members
    halves-K-ORDER          a random half of the contributors, two orders each
    rows-K-ORDER            a random half of the rows, two orders each
    removed-P-K             the run itself with P % of the rows at weight 0, every batch as it was
    perturbed-BY-K-SIGN     the run itself with every row's weight 1 + SIGN BY u, u drawn from N(0, 1)
    reformed-NAME           the run without a contributor's rows, batches formed anew, from the same order or another

Shapes: M members, R rows, Q queries, V views.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import save_file

from benchmarks import attribution_truth as truth
from benchmarks import digits_task as task
from openledger.attribution.bank import Bank, BankPlan, plan_bank
from openledger.attribution.ekfac import Damping, fit
from openledger.attribution.estimate import contributor_sums
from openledger.attribution.gradients import row_gradients, sites
from openledger.attribution.index import View, build_index
from openledger.attribution.instruments import SCALED_VIEWS, first_half
from openledger.attribution.replay import replay
from openledger.core.hashing import digest_json
from openledger.training.members import Member, Weights
from openledger.training.recipe import generator

Array = npt.NDArray[np.float64]
Membership = npt.NDArray[np.bool_]
DAMPING = Damping(least=0.1, unseen=0.0)  # as kronfluence has it


@dataclass(frozen=True, slots=True)
class Constants:
    initial: str
    order: str


CONSTANTS = Constants(initial=digest_json([task.SEED, "initial"]), order=digest_json([task.SEED, "order"]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How much is trained; a test takes less."""

    contributors: int = 12
    queries: int = task.NUM_QUERIES
    halves: int = 40
    row_halves: int = 30
    removals: int = 36
    coalitions: tuple[int, ...] = (12, 24, 32, 64)
    twins: int = 4
    replayed: int = 25


class Study:
    """One model: with units that have a kink (ReLU), or that are `smooth` (SiLU), as those of language models are."""

    def __init__(self, folder: Path, sizes: Sizes = Sizes(), smooth: bool = False):
        self.folder, self.sizes, self.smooth = folder, sizes, smooth
        self.examples, queries = task.make_examples(sizes.contributors)
        self.queries = queries[: sizes.queries]
        self.who = [example.contributor_id for example in self.examples]
        self.names = sorted(set(self.who))
        self.bank, self.truth = (self.store(f"{name}{sizes.contributors}") for name in ("bank", "truth"))
        self.full = Member(
            name="full", rows=tuple(range(len(self.examples))), initial=CONSTANTS.initial, order=CONSTANTS.order,
            keeps_epochs=True,
        )  # fmt: skip
        self.plan = self.plan_of(max(sizes.coalitions))

    def store(self, name: str) -> Bank:
        identity = digest_json([task.SEED, self.sizes.contributors, *(["smooth"] if self.smooth else [])])
        return Bank(self.folder / name, identity, task.make_runs(self.examples, self.smooth))

    def plan_of(self, num_coalitions: int) -> BankPlan:
        return plan_bank(
            CONSTANTS, self.examples, num_coalitions=num_coalitions, num_twins=self.sizes.twins, without=self.names,
            players="contributors",
        )  # fmt: skip

    def outcomes(self, store: Bank, members: Sequence[Member]) -> Array:
        """Log-likelihood of each query under each member, [M, Q]; members are trained where missing."""
        store.train(members)
        return store.score(members, self.queries)

    # Trainings that no method sees

    @property
    def contributor_halves(self) -> Membership:
        return self._halves(self.sizes.halves, len(self.names), "half")

    @property
    def row_halves(self) -> Membership:
        return self._halves(self.sizes.row_halves, len(self.examples), "rows")

    def _halves(self, number: int, size: int, purpose: str) -> Membership:
        found = np.zeros((number, size), dtype=bool)
        for half, present in enumerate(found):
            present[generator(f"{task.SEED}-{half}", purpose).permutation(size)[: size // 2]] = True
        return found

    def contributors_truth(self) -> Array:
        """Of `contributor_halves` in two orders each, [2 N, Q]: the orders of a half lie side by side."""
        places = [self.names.index(name) for name in self.who]
        return self._halves_truth("halves", self.contributor_halves[:, places])

    def rows_truth(self) -> Array:
        """Of `row_halves`, as `contributors_truth`."""
        return self._halves_truth("rows", self.row_halves)

    def _halves_truth(self, kind: str, members_NR: Membership) -> Array:
        members = []
        for number, present in enumerate(members_NR):
            for name in (f"{kind}-{number}-{order}" for order in (0, 1)):
                rows = tuple(np.flatnonzero(present).tolist())
                order = digest_json([CONSTANTS.order, "truth", name])
                members.append(Member(name=name, rows=rows, initial=CONSTANTS.initial, order=order))
        return self.outcomes(self.truth, members)

    def removed(self, percent: int) -> tuple[Array, Array]:
        """The rows' weights, [M, R], and outcomes, [M, Q]."""
        numbers = range(self.sizes.removals)
        members = [truth.removal(CONSTANTS, len(self.examples), percent, number) for number in numbers]
        return np.array([member.row_weights for member in members]), self.outcomes(self.truth, members)

    def perturbed(self, by: float) -> tuple[Array, Array]:
        """Directions of all row weights, [D, R], and the central difference of the outcomes along each, [D, Q], every
        weight changed by `by` times the direction."""
        directions = truth.directions(len(self.examples))
        members = [
            Member(
                name=f"perturbed-{by:g}-{number}-{sign}", rows=self.full.rows, initial=CONSTANTS.initial,
                order=CONSTANTS.order, row_weights=tuple((1.0 + sign * by * own).tolist()),
            )
            for number, own in enumerate(directions) for sign in (1, -1)
        ]  # fmt: skip
        found = self.outcomes(self.truth, members)
        return directions, (found[0::2] - found[1::2]) / (2 * by)

    def reformed(self, order: str = CONSTANTS.order) -> Array:
        """Of the run without each contributor, batches formed anew, [contributors, Q]."""
        members = []
        for name in self.names:
            rows = tuple(row for row, own in enumerate(self.who) if own != name)
            members.append(Member(name=f"reformed-{name}", rows=rows, initial=CONSTANTS.initial, order=order))
        return self.outcomes(self.truth, members)

    # What the methods say

    @cached_property
    def epochs(self) -> dict[int, Weights]:
        """Where the run stood after each epoch."""
        self.bank.train([self.full])
        return self.bank.epochs(self.full)

    def view(self, name: str, weights: Weights) -> Array:
        """The index's scores at one point, [R, Q]."""
        return self._kept(f"views/{name}", lambda: self._view(View(name=name, weights=weights)))

    def run_views(self) -> list[Array]:
        """Of each epoch of the run."""
        return [self.view(f"epoch-{epoch}", weights) for epoch, weights in self.epochs.items()]

    def twin_ends(self) -> list[Array]:
        self.bank.train(self.plan.twins)
        ends = self.bank.weights(self.plan.twins)
        return [self.view(twin.name, end) for twin, end in zip(self.plan.twins, ends, strict=True)]

    def index_views(self) -> list[Array]:
        """Of the first half of the run: what the index of a run takes."""
        return [self.view(f"epoch-{epoch}", weights) for epoch, weights in first_half(self.epochs).items()]

    def bank_views(self) -> list[Array]:
        """Of the first halves of the run and of its bank's twins."""
        self.bank.train(self.plan.twins)
        found = self.index_views()
        for twin in self.plan.twins:
            early = first_half(self.bank.epochs(twin))
            found += [self.view(f"{twin.name}-epoch-{epoch}", weights) for epoch, weights in early.items()]
        return found

    def smaller_views(self) -> list[Array]:
        """The finished model with all weights made smaller, as the index of a bare adapter makes LoRA's B: nothing is
        known but the model."""
        end = self.epochs[max(self.epochs)]
        scaled = {f: {name: f * tensor for name, tensor in end.items()} for f in SCALED_VIEWS}
        return [self.view(f"smaller-{f:g}", weights) for f, weights in scaled.items()]

    def between_views(self) -> list[Array]:
        """On the line from the public start to the finished model: where LoRA with a smaller B stands."""
        end = self.epochs[max(self.epochs)]
        start = {name: p.detach() for name, p in self._module().named_parameters()}
        points = {f: {name: torch.lerp(start[name], end[name], f) for name in end} for f in SCALED_VIEWS}
        return [self.view(f"between-{f:g}", weights) for f, weights in points.items()]

    def dot(self) -> Array:
        """Gradient dot product at the run's end, [R, Q]."""
        return self._kept("views/dot", lambda: self._products(self.epochs[max(self.epochs)], curved=False))

    def fitted_on_all(self) -> tuple[list[Array], list[Array]]:
        """EK-FAC as other libraries have it, fitted on all rows with their damping: of each epoch, and of the twins'
        ends."""
        self.bank.train(self.plan.twins)
        points = {f"epoch-{epoch}": weights for epoch, weights in self.epochs.items()}
        ends = zip(self.plan.twins, self.bank.weights(self.plan.twins), strict=True)
        points |= {twin.name: end for twin, end in ends}
        found = [
            self._kept(f"fitted/{name}", lambda weights=weights: self._products(weights, curved=True))
            for name, weights in points.items()
        ]
        return found[: len(self.epochs)], found[len(self.epochs) :]

    @property
    def replayed(self) -> list[int]:
        """Some answers, evenly spaced."""
        return list(range(0, len(self.queries), max(1, len(self.queries) // self.sizes.replayed)))[
            : self.sizes.replayed
        ]

    def replay(self) -> Array:
        """The replay of the sum of all answers, then of those `replayed`, [R, 1 + replayed]."""
        return self._kept("replay", self._replay)

    def sums(self, scores_RQ: Array) -> Array:
        """[contributors, Q]"""
        return contributor_sums(scores_RQ, self.who, self.names)

    def write_for_peers(self) -> None:
        """Rows, answers, where the run stood after each epoch and where its twins ended, for digits_peers.py."""
        folder = self.folder / "peers"
        folder.mkdir(parents=True, exist_ok=True)
        for name, digits in (("rows", self.examples), ("queries", self.queries)):
            pixels = torch.tensor([digit.pixels for digit in digits], dtype=torch.float32)
            labels = torch.tensor([digit.label for digit in digits])
            save_file({"pixels": pixels, "labels": labels}, folder / f"{name}.safetensors")
        for epoch, weights in self.epochs.items():
            save_file(weights, folder / f"epoch-{epoch}.safetensors")
        self.bank.train(self.plan.twins)
        for twin, weights in zip(self.plan.twins, self.bank.weights(self.plan.twins), strict=True):
            save_file(weights, folder / f"{twin.name}.safetensors")

    def _module(self) -> torch.nn.Module:
        """As the run begins."""
        return task.make_module(CONSTANTS.initial, self.smooth)

    def _view(self, view: View) -> Array:
        module = self._module()
        with TemporaryDirectory() as temporary:
            index = build_index(
                module, self.examples, (), Path(temporary) / "index", "full", views=[view], task=task.TASK
            )
            vectors = index.query_vectors(module, self.queries, views=[view], task=task.TASK)
            return index.score(vectors).astype(np.float64)

    def _products(self, weights: Weights, curved: bool) -> Array:
        """Gradient products at `weights`, [R, Q]; `curved` by EK-FAC fitted on all rows."""
        module = self._module()
        module.load_state_dict(weights)
        basis = (
            fit(module, self.examples, task=task.TASK, fit_rows=len(self.examples), damping=DAMPING) if curved else {}
        )
        parts = []
        for digits, own in ((self.examples, basis), (self.queries, {})):
            found = row_gradients(module, digits, task.TASK)
            turned = {name: own[name].precondition(gradient) if own else gradient for name, gradient in found.items()}
            parts.append(torch.cat([turned[site.name].flatten(1) for site in sites(module)], dim=1))
        return np.asarray((parts[0] @ parts[1].T).double().numpy())

    def _replay(self) -> Array:
        targets = [[(query, 1.0) for query in self.queries], *([(self.queries[n], 1.0)] for n in self.replayed)]
        found = replay(
            self._module(), self.examples, task.RECIPE, CONSTANTS.order,
            targets=targets, task=task.TASK, final=self.epochs[max(self.epochs)], within=0.0,
        )  # fmt: skip
        return found.scores_RT.astype(np.float64)

    def _kept(self, name: str, make: Callable[[], Array]) -> Array:
        path = self.folder / "scores" / f"{name}.npy"
        if not path.exists():
            truth.write_array(path, make().astype(np.float32))
        return np.load(path).astype(np.float64)
