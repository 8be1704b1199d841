"""From row scores to contributors' scores of a period, with their errors, in the unit that shares are made of.

    S_i = sum over answers q of fee_q * s_iq                 (a row's influence on what was paid for)
    I_c = a * sum over c's trained rows of S_i               SE_c = a * sqrt(n_c) * sigma_0
    a   = G / sum over trained rows of S_i                   (so that the influences sum to the measured gain G)

sigma_0 is the root mean square of S over decoy rows, which were never trained on and whose true influence is zero.
Without decoys nothing is known of the error: SE_c is then 10 sqrt(|I_c| sum |I|), on which `core.shares` pays nobody
for any z of a tenth or more.
An index knows no absolute scale, hence `a`. Where G or the sum is not positive nothing can be attributed: scores are
zero, and the shares rule gives all to `unattributed`. Where some trained rows were gone when the index was built, `a`
is G n / N over the sum, n of N rows being there: a row that nobody can measure counts as the mean of the others, and
what it brought is nobody's.

With a bank the scores are expected influence, in absolute units, with the posterior's error (`expected.py`):

    I_g, SE_g   of y(S) = sum over answers q of fee_q * log-likelihood_q(S)      prior: the index's sums over g's rows

The sum is fitted as one answer; the ratios come from all that was asked, of which there is more. SE_g is multiplied by
sqrt((M - 1) / (M - 3)), the spread of Student's t with the bank's M members, and by how much too small the model's
errors were for members it was not fitted to, in the sum or in single answers. Here too nothing is attributed where G is
not positive. g are the bank's blocks of rows (`coalitions.py`). Inside a block a row's score in the index counts up to
the median size of all rows' scores, and each row gets an equal part of what is missing to the bank's estimate:

    r_i = lambda max(-m, min(m, S_i)) + (I_g - sum of the block's own) / size        m = median of |S|

One row's large score is an outlier before it is evidence. Without the bound, noise under as many names as rows earned
as much as honest rows do: names are clipped one by one, and its few large positive scores were paid
(docs/attribution/redteam.md). Where a block is one contributor's, nothing of this changes what he gets.

A contributor's score is the sum of his rows'. His error is what he brings into the variance of the sum over all, which
is all that the rule of shares asks for: of each block his part p of the rows,

    SE_c^2 = sum over blocks of p SE_g^2

Where others have rows in a block too he is known less well than that. How far his rows lie from their part of the block
cancels out in the sum; `inside_error` of the quality says how much it may be at most, by the model or by the decoys:

    2 sigma sqrt(own / G p (1 - p))          or, if that is more, sqrt(rows) sigma_0

**Ceiling.** An answer counts as fee * min(1, g / its gain), g the mean gain of the held-out answers: else whoever asks
for what the model has learnt by heart moves more influence with a fee than it buys elsewhere. The divisor is at least
all fees, those of answers marked wrong included, times the held-out answers' mean of min(gain, g) (`core.shares`): g
itself is above what honest answers reach under the ceiling. Where there are no held-out answers, or they gained nothing
on the mean, there is nothing to measure by: fees count whole, and the divisor is G or the sum of positive influences.

**Repeats.** What a contributor's rows moved that repeat earlier ones (`likeness.py`), summed over the period, is
stated beside his score, and the rule of shares leaves it unpaid: U_c, clipped at 0 once, as scores are. So such rows
still count where they moved answers to the worse.

A row that was withdrawn or removed from its Datanet earns as before from every answer of an adapter that was trained on
it, until no adapter that is served contains it: else a withdrawal would reward the others, or the owner. Settlement
therefore names no row as `withdrawn`. Whoever does, to see what it would mean, finds such rows in their place in every
sum and paid nothing: what was theirs is nobody's.
"""

import math
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from openledger.attribution.coalitions import Design
from openledger.attribution.estimate import contributor_sums, corrected_rows, group_sums
from openledger.attribution.expected import Expected, LeftOut, fit_expected, left_out, student_spread
from openledger.attribution.index import METHOD, IndexEntry
from openledger.attribution.likeness import Repeat
from openledger.core.errors import InvalidInput
from openledger.core.money import NANO_PER_OPEN
from openledger.core.values import ContributorScores

