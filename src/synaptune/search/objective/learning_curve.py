"""The end of a learning curve from its beginning: a power law with its own error estimate.

    loss           L(t) = a + b t^-c,   a, b >= 0,   C_LOW <= c <= C_HIGH               (1)
    for a given c  (a, b) = least squares of (1), which is linear in them                (2)
    exponent       c = argmin of the residual sum of squares R(c) under (2)              (3)
    covariance     V = s^2 (J^T J)^-1,  s^2 = R / (n - p)                                (4)
    prediction     L(t*) +- t(n - p) sqrt(s^2 + j(t*)^T V j(t*))                         (5)

t step, n points, J the Jacobian of (1) by its p parameters that lie within their bounds, j its row at the target.
The law falls monotonically and never below a >= 0, whatever the points do.
Source: (1) Cortes et al. 1993 for learning curves, with the bounds of a loss; (2), (3) variable projection, Golub and Pereyra
1973: it needs no starting values, and the search over c alone cannot miss a minimum by more than a cell of its grid;
(4), (5) the delta method, with Student's t for the few points there are.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from synaptune.core.parameters import constant

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Points = NDArray[np.float64]

LEAST_POINTS = 4  # points that a fit needs [point]; derived: three parameters + 1
EXPONENT_LOW = constant(
    "curve.exponent_low",
    0.05,
    meaning="least exponent of eq. (1)",
    source="chosen: below it eq. (1) is a logarithm",
)
EXPONENT_HIGH = constant(
    "curve.exponent_high",
    4.0,
    meaning="largest exponent of eq. (1)",
    source="chosen: above it only the first point is not flat",
)
_GRID_SIZE = 48
_TOLERANCE = 1e-9
_LARGEST_EXPONENT = 700.0  # exp overflows a float above 709


class Prediction(NamedTuple):
    """A loss to come [nats/token]: mean, its standard error, and the degrees of freedom of the estimate."""

    mean: float
    standard_error: float
    degrees_of_freedom: int

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Bounds that hold the loss with a probability, eq. (5)."""
        from scipy.stats import t

        half = float(t.ppf(0.5 + level / 2.0, self.degrees_of_freedom)) * self.standard_error
        return self.mean - half, self.mean + half


class PowerLaw(NamedTuple):
    """A power law in units of the last step: loss = a + b (t / last)^-c; residual: sum of squares; free: indices of the
    parameters within their bounds; normal: (J^T J)^-1 of those."""

    a: float
    b: float
    c: float
    last: float
    residual: float
    count: int
    free: tuple[int, ...]
    normal: Points

    def predict(self, step: float) -> Prediction:
        """The loss at a step, eq. (5)."""
        power = (step / self.last) ** -self.c
        mean = self.a + self.b * power
        freedom = self.count - len(self.free)
        scatter = self.residual / freedom
        slope = _jacobian([step / self.last], self.b, self.c)[0][list(self.free)]
        variance = scatter * (1.0 + float(slope @ self.normal @ slope))
        return Prediction(mean, math.sqrt(max(variance, 0.0)), freedom)


class PredictionErrors(NamedTuple):
    """Predictions against what came [nats/token]: mean error (positive: too high), root of the mean square, the part of it that
    is no common offset; coverage of the 95 % intervals, null without any; Spearman's rank correlation."""

    mean: float
    rmse: float
    spread: float
    coverage: float | None
    rank_correlation: float


def extrapolate(points: Sequence[tuple[float, float]], target: float) -> Prediction | None:
    """The loss at step `target` from (step, loss) points; null where `fit` finds no law."""
    law = fit_power_law(points)
    return None if law is None else law.predict(target)


def extrapolate_result(
    metrics: Mapping[str, float], curve: Sequence[Sequence[float]], steps: int
) -> dict[str, float]:
    """The metrics of a run that was pruned, with the validation loss and perplexity that its curve of [step, loss] was heading
    for at its last step; without both when the curve is too short to tell, never with those of the step it stopped at.

    The loss measured last is kept as `pruned_val_loss`, the standard error as `val_loss_standard_error` [nats/token].
    """
    kept = {
        name: value for name, value in metrics.items() if name not in ("val_loss", "val_perplexity")
    }
    kept["pruned_val_loss"] = metrics["val_loss"]
    end = extrapolate([(step, loss) for step, loss in curve], steps)
    if end is None:
        return kept
    perplexity = math.exp(min(end.mean, _LARGEST_EXPONENT))
    return kept | {
        "val_loss": end.mean,
        "val_perplexity": perplexity,
        "val_loss_standard_error": end.standard_error,
    }


