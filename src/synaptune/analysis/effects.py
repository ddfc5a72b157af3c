"""Test whether the loss depends on a parameter, from the trials of an adaptive search.

A search moves all its parameters at once while the loss improves. A correlation with the loss over
all trials is therefore no evidence: an idle parameter that drifts during the improvement has one
too. The distribution of each point is known, however (replay.py), and another draw of an idle
parameter would have changed nothing. For parameter j and a generation k of points i:

    g~_ij ~ N(m_j|-j, s2_j|-j)             coordinate drawn again, given the point's others     (1)
    phi_ij = f(x_i) - E f(x_i with g~_ij)  prediction of a model f of the earlier generations   (2)
                                           for the actual draw, less its expectation
    T_kj = sum_i r_ij phi_ij               r: ranks of the losses of the generation (normal     (3)
                                           scores), less their regression on E f
    z_j = sum_k w_k T_kj / sqrt(sum_k w_k^2 sum_i r_ij^2 Var phi_ij)                            (4)
    w_k = mean correlation of f's predictions with the ranks over the generations before k,     (5)
          weighted towards the latest; zero below a minimum

If j has no effect, each T_kj has mean zero for every f and every history of the search. The reason
is that r and the other coordinates carry no information about which g_ij was drawn, and that w
depends on earlier generations only. The sums are then a martingale, and z is standard normal for
many generations. If j has an effect that f has learned, z is positive. The weights w prevent the
noise at the end of a long search from hiding the evidence of its beginning. f is a quadratic ridge
regression in the coordinates of the search, fitted to the earlier generations with more weight on
the latest. phi is in units of the spread that f predicts within the generation.
Source: (1) to (3) the conditional randomisation test, Candes et al. 2018, arXiv:1610.02351, section
4; (4) derived: by conditioning on the earlier generations. tests/analysis measures the rate of
false positives.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from synaptune.analysis.replay import Replay, SampleBatch
from synaptune.analysis.results import Effect
from synaptune.core.parameters import constant

if TYPE_CHECKING:
    from numpy.typing import NDArray

ALPHA = 0.05  # adjusted p below which an effect is found [probability]; chosen: the usual 5 %
_DRAWS = 48  # draws behind each expectation of eq. (2) [draw]; chosen: 1 % more variance
_MEMORY = constant(
    "effects.memory",
    6.0,
    unit="generation",
    meaning="age at which a generation weighs 1/e in f",
    source="chosen: a search changes direction slowly",
)
_MAX_POINTS = 600  # f is fitted to the latest points, at most this many
_MAX_FOR_PRODUCTS = 12  # f includes products of parameters up to this number of parameters
_PENALTIES = tuple(10.0**power for power in range(-3, 4))
_FIRST_WEIGHT = constant(
    "effects.trust",
    0.5,
    meaning="w before the first prediction was compared",
    source="chosen: early generations count",
)
_WEIGHT_RATE = constant(
    "effects.turn",
    0.2,
    meaning="share of the latest correlation in w",
    source="chosen: five generations",
)
_MIN_WEIGHT = 0.1  # w below which a generation is left out; chosen: what noise gives
_MIN_COMPLETE = 3  # complete points that a generation needs to be ranked


def find_effects(replay: Replay, names: Sequence[str], *, seed: int = 0) -> list[Effect]:
    """Test the effect of each parameter.

    Args:
        replay: the generations of the search.
        names: names of the parameters, in the order of the coordinates.
        seed: seed of the draws of eq. (1).

    Returns:
        The effects in the order of the names; empty if fewer than two generations can be compared.
    """
    import numpy as np

    rng = np.random.default_rng(seed)
    sums, variances = np.zeros(len(names)), np.zeros(len(names))
    history: list[tuple[NDArray[Any], NDArray[Any], int]] = []
    weight = _FIRST_WEIGHT
    for number, batch in enumerate(replay.batches):
        losses = np.array(batch.losses, dtype=float)  # None becomes NaN
        complete = np.flatnonzero(np.isfinite(losses))
        losses = losses[complete]
        units = np.array([batch.trials[index].unit for index in complete])
        if (
            len(complete) >= _MIN_COMPLETE
            and len({*losses.tolist()}) > 1
            and sum(len(earlier) for _, earlier, _ in history) > 2 * _MIN_COMPLETE
        ):
            model = _fit_model(history, number, batch)
            if weight >= _MIN_WEIGHT:
                statistic, variance = _score_generation(batch, complete, units, losses, model, rng)
                sums += weight * statistic
                variances += weight**2 * variance
            weight += _WEIGHT_RATE * (_rank_correlation(model(units), losses) - weight)
        if len(complete):
            history.append((units, losses, number))
    if not np.any(variances > 0.0):
        return []
    from scipy.stats import norm

    from synaptune.analysis.compare import holm

    z = sums / np.sqrt(np.where(variances > 0.0, variances, np.inf))
    p = norm.sf(z).tolist()
    adjusted = holm(p)
    return [
        Effect(name, float(z[i]), p[i], adjusted[i], adjusted[i] < ALPHA)
        for i, name in enumerate(names)
    ]


def _score_generation(
    batch: SampleBatch,
    complete: NDArray[Any],
    units: NDArray[Any],
    losses: NDArray[Any],
    model: Callable[[NDArray[Any]], NDArray[Any]],
    rng: Any,
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Compute T and its variance for one generation by parameter, eqs. (1) to (3)."""
    import numpy as np

    points, size = units.shape
    redrawn = _redraw_coordinates(batch, complete, units, rng)  # (size, draws, points)
    predicted = model(units)
    expected, spread = np.empty((size, points)), np.empty((size, points))
    for j in range(size):
        points_with_draws = np.broadcast_to(units, (redrawn.shape[1], points, size)).copy()
        points_with_draws[:, :, j] = redrawn[j]
        values = model(points_with_draws.reshape(-1, size)).reshape(redrawn.shape[1], points)
        expected[j], spread[j] = values.mean(axis=0), values.var(axis=0, ddof=1)
    scale = math.sqrt(float(spread.sum(axis=0).mean()))
    if scale <= 0.0:
        return np.zeros(size), np.zeros(size)
    scores = _normal_scores(losses)
    statistic, variance = np.empty(size), np.empty(size)
    for j in range(size):
        residuals = _residual_scores(scores, expected[j])
        statistic[j] = float(residuals @ (predicted - expected[j])) / scale
        # The factor accounts for the expectation, which is itself a mean over the draws.
        variance[j] = float(residuals**2 @ spread[j]) * (1.0 + 1.0 / _DRAWS) / scale**2
    return statistic, variance


