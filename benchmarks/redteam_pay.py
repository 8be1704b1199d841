"""Who is paid what in a red team's world, and what that makes of an attack.

**Paid as shipped**: a pool of 1 for the period, divided by the economy's parameters (0.7 by influence on the answers
sold and 0.3 by influence on held-out answers), each by a `Measurement` with a bank, and `shares_ppb`.

**Paid naively** (what the literature attacks): one run, one index (EK-FAC at the run's end), answers sold alone, all of
the pool paid out, each answer's fee divided by itself:

    absolute   in proportion to |score| of each row                      clipped    to max(0, score) of each row
    rank       evenly over the tenth of the rows with the largest |score| (the metric of arXiv 2409.05657)
    sums       in proportion to max(0, a contributor's signed sum over rows and answers)

Shapes: R rows, Q questions.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.redteam_world import Observed
from openledger.attribution.coalitions import Design
from openledger.attribution.index import IndexEntry
from openledger.attribution.period import Measurement, fit_outcomes
from openledger.core.money import NANO_PER_OPEN
from openledger.core.shares import RULE, RULE_1, RULE_3, RULE_4, WHOLE_PPB, ceiling_nano, shares_ppb
from openledger.core.values import UNATTRIBUTED, ContributorScores
from openledger.economy.parameters import Parameters

Array = npt.NDArray[np.float64]
Pay = dict[str, float]

PARAMETERS = Parameters()
Z_BEFORE = 500  # thousandths, of shares/2 to shares/4: parameters before version 8
NAIVE = ("absolute", "clipped", "rank", "sums")


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One attack in one seed's world. Every mapping is from payer to pay, in parts of the period's pool.

    `alone` is what an insider, or an outsider's rival, gets in the world without the attack.
    """

    attacker: Pay
    honest: Pay
    alone: Pay = field(default_factory=dict)
    alone_honest: Pay = field(default_factory=dict)
    reference: Pay = field(default_factory=dict)
    rival: Pay = field(default_factory=dict)
    rival_alone: Pay = field(default_factory=dict)
    sent: int = 0
    trained: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    value: float
    error: float


def roi(records: Sequence[Record], payer: str) -> Figure | None:
    """Ratio of sums over seeds, for an insider over his own honest ratio; None where the payer didn't pay."""
    if not records or payer not in records[0].attacker:
        return None

    def estimate(some: Sequence[Record]) -> float:
        found = ratio(sum(r.attacker[payer] for r in some), sum(r.honest[payer] for r in some))
        if payer not in some[0].alone:
            return found
        return ratio(found, ratio(sum(r.alone[payer] for r in some), sum(r.alone_honest[payer] for r in some)))

    return jackknife(records, estimate)


def change(records: Sequence[Record], payer: str, *, rival: bool = False) -> Figure | None:
    """The insider's pay, or the rival's, against what it is without the attack, minus one."""
    if not records or payer not in records[0].attacker:
        return None
    before = [r.rival_alone if rival else (r.reference or r.alone) for r in records]
    if payer not in before[0]:
        return None
    pairs = [((r.rival if rival else r.attacker)[payer], b[payer]) for r, b in zip(records, before, strict=True)]
    return jackknife(pairs, lambda some: ratio(sum(a for a, _ in some), sum(b for _, b in some)) - 1)


def others_change(records: Sequence[Record], payer: str) -> Figure | None:
    """What the mean honest contributor gains by an insider's attack, in parts of his pay without it."""
    if not records or payer not in records[0].alone_honest or payer not in records[0].attacker:
        return None
    return jackknife(
        records, lambda some: ratio(sum(r.honest[payer] for r in some), sum(r.alone_honest[payer] for r in some)) - 1
    )


def jackknife(values: Sequence[Any], estimate: Callable[[Sequence[Any]], float]) -> Figure:
    """An estimate over seeds and its standard error (Efron and Stein, 1981); NaN for one seed alone."""
    n = len(values)
    if n < 2:
        return Figure(value=estimate(values), error=float("nan"))
    left_out = np.array([estimate([*values[:at], *values[at + 1 :]]) for at in range(n)])
    error = float(np.sqrt((n - 1) / n * ((left_out - left_out.mean()) ** 2).sum()))
    return Figure(value=estimate(values), error=error)


def mean_pay(pay: Mapping[str, float], names: Sequence[str]) -> float:
    return sum(total_pay(pay, name) for name in names) / len(names)


