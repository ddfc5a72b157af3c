"""Which point of a search is best, when its losses are noisy: a Gaussian process over all of them.

    y(u) = f(u) + e,   f ~ GP(0, s^2 k),   e ~ N(0, v)                                      (1)
    k(u, w) = (1 + r + r^2/3) exp(-r),   r^2 = 5 sum_i ((u_i - w_i) / l_i)^2                (2)
    ln l_i ~ N(sqrt 2 + ln(n) / 2, 3),   ln v ~ N(-2, 1),   ln s^2 ~ N(0, 1)                (3)
    score_j = (1 - w) (m_j + 2 d_j) + w y_j,   w = 1/8                                      (4)

The losses are standardised. The hyperparameters maximise the posterior density. The lowest of many
noisy losses owes a part of its value to chance; the posterior mean m of f at the points corrects
it. With few points the lowest mean is often a guess, and the model smooths too much: the score
counts the posterior deviation d of f as a loss, and a part w of what the model leaves unexplained
as real.
Source: (2) Matern, nu = 5/2; (3) Hvarfner, Hellsten and Nardi 2024, arXiv:2402.02229, eq. (8) for
the lengths; noise and scale chosen: the losses have unit variance, of which a tenth is often noise;
(4) chosen by `make bench-budget` (docs/results.md, Small budgets).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from synaptune.search.space.space import UnitPoint

MIN_POINTS = 8  # fewer points have no model; chosen: the first points of a search
_MAX_POINTS = 400  # the cost grows with the cube; chosen: a fit of some seconds
# Largest loss above the median, as a multiple of the distance from the median to the best: a run
# that diverged would flatten the rest.
_MAX_RATIO = 3.0
_DEVIATIONS, _SHARE = 2.0, 0.125  # of eq. (4)


class Posterior(NamedTuple):
    """The model of eq. (1) at the points of a search, in the order of the points.

    Attributes:
        mean: posterior mean of f, in the unit of the losses.
        deviation: posterior standard deviation of f.
        noise: standard deviation of the noise.
        scores: eq. (4); the lowest is that of the best point.
    """

    mean: NDArray[Any]
    deviation: NDArray[Any]
    noise: float
    scores: NDArray[Any]


def fit_posterior(units: Sequence[UnitPoint], losses: Sequence[float]) -> Posterior | None:
    """Fit eqs. (1) to (3) to the losses of points; None for fewer than MIN_POINTS points."""
    if len(losses) < MIN_POINTS:
        return None
    points, values = np.array(units), np.array(losses, dtype=float)
    middle, lowest = np.median(values), values.min()
    clipped = np.minimum(values, middle + _MAX_RATIO * max(middle - lowest, 1e-12))
    centre, scale = clipped.mean(), max(clipped.std(), 1e-12)
    kept = np.sort(np.argsort(clipped, kind="stable")[:_MAX_POINTS])
    model = _fit_model(points[kept], (clipped[kept] - centre) / scale)
    noise = math.sqrt(model.kernel_.k2.noise_level)
    model.kernel_.k2.noise_level = 1e-10  # predictions of f, not of y
    mean, deviation = model.predict(points, return_std=True)
    mean, deviation = centre + scale * mean, scale * deviation
    scores = (1.0 - _SHARE) * (mean + _DEVIATIONS * deviation) + _SHARE * values
    return Posterior(mean, deviation, scale * noise, scores)


class Recommendation(NamedTuple):
    """The point of the lowest score among the evaluated ones.

    Attributes:
        index: of the point.
        mean: posterior mean of its loss; the observed loss where there is no model.
        deviation: posterior standard deviation; None where there is no model.
        noise: standard deviation of the noise; None where there is no model.
    """

    index: int
    mean: float
    deviation: float | None = None
    noise: float | None = None


def recommend(units: Sequence[UnitPoint], losses: Sequence[float]) -> Recommendation:
    """Recommend one of the points; with fewer than MIN_POINTS of them the lowest loss decides."""
    posterior = fit_posterior(units, losses)
    if posterior is None:
        index = int(np.argmin(losses))
        return Recommendation(index, losses[index])
    index = int(np.argmin(posterior.scores))
    return Recommendation(
        index, float(posterior.mean[index]), float(posterior.deviation[index]), posterior.noise
    )


def _fit_model(points: NDArray[Any], values: NDArray[Any]) -> Any:
    from scipy.optimize import minimize
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

    size = points.shape[1]
    lengths: Any = np.full(size, math.sqrt(2.0) + math.log(size) / 2.0)
    centres = np.concatenate([[0.0], lengths, [-2.0]])  # eq. (3), in the order of the kernel
    variances = np.concatenate([[1.0], np.full(size, 3.0), [1.0]])

    def maximise_posterior(likelihood: Any, start: Any, bounds: Any) -> tuple[Any, float]:
        def lose(theta: Any) -> tuple[float, Any]:
            value, gradient = likelihood(theta)
            distance = theta - centres
            return value + float(distance @ (distance / variances)) / 2.0, (
                gradient + distance / variances
            )

        starts = [start, np.concatenate([[0.0], np.full(size, math.log(0.5)), [-2.0]])]
        fits = [minimize(lose, x, jac=True, method="L-BFGS-B", bounds=bounds) for x in starts]
        best = min(fits, key=lambda fit: fit.fun)
        return best.x, float(best.fun)

    kernel = ConstantKernel(1.0, (1e-2, 1e2)) * Matern(
        np.exp(lengths), (1e-2, 1e3), nu=2.5
    ) + WhiteKernel(math.exp(-2.0), (1e-6, 1e1))
    optimizer: Any = maximise_posterior
    model = GaussianProcessRegressor(kernel, optimizer=optimizer)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # lengths of parameters without effect reach their bound
        return model.fit(points, values)
