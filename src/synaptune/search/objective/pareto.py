"""Several objectives at once: the Pareto front, the hypervolume it dominates, and one number for engines that need one.

    dominates     p < q  when p_i <= q_i for every i, and p_i < q_i for some i                    (1)
    hypervolume   volume of the points that some point of the front dominates, up to r           (2)
    achievement   max_i w_i x_i + RHO sum_i w_i x_i                                               (3)

Costs: smaller is better on every axis. In (3) x_i are the changes from the baseline (measures.py), so the baseline is the
point that is aspired to: 0 there, below 0 for what improves on every axis. The least of (3) is Pareto-optimal for any
positive weights, and it depends on no other trial: scores of any two trials of a study can be compared, which a share of the
hypervolume (it changes with every trial) does not allow.
Source: (2) Zitzler and Thiele 1998; (3) Wierzbicki 1980, the achievement scalarising
function, augmented as in Knowles 2006 (ParEGO), eq. 2. The volume is Nevergrad's (Fonseca, Paquete and Lopez-Ibanez 2006).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from synaptune.core.parameters import constant

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray

RHO = constant(
    "pareto.rho", 0.05, meaning="weight of the sum in eq. (3)", source="Knowles 2006, section III.A"
)
HYPERVOLUME_REFERENCE = constant(
    "pareto.worst",
    1.0,
    meaning="change from the baseline at which the hypervolume ends, on every axis",
    source="chosen: twice the perplexity, no recall, no speed; the baseline alone dominates a volume of 1",
)


def pareto_front(costs: ArrayLike) -> NDArray[np.bool_]:
    """Mask (point,) of the points that no other dominates, eq. (1); costs (point, axis). Equal points stay together."""

    import numpy as np

    points = _check_costs(costs)
    no_worse = (points[:, None] <= points[None, :]).all(-1)  # [i, j]: i is nowhere worse than j
    better = (points[:, None] < points[None, :]).any(-1)
    return np.logical_not((no_worse & better).any(axis=0), dtype=bool)


def hypervolume(costs: ArrayLike, reference: Sequence[float] | None = None) -> float:
    """Eq. (2) for costs (point, axis); reference: where it ends, null is WORST on every axis. Points beyond it count nothing."""
    import numpy as np
    from nevergrad.optimization.multiobjective import HypervolumeIndicator

    points = _check_costs(costs)
    end = (
        np.full(points.shape[1], HYPERVOLUME_REFERENCE)
        if reference is None
        else np.asarray(reference, float)
    )
    inside = points[(points < end).all(1)]
    if not len(inside):
        return 0.0
    front = np.unique(inside[pareto_front(inside)], axis=0)
    return float(HypervolumeIndicator(end).compute(front))


def achievement(changes: Sequence[float], weights: Sequence[float]) -> float:
    """Eq. (3)."""
    weighted = [weight * change for weight, change in zip(weights, changes, strict=True)]
    return max(weighted) + RHO * sum(weighted)


def _check_costs(costs: ArrayLike) -> NDArray[np.float64]:
    import numpy as np

    points = np.asarray(costs, float)
    if points.ndim != 2 or not np.isfinite(points).all():
        raise ValueError(
            f"got costs of shape {points.shape}: expected (point, axis), all finite; leave failed trials out"
        )
    return points
