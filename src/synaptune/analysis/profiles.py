"""The loss along each parameter, as the search saw it.

    line(u)  local linear regression of the loss on the coordinate u, weights exp(-(u - u_i)^2 / 2 h^2)      (1)
    band     line +- t s(u), s from the weighted residuals                                                   (2)

over the later half of the trials, when the other parameters are near where they ended; it is no effect of the parameter alone
(effects.py and the ablation are for that), but shows where the search has looked and how flat it is there.
Source: (1) Cleveland 1979, with a Gaussian kernel; (2) derived: the usual standard error of a linear smoother.
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
    0.35,
    unit="spread of the trials",
    meaning="h of eq. (1)",
    source="chosen: a line that bends, not wriggles",
)
_KNOTS = 41
_MIN_TRIALS = 8  # trials that a line needs
_TRIM = 0.98  # of the losses: beyond it a diverging run would rule the line


def fit_profiles(
    space: Space, units: Sequence[Sequence[float]], losses: Sequence[float | None]
) -> list[Profile]:
    """The profile of every parameter that is a number; units, losses: of the trials of the search, in their order;
    a loss is null unless its trial is complete."""
    import numpy as np

    complete = [place for place, loss in enumerate(losses) if loss is not None]
    points = np.array([units[place] for place in complete]).reshape(len(complete), len(space.names))
    loss = np.array([losses[place] for place in complete], dtype=float)
    late = np.zeros(len(loss), dtype=bool)
    late[len(loss) // 2 :] = True
    if len(loss):
        late &= loss <= np.quantile(loss[late], _TRIM)
    found = []
    for place, dimension in enumerate(space.dimensions):
        if dimension.scale == "categorical":
            continue
        knots, line, half = _smooth(points[late, place], loss[late])
        found.append(
            Profile(
                dimension.name,
                dimension.scale == "log",
                [float(dimension.to_value(unit)) for unit in points[:, place]],
                loss.tolist(),
                [
                    dimension.to_number(unit) for unit in knots
                ],  # an integer between its values: a line has no steps
                line.tolist(),
                (line - half).tolist(),
                (line + half).tolist(),
            )
        )
    return found


def _smooth(u: NDArray[Any], loss: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Knots, line and half width of the band, eqs. (1) and (2); empty for too few trials or one value."""
    import numpy as np

    if len(u) < _MIN_TRIALS or float(np.ptp(u)) == 0.0:
        return np.empty(0), np.empty(0), np.empty(0)
    from scipy.stats import t

    low, high = np.quantile(u, [0.02, 0.98])
    knots, width = np.linspace(low, high, _KNOTS), max(1e-9, BANDWIDTH * float(u.std()))
    line, half = np.empty(_KNOTS), np.empty(_KNOTS)
    for place, knot in enumerate(knots):
        weight = np.exp(-0.5 * ((u - knot) / width) ** 2)
        design = np.stack([np.ones_like(u), u - knot], axis=1)
        moments = design.T @ (weight[:, None] * design)
        inverse = np.linalg.pinv(moments)
        smoother = inverse[0] @ (design * weight[:, None]).T
        line[place] = smoother @ loss
        slope = inverse[1] @ (design * weight[:, None]).T @ loss
        residual = loss - line[place] - slope * (u - knot)
        count = max(3.0, float(weight.sum() ** 2 / (weight**2).sum()))
        deviation = np.sqrt(
            float(weight @ residual**2) / float(weight.sum()) * count / (count - 2.0)
        )
        half[place] = t.ppf(0.975, count - 2.0) * deviation * np.sqrt(float(smoother @ smoother))
    return knots, line, half
