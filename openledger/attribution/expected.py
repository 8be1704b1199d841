"""Expected influence of contributors, from a bank: a Bayesian linear model of an answer's log-likelihood.

    y_q(S) = mu_q + sum over groups g of s_g b_gq + pairs_q(S) + noise          s_g = 1 if g is in S, else -1

    b_gq     ~ lambda p_gq / 2 + N(0, sigma_q^2 (own + trust pi_gq^2)) + level_q / G
    level_q  ~ N(0, sigma_q^2 level)                  what all groups add together, and its square for saturation
    pairs_q  ~ GP(0, sigma_q^2 pairs (((s s')^2 - G) / (G (G - 1))))             what any two groups add beyond each
    noise    ~ N(0, sigma_q^2)                        the order of rows

p is the prior: the index's influence summed over a group's rows (pi the same, scaled to unit root mean square for each
query), with one scale lambda for all queries. The ratios own, trust, level and pairs are shared by all queries and
found by maximum marginal likelihood; mu_q, sigma_q and lambda follow in closed form. Expected influence is
beta_gq = 2 b_gq: the mean of y with the group minus the mean without it, over all coalitions of the others, which is
the Banzhaf value (Banzhaf, 1965; Wang and Jia, 2023). Pairs average out of it and are fitted because they are no noise.

A sum over answers is fitted as an answer of its own: its luck is much smaller than the sum of the answers' lucks.

Shapes: M members, G groups, Q queries, N coalitions asked about.
"""

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt
import torch

from openledger.attribution.evaluation import spearman
from openledger.core.errors import InvalidInput

Array = npt.NDArray[np.float64]
Parts = npt.NDArray[np.bool_] | Array

_STEPS = 60
_FIT_QUERIES = 128
_JITTER = 1e-9
_RATIOS = ("own", "trust", "level", "pairs")
_START = {"own": 0.3, "trust": 0.3, "level": 1.0, "pairs": 0.3}
_PRIOR_WIDTH = 2.5  # of the ratios' logarithms: wide, and enough to keep them finite where the data say nothing
_MOST_LOG = 16.0  # a line search may try what no kernel can be factored with


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """Posterior of expected influence, [G, Q], in the unit of the outcomes (nats per token).

    `error_GQ` is the posterior's standard deviation; `noise_Q` that of one training; `prior_scale` is lambda.
    """

    mean_GQ: Array
    error_GQ: Array
    noise_Q: Array
    prior_scale: float
    ratios: dict[str, float]
    num_members: int

    def interval(self, level: float = 0.9) -> tuple[Array, Array]:
        """Lower and upper end, [G, Q], of the interval that holds the expected influence with probability `level`.
        Raises as `student_spread`."""
        width = _width(level, self.num_members) * self.error_GQ
        return self.mean_GQ - width, self.mean_GQ + width


def fit_expected(
    members_MG: npt.NDArray[np.bool_],
    outcomes_MQ: Array,
    prior_GQ: Array | None = None,
    *,
    ratios: dict[str, float] | None = None,
    interactions: bool = True,
) -> "tuple[Expected, Predictor]":
    """Fit the model to a bank's outcomes; the posterior, and a predictor for other coalitions.

    `ratios` are taken as they are where given (a sum over few answers says too little of its own). Raises InvalidInput
    where shapes don't fit, a number is not finite, or there are fewer than two members.
    """
    _check(members_MG, outcomes_MQ, prior_GQ)
    data = _Data.of(members_MG, outcomes_MQ, prior_GQ)
    if ratios is None:
        ratios = _fit_ratios(data, interactions)
    return _posterior(data, ratios)


def student_spread(num_members: int) -> float:
    """sqrt((M - 1) / (M - 3)), by which the standard deviation of Student's t is larger than the normal's: the noise is
    estimated from M members. Raises InvalidInput (`small_bank`) for fewer than 4."""
    if num_members < 4:
        raise InvalidInput(
            f"a bank of {num_members} members says nothing about its errors",
            code="small_bank",
            param="coalitions",
            fix="train at least 4 coalitions, or attribute by the index alone",
        )
    return math.sqrt((num_members - 1) / (num_members - 3))


def _width(level: float, num_members: int) -> float:
    return NormalDist().inv_cdf(0.5 + level / 2) * student_spread(num_members)