def total_pay(pay: Mapping[str, float], name: str) -> float:
    """What a person gets under all of his names: `name` and `name.something`."""
    return sum(value for own, value in pay.items() if own.partition(".")[0] == name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """The two parts' scores of a period."""

    use: ContributorScores
    improvement: ContributorScores


def defended_payments(observed: Observed, fees: Array, idle: int = 0) -> dict[str, Pay]:
    """The shipped rule, and others on the same scores. `fees` in OPEN for each answer sold, 0 for those marked wrong.
    `idle` more answers at 1 OPEN were sold that owe nothing to anybody."""
    scores, unbounded = (period_scores(observed, fees, idle, ceiling=some) for some in (True, False))
    before = {rule: period_scores(observed, fees, idle, rule=rule) for rule in (RULE_4, RULE_3)}
    return {
        "shipped": shipped_pay(scores),
        "z = 0": shipped_pay(scores, 0),
        "z = 1/2": shipped_pay(scores, Z_BEFORE),
        "pooled": pooled_pay(scores),
        "no ceiling": shipped_pay(unbounded),
        **{rule: shipped_pay(own, Z_BEFORE) for rule, own in before.items()},
        "shares/2": every_row_pay(scores),
        "shares/1": first_pay(unbounded),
        "use only": _pay(scores.use),
    }


def period_scores(observed: Observed, fees: Array, idle: int = 0, *, ceiling: bool = True, rule: str = RULE) -> Scores:
    """`rule`: the rule of shares by which repeated rows are unpaid."""
    everything = measured(observed, fees, slice(None), rule=rule)
    improvement = everything.improvement()
    assert improvement is not None
    if not ceiling:
        return Scores(use=measured(observed, fees, slice(0, observed.num_sold)).use(), improvement=improvement)
    use = everything.use()
    bounded = tuple((gain_nano, fees_nano + idle * NANO_PER_OPEN) for gain_nano, fees_nano in use.ceilings)
    return Scores(use=replace(use, ceilings=bounded), improvement=improvement)


def shipped_pay(scores: Scores, z_milli: int | None = None) -> Pay:
    """By the house's rule of shares: parts of the pool for each contributor and `unattributed`."""
    return _both(scores, lambda part: _pay(part, z_milli))


def every_row_pay(scores: Scores) -> Pay:
    """By shares/2, which pays for repeats too."""
    use, improvement = (replace(part, unpaid_nano={}) for part in (scores.use, scores.improvement))
    return shipped_pay(Scores(use=use, improvement=improvement), Z_BEFORE)


def first_pay(scores: Scores) -> Pay:
    """By shares/1 with z = 1, as settlements were before."""

    def share(part: ContributorScores) -> Pay:
        return _ppb(shares_ppb(part.scores_nano, part.errors_nano, part.gain_nano, 1000, rule=RULE_1))

    return _both(scores, share)


def pooled_pay(scores: Scores, z_milli: int = PARAMETERS.z_milli) -> Pay:
    """The sum's error is taken from everybody in proportion to his influence: I_c (1 - z sqrt(sum SE^2) / sum I)."""

    def share(part: ContributorScores) -> Pay:
        total = sum(max(0, score) for score in part.scores_nano.values())
        error = math.sqrt(sum(error**2 for error in part.errors_nano.values()))
        keep = max(0.0, 1 - z_milli / 1000 * error / total) if total else 0.0
        whole = max(part.gain_nano, total, ceiling_nano(part.ceilings))
        pay = {name: keep * max(0, score) / whole if whole > 0 else 0.0 for name, score in part.scores_nano.items()}
        return {**pay, UNATTRIBUTED: 1.0 - sum(pay.values())}

    return _both(scores, share)


def naive_pay(observed: Observed, kind: str, fees: Array | None = None) -> Pay:
    """`absolute`, `clipped`, `rank` or `sums`, as the module says."""
    scores_RQ = observed.index_RQ[:, : observed.num_sold]
    weights_Q = np.ones(observed.num_sold) if fees is None else fees
    if kind == "sums":
        signed: Counter[str] = Counter()
        for name, value in zip(observed.who, (scores_RQ @ weights_Q).tolist(), strict=True):
            signed[name] += value
        return _normalized({name: max(0.0, value) for name, value in signed.items()})
    magnitude = np.abs(scores_RQ)
    if kind == "clipped":
        magnitude = np.maximum(scores_RQ, 0.0)
    elif kind == "rank":
        top = max(1, len(magnitude) // 10)
        magnitude = (np.argsort(np.argsort(-magnitude, axis=0), axis=0) < top).astype(float)
    per_answer = magnitude / np.maximum(magnitude.sum(axis=0, keepdims=True), 1e-30)
    pay: Counter[str] = Counter()
    for name, value in zip(observed.who, (per_answer @ weights_Q).tolist(), strict=True):
        pay[name] += value
    return _normalized(dict(pay))


def measured(observed: Observed, fees: Array, columns: slice, *, rule: str = RULE) -> Measurement:
    entries = tuple(
        IndexEntry(row_id=row_id, contributor_id=name, trained=True)
        for row_id, name in zip(observed.row_ids, observed.who, strict=True)
    )
    scores = observed.index_RQ[:, columns].astype(np.float32)
    design = Design(groups=observed.groups, members_MG=observed.members_MG)
    return Measurement(
        adapter="adapter",
        period="period",
        entries=entries,
        scores=scores,
        weights_nano=tuple(round(fee * NANO_PER_OPEN) for fee in fees.tolist()),
        gains=tuple(observed.gains_Q[columns].tolist()),
        bank=fit_outcomes(design, observed.outcomes_MQ[:, columns], entries, scores),
        fees_nano=(NANO_PER_OPEN,) * observed.num_sold,
        repeats=observed.repeats.listed(rule)[1] if observed.repeats else (),
    )


def _both(scores: Scores, share: Callable[[ContributorScores], Pay]) -> Pay:
    use, improvement = share(scores.use), share(scores.improvement)
    parts = {name: ppm / 1e6 for name, ppm in PARAMETERS.pool_split.items()}
    return {name: parts["use"] * use[name] + parts["improvement"] * improvement[name] for name in use}


def _pay(part: ContributorScores, z_milli: int | None = None) -> Pay:
    z_milli = PARAMETERS.z_milli if z_milli is None else z_milli
    found = shares_ppb(
        part.scores_nano,
        part.errors_nano,
        part.gain_nano,
        z_milli,
        ceilings=part.ceilings,
        unpaid_nano=part.unpaid_nano,
    )
    return _ppb(found)


def _ppb(shares: Mapping[str, int]) -> Pay:
    return {name: value / WHOLE_PPB for name, value in shares.items()}


def _normalized(pay: Pay) -> Pay:
    total = sum(pay.values())
    return {name: value / total if total else 0.0 for name, value in pay.items()}


def ratio(over: float, under: float) -> float:
    return over / under if abs(under) > 1e-12 else 0.0
