"""The coalition bank: the run again, on random coalitions of its rows, and what each answer is worth there.

    coalition-NNN   trained on half of the blocks of rows (`coalitions.py`), with an order of its own
    twin-N          all rows, another order: what is luck; where it stood after each epoch is kept, for the index
    without-NAME    the run with NAME's rows at weight 0 and every batch as it was: it never saw them

All start from the run's own initial A. Members are files of LoRA matrices under RUN/bank, named by what they were
trained on, so that a bank can be stopped and taken up again, grown, and built by many workers.
"""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from openledger.adapters.base_model import BaseModel
from openledger.attribution.coalitions import (
    DEFAULT_COALITIONS,
    Design,
    Players,
    contributor_design,
    design,
)
from openledger.core.errors import NotFound
from openledger.core.hashing import digest_json
from openledger.training.examples import Example
from openledger.training.members import Member, Runs, Weights
from openledger.training.packed import PackedRuns
from openledger.training.record import RunRecord, check_run, load_weights, save_weights
from openledger.training.task import Trainable

DEFAULT_TWINS = 3


class Constants(Protocol):
    """Where a run began and in what order it took its rows; a `RunRecord` has them."""

    @property
    def initial(self) -> str: ...

    @property
    def order(self) -> str: ...


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
    constants: Constants,
    examples: Sequence[Trainable],
    *,
    num_coalitions: int = DEFAULT_COALITIONS,
    num_twins: int = DEFAULT_TWINS,
    without: Sequence[str] = (),
    players: Players = "blocks",
) -> BankPlan:
    """The bank of a run. Raises InvalidInput for a run of one contributor, a row id that is there twice or an unknown
    contributor in `without`."""
    rows = [(example.row_id, example.contributor_id) for example in examples]
    if players == "blocks":
        found = design(rows, num_coalitions, constants.order)
    else:
        found = contributor_design(Counter(name for _, name in rows), num_coalitions, constants.order)
    group_R = found.numbers(rows)
    coalitions = [
        _member(constants, f"coalition-{number:03}", tuple(np.flatnonzero(present_G[group_R]).tolist()))
        for number, present_G in enumerate(found.members_MG)
    ]
    everything = tuple(range(len(examples)))
    twins = tuple(
        replace(_member(constants, f"twin-{number}", everything), keeps_epochs=True)
        for number in range(1, num_twins + 1)
    )
    return BankPlan(
        design=found,
        coalitions=tuple(coalitions),
        twins=twins,
        withouts=tuple(member_without(constants, examples, name) for name in without),
    )


def member_without(constants: Constants, examples: Sequence[Trainable], contributor: str) -> Member:
    """The run without a contributor's rows, every batch as it was."""
    weights = tuple(0.0 if example.contributor_id == contributor else 1.0 for example in examples)
    if not 0 < sum(weights) < len(weights):
        raise NotFound(
            f"the run has no contributor {contributor!r} beside others", code="unknown_contributor", param="without"
        )
    rows = tuple(range(len(examples)))
    return Member(
        name=f"without-{contributor}", rows=rows, initial=constants.initial, order=constants.order, row_weights=weights
    )


class Bank:
    """Members on disk under `folder`. One process trains a given member; any number may read.

    `identity` names what else decides a member's weights: base, recipe and rows.
    """

    def __init__(self, folder: Path, identity: str, runs: Runs):
        self.folder, self._identity, self._runs = folder, identity, runs

    def path(self, member: Member) -> Path:
        run = [list(member.rows), [repr(weight) for weight in member.row_weights], member.initial, member.order]
        name = "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in member.name)[:64]
        return self.folder / f"{name}-{digest_json([self._identity, run])[:16]}.safetensors"

    def missing(self, members: Sequence[Member]) -> list[Member]:
        return [member for member in members if not self.path(member).exists()]

    def train(self, members: Sequence[Member], on_member: Callable[[Member], None] | None = None) -> None:
        """Train what is missing. A member is written whole or not at all: what is there is never trained again."""
        for chunk in self._chunks(self.missing(members)):
            keeps = any(member.keeps_epochs for member in chunk)
            found = self._runs.train(chunk, partial(self._keep_epoch, chunk) if keeps else None)
            for member, matrices in zip(chunk, found, strict=True):
                save_weights(self.path(member), matrices)
                if on_member is not None:
                    on_member(member)

    def epochs(self, member: Member) -> dict[int, Weights]:
        """Where a member stood after each of its epochs, as far as they were kept."""
        paths = self._epochs_folder(member).glob("epoch-*.safetensors")
        found = {int(path.stem.split("-")[1]): path for path in paths}
        return {epoch: load_weights(path) for epoch, path in sorted(found.items())}

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

    def score(self, members: Sequence[Member], queries: Sequence[Any]) -> npt.NDArray[np.float64]:
        """Mean log-likelihood per token of each query under each member, [M, Q], in nats."""
        return self.score_weights(self.weights(members), queries)

    def score_weights(self, weights: Sequence[Weights], queries: Sequence[Any]) -> npt.NDArray[np.float64]:
        """As `score`, of adapters that are no members: the run itself."""
        return self._runs.score(weights, queries)

    def _chunks(self, members: Sequence[Member]) -> list[Sequence[Member]]:
        """What is trained side by side; members that keep their epochs are of one length, and stay together."""
        size = self._runs.pack_members
        kinds = [[member for member in members if member.keeps_epochs is keeps] for keeps in (False, True)]
        return [kind[start : start + size] for kind in kinds for start in range(0, len(kind), size)]

    def _keep_epoch(self, chunk: Sequence[Member], epoch: int, weights: Sequence[Weights]) -> None:
        for member, own in zip(chunk, weights, strict=True):
            save_weights(self._epochs_folder(member) / f"epoch-{epoch}.safetensors", own)

    def _epochs_folder(self, member: Member) -> Path:
        return self.folder / "epochs" / self.path(member).stem


def run_bank(folder: Path, record: RunRecord, base: BaseModel, examples: Sequence[Example], **packing: Any) -> Bank:
    """The bank of a language model's run at `folder`. Raises InvalidInput for another base's or other rows' run."""
    check_run(record, base, examples)
    identity = digest_json([base.digest, record.examples_digest, json.dumps(record.recipe.to_dict(), sort_keys=True)])
    return Bank(folder, identity, PackedRuns(base=base, examples=examples, recipe=record.recipe, **packing))


def _member(constants: Constants, name: str, rows: tuple[int, ...]) -> Member:
    """A run from the same initial A with an order of its own."""
    return Member(name=name, rows=rows, initial=constants.initial, order=digest_json([constants.order, name]))