_NANO = 10**9
_UNKNOWN = 10.0
BANK_METHOD = "bank/2"


Scores = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcomes:
    """A bank's design and, [num_coalitions, num_answers], each answer's log-likelihood per token under each of its
    coalitions. `ratios` are those of the model that fit them best."""

    design: Design
    outcomes_MQ: npt.NDArray[np.float64]
    ratios: dict[str, float]

    def of(self, part: slice) -> "Outcomes":
        return replace(self, outcomes_MQ=self.outcomes_MQ[:, part])


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One adapter's answers of a period and then its held-out rows, measured: everything that its scores follow from.

    `scores` is [num_entries, num_asked]; `weights_nano` are of the answers, of which there are as many, and 0 where
    one was marked wrong; `fees_nano` are what they cost, if that is more. Held-out rows count one OPEN each.
    `gains` is each one's mean log-likelihood under the adapter minus that under the base, in nats per token. `bank` is
    None where the index stands alone. `withdrawn` are ids of rows that are paid nothing: in a settlement none. Of one
    generation of a derived adapter `gains` are what it added to its parent, and `served_gains` those of the adapter
    that was served, by which the ceiling is reckoned; empty where it is the same. `num_gone` are the
    adapter's trained rows that the index lacks. `repeats` are rows that the rule of shares doesn't pay for.
    `index_method` is the index's.

    The bank is fitted to each part of the pool once, whether contributors' scores or rows are asked for.
    """

    adapter: str
    period: str
    entries: tuple[IndexEntry, ...]
    scores: Scores
    weights_nano: tuple[int, ...]
    gains: tuple[float, ...]
    bank: Outcomes | None = None
    least_error_scale: float = 1.0
    withdrawn: frozenset[str] = frozenset()
    fees_nano: tuple[int, ...] = ()
    served_gains: tuple[float, ...] = ()
    num_gone: int = 0
    repeats: tuple[Repeat, ...] = ()
    index_method: str = METHOD
    _fits: "dict[str, BankFit]" = field(default_factory=dict, init=False, repr=False, compare=False)

    def use(self) -> ContributorScores:
        """Influence on the answers, weighted, under the ceiling that the held-out rows set."""
        ceiling, weights_nano = self.ceiling, self.counted_nano
        scores = self._of(self._sold, weights_nano, self._fit("use", self._sold, weights_nano))
        counted = f"{sum(weights_nano) / max(1, sum(self.weights_nano)):.6g}"
        return replace(
            scores,
            quality={**scores.quality, "ceiling": f"{ceiling:.6g}" if ceiling else "none", "fees_counted": counted},
            ceilings=(ceiling_pair(self.owed, self.fees_nano or self.weights_nano),),
        )

    @property
    def counted_nano(self) -> list[int]:
        """What each answer weighs under the ceiling."""
        return capped(self.weights_nano, (self.served_gains or self.gains)[: len(self.weights_nano)], self.ceiling)

    @property
    def ceiling(self) -> float:
        """Mean gain of the held-out rows; 0 where there are none or it is no gain."""
        return ceiling_of((self.served_gains or self.gains)[len(self.weights_nano) :])

    @property
    def owed(self) -> float:
        """What an answer as good as the held-out ones owes to the data."""
        return owed_of((self.served_gains or self.gains)[len(self.weights_nano) :])

    def improvement(self) -> ContributorScores | None:
        """Influence on the held-out rows; None where there are none."""
        weights_nano = self._held_out_nano
        if not weights_nano:
            return None
        return self._of(self._held_out, weights_nano, self._fit("improvement", self._held_out, weights_nano))

    def answer(self, number: int) -> ContributorScores:
        """Influence on one answer alone, as if it had cost one OPEN: shown, and paid to nobody."""
        part = slice(number, number + 1)
        return self._of(part, [NANO_PER_OPEN], self._fit_part(part, [NANO_PER_OPEN]))

    def use_rows(self) -> "BankRows | None":
        """What `use` divides among rows; None where there is no bank."""
        found = self._fit("use", self._sold, self.counted_nano)
        return None if found is None else found.rows

    def improvement_rows(self) -> "BankRows | None":
        """What `improvement` divides among rows; None where there is no bank or no held-out row."""
        weights_nano = self._held_out_nano
        found = self._fit("improvement", self._held_out, weights_nano) if weights_nano else None
        return None if found is None else found.rows

    @property
    def _sold(self) -> slice:
        return slice(0, len(self.weights_nano))

    @property
    def _held_out(self) -> slice:
        return slice(len(self.weights_nano), None)

    @property
    def _held_out_nano(self) -> list[int]:
        return [NANO_PER_OPEN] * (len(self.gains) - len(self.weights_nano))

    def _fit(self, name: str, part: slice, weights_nano: Sequence[int]) -> "BankFit | None":
        """`_fit_part`, made once and kept by `name`."""
        if name not in self._fits and (found := self._fit_part(part, weights_nano)) is not None:
            self._fits[name] = found
        return self._fits.get(name)

    def _fit_part(self, part: slice, weights_nano: Sequence[int]) -> "BankFit | None":
        """None where the index stands alone."""
        if self.bank is None:
            return None
        own = (self.entries, self.scores[:, part], weights_nano, self.gains[part])
        return fit_bank(*own, self.bank.of(part), least_error_scale=self.least_error_scale)

    def _of(self, part: slice, weights_nano: Sequence[int], fit: "BankFit | None") -> ContributorScores:
        unpaid = {repeat.row_id for repeat in self.repeats}
        pool = (self.adapter, self.period, self.entries)
        if fit is not None:
            found = fitted_scores(*pool, fit, withdrawn=self.withdrawn, repeats=unpaid)
            found = replace(found, quality={**found.quality, "index_method": self.index_method})
        else:
            own = (self.scores[:, part], weights_nano, self.gains[part])
            alone = contributor_scores(*pool, *own, withdrawn=self.withdrawn, repeats=unpaid)
            found = replace(_beside_gone(alone, self.entries, self.num_gone), method=self.index_method)
        return replace(found, repeats=self._named())

    def _named(self) -> tuple[tuple[str, str, str, int], ...]:
        """The repeats as scores name them; a row that the index lacks moved nothing, and isn't."""
        whose = {entry.row_id: entry.contributor_id for entry in self.entries if entry.trained}
        return tuple(
            (each.row_id, each.earlier, each.contributor_id or whose[each.row_id], each.likeness_milli)
            for each in self.repeats
            if each.row_id in whose
        )


