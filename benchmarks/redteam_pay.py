"""Who is paid what in a red team's world, and what that makes of an attack.

**Paid as shipped**: a pool of 1 for the period, 0.7 by influence on the answers sold and 0.3 by influence on held-out
answers, each by `bank_scores` (expected influence, with the index as prior) and `shares_ppb` with z = 1.

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

from benchmarks.redteam_attacks import BLOCK
from benchmarks.redteam_world import Observed
from openledger.attribution.coalitions import Design
from openledger.attribution.index import IndexEntry
from openledger.attribution.period import bank_scores, fit_outcomes
from openledger.core.money import NANO_PER_OPEN
from openledger.core.shares import WHOLE_PPB, shares_ppb
from openledger.core.values import UNATTRIBUTED, ContributorScores

Array = npt.NDArray[np.float64]
Pay = dict[str, float]

USE, IMPROVEMENT = 0.7, 0.3
Z_MILLI = 1000
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
    return sum(pay.get(name, 0.0) for name in names) / len(names)


def total_pay(pay: Mapping[str, float], name: str) -> float:
    """What a person gets under all of his names: `name` and `name.something`."""
    return sum(value for own, value in pay.items() if own.partition(".")[0] == name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """The two parts' scores of a period."""

    use: ContributorScores
    improvement: ContributorScores


def defended_payments(observed: Observed, fees: Array) -> dict[str, Pay]:
    """The shipped rule, and the same scores under other rules of shares."""
    scores, capped = (by_contributor(period_scores(observed, fees, capped=cap)) for cap in (False, True))
    return {
        **_rules(scores, ""),
        **_rules(capped, "capped, "),
        "use only": use_only_pay(scores),
    }


def _rules(scores: Scores, name: str) -> dict[str, Pay]:
    stake = max(0.0, mean_pay(shipped_pay(scores, 0), [n for n in scores.use.scores_nano if n != UNATTRIBUTED]))
    return {
        f"{name}shipped": shipped_pay(scores),
        f"{name}z = 0": shipped_pay(scores, 0),
        f"{name}threshold": threshold_pay(scores),
        f"{name}pooled": pooled_pay(scores),
        f"{name}staked": staked_pay(scores, stake),
    }


def period_scores(observed: Observed, fees: Array, *, capped: bool = False) -> Scores:
    """`fees` in OPEN for each answer sold. `capped` scales an answer's fee down where its gain is above the mean gain
    of the held-out answers, so that no answer moves more influence than its fee buys elsewhere."""
    sold, held_out = slice(0, observed.num_sold), slice(observed.num_sold, None)
    if capped:
        fees = fees * cap_factors(observed.gains_Q[sold], float(observed.gains_Q[held_out].mean()))
    even = np.full(len(observed.gains_Q) - observed.num_sold, 1.0)
    return Scores(use=_scores(observed, sold, fees), improvement=_scores(observed, held_out, even))


def ceiling_pay(observed: Observed, fees: Array, idle: int = 0) -> Pay:
    """`pooled_pay` of capped fees, where an answer divides no more of its fee than its gain is of the held-out answers'
    mean: what others' answers leave over is nobody's. `idle` more answers at 1 OPEN have no gain."""
    scores = by_contributor(period_scores(observed, fees, capped=True))
    cap = max(0.0, float(observed.gains_Q[observed.num_sold :].mean()))
    whole = round((float(fees.sum()) + idle) * cap * NANO_PER_OPEN)
    return pooled_pay(replace(scores, use=replace(scores.use, gain_nano=max(whole, scores.use.gain_nano))))


def by_contributor(scores: Scores) -> Scores:
    """Scores of a contributor's blocks, where the bank's players were such, summed; errors as if they were apart."""
    return Scores(use=_summed(scores.use), improvement=_summed(scores.improvement))


def _summed(part: ContributorScores) -> ContributorScores:
    totals: Counter[str] = Counter()
    squares: Counter[str] = Counter()
    for name, score in part.scores_nano.items():
        totals[name.partition(BLOCK)[0]] += score
        squares[name.partition(BLOCK)[0]] += part.errors_nano[name] ** 2
    errors = {name: round(math.sqrt(square)) for name, square in squares.items()}
    return replace(part, scores_nano=dict(totals), errors_nano=errors)


