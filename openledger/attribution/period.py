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

The sum is fitted as one answer; the ratios come from the period's answers, of which there are more. Where the model's
errors were too small for members it was not fitted to, they are made larger by that factor. A group of several
contributors is divided as its rows are (`estimate.py`); to their errors the index's own is added, as far as decoys
show it (without decoys: as large as the rows' scores).
"""

import math
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from openledger.attribution.coalitions import Design
from openledger.attribution.estimate import (
    contributor_sums,
    corrected_rows,
    group_numbers,
    group_sums,
    row_variance,
)
from openledger.attribution.expected import fit_expected, left_out
from openledger.attribution.index import METHOD, IndexEntry
from openledger.core.errors import InvalidInput
from openledger.core.money import NANO_PER_OPEN
from openledger.core.values import ContributorScores

_NANO = 10**9
BANK_METHOD = "bank/1"


def contributor_scores(
    adapter: str,
    period: str,
    entries: Sequence[IndexEntry],
    scores: npt.NDArray[np.float32],
    fees_nano: Sequence[int],
    gains: Sequence[float],
) -> ContributorScores:
    """`scores` is [num_rows, num_answers]; `gains` is each answer's mean log-likelihood under the adapter minus that
    under the base, in nats per token. Raises InvalidInput where they don't fit or are not finite."""
    if scores.shape != (len(entries), len(fees_nano)) or len(gains) != len(fees_nano):
        raise InvalidInput("scores, fees and gains are of different sizes", code="invalid_scores", param="scores")
    if not (np.isfinite(scores).all() and np.isfinite(gains).all()):
        raise InvalidInput("a score or gain is not finite", code="invalid_scores", param="scores")
    fees = np.asarray(fees_nano, dtype=np.float64) / NANO_PER_OPEN
    influence = scores.astype(np.float64) @ fees
    gain = float(np.dot(np.asarray(gains, dtype=np.float64), fees))
    trained = np.array([entry.trained for entry in entries])
    total = float(influence[trained].sum())
    factor = gain / total if gain > 0 and total > 0 else 0.0
    noise = float(np.sqrt(np.mean(influence[~trained] ** 2))) if (~trained).any() else None
    by_contributor: defaultdict[str, list[float]] = defaultdict(list)
    for entry, value in zip(entries, influence.tolist(), strict=True):
        if entry.trained:
            by_contributor[entry.contributor_id].append(value)
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
            "trained_rms": f"{float(np.sqrt(np.mean(influence[trained] ** 2))):.6g}",
        },
    )


def bank_scores(
    adapter: str,
    period: str,
    design: Design,
    outcomes_MQ: npt.NDArray[np.float64],
    entries: Sequence[IndexEntry],
    scores: npt.NDArray[np.float32],
    fees_nano: Sequence[int],
    gains: Sequence[float],
    *,
    least_error_scale: float = 1.0,
    ratios: dict[str, float] | None = None,
) -> ContributorScores:
    """`outcomes_MQ` is each answer's log-likelihood per token under each of the bank's coalitions; the rest as in
    `contributor_scores`. `least_error_scale` is what an audit found the bank's errors to be too small by.
    `ratios` are those of `bank_ratios` over more answers than these, where these are few.

    Raises InvalidInput where they don't fit or are not finite.
    """
    if scores.shape != (len(entries), len(fees_nano)) or not len(gains) == len(fees_nano) == outcomes_MQ.shape[1]:
        raise InvalidInput("scores, outcomes, fees and gains are of different sizes", code="invalid_scores")
    fees = np.asarray(fees_nano, dtype=np.float64) / NANO_PER_OPEN
    trained = [number for number, entry in enumerate(entries) if entry.trained]
    who = [entries[number].contributor_id for number in trained]
    group_R = group_numbers(who, design.groups)
    rows_RQ = scores[trained].astype(np.float64)
    prior_GQ = group_sums(rows_RQ, group_R, len(design.groups))
    ratios = ratios or fit_expected(design.members_MG, outcomes_MQ, prior_GQ)[0].ratios
    total, _ = fit_expected(design.members_MG, (outcomes_MQ @ fees)[:, None], (prior_GQ @ fees)[:, None], ratios=ratios)
    checked = left_out(design.members_MG, outcomes_MQ, prior_GQ, ratios=ratios)
    error_scale = max(1.0, least_error_scale, checked.error_scale if checked else 1.0)
    row_sums = (rows_RQ @ fees)[:, None]
    variance = row_variance(row_sums[None])
    influence = corrected_rows(row_sums, variance, group_R, total.mean_GQ, total.prior_scale)
    part = variance / group_sums(variance, group_R, len(design.groups))[group_R]
    names = sorted(set(who))
    sums = contributor_sums(influence, who, names)[:, 0]
    errors = error_scale * contributor_sums(part * total.error_GQ[group_R], who, names)[:, 0]
    decoys = [number for number, entry in enumerate(entries) if not entry.trained]
    row_noise = total.prior_scale * _root_mean_square(scores[decoys] @ fees if decoys else row_sums[:, 0])
    grouped = {name for group in design.groups if len(group) > 1 for name in group}
    for number, name in enumerate(names):
        if name in grouped:
            errors[number] = math.hypot(errors[number], math.sqrt(who.count(name)) * row_noise)
    return ContributorScores(
        adapter=adapter,
        period=period,
        method=BANK_METHOD,
        scores_nano={name: round(value * _NANO) for name, value in zip(names, sums.tolist(), strict=True)},
        errors_nano={name: round(value * _NANO) for name, value in zip(names, errors.tolist(), strict=True)},
        gain_nano=round(float(np.dot(np.asarray(gains, dtype=np.float64), fees)) * _NANO),
        quality={
            "coalitions": str(len(outcomes_MQ)),
            "groups": str(len(design.groups)),
            "index_scale": f"{total.prior_scale:.6g}",
            **({} if checked is None else {"left_out_agreement": f"{checked.agreement:.3f}"}),
            "error_scale": f"{error_scale:.3f}",
            "noise": f"{float(total.noise_Q[0]):.6g}",
            "quantity": "expected",
            "ratios": " ".join(f"{name}={value:.3g}" for name, value in sorted(ratios.items())),
            "trained_rows": str(len(trained)),
        },
    )


def bank_ratios(
    design: Design,
    outcomes_MQ: npt.NDArray[np.float64],
    entries: Sequence[IndexEntry],
    scores: npt.NDArray[np.float32],
) -> dict[str, float]:
    """The ratios of the bank's model that fit these answers best."""
    trained = [number for number, entry in enumerate(entries) if entry.trained]
    group_R = group_numbers([entries[number].contributor_id for number in trained], design.groups)
    prior_GQ = group_sums(scores[trained].astype(np.float64), group_R, len(design.groups))
    return fit_expected(design.members_MG, outcomes_MQ, prior_GQ)[0].ratios


def _root_mean_square(values: npt.NDArray[np.float64]) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


def _error(influences: Sequence[float], noise: float | None) -> float:
    return abs(sum(influences)) if noise is None else math.sqrt(len(influences)) * noise