def expected_accuracy(members_MG: npt.NDArray[np.bool_], ratios: dict[str, float]) -> float:
    """How well a bank of this design will tell an answer's contributors apart under `ratios`: the correlation of
    estimated with true influence, sqrt(1 - posterior / prior variance), without any training."""
    members, groups = members_MG.shape
    blank = np.zeros((members, 1))
    blank[0] = 1.0  # any outcome: variances don't depend on it, beyond the noise's scale
    expected, _ = fit_expected(members_MG, blank, ratios=ratios)
    centred = np.eye(groups) - 1 / groups
    prior = 4 * ratios["own"] / groups * np.trace(centred) / groups
    posterior = float(np.mean((expected.error_GQ / expected.noise_Q) ** 2)) * (groups - 1) / groups
    return math.sqrt(max(0.0, 1 - posterior / prior)) if prior > 0 else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """How well a bank predicts members that it was not fitted to; nothing more is trained for it.

    `agreement` is the mean over queries of the Spearman correlation of predicted with found outcomes: the bank's own
    LDS. `error_scale` is the root mean square of what was found minus predicted over the stated error: above 1 the
    stated errors are too small by that factor.
    """

    agreement: float
    error_scale: float


def left_out(
    members_MG: npt.NDArray[np.bool_],
    outcomes_MQ: Array,
    prior_GQ: Array | None = None,
    *,
    ratios: dict[str, float],
) -> LeftOut | None:
    """A coalition and its complement (they lie side by side) are left out together, so a little less is known than the
    whole bank knows. Ratios stay those of the whole fit. None for fewer than 8 members."""
    if len(members_MG) < 8:
        return None
    pair_M = np.arange(len(members_MG)) // 2
    predicted_MQ, error_MQ = np.empty_like(outcomes_MQ), np.empty_like(outcomes_MQ)
    for pair in range(pair_M[-1] + 1):
        out_M = pair_M == pair
        _, predictor = fit_expected(members_MG[~out_M], outcomes_MQ[~out_M], prior_GQ, ratios=ratios)
        predicted_MQ[out_M] = predictor.predict(members_MG[out_M])
        error_MQ[out_M] = predictor.errors(members_MG[out_M])
    return LeftOut(
        agreement=float(spearman(predicted_MQ, outcomes_MQ).mean()),
        error_scale=float(np.sqrt(np.mean(((outcomes_MQ - predicted_MQ) / error_MQ) ** 2))),
    )


class Predictor:
    """y of coalitions that were never trained."""

    def __init__(self, data: "_Data", solved: "_Solved", ratios: dict[str, float]):
        self._data, self._solved, self._ratios = data, solved, ratios

    def predict(self, members_NG: Parts) -> Array:
        """Expected outcome of each query under each coalition, [N, Q]. A group may be there in part, from 0 to 1."""
        data, solved = self._data, self._solved
        signs_NG, cross_QNM = self._cross(members_NG)
        mean_NQ = solved.mu_Q + solved.scale / 2 * (signs_NG @ data.prior_GQ)
        mean_NQ = mean_NQ + torch.einsum("qnm,qm->nq", cross_QNM, solved.weights_QM)
        return np.asarray(mean_NQ.numpy(), dtype=np.float64)

    def interval(self, members_NG: Parts, level: float = 0.9) -> tuple[Array, Array]:
        """Lower and upper end, [N, Q], of the interval that holds one training's outcome with probability `level`.
        Raises as `student_spread`."""
        mean_NQ = self.predict(members_NG)
        width_NQ = _width(level, len(self._data.signs_MG)) * self.errors(members_NG)
        return mean_NQ - width_NQ, mean_NQ + width_NQ

    def errors(self, members_NG: Parts) -> Array:
        """Standard deviation of one training's outcome around `predict`, [N, Q]: the model's and the noise's."""
        signs_NG, cross_QNM = self._cross(members_NG)
        own_QNN = _kernel(signs_NG, signs_NG, self._data.unit_GQ, self._ratios)
        inverse_QMN = torch.cholesky_solve(cross_QNM.transpose(1, 2), self._solved.factor_QMM)
        variance_QN = own_QNN.diagonal(dim1=1, dim2=2) - torch.einsum("qnm,qmn->qn", cross_QNM, inverse_QMN)
        variance_QN = variance_QN.clamp_min(0) + _mu_variance(self._solved, cross_QNM, whole=True) + 1
        return np.asarray((variance_QN * self._solved.sigma2_Q[:, None]).sqrt().T.numpy(), dtype=np.float64)

    def _cross(self, members_NG: Parts) -> tuple[torch.Tensor, torch.Tensor]:
        signs_NG = torch.from_numpy(2 * np.asarray(members_NG, dtype=np.float64) - 1)
        return signs_NG, _kernel(signs_NG, self._data.signs_MG, self._data.unit_GQ, self._ratios)


