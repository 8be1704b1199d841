"""From row scores to contributors' scores of a period, with their errors, in the unit that shares are made of.

    S_i = sum over answers q of fee_q * s_iq                 (a row's influence on what was paid for)
    I_c = a * sum over c's trained rows of S_i               SE_c = a * sqrt(n_c) * sigma_0
    a   = G / sum over trained rows of S_i                   (so that the influences sum to the measured gain G)

sigma_0 is the root mean square of S over decoy rows, which were never trained on and whose true influence is zero.
Without decoys nothing is known of the error: SE_c is then |I_c|, and nobody is paid on it.
An index knows no absolute scale, hence `a`. Where G or the sum is not positive nothing can be attributed: scores are
zero, and the shares rule gives all to `unattributed`.

With a bank the scores are expected influence, in absolute units, with the posterior's error (`expected.py`):

    I_g, SE_g   of y(S) = sum over answers q of fee_q * log-likelihood_q(S)      prior: the index's sums over g's rows

The sum is fitted as one answer; the ratios come from all that was asked, of which there is more. SE_g is multiplied by
sqrt((M - 1) / (M - 3)), the spread of Student's t with the bank's M members, and by how much too small the model's
errors were for members it was not fitted to, in the sum or in single answers. Here too nothing is attributed where G is
not positive. In a group of k contributors each row gets an equal part of what the bank's estimate adds to the index's
scores, and each contributor's error contains, beside his part of the group's, the larger of the index's own error and

    2 sigma sqrt(own / G (1 - 1/k) / k)              how far one of k effects lies from their mean, by the bank's model

Rows withdrawn since keep their place in every sum and are then paid nothing: what was theirs is nobody's.
"""

import math
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from openledger.attribution.coalitions import Design
from openledger.attribution.estimate import corrected_rows, group_numbers, group_sums
from openledger.attribution.expected import Expected, fit_expected, left_out
from openledger.attribution.index import METHOD, IndexEntry
from openledger.core.errors import InvalidInput
from openledger.core.money import NANO_PER_OPEN
from openledger.core.values import ContributorScores

_NANO = 10**9
BANK_METHOD = "bank/1"


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

    `scores` is [num_entries, num_asked]; `weights_nano` are of the answers, of which there are as many; held-out rows
    count one OPEN each. `gains` is each one's mean log-likelihood under the adapter minus that under the base, in nats
    per token. `bank` is None where the index stands alone. `withdrawn` are ids of rows that are paid nothing.
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

    def use(self) -> ContributorScores:
        """Influence on the answers, weighted."""
        return self._of(slice(0, len(self.weights_nano)), self.weights_nano)

    def improvement(self) -> ContributorScores | None:
        """Influence on the held-out rows; None where there are none."""
        number = len(self.gains) - len(self.weights_nano)
        return self._of(slice(len(self.weights_nano), None), [NANO_PER_OPEN] * number) if number else None

    def answer(self, number: int) -> ContributorScores:
        """Influence on one answer alone, as if it had cost one OPEN: shown, and paid to nobody."""
        return self._of(slice(number, number + 1), [NANO_PER_OPEN])

    def _of(self, part: slice, weights_nano: Sequence[int]) -> ContributorScores:
        own = (self.adapter, self.period, self.entries, self.scores[:, part], weights_nano, self.gains[part])
        if self.bank is None:
            return contributor_scores(*own, withdrawn=self.withdrawn)
        return bank_scores(*own, self.bank.of(part), least_error_scale=self.least_error_scale, withdrawn=self.withdrawn)


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
) -> ContributorScores:
    """By the index alone. Raises InvalidInput where sizes don't fit or a number is not finite."""
    fees, gain = _checked(entries, scores, weights_nano, gains)
    influence = scores.astype(np.float64) @ fees
    trained = np.array([entry.trained for entry in entries])
    total = float(influence[trained].sum())
    factor = gain / total if gain > 0 and total > 0 else 0.0
    noise = _root_mean_square(influence[~trained]) if (~trained).any() else None
    by_contributor: defaultdict[str, list[float]] = defaultdict(list)
    for entry, value in zip(entries, influence.tolist(), strict=True):
        if entry.trained:
            by_contributor[entry.contributor_id].append(0.0 if entry.row_id in withdrawn else value)
    return ContributorScores(
        adapter=adapter,
        period=period,
        method=METHOD,
        scores_nano={c: round(factor * sum(v) * _NANO) for c, v in sorted(by_contributor.items())},
        errors_nano={c: round(factor * _error(v, noise) * _NANO) for c, v in sorted(by_contributor.items())},
        gain_nano=round(gain * _NANO),
        quality={
            "calibration_factor": f"{factor:.6g}",
            "decoy_rows": str(int((~trained).sum())),
            "decoy_rms": "unknown" if noise is None else f"{noise:.6g}",
            "trained_rows": str(int(trained.sum())),
            "trained_rms": f"{_root_mean_square(influence[trained]):.6g}",
        },
    )


