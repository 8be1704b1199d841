"""What a budget buys, and how good it will be, before anything runs.

Costs are in trainings of the whole adapter. A coalition costs its rows' part, a twin or leave-one-out a whole one, a
view of the index about one epoch and a half, an audit its halves and leave-one-outs (`halves.py`). An audit of a bank
that leaves too few halves over isn't bought. Instruments are bought in this order: index, bank (as large as the money
reaches), replay, audit. A replay of T sums over Q queries (answers sold, held-out rows) costs

    4 + 1.5 (T - 1) + sum over queries of a pass / (passes of a training)

A pass goes forwards and backwards through one query, as training does through each row in each epoch. So it counts by
its tokens, where these are known, and as a row where they aren't. Many answers of a small adapter cost more than the
way back through its run.

The expected accuracy is the correlation of estimated with true influence over the blocks of one answer, by the
model of `expected.py` with the ratios measured on our language task with contributors for blocks. A bank has half as
many blocks as coalitions, so a larger one tells more of them apart about as well (docs/attribution/results.md has what
that makes of contributors: LDS 0.69, 0.80 and 0.82 of 0.98 with 16, 32 and 64 coalitions):

    accuracy^2 = 1 - mean posterior variance / mean prior variance
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from openledger.attribution.coalitions import Design, design, rows_of_counts
from openledger.attribution.expected import expected_accuracy
from openledger.attribution.halves import DEFAULT_HALVES, ORDERS, audit_cost, unseen_halves
from openledger.core.errors import InvalidInput

FLOOR_COALITIONS = 8
MOST_COALITIONS = 64
REPLAY_TRAININGS = 4.0
FURTHER_TARGET_TRAININGS = 1.5  # it shares the run forwards and the first half of each double backward
_EPOCHS_PER_VIEW = 1.5
_OF_NO_ANSWERS = "; a replay costs a pass more for each answer, and none are counted"
# measured by `python -m benchmarks.attribution FOLDER`; own includes what the index says where it is the prior
TYPICAL_RATIOS = {"own": 4.5, "trust": 0.0, "level": 2.5, "pairs": 0.75}


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """`cost_trainings` counts trainings of the whole adapter, `replay_trainings` those of its replay, 0 where none is
    bought; `accuracy` is None where the index stands alone."""

    instruments: tuple[str, ...]
    num_views: int
    num_coalitions: int
    num_twins: int
    num_groups: int
    audit_coalitions: int
    replay_trainings: float
    cost_trainings: float
    budget_trainings: float
    accuracy: float | None
    says: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def plan_instruments(
    row_counts: Mapping[str, int],
    num_epochs: int,
    budget_trainings: float,
    constant: str = "plan",
    *,
    num_answers: int = 0,
) -> Plan:
    """The best use of `budget_trainings`; a replay would be of `num_answers`. Raises InvalidInput for a negative budget
    or number, or no rows."""
    if budget_trainings < 0 or not row_counts or num_answers < 0:
        raise InvalidInput(
            "a plan needs rows, and a budget and a number of answers of 0 or more",
            code="invalid_budget",
            param="budget",
        )
    bank = _largest_bank(row_counts, budget_trainings, num_epochs, constant)
    if bank is None:
        return _index_alone(row_counts, num_epochs, budget_trainings)
    found, twins = bank
    views = _num_views(twins, num_epochs)
    cost = _bank_cost(found, twins) + _views_cost(views, num_epochs)
    instruments = ["index", "bank"]
    replay = replay_trainings(num_answers, sum(row_counts.values()) * num_epochs)
    replayed = cost + replay <= budget_trainings
    if replayed:
        instruments.append("replay")
        cost += replay
    halves = _audit_halves(found, row_counts, constant)
    audit = audit_cost(row_counts, halves, DEFAULT_HALVES)
    audited = halves > 0 and cost + audit <= budget_trainings
    if audited:
        instruments.append("audit")
        cost += audit
    accuracy = expected_accuracy(found.members_MG, TYPICAL_RATIOS)
    players = f"{len(row_counts)} contributors in {len(found.groups)} blocks of rows"
    return Plan(
        instruments=tuple(instruments),
        num_views=views,
        num_coalitions=len(found.members_MG),
        num_twins=twins,
        num_groups=len(found.groups),
        audit_coalitions=ORDERS * halves if audited else 0,
        replay_trainings=round(replay, 2) if replayed else 0.0,
        cost_trainings=round(cost, 2),
        budget_trainings=budget_trainings,
        accuracy=round(accuracy, 3),
        says=f"expected influence of {players} by a bank of {len(found.members_MG)} coalitions; accuracy is the"
        " expected correlation of estimated with true influence over the blocks of one answer; a larger bank has more"
        " and smaller ones" + (_OF_NO_ANSWERS if replayed and not num_answers else ""),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayPlan:
    """Whether a period's fees buy the settlement's replay. `budget_trainings` and `cost_trainings` count trainings of
    the whole adapter."""

    buys: bool
    budget_trainings: float
    cost_trainings: float

    @property
    def says(self) -> str:
        word = "bought" if self.buys else "not bought"
        return f"{word}: fees buy {self.budget_trainings:.3g} of {self.cost_trainings:.3g} trainings"


def plan_replay(fees_nano: int, share_ppm: int, training_cost_nano: int, cost_trainings: float) -> ReplayPlan:
    """Whether the fees buy a settlement's replay that costs so much (`replay_trainings`). Raises as
    `budget_from_fees`."""
    budget = budget_from_fees(fees_nano, share_ppm, training_cost_nano)
    return ReplayPlan(buys=cost_trainings <= budget, budget_trainings=budget, cost_trainings=cost_trainings)


def replay_trainings(queried: float, trained: float, num_targets: int = 1) -> float:
    """What a replay of `num_targets` sums costs: the answers sold, and the held-out rows. `queried` are the tokens of
    all their queries and `trained` those that a training goes through, epochs counted; or both in rows."""
    return REPLAY_TRAININGS + max(0, num_targets - 1) * FURTHER_TARGET_TRAININGS + queried / trained


def budget_from_fees(fees_nano: int, share_ppm: int, training_cost_nano: int) -> float:
    """Trainings that `share_ppm` of an adapter's fees pay for; never more than it earns."""
    if not 0 <= share_ppm <= 10**6 or fees_nano < 0 or training_cost_nano <= 0:
        raise InvalidInput(
            "fees are 0 or more, their share at most the whole, a training costs something",
            code="invalid_budget",
            param="budget",
        )
    return fees_nano * share_ppm / 10**6 / training_cost_nano


