"""Extrapolation of a learning curve: a power law with an error estimate.

    loss           L(t) = a + b t^-c,   a, b >= 0,   EXPONENT_LOW <= c <= EXPONENT_HIGH    (1)
    for a given c  (a, b) = least squares of (1), which is linear in a and b               (2)
    exponent       c = argmin of the residual sum of squares R(c) under (2)                (3)
    covariance     V = s^2 (J^T J)^-1,  s^2 = R / (n - p)                                  (4)
    prediction     L(t*) +- t(n - p) sqrt(s^2 + j(t*)^T V j(t*))                           (5)

t is the step, n the number of points, J the Jacobian of (1) with respect to the p parameters that
lie within their bounds, and j its row at the target. For any points the law decreases monotonically
and does not fall below a >= 0.
Source: (1) Cortes et al. 1993 for learning curves, with the bounds of a loss. (2), (3) variable
projection, Golub and Pereyra 1973: it needs no initial values, and the search over c alone misses a
minimum by at most one cell of its grid. (4), (5) the delta method, with Student's t because the
points are few.
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
    """Predicted loss.

    Attributes:
        mean: mean of the prediction [nats/token].
        standard_error: standard error of the prediction [nats/token].
        degrees_of_freedom: degrees of freedom of the estimate.
    """

    mean: float
    standard_error: float
    degrees_of_freedom: int

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Return the bounds that contain the loss with probability `level`, eq. (5)."""
        from scipy.stats import t

        half = float(t.ppf(0.5 + level / 2.0, self.degrees_of_freedom)) * self.standard_error
        return self.mean - half, self.mean + half


class PowerLaw(NamedTuple):
    """Fitted power law in units of the last step: loss = a + b (t / last)^-c.

    Attributes:
        a: asymptotic loss [nats/token].
        b: decaying part of the loss at the last step [nats/token].
        c: exponent.
        last: last step of the points.
        residual: residual sum of squares.
        count: number of points.
        free: indices of the parameters that lie within their bounds.
        normal: (J^T J)^-1 of the free parameters.
    """

    a: float
    b: float
    c: float
    last: float
    residual: float
    count: int
    free: tuple[int, ...]
    normal: Points

    def predict(self, step: float) -> Prediction:
        """Predict the loss at a step, eq. (5)."""
        power = (step / self.last) ** -self.c
        mean = self.a + self.b * power
        freedom = self.count - len(self.free)
        scatter = self.residual / freedom
        slope = _jacobian([step / self.last], self.b, self.c)[0][list(self.free)]
        variance = scatter * (1.0 + float(slope @ self.normal @ slope))
        return Prediction(mean, math.sqrt(max(variance, 0.0)), freedom)


class PredictionErrors(NamedTuple):
    """Errors of predictions, compared with the measured losses.

    Attributes:
        mean: mean error; positive means that the predictions are too high [nats/token].
        rmse: root mean square error [nats/token].
        spread: standard deviation of the errors, the part of `rmse` that is not a common offset
            [nats/token].
        coverage: fraction of the losses within their 95 % intervals; None without intervals.
        rank_correlation: Spearman's rank correlation of predictions and losses.
    """

    mean: float
    rmse: float
    spread: float
    coverage: float | None
    rank_correlation: float


def extrapolate(points: Sequence[tuple[float, float]], target: float) -> Prediction | None:
    """Predict the loss at step `target` from (step, loss) points.

    Returns:
        The prediction; None if `fit_power_law` finds no law.
    """
    law = fit_power_law(points)
    return None if law is None else law.predict(target)