def _redraw_coordinates(
    batch: SampleBatch, complete: NDArray[Any], units: NDArray[Any], rng: Any
) -> NDArray[Any]:
    """Draw each coordinate of each point again, given its others, eq. (1).

    Returns:
        The draws, folded into the unit box: (parameter, draw, point).
    """
    import numpy as np

    from synaptune.search.optimizers.cma import fold

    points, size = units.shape
    if batch.mean is None or batch.covariance is None:
        return rng.random((size, _DRAWS, points))
    samples = batch.samples[complete]
    precision = np.linalg.inv(batch.covariance)
    deviations = samples - batch.mean
    scale = 1.0 / np.sqrt(np.diag(precision))
    # Gaussian conditionals from the precision matrix P: the mean is
    # mean_j - sum_{i != j} P_ji (x_i - mean_i) / P_jj and the variance 1 / P_jj.
    centre = samples - (deviations @ precision) / np.diag(precision)
    return fold(
        centre.T[:, None, :] + scale[:, None, None] * rng.standard_normal((size, _DRAWS, points))
    )


def _rank_correlation(predicted: NDArray[Any], losses: NDArray[Any]) -> float:
    """Correlate predictions with the ranks of the losses; zero if either is constant."""
    import numpy as np

    scores, deviations = _normal_scores(losses), predicted - predicted.mean()
    norm = float(np.sqrt((deviations @ deviations) * (scores @ scores)))
    return float(deviations @ scores) / norm if norm > 0.0 else 0.0


def _normal_scores(losses: NDArray[Any]) -> NDArray[Any]:
    from scipy.stats import norm, rankdata

    return norm.ppf((rankdata(losses) - 0.5) / len(losses))


def _residual_scores(scores: NDArray[Any], expected: NDArray[Any]) -> NDArray[Any]:
    """Subtract from the scores their mean and their regression on the expected predictions."""
    deviations = expected - expected.mean()
    residuals = scores - scores.mean()
    norm = float(deviations @ deviations)
    return (
        residuals - deviations * float(deviations @ residuals) / norm if norm > 0.0 else residuals
    )


def _fit_model(
    history: Sequence[tuple[NDArray[Any], NDArray[Any], int]], number: int, batch: SampleBatch
) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """Fit the model f to earlier generations: a ridge regression of rank scores.

    Its features are the coordinates, their squares and, for few parameters, their products. The
    penalty has the smallest leave-one-out error.

    Args:
        history: units, losses and number of each earlier generation.
        number: number of the current generation.
        batch: the current generation, which gives the centre and scale of the coordinates.

    Returns:
        A function from points (k, n) to their predicted scores (k,).
    """
    import numpy as np
    from sklearn.linear_model import RidgeCV
    from sklearn.preprocessing import StandardScaler

    units = np.concatenate([entry[0] for entry in history])[-_MAX_POINTS:]
    losses = np.concatenate([entry[1] for entry in history])[-_MAX_POINTS:]
    ages = np.concatenate([np.full(len(entry[1]), number - entry[2]) for entry in history])
    first, second = np.triu_indices(units.shape[1], 1)
    weights, centre, scale = np.ones(len(losses)), 0.5, math.sqrt(1.0 / 12.0)
    if batch.mean is not None and batch.covariance is not None:
        weights = np.exp(-ages[-_MAX_POINTS:] / _MEMORY)
        centre, scale = np.clip(batch.mean, 0.0, 1.0), np.sqrt(np.diag(batch.covariance))

    def make_features(points: NDArray[Any]) -> NDArray[Any]:
        # A quadratic does not extrapolate. Saturation lets points of earlier, wider generations
        # count by their direction.
        z = np.tanh((points - centre) / scale / 3.0) * 3.0
        products = [z[:, first] * z[:, second]] if z.shape[1] <= _MAX_FOR_PRODUCTS else []
        return np.concatenate([z, z**2, *products], axis=1)

    features = make_features(units)
    scaler = StandardScaler().fit(features, sample_weight=weights)
    ridge = RidgeCV(alphas=[penalty * len(losses) for penalty in _PENALTIES])
    ridge.fit(scaler.transform(features), _normal_scores(losses), sample_weight=weights)
    return lambda points: ridge.predict(scaler.transform(make_features(points)))