@dataclass(frozen=True, slots=True)
class _Data:
    signs_MG: torch.Tensor
    outcomes_QM: torch.Tensor
    prior_GQ: torch.Tensor
    unit_GQ: torch.Tensor

    @classmethod
    def of(cls, members_MG: npt.NDArray[np.bool_], outcomes_MQ: Array, prior_GQ: Array | None) -> "_Data":
        prior = np.zeros((members_MG.shape[1], outcomes_MQ.shape[1])) if prior_GQ is None else prior_GQ
        size = np.sqrt(np.mean(prior**2, axis=0, keepdims=True))
        unit = np.divide(prior, size, out=np.zeros_like(prior, dtype=np.float64), where=size > 0)
        parts = (np.where(members_MG, 1.0, -1.0), outcomes_MQ.T, prior, unit)
        return cls(*(torch.from_numpy(np.array(part, dtype=np.float64)) for part in parts))

    def some_queries(self, number: int) -> "_Data":
        step = math.ceil(len(self.outcomes_QM) / number)
        return _Data(self.signs_MG, self.outcomes_QM[::step], self.prior_GQ[:, ::step], self.unit_GQ[:, ::step])


@dataclass(frozen=True, slots=True)
class _Solved:
    """`weights_QM` = K^-1 (y - mean); `sigma2_Q` the noise's variance."""

    factor_QMM: torch.Tensor
    mu_Q: torch.Tensor
    scale: torch.Tensor
    weights_QM: torch.Tensor
    sigma2_Q: torch.Tensor
    log_likelihood: torch.Tensor


def _kernel(
    left_NG: torch.Tensor,
    right_MG: torch.Tensor,
    unit_GQ: torch.Tensor,
    ratios: dict[str, torch.Tensor] | dict[str, float],
) -> torch.Tensor:
    """Covariance of the model's values in units of sigma_q^2, [Q, N, M]."""
    groups = left_NG.shape[1]
    dot_NM = left_NG @ right_MG.T
    level_NM = torch.outer(left_NG.mean(dim=1), right_MG.mean(dim=1))
    shared = ratios["own"] / groups * dot_NM + ratios["level"] * (level_NM + level_NM.square())
    if groups > 1:
        shared = shared + ratios["pairs"] * (dot_NM.square() - groups) / (groups * (groups - 1))
    trusted = torch.einsum("ng,gq,mg->qnm", left_NG, unit_GQ.square(), right_MG) / groups
    return shared[None] + ratios["trust"] * trusted


def _solve(data: _Data, ratios: dict[str, torch.Tensor] | dict[str, float]) -> _Solved:
    members = data.signs_MG.shape[0]
    identity = torch.eye(members, dtype=torch.float64)
    kernel = _kernel(data.signs_MG, data.signs_MG, data.unit_GQ, ratios) + (1 + _JITTER) * identity
    factor = torch.linalg.cholesky(kernel)
    ones_QM = torch.ones_like(data.outcomes_QM)
    prior_QM = (data.signs_MG @ data.prior_GQ / 2).T
    solved = torch.cholesky_solve(torch.stack([data.outcomes_QM, ones_QM, prior_QM], dim=2), factor)
    inverse_y, inverse_one, inverse_p = solved.unbind(dim=2)
    one_one = (ones_QM * inverse_one).sum(dim=1)
    mean_y, mean_p = (inverse_y.sum(dim=1) / one_one)[:, None], (inverse_p.sum(dim=1) / one_one)[:, None]
    y, p = data.outcomes_QM - mean_y, prior_QM - mean_p
    inverse_y, inverse_p = inverse_y - mean_y * inverse_one, inverse_p - mean_p * inverse_one
    y_y, y_p, p_p = ((a * b).sum(dim=1) for a, b in ((y, inverse_y), (y, inverse_p), (p, inverse_p)))
    scale = torch.zeros((), dtype=torch.float64)
    sigma2 = _floor(y_y) / (members - 1)
    for _ in range(3):  # lambda weighs each query by its noise, which depends on lambda
        if bool((p_p > 0).any()):
            scale = ((y_p / sigma2).sum() / (p_p / sigma2).sum().clamp_min(1e-300)).clamp_min(0)
        sigma2 = _floor(y_y - 2 * scale * y_p + scale**2 * p_p) / (members - 1)
    half_logdet = factor.diagonal(dim1=1, dim2=2).log().sum(dim=1)
    log_likelihood = (-half_logdet - 0.5 * one_one.log() - (members - 1) / 2 * sigma2.log()).sum()
    mu = (mean_y - scale * mean_p)[:, 0]
    return _Solved(factor, mu, scale, inverse_y - scale * inverse_p, sigma2, log_likelihood)