def ceiling_of(held_out_gains: Sequence[float]) -> float:
    """Mean gain of the held-out rows; 0 where there are none or it is no gain."""
    return max(0.0, sum(held_out_gains) / len(held_out_gains)) if held_out_gains else 0.0


def owed_of(held_out_gains: Sequence[float]) -> float:
    """The mean of the held-out rows' gains, each up to the ceiling; 0 where there is none."""
    ceiling = ceiling_of(held_out_gains)
    return max(0.0, sum(min(gain, ceiling) for gain in held_out_gains) / len(held_out_gains)) if ceiling else 0.0


def ceiling_pair(owed: float, fees_nano: Sequence[int]) -> tuple[int, int]:
    """As `ContributorScores.ceilings` has it: in billionths of a nat, and the fees that it bounds in nano-OPEN."""
    return round(owed * _NANO), sum(fees_nano)


def capped(weights_nano: Sequence[int], gains: Sequence[float], ceiling: float) -> list[int]:
    """Each answer's weight times min(1, ceiling / its gain); as it is without a ceiling, or with no gain above it."""
    if ceiling <= 0:
        return list(weights_nano)
    return [
        round(weight * ceiling / gain) if gain > ceiling else weight
        for weight, gain in zip(weights_nano, gains, strict=True)
    ]


