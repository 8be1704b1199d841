"""The coalition bank: the run again, on random coalitions of its contributors, and what each answer is worth there.

    coalition-NNN   trained on half of the contributors' rows, with an order of its own
    twin-N          all rows, another order: what is luck
    without-NAME    the run with NAME's rows at weight 0 and every batch as it was: it never saw them

All start from the run's own initial A. Members are files of LoRA matrices under RUN/bank, named by what they were
trained on, so that a bank can be stopped and taken up again, grown, and built by many workers.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from openledger.adapters.base_model import BaseModel
from openledger.attribution.coalitions import DEFAULT_COALITIONS, Design, design
from openledger.core.errors import NotFound
from openledger.core.hashing import digest_json
from openledger.training.examples import Example
from openledger.training.packed import Member, Weights, score_members, train_members
from openledger.training.record import RunRecord, check_run, load_weights, save_weights

DEFAULT_TWINS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class BankPlan:
    """What a bank trains. `coalitions` follow `design.members_MG`; twins don't count the run itself."""

    design: Design
    coalitions: tuple[Member, ...]
    twins: tuple[Member, ...]
    withouts: tuple[Member, ...]

    @property
    def members(self) -> tuple[Member, ...]:
        return self.coalitions + self.twins + self.withouts


def plan_bank(
    record: RunRecord,
    examples: Sequence[Example],
    *,
    num_coalitions: int = DEFAULT_COALITIONS,
    num_twins: int = DEFAULT_TWINS,
    without: Sequence[str] = (),
    max_groups: int | None = None,
) -> BankPlan:
    """The bank of a run. Raises InvalidInput for a run of one contributor or an unknown contributor in `without`."""
    counts = Counter(example.contributor_id for example in examples)
    found = design(counts, num_coalitions, record.order, max_groups)
    coalitions = []
    for number, present_G in enumerate(found.members_MG):
        there = {name for group, present in zip(found.groups, present_G, strict=True) if present for name in group}
        rows = tuple(row for row, example in enumerate(examples) if example.contributor_id in there)
        coalitions.append(_member(record, f"coalition-{number:03}", rows))
    everything = tuple(range(len(examples)))
    twins = tuple(_member(record, f"twin-{number}", everything) for number in range(1, num_twins + 1))
    return BankPlan(
        design=found,
        coalitions=tuple(coalitions),
        twins=twins,
        withouts=tuple(member_without(record, examples, name) for name in without),
    )


def member_without(record: RunRecord, examples: Sequence[Example], contributor: str) -> Member:
    """The run without a contributor's rows, every batch as it was."""
    weights = tuple(0.0 if example.contributor_id == contributor else 1.0 for example in examples)
    if not 0 < sum(weights) < len(weights):
        raise NotFound(
            f"the run has no contributor {contributor!r} beside others", code="unknown_contributor", param="without"
        )
    rows = tuple(range(len(examples)))
    return Member(
        name=f"without-{contributor}", rows=rows, initial=record.initial, order=record.order, row_weights=weights
    )


class Bank:
    """The members of one run on disk. One process trains a given member; any number may read."""

    def __init__(self, folder: Path, record: RunRecord, base: BaseModel, examples: Sequence[Example]):
        check_run(record, base, examples)
        self.folder, self._record, self._base, self._examples = folder, record, base, examples

    def path(self, member: Member) -> Path:
        content = [self._record.adapter_digest, self._record.examples_digest, member.initial, member.order]
        run = [list(member.rows), [repr(weight) for weight in member.row_weights]]
        name = "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in member.name)[:64]
        return self.folder / f"{name}-{digest_json([content, run])[:16]}.safetensors"

    def missing(self, members: Sequence[Member]) -> list[Member]:
        return [member for member in members if not self.path(member).exists()]

    def train(
        self,
        members: Sequence[Member],
        *,
        pack_members: int = 1,
        device: str = "cpu",
        on_member: Callable[[Member], None] | None = None,
    ) -> None:
        """Train what is missing, `pack_members` side by side (worth while on a GPU)."""
        todo = self.missing(members)
        for start in range(0, len(todo), pack_members):
            chunk = todo[start : start + pack_members]
            weights = train_members(self._base, self._examples, chunk, self._record.recipe, device=device)
            for member, matrices in zip(chunk, weights, strict=True):
                save_weights(self.path(member), matrices)
                if on_member is not None:
                    on_member(member)

    def weights(self, members: Sequence[Member]) -> list[Weights]:
        """Raises NotFound naming the first member that hasn't been trained, Corrupt for a damaged file."""
        missing = self.missing(members)
        if missing:
            raise NotFound(
                f"{missing[0].name} and {len(missing) - 1} more members of the bank are not trained",
                code="incomplete_bank",
                param="bank",
                fix="run the same command without --no-train",
            )
        return [load_weights(self.path(member)) for member in members]

    def score(self, members: Sequence[Member], queries: Sequence[Example]) -> npt.NDArray[np.float64]:
        """Mean log-likelihood per token of each query under each member, [M, Q], in nats."""
        scores = score_members(self._base, self._record.recipe, self.weights(members), queries)
        return np.asarray(scores.numpy(), dtype=np.float64)


def _member(record: RunRecord, name: str, rows: tuple[int, ...]) -> Member:
    """A run from the same initial A with an order of its own."""
    return Member(name=name, rows=rows, initial=record.initial, order=digest_json([record.order, name]))