def bank_scores(
    adapter: str,
    period: str,
    entries: Sequence[IndexEntry],
    scores: Scores,
    weights_nano: Sequence[int],
    gains: Sequence[float],
    bank: Outcomes,
    *,
    least_error_scale: float = 1.0,
    withdrawn: Collection[str] = (),
) -> ContributorScores:
    """By the bank, with the index as prior. `least_error_scale` is what an audit found the bank's errors to be too
    small by. Raises InvalidInput where sizes don't fit or a number is not finite."""
    fees, gain = _checked(entries, scores, weights_nano, gains)
    rows_RQ, prior_GQ, group_R = _grouped(entries, scores, bank.design)
    members_MG, outcomes_M1 = bank.design.members_MG, (bank.outcomes_MQ @ fees)[:, None]
    total_prior = (prior_GQ @ fees)[:, None]
    total, _ = fit_expected(members_MG, outcomes_M1, total_prior, ratios=bank.ratios)
    checks = [
        left_out(members_MG, outcomes, prior, ratios=bank.ratios)
        for outcomes, prior in ((bank.outcomes_MQ, prior_GQ), (outcomes_M1, total_prior))
    ]
    scale = max(1.0, least_error_scale, *(check.error_scale for check in checks if check))
    scale *= _student_spread(len(members_MG))
    influence_R, part_R = _divided(rows_RQ @ fees, group_R, total)
    decoys = [number for number, entry in enumerate(entries) if not entry.trained]
    noise = total.prior_scale * _root_mean_square(scores[decoys] @ fees if decoys else rows_RQ @ fees)
    split_G = _split_errors(bank.design, total)
    trained = [entry for entry in entries if entry.trained]
    scores_nano, errors_nano = {}, {}
    for name in sorted({entry.contributor_id for entry in trained}):
        own = [number for number, entry in enumerate(trained) if entry.contributor_id == name]
        paid = [number for number in own if trained[number].row_id not in withdrawn]
        group = int(group_R[own[0]])
        error = scale * float(part_R[own].sum() * total.error_GQ[group, 0])
        inside = max(math.sqrt(len(own)) * noise, split_G[group]) if len(bank.design.groups[group]) > 1 else 0.0
        influence = float(influence_R[paid].sum())
        scores_nano[name], errors_nano[name] = (
            (round(influence * _NANO), round(math.hypot(error, inside) * _NANO)) if gain > 0 else (0, 0)
        )
    return ContributorScores(
        adapter=adapter,
        period=period,
        method=BANK_METHOD,
        scores_nano=scores_nano,
        errors_nano=errors_nano,
        gain_nano=round(gain * _NANO),
        quality={
            "coalitions": str(len(members_MG)),
            "groups": str(len(bank.design.groups)),
            "index_scale": f"{total.prior_scale:.6g}",
            **({"left_out_agreement": f"{checks[0].agreement:.3f}"} if checks[0] else {}),
            "error_scale": f"{scale:.3f}",
            "noise": f"{float(total.noise_Q[0]):.6g}",
            "quantity": "expected",
            "ratios": " ".join(f"{name}={value:.3g}" for name, value in sorted(bank.ratios.items())),
            "trained_rows": str(len(trained)),
        },
    )


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
    group_R = group_numbers([entries[number].contributor_id for number in trained], design.groups)
    rows_RQ = scores[trained].astype(np.float64)
    return rows_RQ, group_sums(rows_RQ, group_R, len(design.groups)), group_R


def _divided(
    rows_R: npt.NDArray[np.float64], group_R: npt.NDArray[np.int64], total: Expected
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Each row's influence, and its part of its group's rows. All rows of a group take an equal part of the bank's
    correction: by the size of their scores, one outlier would take it all."""
    ones_R1 = np.ones((len(rows_R), 1))
    influence_R1 = corrected_rows(rows_R[:, None], ones_R1, group_R, total.mean_GQ, total.prior_scale)
    return influence_R1[:, 0], 1 / group_sums(ones_R1, group_R, len(total.mean_GQ))[group_R, 0]


def _split_errors(design: Design, total: Expected) -> list[float]:
    """What a bank of groups leaves open inside each group."""
    own = total.ratios["own"] / len(design.groups)
    sizes = [len(group) for group in design.groups]
    return [2 * float(total.noise_Q[0]) * math.sqrt(own * (1 - 1 / size) / size) for size in sizes]


def _student_spread(num_members: int) -> float:
    if num_members < 4:
        raise InvalidInput(
            f"a bank of {num_members} members says nothing about its errors",
            code="small_bank",
            param="coalitions",
            fix="train at least 4 coalitions, or attribute by the index alone",
        )
    return math.sqrt((num_members - 1) / (num_members - 3))


def _root_mean_square(values: npt.NDArray[np.float64]) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


def _error(influences: Sequence[float], noise: float | None) -> float:
    return abs(sum(influences)) if noise is None else math.sqrt(len(influences)) * noise