def _largest_bank(
    row_counts: Mapping[str, int], budget: float, num_epochs: int, constant: str
) -> tuple[Design, int] | None:
    if len(row_counts) < 2:
        return None
    for number in range(MOST_COALITIONS, FLOOR_COALITIONS - 1, -2):
        found, twins = design(rows_of_counts(row_counts), number, constant), max(1, number // 16)
        if _bank_cost(found, twins) + _views_cost(_num_views(twins, num_epochs), num_epochs) <= budget:
            return found, twins
    return None


def _audit_halves(found: Design, row_counts: Mapping[str, int], constant: str) -> int:
    """Halves of the contributors that an audit of this bank would draw; 0 where it leaves too few."""
    try:
        return len(unseen_halves(rows_of_counts(row_counts), found, DEFAULT_HALVES, constant))
    except InvalidInput:
        return 0


def _bank_cost(found: Design, twins: int) -> float:
    sizes = np.array([len(group) for group in found.groups], dtype=np.float64)
    return float((found.members_MG @ sizes).sum() / sizes.sum()) + twins


def _num_views(twins: int, num_epochs: int) -> int:
    """The epochs of the first half of the run and of each twin (`instruments.index_views`)."""
    return max(1, num_epochs // 2) * (1 + twins)


def _views_cost(views: int, num_epochs: int) -> float:
    return views * _EPOCHS_PER_VIEW / num_epochs


def _index_alone(row_counts: Mapping[str, int], num_epochs: int, budget: float) -> Plan:
    why = "there is one contributor" if len(row_counts) < 2 else f"a bank of {FLOOR_COALITIONS} coalitions costs more"
    views = _num_views(0, num_epochs)
    views = views if _views_cost(views, num_epochs) <= budget else 1
    return Plan(
        instruments=("index",),
        num_views=views,
        num_coalitions=0,
        num_twins=0,
        num_groups=len(row_counts),
        audit_coalitions=0,
        replay_trainings=0.0,
        cost_trainings=round(_views_cost(views, num_epochs), 2),
        budget_trainings=budget,
        accuracy=None,
        says=f"by the index alone, whose error is not measured: {why}",
    )