def fit_power_law(points: Sequence[tuple[float, float]]) -> PowerLaw | None:
    """The power law of (step, loss) points, eqs. (2) and (3); null below LEAST_POINTS points, and for losses below 0, which
    eq. (1) does not know.

    Raises ValueError for steps that are not positive or repeated, or losses that are no numbers.
    """
    import numpy as np
    from scipy.optimize import fminbound

    ordered = sorted(points)
    steps, losses = (
        np.array([step for step, _ in ordered], float),
        np.array([loss for _, loss in ordered], float),
    )
    if len(steps) < LEAST_POINTS or losses.min() < 0.0:
        return None
    if steps[0] <= 0 or (np.diff(steps) <= 0).any() or not np.isfinite(losses).all():
        raise ValueError(
            f"got points {ordered}: expected positive steps, each once, with finite losses"
        )
    times = steps / steps[-1]
    grid = np.geomspace(EXPONENT_LOW, EXPONENT_HIGH, _GRID_SIZE)
    costs = [_fit_linear(times, losses, c)[2] for c in grid]
    best = int(np.argmin(costs))
    around = grid[max(best - 1, 0)], grid[min(best + 1, _GRID_SIZE - 1)]
    inside = float(fminbound(lambda c: _fit_linear(times, losses, c)[2], *around))  # type: ignore[arg-type]
    c = min(inside, float(grid[best]), key=lambda c: _fit_linear(times, losses, c)[2])
    a, b, residual = _fit_linear(times, losses, c)
    within = (
        a > 0.0,
        b > 0.0,
        b > 0.0 and EXPONENT_LOW * (1 + 1e-4) < c < EXPONENT_HIGH * (1 - 1e-4),
    )
    free = tuple(index for index, inside in enumerate(within) if inside) or (0,)
    jacobian = _jacobian(times, b, c)[:, list(free)]
    return PowerLaw(
        a,
        b,
        c,
        float(steps[-1]),
        residual,
        len(steps),
        free,
        np.asarray(np.linalg.pinv(jacobian.T @ jacobian), float),
    )


def _fit_linear(times: Points, losses: Points, c: float) -> tuple[float, float, float]:
    """a, b and the residual sum of squares for an exponent, eq. (2), by the four faces of a, b >= 0."""
    import numpy as np

    powers = times**-c
    deviation = powers - powers.mean()
    b = float(deviation @ losses) / float(deviation @ deviation)
    a = float(losses.mean() - b * powers.mean())
    if b < 0.0:
        a, b = max(0.0, float(losses.mean())), 0.0
    elif a < 0.0:
        a, b = 0.0, max(0.0, float(powers @ losses) / float(powers @ powers))
    return a, b, float(np.square(losses - a - b * powers).sum())


def _jacobian(times: Sequence[float] | Points, b: float, c: float) -> Points:
    """(point, parameter): the slopes of eq. (1) by a, b, c."""
    import numpy as np

    moments = np.asarray(times, float)
    powers = moments**-c
    return np.stack([np.ones_like(powers), powers, -b * powers * np.log(moments)], axis=1)


def measure_errors(
    predictions: Sequence[Prediction | float], losses: Sequence[float]
) -> PredictionErrors:
    """How good predictions were, judged against the losses that came, paired by position.

    Raises ValueError for unequal lengths or fewer than three pairs.
    """
    if len(predictions) != len(losses) or len(losses) < 3:
        raise ValueError(
            f"got {len(predictions)} predictions of {len(losses)} losses: expected equally many, at least 3"
        )
    means = [entry.mean if isinstance(entry, Prediction) else entry for entry in predictions]
    off = [mean - loss for mean, loss in zip(means, losses, strict=True)]
    bounds = [entry.interval() if isinstance(entry, Prediction) else None for entry in predictions]
    inside = [
        low - _TOLERANCE <= loss <= high + _TOLERANCE
        for loss, (low, high) in ((x, y) for x, y in zip(losses, bounds, strict=True) if y)
    ]
    return PredictionErrors(
        mean=statistics.fmean(off),
        rmse=math.sqrt(statistics.fmean(value * value for value in off)),
        spread=statistics.pstdev(off),
        coverage=statistics.fmean(inside) if inside else None,
        rank_correlation=rank_correlation(means, losses),
    )


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's rank correlation of paired values; no number when one side is constant."""
    from scipy.stats import spearmanr

    return float(spearmanr(first, second).statistic)  # type: ignore[attr-defined]
