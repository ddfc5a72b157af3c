"""Profile of the loss along each parameter, over the trials of a search.

    line(u)  local linear regression of the loss on u, weights exp(-(u - u_i)^2 / 2 h^2)     (1)
    band     line +- t s(u), s from the weighted residuals                                   (2)

The regression uses the later half of the trials, in which the other parameters are near their final
values. A profile is not the effect of the parameter alone (see effects.py and ablation.py for
that). It shows which values the search visited and how flat the loss is there.
Source: (1) Cleveland 1979, with a Gaussian kernel; (2) derived: the usual standard error of a
linear smoother.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from synaptune.analysis.results import Profile
from synaptune.core.parameters import constant
from synaptune.search.space.space import Space

if TYPE_CHECKING:
    from numpy.typing import NDArray

BANDWIDTH = constant(
    "profiles.width",
    0.8,
    unit="spread of the trials",
    meaning="h of eq. (1)",
    source="chosen: bends once or twice, and does not follow single trials",
)
_KNOTS = 41
_MIN_TRIALS = 8  # trials that a line needs
_TRIM = (
    0.98  # quantile of the losses above which trials are dropped: diverging runs distort the line
)


def fit_profiles(
    space: Space, units: Sequence[Sequence[float]], losses: Sequence[float | None]
) -> list[Profile]:
    """Fit the profile of every numeric parameter.

    Args:
        space: the searched parameters.
        units: unit coordinates of the trials in their order.
        losses: losses of the trials; None unless the trial is complete.
    """
    import numpy as np

    complete = [index for index, loss in enumerate(losses) if loss is not None]
    points = np.array([units[index] for index in complete]).reshape(len(complete), len(space.names))
    loss = np.array([losses[index] for index in complete], dtype=float)
    late = np.zeros(len(loss), dtype=bool)
    late[len(loss) // 2 :] = True
    if len(loss):
        late &= loss <= np.quantile(loss[late], _TRIM)
    profiles = []
    for index, dimension in enumerate(space.dimensions):
        if dimension.scale == "categorical":
            continue
        knots, line, half_width = _smooth(points[late, index], loss[late])
        profiles.append(
            Profile(
                dimension.name,
                dimension.scale == "log",
                [float(dimension.to_value(unit)) for unit in points[:, index]],
                loss.tolist(),
                # Not rounded for integers, since the line has no steps.
                [dimension.to_number(unit) for unit in knots],
                line.tolist(),
                (line - half_width).tolist(),
                (line + half_width).tolist(),
            )
        )
    return profiles


def _smooth(u: NDArray[Any], loss: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Compute knots, line and half width of the band, eqs. (1) and (2).

    The arrays are empty for too few trials, or if all coordinates are equal.
    """
    import numpy as np

    if len(u) < _MIN_TRIALS or float(np.ptp(u)) == 0.0:
        return np.empty(0), np.empty(0), np.empty(0)
    from scipy.stats import t

    low, high = np.quantile(u, [0.05, 0.95])
    knots, width = np.linspace(low, high, _KNOTS), max(1e-9, BANDWIDTH * float(u.std()))
    line, half_width = np.empty(_KNOTS), np.empty(_KNOTS)
    for index, knot in enumerate(knots):
        weight = np.exp(-0.5 * ((u - knot) / width) ** 2)
        design = np.stack([np.ones_like(u), u - knot], axis=1)
        moments = design.T @ (weight[:, None] * design)
        inverse = np.linalg.pinv(moments)
        smoother = inverse[0] @ (design * weight[:, None]).T
        line[index] = smoother @ loss
        slope = inverse[1] @ (design * weight[:, None]).T @ loss
        residual = loss - line[index] - slope * (u - knot)
        count = max(3.0, float(weight.sum() ** 2 / (weight**2).sum()))
        deviation = np.sqrt(
            float(weight @ residual**2) / float(weight.sum()) * count / (count - 2.0)
        )
        half_width[index] = (
            t.ppf(0.975, count - 2.0) * deviation * np.sqrt(float(smoother @ smoother))
        )
    return knots, line, half_width
