"""Diagnostics of a search distribution after a generation, and warnings about its health.

    covariance[i, j] = s[i] C[i, j] s[j],  s = step size x coordinate scale, C adapted matrix   (1)
    condition        = largest / smallest eigenvalue of the covariance                          (2)
    eigenvalue ratio = largest / smallest eigenvalue of the correlation matrix                  (3)

All values are in coordinates of the unit box. (2) depends on the scales of the parameters and on
their correlation, (3) on the correlation only. Both together show which of the two is the cause.
Source: (1) Hansen 2016, arXiv:1604.00772, eq. (5); (3) chosen: it is not implied by (2).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

# Largest healthy value of eq. (2); chosen: a step a thousand times its neighbour's.
CONDITION_LIMIT = 1e6
# Largest healthy value of eq. (3); chosen: two parameters correlated beyond 0.998.
RATIO_LIMIT = 1e3
# Longest healthy time without a new best loss [generation]; chosen: a short search is no longer.
STAGNATION_LIMIT = 30


@dataclass(frozen=True)
class Diagnostics:
    """A search distribution over n named parameters, in unit coordinates.

    Attributes:
        generation: number of generations learned.
        mean: centre by name.
        step: overall step size.
        sigma: standard deviation by name.
        covariance: rows of the (n, n) covariance.
        correlation: rows of the (n, n) correlation matrix.
        eigenvalues: eigenvalues of the covariance, ascending.
        condition: eq. (2).
        eigenvalue_ratio: eq. (3).
        stagnation: generations since the best loss last improved.
    """

    generation: int
    mean: dict[str, float]
    step: float
    sigma: dict[str, float]
    covariance: tuple[tuple[float, ...], ...]
    correlation: tuple[tuple[float, ...], ...]
    eigenvalues: tuple[float, ...]
    condition: float
    eigenvalue_ratio: float
    stagnation: int

    def to_scalars(self) -> dict[str, float]:
        """Return the numbers that a logger plots, by name."""
        return {
            "generation": float(self.generation),
            "step": self.step,
            "condition": self.condition,
            "eigenvalue_ratio": self.eigenvalue_ratio,
            "stagnation": float(self.stagnation),
            **{f"mean/{name}": value for name, value in self.mean.items()},
            **{f"sigma/{name}": value for name, value in self.sigma.items()},
        }


def diagnose(
    *,
    generation: int,
    names: tuple[str, ...],
    mean: Any,
    step: float,
    covariance: Any,
    stagnation: int,
) -> Diagnostics:
    """Compute the diagnostics of a distribution, eqs. (2) and (3).

    Args:
        generation: number of generations learned.
        names: names of the n parameters.
        mean: mean of shape (n,).
        step: overall step size.
        covariance: covariance of shape (n, n).
        stagnation: generations since the best loss last improved.
    """
    import numpy as np

    deviation = np.sqrt(np.diag(covariance))
    correlation = covariance / np.outer(deviation, deviation)
    eigenvalues = np.linalg.eigvalsh(covariance)
    correlation_eigenvalues = np.linalg.eigvalsh(correlation)
    return Diagnostics(
        generation=generation,
        mean=dict(zip(names, mean.tolist(), strict=True)),
        step=step,
        sigma=dict(zip(names, deviation.tolist(), strict=True)),
        covariance=_to_rows(covariance),
        correlation=_to_rows(correlation),
        eigenvalues=tuple(eigenvalues.tolist()),
        condition=_ratio(eigenvalues),
        eigenvalue_ratio=_ratio(correlation_eigenvalues),
        stagnation=stagnation,
    )


def find_health_warnings(diagnostics: Diagnostics) -> list[str]:
    """Return the faults of a search distribution, one line each; empty if there are none."""
    faults = []
    if diagnostics.condition >= CONDITION_LIMIT:
        faults.append(
            f"condition number {diagnostics.condition:.3g} of the covariance "
            f"(limit {CONDITION_LIMIT:g}): some parameter has hardly any effect, or far more than "
            "the others; narrow or widen its range, or use a log scale"
        )
    if diagnostics.eigenvalue_ratio >= RATIO_LIMIT:
        faults.append(
            f"eigenvalue ratio {diagnostics.eigenvalue_ratio:.3g} of the correlation matrix "
            f"(limit {RATIO_LIMIT:g}): some parameters are almost fully correlated; "
            "search one of them"
        )
    if diagnostics.stagnation >= STAGNATION_LIMIT:
        faults.append(
            f"no better loss for {diagnostics.stagnation} generations "
            f"(limit {STAGNATION_LIMIT}): the search has converged, or noise dominates; stop, "
            "restart elsewhere, or average over seeds"
        )
    return faults


def _ratio(eigenvalues: Any) -> float:
    """Return largest over smallest of ascending eigenvalues; inf if the smallest is not positive.

    Rounding can make the smallest eigenvalue zero or negative.
    """
    return float(eigenvalues[-1] / eigenvalues[0]) if eigenvalues[0] > 0.0 else float("inf")


def _to_rows(matrix: Any) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(row) for row in matrix.tolist())