def fit_outcomes(
    design: Design, outcomes_MQ: npt.NDArray[np.float64], entries: Sequence[IndexEntry], scores: Scores
) -> Outcomes:
    """Fit the ratios of a bank's model on all that was asked, with the index's sums as prior."""
    _, prior_GQ, _ = _grouped(entries, scores, design)
    if outcomes_MQ.shape[1] != scores.shape[1]:
        raise InvalidInput("scores and outcomes are of different sizes", code="invalid_scores", param="scores")
    ratios = fit_expected(design.members_MG, outcomes_MQ, prior_GQ)[0].ratios
    return Outcomes(design=design, outcomes_MQ=outcomes_MQ, ratios=ratios)


def contributor_scores(
    adapter: str,
    period: str,
    entries: Sequence[IndexEntry],
    scores: Scores,
    weights_nano: Sequence[int],
    gains: Sequence[float],
    *,
    withdrawn: Collection[str] = (),
    repeats: Collection[str] = (),
) -> ContributorScores:
    """By the index alone. Raises InvalidInput where sizes don't fit or a number is not finite."""
    fees, gain = _checked(entries, scores, weights_nano, gains)
    influence = scores.astype(np.float64) @ fees
    trained = np.array([entry.trained for entry in entries])
    total = float(influence[trained].sum())
    factor = gain / total if gain > 0 and total > 0 else 0.0
    noise = _root_mean_square(influence[~trained]) if (~trained).any() else None
    by_contributor: defaultdict[str, list[float]] = defaultdict(list)
    repeated: defaultdict[str, float] = defaultdict(float)
    for entry, value in zip(entries, influence.tolist(), strict=True):
        if entry.trained:
            by_contributor[entry.contributor_id].append(0.0 if entry.row_id in withdrawn else value)
            if entry.row_id in repeats and entry.row_id not in withdrawn:
                repeated[entry.contributor_id] += factor * value
    repeated_nano = _billionths(repeated)
    return ContributorScores(
        adapter=adapter,
        period=period,
        method=METHOD,
        scores_nano={c: round(factor * sum(v) * _NANO) for c, v in sorted(by_contributor.items())},
        errors_nano={c: round(factor * e * _NANO) for c, e in sorted(_index_errors(by_contributor, noise).items())},
        gain_nano=round(gain * _NANO),
        quality={
            "calibration_factor": f"{factor:.6g}",
            "decoy_rows": str(int((~trained).sum())),
            "decoy_rms": "unknown" if noise is None else f"{noise:.6g}",
            "trained_rows": str(int(trained.sum())),
            "trained_rms": f"{_root_mean_square(influence[trained]):.6g}",
        },
        unpaid_nano=positive(repeated_nano),
        repeated_nano=repeated_nano,
    )