def cap_factors(gains_Q: Array, cap: float) -> Array:
    return np.asarray(np.minimum(1.0, max(cap, 1e-9) / np.maximum(gains_Q, 1e-9)))


def shipped_pay(scores: Scores, z_milli: int = Z_MILLI) -> Pay:
    """By the rule of shares, version 1: parts of the pool for each contributor and `unattributed`."""
    return _both(scores, lambda part: _ppb(shares_ppb(part.scores_nano, part.errors_nano, part.gain_nano, z_milli)))


def use_only_pay(scores: Scores, z_milli: int = Z_MILLI) -> Pay:
    """As shipped, were the whole pool paid by use."""
    part = scores.use
    return _ppb(shares_ppb(part.scores_nano, part.errors_nano, part.gain_nano, z_milli))


def threshold_pay(scores: Scores, z_milli: int = Z_MILLI) -> Pay:
    """Whoever is above z standard errors is paid his whole estimate."""

    def weight(score: int, error: int) -> float:
        return score if 1000 * score > z_milli * error else 0.0

    return _both(scores, lambda part: _by_weight(part, weight))


def pooled_pay(scores: Scores, z_milli: int = Z_MILLI) -> Pay:
    """The whole's uncertainty is taken from the whole, however it is divided: I_c (1 - z sqrt(sum SE^2) / sum I)."""

    def share(part: ContributorScores) -> Pay:
        total = sum(max(0, score) for score in part.scores_nano.values())
        error = math.sqrt(sum(error**2 for error in part.errors_nano.values()))
        keep = max(0.0, 1 - z_milli / 1000 * error / total) if total else 0.0
        return _by_weight(part, lambda score, _: keep * max(0, score))

    return _both(scores, share)


def staked_pay(scores: Scores, stake: float, z_milli: int = Z_MILLI) -> Pay:
    """As shipped, and a name whose influence is below minus z standard errors loses as much of its stake as another
    would have been paid for the opposite."""
    pay = shipped_pay(scores, z_milli)
    lost = _both(
        scores,
        lambda part: _by_weight(part, lambda score, error: max(0.0, -score - z_milli / 1000 * error)),
    )
    return {name: value - (min(stake, lost[name]) if name != UNATTRIBUTED else 0.0) for name, value in pay.items()}


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


def _scores(observed: Observed, columns: slice, fees: Array) -> ContributorScores:
    entries = [
        IndexEntry(row_id=row_id, contributor_id=name, trained=True)
        for row_id, name in zip(observed.row_ids, observed.who, strict=True)
    ]
    scores = observed.index_RQ[:, columns].astype(np.float32)
    design = Design(groups=observed.groups, members_MG=observed.members_MG)
    bank = fit_outcomes(design, observed.outcomes_MQ[:, columns], entries, scores)
    weights_nano = [round(fee * NANO_PER_OPEN) for fee in fees.tolist()]
    return bank_scores("adapter", "period", entries, scores, weights_nano, observed.gains_Q[columns].tolist(), bank)


def _both(scores: Scores, share: Callable[[ContributorScores], Pay]) -> Pay:
    use, improvement = share(scores.use), share(scores.improvement)
    return {name: USE * use[name] + IMPROVEMENT * improvement[name] for name in use}


def _ppb(shares: Mapping[str, int]) -> Pay:
    return {name: value / WHOLE_PPB for name, value in shares.items()}


def _by_weight(part: ContributorScores, weight: Callable[[int, int], float]) -> Pay:
    whole = max(part.gain_nano, sum(max(0, score) for score in part.scores_nano.values()))
    if whole <= 0:
        return {**dict.fromkeys(part.scores_nano, 0.0), UNATTRIBUTED: 1.0}
    pay = {name: weight(score, part.errors_nano[name]) / whole for name, score in part.scores_nano.items()}
    return {**pay, UNATTRIBUTED: 1.0 - sum(pay.values())}


def _normalized(pay: Pay) -> Pay:
    total = sum(pay.values())
    return {name: value / total if total else 0.0 for name, value in pay.items()}


def ratio(over: float, under: float) -> float:
    return over / under if abs(under) > 1e-12 else 0.0