def _fit_ratios(data: _Data, interactions: bool) -> dict[str, float]:
    fitted = data.some_queries(_FIT_QUERIES)
    has_prior = bool(data.prior_GQ.abs().sum() > 0)
    off = {name for name, on in (("pairs", interactions), ("trust", has_prior)) if not on}
    names = [name for name in _RATIOS if name not in off]
    start = torch.tensor([math.log(_START[name]) for name in names], dtype=torch.float64)
    logs = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([logs], max_iter=_STEPS, line_search_fn="strong_wolfe")

    def ratios_of(values: torch.Tensor) -> dict[str, torch.Tensor]:
        zero = torch.zeros((), dtype=torch.float64)
        return {
            **dict.fromkeys(off, zero),
            **{name: values[i].clamp(max=_MOST_LOG).exp() for i, name in enumerate(names)},
        }

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        penalty = ((logs - start) / _PRIOR_WIDTH).square().sum() / 2
        loss = penalty - _solve(fitted, ratios_of(logs)).log_likelihood
        loss.backward()
        return loss

    optimizer.step(closure)
    return {name: float(value) for name, value in ratios_of(logs.detach()).items()}


def _posterior(data: _Data, ratios: dict[str, float]) -> tuple[Expected, Predictor]:
    """beta = 2 b is linear in what is Gaussian: its mean and variance given y follow from its covariance with y."""
    solved = _solve(data, ratios)
    groups = data.signs_MG.shape[1]
    level_M = data.signs_MG.mean(dim=1)
    own_QG = ratios["own"] / groups + ratios["trust"] * data.unit_GQ.T.square() / groups
    level = ratios["level"] / groups
    cross_QGM = own_QG[:, :, None] * data.signs_MG.T[None] + level * level_M
    prior_variance_QG = own_QG + level / groups
    mean_QG = solved.scale * data.prior_GQ.T / 2 + torch.einsum("qgm,qm->qg", cross_QGM, solved.weights_QM)
    inverse_QMG = torch.cholesky_solve(cross_QGM.transpose(1, 2), solved.factor_QMM)
    variance_QG = prior_variance_QG - torch.einsum("qgm,qmg->qg", cross_QGM, inverse_QMG)
    variance_QG = variance_QG + _mu_variance(solved, cross_QGM)
    error_QG = 2 * (variance_QG.clamp_min(0) * solved.sigma2_Q[:, None]).sqrt()
    expected = Expected(
        mean_GQ=np.asarray(2 * mean_QG.T.numpy(), dtype=np.float64),
        error_GQ=np.asarray(error_QG.T.numpy(), dtype=np.float64),
        noise_Q=np.asarray(solved.sigma2_Q.sqrt().numpy(), dtype=np.float64),
        prior_scale=float(solved.scale),
        ratios=ratios,
        num_members=len(data.signs_MG),
    )
    return expected, Predictor(data, solved, ratios)


def _mu_variance(solved: _Solved, cross_QGM: torch.Tensor, whole: bool = False) -> torch.Tensor:
    """What not knowing mu adds to the variance of b, [Q, G], or (`whole`) of an outcome, which contains mu."""
    ones = torch.ones(*solved.weights_QM.shape, 1, dtype=torch.float64)
    inverse_one = torch.cholesky_solve(ones, solved.factor_QMM)[:, :, 0]
    leverage_QG = torch.einsum("qgm,qm->qg", cross_QGM, inverse_one)
    direct = 1.0 if whole else 0.0
    return (direct - leverage_QG).square() / inverse_one.sum(dim=1)[:, None]


def _floor(squares: torch.Tensor) -> torch.Tensor:
    return squares.clamp_min(1e-30)


def _check(members_MG: npt.NDArray[np.bool_], outcomes_MQ: Array, prior_GQ: Array | None) -> None:
    members, groups = members_MG.shape
    if members < 2 or outcomes_MQ.shape[0] != members:
        raise InvalidInput(
            "a bank's outcomes need at least two members, and one row for each", code="invalid_bank", param="outcomes"
        )
    if prior_GQ is not None and prior_GQ.shape != (groups, outcomes_MQ.shape[1]):
        raise InvalidInput("the prior needs one number for each group and query", code="invalid_bank", param="prior")
    if not np.isfinite(outcomes_MQ).all() or (prior_GQ is not None and not np.isfinite(prior_GQ).all()):
        raise InvalidInput("an outcome or prior is not finite", code="invalid_bank", param="outcomes")