def _beside_gone(scores: ContributorScores, entries: Sequence[IndexEntry], num_gone: int) -> ContributorScores:
    """`scores` as part of a gain that rows have part in which could not be indexed any more."""
    if not num_gone:
        return scores
    there = sum(entry.trained for entry in entries)
    whole = there + num_gone
    return replace(
        scores,
        scores_nano={name: value * there // whole for name, value in scores.scores_nano.items()},
        errors_nano={name: -(-value * there // whole) for name, value in scores.errors_nano.items()},
        unpaid_nano={name: -(-value * there // whole) for name, value in scores.unpaid_nano.items()},
        repeated_nano={name: -(-value * there // whole) for name, value in scores.repeated_nano.items()},
        quality={**scores.quality, "gone_rows": str(num_gone)},
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class BankFit:
    """A bank fitted to one weighted sum of answers: the sum's posterior, how well the bank `check`s out, and what
    follows for rows. `noise` is a decoy row's, and `gain` the sum's, in OPEN x nats."""

    bank: Outcomes
    total: Expected
    scale: float
    check: LeftOut | None
    rows: "BankRows"
    noise: float
    gain: float


def fit_bank(
    entries: Sequence[IndexEntry],
    scores: Scores,
    weights_nano: Sequence[int],
    gains: Sequence[float],
    bank: Outcomes,
    *,
    least_error_scale: float = 1.0,
) -> BankFit:
    """With the index as prior. `least_error_scale` is what an audit found the bank's errors to be too small by. Raises
    InvalidInput where sizes don't fit or a number is not finite."""
    fees, gain = _checked(entries, scores, weights_nano, gains)
    rows_RQ, prior_GQ, group_R = _grouped(entries, scores, bank.design)
    total, scale, check = _fitted(prior_GQ, fees, bank, least_error_scale)
    decoys = [number for number, entry in enumerate(entries) if not entry.trained]
    rows = BankRows(
        influence_R=(gain > 0) * _divided(rows_RQ @ fees, group_R, total),
        group_R=group_R,
        error_G=(gain > 0) * scale * total.error_GQ[:, 0],
    )
    return BankFit(
        bank=bank,
        total=total,
        scale=scale,
        check=check,
        rows=rows,
        noise=total.prior_scale * _root_mean_square(scores[decoys] @ fees if decoys else rows_RQ @ fees),
        gain=gain,
    )


def fitted_scores(
    adapter: str,
    period: str,
    entries: Sequence[IndexEntry],
    fit: BankFit,
    *,
    withdrawn: Collection[str] = (),
    repeats: Collection[str] = (),
) -> ContributorScores:
    """Contributors' scores by a bank that is fitted."""
    bank, rows = fit.bank, fit.rows
    trained = [entry for entry in entries if entry.trained]
    paid_R = np.array([entry.row_id not in withdrawn for entry in trained])
    who = [entry.contributor_id for entry in trained]
    names = sorted(set(who))
    repeats_R = np.array([entry.row_id in repeats for entry in trained])
    influence_C, repeated_C = (
        contributor_sums((rows.influence_R * chosen_R)[:, None], who, names)[:, 0]
        for chosen_R in (paid_R, paid_R & repeats_R)
    )
    parts_CG = bank.design.parts([(entry.row_id, entry.contributor_id) for entry in trained], names)
    error_C = (fit.gain > 0) * fit.scale * np.sqrt(parts_CG @ fit.total.error_GQ[:, 0] ** 2)
    inside = _inside(parts_CG, np.bincount(rows.group_R, minlength=parts_CG.shape[1]), fit.total, fit.noise)
    repeated_nano = _billionths(dict(zip(names, repeated_C.tolist(), strict=True)))
    return ContributorScores(
        adapter=adapter,
        period=period,
        method=BANK_METHOD,
        scores_nano={name: round(i * _NANO) for name, i in zip(names, influence_C.tolist(), strict=True)},
        errors_nano={name: round(e * _NANO) for name, e in zip(names, error_C.tolist(), strict=True)},
        gain_nano=round(fit.gain * _NANO),
        quality={
            "coalitions": str(len(bank.design.members_MG)),
            "players": bank.design.players,
            "groups": str(len(bank.design.groups)),
            "index_scale": f"{fit.total.prior_scale:.6g}",
            **({"left_out_agreement": f"{fit.check.agreement:.3f}"} if fit.check else {}),
            "error_scale": f"{fit.scale:.3f}",
            "inside_error": f"{inside:.6g}",
            "noise": f"{float(fit.total.noise_Q[0]):.6g}",
            "quantity": "expected",
            "ratios": " ".join(f"{name}={value:.3g}" for name, value in sorted(bank.ratios.items())),
            "trained_rows": str(len(trained)),
        },
        unpaid_nano=positive(repeated_nano),
        repeated_nano=repeated_nano,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class BankRows:
    """What `fitted_scores` divides: each trained row's influence and block, in the order of the index's trained
    entries, and the stated error of each block. In OPEN x nats."""

    influence_R: npt.NDArray[np.float64]
    group_R: npt.NDArray[np.int64]
    error_G: npt.NDArray[np.float64]


def _fitted(
    prior_GQ: npt.NDArray[np.float64], fees: npt.NDArray[np.float64], bank: Outcomes, least_error_scale: float
) -> tuple[Expected, float, LeftOut | None]:
    """The period's sum, fitted as one answer; by how much its errors are too small; and how well the bank predicts
    single answers under members that it was not fitted to."""
    members_MG, outcomes_M1 = bank.design.members_MG, (bank.outcomes_MQ @ fees)[:, None]
    total_prior = (prior_GQ @ fees)[:, None]
    total, _ = fit_expected(members_MG, outcomes_M1, total_prior, ratios=bank.ratios)
    checks = [
        left_out(members_MG, outcomes, prior, ratios=bank.ratios)
        for outcomes, prior in ((bank.outcomes_MQ, prior_GQ), (outcomes_M1, total_prior))
    ]
    scale = max(1.0, least_error_scale, *(check.error_scale for check in checks if check))
    return total, scale * student_spread(len(members_MG)), checks[0]


def _billionths(repeated: Mapping[str, float]) -> dict[str, int]:
    """Of the contributors whose repeated rows moved anything."""
    return {name: nano for name, value in sorted(repeated.items()) if (nano := round(value * _NANO))}


def positive(repeated_nano: Mapping[str, int]) -> dict[str, int]:
    """U_c of the contributors whose repeated rows moved answers to the better."""
    return {name: nano for name, nano in repeated_nano.items() if nano > 0}


def _checked(
    entries: Sequence[IndexEntry], scores: Scores, weights_nano: Sequence[int], gains: Sequence[float]
) -> tuple[npt.NDArray[np.float64], float]:
    """Weights in OPEN, and the gain weighted by them."""
    if scores.shape != (len(entries), len(weights_nano)) or len(gains) != len(weights_nano):
        raise InvalidInput("scores, weights and gains are of different sizes", code="invalid_scores", param="scores")
    if not (np.isfinite(scores).all() and np.isfinite(gains).all()):
        raise InvalidInput("a score or gain is not finite", code="invalid_scores", param="scores")
    fees = np.asarray(weights_nano, dtype=np.float64) / NANO_PER_OPEN
    return fees, float(np.dot(np.asarray(gains, dtype=np.float64), fees))


def _grouped(
    entries: Sequence[IndexEntry], scores: Scores, design: Design
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """The trained rows' scores [R, Q], their sums over the bank's groups [G, Q], and each row's group [R]."""
    trained = [number for number, entry in enumerate(entries) if entry.trained]
    group_R = design.numbers([(entries[number].row_id, entries[number].contributor_id) for number in trained])
    rows_RQ = scores[trained].astype(np.float64)
    return rows_RQ, group_sums(rows_RQ, group_R, len(design.groups)), group_R


def _divided(
    rows_R: npt.NDArray[np.float64], group_R: npt.NDArray[np.int64], total: Expected
) -> npt.NDArray[np.float64]:
    """Each row's influence, [R]. All rows of a group take an equal part of the bank's correction: by the size of their
    scores, one outlier would take it all."""
    ones_R1, most = np.ones((len(rows_R), 1)), float(np.median(np.abs(rows_R)))
    bounded_R1 = np.clip(rows_R, -most, most)[:, None]
    return corrected_rows(bounded_R1, ones_R1, group_R, total.mean_GQ, total.prior_scale)[:, 0]


def _inside(parts_CG: npt.NDArray[np.float64], sizes_G: npt.NDArray[np.int64], total: Expected, noise: float) -> float:
    """How far a contributor's rows may lie from their part of a block that he shares: the largest such deviation."""
    whole = 4 * float(total.noise_Q[0]) ** 2 * total.ratios["own"] / len(sizes_G)
    inside_CG = np.maximum(parts_CG * sizes_G * noise**2, whole * parts_CG * (1 - parts_CG))
    return math.sqrt(float(np.where(parts_CG < 1, inside_CG, 0.0).max()))


def _root_mean_square(values: npt.NDArray[np.float64]) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


def _index_errors(influences: Mapping[str, Sequence[float]], noise: float | None) -> dict[str, float]:
    if noise is not None:
        return {name: math.sqrt(len(own)) * noise for name, own in influences.items()}
    sums = {name: abs(sum(own)) for name, own in influences.items()}
    whole = sum(sums.values())
    return {name: _UNKNOWN * math.sqrt(own * whole) for name, own in sums.items()}