def extrapolate_result(
    metrics: Mapping[str, float], curve: Sequence[Sequence[float]], steps: int
) -> dict[str, float]:
    """Replace the validation loss and perplexity of a pruned run by their extrapolation.

    The loss measured last is returned as `pruned_val_loss`, the standard error of the extrapolation
    as `val_loss_standard_error` [nats/token]. `val_loss` and `val_perplexity` are never those of
    the step at which the run stopped. They are absent if the curve is too short for a prediction.

    Args:
        metrics: metrics of the pruned run by name.
        curve: pairs of step and validation loss [nats/token].
        steps: last step of a full run.

    Returns:
        The metrics by name.
    """
    result = {
        name: value for name, value in metrics.items() if name not in ("val_loss", "val_perplexity")
    }
    result["pruned_val_loss"] = metrics["val_loss"]
    prediction = extrapolate([(step, loss) for step, loss in curve], steps)
    if prediction is None:
        return result
    perplexity = math.exp(min(prediction.mean, _LARGEST_EXPONENT))
    return result | {
        "val_loss": prediction.mean,
        "val_perplexity": perplexity,
        "val_loss_standard_error": prediction.standard_error,
    }


def fit_power_law(points: Sequence[tuple[float, float]]) -> PowerLaw | None:
    """Fit a power law to (step, loss) points, eqs. (2) and (3).

    Returns:
        The law; None for fewer than LEAST_POINTS points, and for losses below 0, which eq. (1)
        cannot describe.

    Raises:
        ValueError: a step is not positive or occurs twice, or a loss is not finite.
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
            f"got points {ordered}: expected positive, distinct steps with finite losses"
        )
    times = steps / steps[-1]
    grid = np.geomspace(EXPONENT_LOW, EXPONENT_HIGH, _GRID_SIZE)
    costs = [_fit_linear(times, losses, c)[2] for c in grid]
    best = int(np.argmin(costs))
    bounds = grid[max(best - 1, 0)], grid[min(best + 1, _GRID_SIZE - 1)]
    minimum = float(fminbound(lambda c: _fit_linear(times, losses, c)[2], *bounds))  # type: ignore[arg-type]
    c = min(minimum, float(grid[best]), key=lambda c: _fit_linear(times, losses, c)[2])
    a, b, residual = _fit_linear(times, losses, c)
    is_free = (
        a > 0.0,
        b > 0.0,
        b > 0.0 and EXPONENT_LOW * (1 + 1e-4) < c < EXPONENT_HIGH * (1 - 1e-4),
    )
    free = tuple(index for index, flag in enumerate(is_free) if flag) or (0,)
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
    """Return a, b and the residual sum of squares for an exponent, eq. (2), with a, b >= 0."""
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
    """Return the derivatives of eq. (1) with respect to a, b, c, of shape (point, parameter)."""
    import numpy as np

    moments = np.asarray(times, float)
    powers = moments**-c
    return np.stack([np.ones_like(powers), powers, -b * powers * np.log(moments)], axis=1)


def measure_errors(
    predictions: Sequence[Prediction | float], losses: Sequence[float]
) -> PredictionErrors:
    """Compare predictions with the measured losses, paired by position.

    Raises:
        ValueError: the lengths differ, or there are fewer than three pairs.
    """
    if len(predictions) != len(losses) or len(losses) < 3:
        raise ValueError(
            f"got {len(predictions)} predictions of {len(losses)} losses: "
            "expected equally many, at least 3"
        )
    means = [entry.mean if isinstance(entry, Prediction) else entry for entry in predictions]
    errors = [mean - loss for mean, loss in zip(means, losses, strict=True)]
    intervals = [
        entry.interval() if isinstance(entry, Prediction) else None for entry in predictions
    ]
    hits = [
        interval[0] - _TOLERANCE <= loss <= interval[1] + _TOLERANCE
        for loss, interval in zip(losses, intervals, strict=True)
        if interval is not None
    ]
    return PredictionErrors(
        mean=statistics.fmean(errors),
        rmse=math.sqrt(statistics.fmean(error * error for error in errors)),
        spread=statistics.pstdev(errors),
        coverage=statistics.fmean(hits) if hits else None,
        rank_correlation=rank_correlation(means, losses),
    )


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Return Spearman's rank correlation of paired values; nan if one side is constant."""
    from scipy.stats import spearmanr

    return float(spearmanr(first, second).statistic)  # type: ignore[attr-defined]
